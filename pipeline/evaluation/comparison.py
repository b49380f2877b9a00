"""Comparison of several models by one protocol: the same databases, captions, styles, seeds and judges.

Reads what an evaluation reads. Writes, in the comparison's folder: judges/ (trained once, for all models), one folder for each
model with its whole evaluation, summary.json with the numbers of all, and index.html. The same call continues a killed
comparison. A model of another encoder uses the vectors of the database's companion (pipeline/catalog/vectors.py), or of
databases that `[[compare]]` names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.pictures import Run
from pipeline.evaluation.plan import SWAP
from pipeline.evaluation.records import Json, Measured, Score, Summary, by_value
from pipeline.evaluation.report import NAMES, charted, measures, number
from pipeline.evaluation.run import evaluate_in, folder_of, set_up
from pipeline.installation import version
from pipeline.pages import dots, html_table, picture_table, render
from pipeline.storage import Storage
from pipeline.training import decode_picture

if TYPE_CHECKING:
    from markupsafe import Markup

    from pipeline.execution import Backend, Progress
    from pipeline.generation import ModelRow

GRID_ROWS, SIDE = 6, 128  # captions, and pixels of a picture in the page


@dataclass(frozen=True)
class Comparison:
    """The summaries of the models, by name, in the protocol's order."""

    models: Mapping[str, Summary]

    def to_json(self) -> dict[str, Json]:
        """summary.json of the comparison."""
        return {"models": {name: summary.to_json() for name, summary in self.models.items()}}

    def text(self, folder: Path) -> str:
        """The text to print: a line for each model's swap and swap against postfix, and the path of the report."""
        lines = []
        for name, summary in self.models.items():
            swap = summary.swap.all
            found = f"style {number(swap.style_hit)}, content found {number(swap.found)}" if swap else "no pictures"
            lines.append(f"{name}: swap {found}")
            for level, one in summary.postfix.items():
                apart = one.swap_minus["postfix"]
                lines.append(
                    f"  minus postfix, {level}: style {number(apart.style_hit)}, content {number(apart.found)}"
                )
        return "\n".join([*lines, f"look at {folder / 'index.html'}"])


def compare(
    config: EvaluateConfig, progress: Progress, backend: Backend, *, home: str | None = None, out: str = "",
    device: str = "auto", threads: int = 1, wait_s: float = 0.0,
) -> tuple[Path, Comparison]:  # fmt: skip
    """Evaluate every model of `config.compare`, or continue. Returns the folder and the comparison. Raises RdmpipeError."""
    from pipeline.generation import outline_model
    from pipeline.storage import lease

    if len(config.compare) < 2:
        raise ConfigError("a comparison needs two models or more: --models NAME,NAME, or [[compare]] in the protocol")
    folder = folder_of(config, home, out)
    set_up(threads)
    storage = Storage(str(folder))
    with lease(storage, f"compare on {config.database}", wait_s, notify=progress.say):
        made: dict[str, Summary] = {}
        rows: dict[str, list[Score]] = {}
        for name, own in _folders(config).items():
            progress.say(f"model {name}")
            one = config.of(next(entry for entry in config.compare if entry.model == name))
            run = Run(one, folder / own, home, progress, backend, device, folder / "judges")
            made[name], rows[name] = evaluate_in(run)
        comparison = Comparison(made)
        storage.write_text("summary.json", json.dumps(comparison.to_json(), indent=1, ensure_ascii=False) + "\n")
        models = {name: outline_model(name, home) for name in made}
        storage.write_text("index.html", _page(comparison, rows, folder, _folders(config), models))
    return folder, comparison


def _folders(config: EvaluateConfig) -> dict[str, str]:
    """Each model's folder below the comparison's: its name, or the last part of its path."""
    found: dict[str, str] = {}
    for one in config.compare:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", one.model.rstrip("/").rsplit("/", 1)[-1]) or "model"
        found[one.model] = plain if plain not in found.values() and plain != "judges" else f"{plain}-{len(found)}"
    return found


# ---- the page (assets/templates/comparison.html)


def _page(
    comparison: Comparison,
    rows: Mapping[str, Sequence[Score]],
    folder: Path,
    folders: Mapping[str, str],
    models: Mapping[str, ModelRow],
) -> str:
    """The page. Models have their folders' names, because a model may be given by a long path."""
    found = {folders[name]: summary for name, summary in comparison.models.items()}
    first = next(iter(found.values()))
    swaps = {name: summary.swap.all for name, summary in found.items()}
    unseen = {name: summary.swap.styles_never_seen for name, summary in found.items()}
    ceiling = "the same, through the model's first stage"
    captions, grid = _grid({folders[name]: some for name, some in rows.items()}, folder)
    return render(
        "comparison.html",
        title=f"{len(found)} models on {first.setup.config.database}: swapping the database",
        version=version(),
        captions=len(first.setup.test_captions),
        styles=len(first.setup.styles),
        models=list(found),
        chart=dots({name: charted(one) for name, one in swaps.items() if one is not None}, "share of the pictures"),
        swaps=_table(swaps),
        unseen=_table(unseen) if any(unseen.values()) else "",
        postfixes=_postfixes(found),
        ceiling=_table({name: summary.judges.references.get(ceiling) for name, summary in found.items()}),
        first=captions,
        grid=grid,
        settings=_settings(found),
        descriptions=_models({folders[name]: (row, comparison.models[name]) for name, row in models.items()}),
    )


def _table(found: Mapping[str, Measured | None]) -> Markup:
    return html_table(("model", *NAMES.values()), [(name, *measures(one)) for name, one in found.items()])


def _postfixes(found: Mapping[str, Summary]) -> Markup:
    levels = dict.fromkeys(level for summary in found.values() for level in summary.postfix)
    rows = [
        (level, name, *measures(summary.postfix[level].swap_minus.get("postfix")))
        for level in levels  # the models side by side
        for name, summary in found.items()
        if level in summary.postfix
    ]
    return html_table(("database holds", "model", *NAMES.values()), rows)


def _settings(found: Mapping[str, Summary]) -> Markup:
    rows = []
    for name, summary in found.items():
        chosen, settings = summary.tuning[SWAP], summary.setup.config.sampling
        used = ", ".join(f"{database} {version}" for database, version in summary.setup.databases.items())
        rows.append((name, chosen.k, f"{chosen.guidance:g}", settings.sampler, settings.steps, used))
    return html_table(("model", "k", "guidance", "sampler", "steps", "databases and versions"), rows)


def _models(found: Mapping[str, tuple[ModelRow, Summary]]) -> Markup:
    rows = [
        (name, row.takes, row.facts.get("base", row.where), row.licence, summary.setup.model.sha256[:12])
        for name, (row, summary) in found.items()
    ]
    return html_table(("model", "vectors of", "base", "licence or terms", "sha256"), rows)


def _grid(rows: Mapping[str, Sequence[Score]], folder: Path) -> tuple[int, Markup]:
    """The first captions in the first styles, not chosen by results, with a column for each model; and their number."""
    swaps = {
        name: {(row.caption, row.style): row for row in found if row.phase == "swap" and row.condition == SWAP and row.style}
        for name, found in rows.items()
    }  # fmt: skip
    first = list(next(iter(swaps.values())).values())
    captions, styles = by_value(first, "caption")[:GRID_ROWS], by_value(first, "style")
    grid = []
    for i, caption in enumerate(captions):
        style = styles[i % len(styles)]
        cells = [swaps[name].get((caption, style)) for name in swaps]
        files = [folder / name / cell.file if cell else None for name, cell in zip(swaps, cells, strict=True)]
        grid.append((f"{caption} · {style}", [decode_picture(f.read_bytes(), SIDE) if f else None for f in files]))
    return len(captions), picture_table(tuple(swaps), grid, side=SIDE)
