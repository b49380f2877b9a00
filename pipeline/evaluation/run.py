"""`rdmpipe evaluate`: does swapping the database swap the style? Protocol, judges, pictures, answers, report.

Reads: a labelled database and those it is compared with, a model. Writes, in <home>/evaluations/<name> or the folder given:

    protocol.json        what was decided before the first picture: config, databases' versions, model, captions
    judges/style, judges/content                the judges' training states and curves
    pictures*/, trials/  what was made, and from which rows
    pictures.parquet     one row a picture: aim, setting, verdicts;  summary.json: every number;  index.html: the report

A killed evaluation goes on: judges from their last save, pictures by their keys. Another protocol wants another folder.
Whatever comes out is what is reported: nothing is left out by its result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import canonical_json, default_home, digest
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.data import Caption, Labelled, read_labelled, split_by_content, split_by_picture
from pipeline.evaluation.plan import Study, Trial, open_study, setup_of, test_trials, tuning_trials
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.evaluation.scores import Panel
    from pipeline.execution import Backend, Progress


@dataclass(frozen=True)
class Run:
    """Where an evaluation runs and with what; none of it changes what is measured but `device`, in the last digits."""

    config: EvaluateConfig
    folder: Path
    home: str | None
    progress: Progress
    backend: Backend
    device: str = "auto"
    threads: int = 1


def evaluate(
    config: EvaluateConfig, progress: Progress, backend: Backend, *, home: str | None = None, out: str = "",
    device: str = "auto", threads: int = 1, wait_s: float = 0.0,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Run the evaluation, or go on with it; its folder and summary.json. Raises RdmpipeError for what cannot be run."""
    import numpy
    import torch

    from pipeline.evaluation.pictures import build_separate
    from pipeline.storage import lease

    folder = Path(out or f"{home or default_home()}/evaluations/{config.database}-{digest(config, 6)}").absolute()
    run = Run(config, folder, home, progress, backend, device, threads)
    torch.set_num_threads(threads)
    numpy.finfo(numpy.float32), numpy.finfo(numpy.float64)  # it warns where it first looks after denormals are flushed
    torch.set_flush_denormal(True)
    with lease(Storage(str(folder)), f"evaluate {config.database}", wait_s, notify=progress.say):
        seconds: dict[str, float] = {}
        began = time.monotonic()

        def lap(name: str) -> None:
            nonlocal began
            now = time.monotonic()
            seconds[name] = round(now - began, 1)
            began = now

        _build_missing(run)
        study = open_study(config, home)
        _write_protocol(run, study)
        for style in study.place.separate():
            build_separate(style, config, home, folder / "separate" / style, progress, backend)
        lap("databases and captions")
        panel, references = _judges(run, study, lap)
        from pipeline.evaluation.answers import answer_postfix, answer_swap, answer_sweeps, choose_settings

        most = study.model.config.max_neighbours
        tuning, _ = _scored(run, study, panel, tuning_trials(study.place, study.validation, most), "tuning")
        chosen, grids = choose_settings(tuning)
        lap("tuning")
        trials = test_trials(study.place, study.test, chosen, most)
        rows, judged = _scored(run, study, panel, trials, "test")
        lap("pictures")
        from pipeline.evaluation.measures import measure_pictures

        summary: dict[str, Any] = {
            "setup": setup_of(run.config, study, run.home),
            "judges": references,
            "tuning": grids,
            "swap": answer_swap(rows, study.place.styles, config.never_seen),
            "postfix": answer_postfix(rows),
            "sweeps": answer_sweeps(rows),
            **measure_pictures(study, panel, rows, judged),
        }
        lap("distances")
        different = len({row["key"] for row in (*tuning, *rows)})
        summary["cost"] = {"different pictures": different, "rows": len(tuning) + len(rows), "seconds now": seconds}
        return folder, _write(run, study, summary, [*tuning, *rows])


# ---- before the first picture


def _build_missing(run: Run) -> None:
    from pipeline.building import BuildRequest, build, settle
    from pipeline.database import RetrievalDatabase
    from pipeline.sources import SourceOptions

    config = run.config
    wanted = {config.database, config.general, *config.sources.values(), *config.others, config.content_database}
    for entry in config.build:
        request = BuildRequest(
            target=entry.target, name=entry.name, home=run.home, encoder=entry.encoder, images=entry.images,
            preprocess=entry.preprocess, where=entry.where, backend=run.backend,
            source=SourceOptions(limit=entry.limit, base_url=entry.base_url),
        )  # fmt: skip
        name = settle(request)[0].name
        if not any(other == name or other.startswith(f"{name}-") for other in wanted):  # itself, or a view of it
            continue
        if not RetrievalDatabase(name, run.home).exists():
            run.progress.say(f"building database {name}, which is not published yet")
            build(request, run.progress)


def _write_protocol(run: Run, study: Study) -> None:
    """Write the protocol, or find the same one. Raises ConfigError where the folder holds another."""
    storage = Storage(str(run.folder))
    text = (
        json.dumps(json.loads(canonical_json(setup_of(run.config, study, run.home))), indent=1, ensure_ascii=False)
        + "\n"
    )
    before = storage.read_text("protocol.json")
    if before is not None and before != text:
        old, new = json.loads(before), json.loads(text)
        changed = ", ".join(name for name in new if old.get(name) != new[name])
        raise ConfigError(
            f"{run.folder} holds an evaluation of another protocol (it differs in {changed}): give another folder with --out"
        )
    if before is None:
        storage.write_text("protocol.json", text)


# ---- judges and pictures


def _judges(run: Run, study: Study, lap: Any) -> tuple[Panel, dict[str, Any]]:
    from pipeline.evaluation.judges import HELD_OUT, train_content, train_style
    from pipeline.evaluation.measures import judge_reference, references, style_reference, through_first_stage
    from pipeline.evaluation.scores import Panel, pool_of

    config, labelled = run.config, study.labelled
    pictures = labelled.pictures
    classes = study.place.styles
    rows = [row for row, style in enumerate(pictures.styles) if style in classes]
    training, held_out = split_by_content([pictures.contents[row] for row in rows], HELD_OUT, "style judge")
    style = train_style(pictures, [rows[i] for i in training], classes, config.style_judge,
                        run.folder / "judges" / "style", run.progress)  # fmt: skip
    lap("style judge")
    captioned = read_labelled(config.content_database, config, run.home) if config.content_database else labelled
    known, unseen = split_by_picture(captioned.keys, HELD_OUT, "content judge")
    content = train_content(captioned.pictures, known, config.content_judge, run.folder / "judges" / "content",
                            run.progress)  # fmt: skip
    lap("content judge")
    pool = pool_of((*study.test, *study.validation), [text for text in captioned.pictures.captions if text],
                   config.prompts.candidates)  # fmt: skip
    panel = Panel(style, content, classes, pool, config.prompts.candidates)
    found = {"style": style_reference(panel, labelled, [rows[i] for i in held_out])}
    asked = [] if config.content_database else [caption for caption in study.test if caption.content]
    # Prompts of the user's own, or captions of another collection: the judge's own held-out pictures are the real ones.
    asked = asked or _first_captions(captioned, unseen, config.prompts.test)
    made = references(captioned, asked, classes, unseen)
    if made:
        size, device = study.model.config.default_size, _device(run.device)
        made.insert(1, through_first_stage(made[0], study.model.folder, size, device))
    found["references"] = {reference.name: judge_reference(panel, reference) for reference in made}
    lap("references")
    return panel, found


def _first_captions(captioned: Labelled, rows: Sequence[int], count: int) -> list[Caption]:
    pictures = captioned.pictures
    captions = {pictures.captions[row]: pictures.contents[row] for row in rows if pictures.captions[row]}
    return [Caption(text, content) for text, content in captions.items()][:count]


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _scored(
    run: Run, study: Study, panel: Panel, trials: Sequence[Trial], name: str
) -> tuple[list[dict[str, Any]], Any]:
    from pipeline.evaluation.pictures import make_pictures, read_made
    from pipeline.evaluation.scores import Nearest, score_trials

    run.progress.say(f"{name}: {len(trials):,} pictures are asked for")
    made = make_pictures(trials, name, run.folder, run.config, run.home, run.config.model, run.progress, run.backend,
                         run.device)  # fmt: skip
    pixels = read_made(run.folder, made, run.config.size)
    return score_trials(trials, made, pixels, panel, Nearest.of(study.labelled))


def _write(run: Run, study: Study, summary: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.evaluation.report import report

    storage = Storage(str(run.folder))
    with storage.scratch() as scratch:
        part = scratch / "pictures.parquet"
        pq.write_table(pa.Table.from_pylist(rows), part, compression="zstd")
        storage.publish(part, "pictures.parquet")
    summary = json.loads(json.dumps(summary, default=asdict))  # canonical_json would sort styles and settings by name
    storage.write_text("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    storage.write_text("index.html", report(summary, rows, run.folder, study.labelled))
    return summary


def summary_text(folder: Path, summary: dict[str, Any]) -> str:
    """For people: the judges, the swap, and swap against postfix, each in a line; and where the rest is."""
    from pipeline.evaluation.report import number

    swap = summary["swap"]["all"]
    lines = [
        f"style judge on real pictures: {summary['judges']['style']['accuracy']:.3f}",
        f"swap: style {number(swap['style_hit'])}, content found {number(swap['found'])}",
    ]
    for level, made in summary["postfix"].items():
        found = made["swap minus"]["postfix"]
        lines.append(
            f"swap minus postfix, {level}: style {number(found['style_hit'])}, content {number(found['found'])}"
        )
    return "\n".join([*lines, f"look at {folder / 'index.html'}"])
