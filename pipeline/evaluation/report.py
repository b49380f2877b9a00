"""The report of an evaluation: one HTML page with charts and pictures inside it, in the order in which a critical reader
would ask.

The text is in assets/templates/evaluation.html; this module makes its tables, charts and pictures.

Reads: the summary, the pictures' rows, the picture files below the evaluation's folder, real pictures. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.data import Labelled
from pipeline.evaluation.plan import CONDITIONS, SWAP
from pipeline.evaluation.records import Copies, Measured, Score, StyleDistances, Summary, SwapAnswer, by_value
from pipeline.installation import version
from pipeline.pages import dots, heat, html_table, lines, picture_table, render
from pipeline.training import decode_picture

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import Tensor

    from pipeline.evaluation.statistics import Estimate

NAMES = {"style_hit": "style", "found": "content found", "nearly": "among the first ten"}

GRID_ROWS = 10


def report(summary: Summary, rows: Sequence[Score], folder: Path, labelled: Labelled) -> str:
    """The page."""
    setup, judges, seeds = summary.setup, summary.judges, summary.diversity_over_seeds
    right = summary.retrieved.right if summary.retrieved else None
    return render(
        "evaluation.html",
        title=f"{setup.model.name} on {setup.config.database}: swapping the database",
        version=version(),
        in_short=_in_short(summary),
        facts=html_table(("", ""), _facts(summary)),
        judge=setup.config.style_judge.backbone,
        style_judge=judges.style,
        confusion=heat(judges.style.confusion, judges.style.styles, judges.style.styles),
        candidates=setup.config.prompts.candidates,
        references=_references(summary),
        retrieved=number(right) if right else "",
        chosen=summary.tuning[SWAP],
        styles=len(setup.styles),
        **_swap(summary, rows, folder, labelled),
        **_postfix(summary, rows, folder),
        **_sweeps(summary),
        tuning=_tuning(summary),
        kernel_distances=_kernel_table(summary.distances),
        seeds=seeds,
        diversity=html_table(
            ("style", "generated", "real"),
            [(style, one.diversity, one.diversity_of_real_pictures) for style, one in summary.distances.items()],
        ),
        copies=_copies_table(summary.copies),
        test_captions=" · ".join(setup.test_captions),
        validation_captions=" · ".join(setup.validation_captions),
    )


def number(one: Estimate | None) -> str:
    """A mean with its interval."""
    return "" if one is None else one.text()


def measures(found: Measured | None) -> list[str]:
    """The cells of a table under NAMES."""
    named = found.named() if found else {}
    return [number(named.get(name)) for name in NAMES]


def charted(found: Measured, only: Sequence[str] = tuple(NAMES)) -> dict[str, dict[str, float]]:
    """Estimates for the charts, by the words of NAMES."""
    return {NAMES[name]: asdict(one) for name, one in found.named().items() if name in only}


def _in_short(summary: Summary) -> Markup:
    """The main results: does the swap give the style, does the picture keep the content, and is it better than a prompt?"""
    real = summary.judges.references.get("real pictures that the content judge never saw")
    swap = summary.swap
    found = [("real pictures that the judges never saw", *measures(real))]
    for kind, words in ((swap.seen_styles, "the model knows from training"),
                        (swap.styles_never_seen, "the model never saw")):  # fmt: skip
        if kind:
            found.append((f"made with the database of a style that {words}", *measures(kind)))
    for level, one in summary.postfix.items():
        apart = one.swap_minus.get("postfix")
        found.append((f"swap minus “in the style of …” in a database where the style is {level}", *measures(apart)))
    return html_table(("", *NAMES.values()), found)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    setup, cost = summary.setup, summary.cost
    settings = setup.config.sampling
    never = [style for style in setup.config.never_seen if style in setup.styles]
    return [
        ("databases and versions", ", ".join(f"{name} {found}" for name, found in setup.databases.items())),
        ("model", f"{setup.model.name}, sha256 {setup.model.sha256[:12]}"),
        ("styles", ", ".join(setup.styles)),
        ("styles that neither encoder nor model saw", ", ".join(never) or "none"),
        ("test and validation captions", f"{len(setup.test_captions)} and {len(setup.validation_captions)}"),
        ("contents of the captions are in the database", "yes" if setup.contents_there else "not known"),
        ("the encoder's captions name the style", setup.config.encoder_captions),
        ("sampler", f"{settings.sampler}, {settings.steps} steps, seeds {list(settings.seeds)}"),
        ("pictures", f"{cost.different_pictures:,} different ones for {cost.rows:,} rows"),
        ("seconds in the last call", ", ".join(f"{name} {value:g}" for name, value in cost.seconds_now.items())),
    ]


def _references(summary: Summary) -> Markup:
    rows = [(name, *measures(one)) for name, one in summary.judges.references.items()]
    if summary.retrieved:
        rows.append(("the first picture retrieved in each search", *measures(summary.retrieved.measured)))
    return html_table(("pictures", *NAMES.values()), rows)


def _swap(summary: Summary, rows: Sequence[Score], folder: Path, labelled: Labelled) -> dict[str, object]:
    swap, styles = summary.swap, summary.setup.styles
    unstyled = []
    for name, found in swap.without_a_style.measured.items():
        guesses = swap.without_a_style.guesses[name]
        unstyled.append(
            (name, number(found.found), ", ".join(f"{style} {share:.2f}" for style, share in guesses.items()))
        )
    captions, grid = _grid(rows, styles, folder, labelled)
    return {
        "swap": _swap_table(swap),
        "unstyled": unstyled,
        "first": captions,
        "grid": grid,
        "by_style": dots({style: charted(found) for style, found in swap.by_style.items()}, "by style swapped in"),
        "judged_as": heat(swap.confusion, styles, styles),
    }


def _swap_table(swap: SwapAnswer) -> Markup:
    """The swap's measures, over all styles and for each style."""
    kinds = {"all": swap.all, "seen styles": swap.seen_styles, "styles never seen": swap.styles_never_seen,
             "content absent": swap.content_absent}  # fmt: skip
    named = [(name, *measures(found)) for name, found in kinds.items() if found]
    return html_table(("swap", *NAMES.values()), named)


def _grid(rows: Sequence[Score], styles: Sequence[str], folder: Path, labelled: Labelled) -> tuple[int, Markup]:
    """The first captions in every style, not chosen by results; and their number."""
    own = {(row.caption, row.style): row for row in rows if row.phase == "swap" and row.condition == SWAP}
    captions = list(dict.fromkeys(caption for caption, _ in own))[:GRID_ROWS]
    made = [(caption, [_read(own.get((caption, style)), folder) for style in styles]) for caption in captions]
    pictures = labelled.pictures
    real = [next((pictures.pixels[i] for i, s in enumerate(pictures.styles) if s == style), None) for style in styles]
    return len(captions), picture_table(styles, [("(real)", real), *made])


def _read(row: Score | None, folder: Path) -> Tensor | None:
    return None if row is None else decode_picture((folder / row.file).read_bytes(), 64)


def _postfix(summary: Summary, rows: Sequence[Score], folder: Path) -> dict[str, object]:
    charts = []
    for measure, name in NAMES.items():
        groups = {
            level: {condition: asdict(found.named()[measure]) for condition, found in made.conditions.items()}
            for level, made in summary.postfix.items()
        }
        charts.append(dots(groups, name))
    table = [
        (level, condition, *measures(found))
        for level, made in summary.postfix.items()
        for condition, found in made.swap_minus.items()
    ]
    first = [row for row in rows if row.phase == "postfix"]
    captions = by_value(first, "caption")[:4]
    own = {(row.caption, row.style, row.level, row.condition): row for row in reversed(first)}
    levels = []
    for level in summary.postfix:
        grid = [
            (f"{caption} · {style}", [_read(own.get((caption, style, level, c)), folder) for c in CONDITIONS])
            for style in by_value(first, "style") for caption in captions
        ]  # fmt: skip
        levels.append((level, picture_table(CONDITIONS, grid, side=64)))
    minus = html_table(("database holds", "swap minus", *NAMES.values()), table)
    return {"conditions": charts, "swap_minus": minus, "levels": levels}


def _sweeps(summary: Summary) -> dict[str, object]:
    sweeps, separate = summary.sweeps, summary.sweeps.separate
    every = {"neighbours (k)": sweeps.neighbours, "guidance scale": sweeps.guidance,
             "share of the style's database": sweeps.size}  # fmt: skip
    made = []
    for label, found in every.items():
        drawn = {at: charted(one, ("style_hit", "found")) for at, one in found.items()}
        names = dict.fromkeys(name for one in drawn.values() for name in one)
        series = {name: {at: one[name] for at, one in drawn.items() if name in one} for name in names}
        table = html_table((label, *NAMES.values()), [(at, *measures(one)) for at, one in found.items()])
        made.append((lines(series, label), table))
    pair = [(name, *measures(separate.measured[name])) for name in ("filter", "separate")] if separate else []
    return {"sweeps": made, "separate": separate, "separate_measures": html_table(("", *NAMES.values()), pair)}


def _tuning(summary: Summary) -> Markup:
    rows = [
        (condition, point.k, point.guidance, point.style, point.found, point.score,
         "chosen" if (point.k, point.guidance) == (grid.k, grid.guidance) else "")
        for condition, grid in summary.tuning.items()
        for point in grid.grid
    ]  # fmt: skip
    return html_table(("condition", "k", "guidance", "style", "content found", "score", ""), rows)


def _kernel_table(distances: Mapping[str, StyleDistances]) -> Markup:
    rows = [
        (style, judge, _small(one.kid), _small(one.same_contents), _small(one.nearest_other_style))
        for style, found in distances.items()
        for judge, one in found.judges().items()
    ]
    heads = ("style", "features of the", "KID to its real pictures", "of real pictures", "of the nearest other style")
    return html_table(heads, rows)


def _copies_table(copies: Copies) -> Markup:
    rows = [(name.replace("_", " "), _small(value)) for name, value in asdict(copies).items() if value is not None]
    return html_table(("", ""), rows)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
