"""`rdmpipe evaluate`: does swapping the database swap the style? Protocol, judges, pictures, answers, report.

Reads: a labelled database, the databases to compare with, a model. Writes, in <home>/evaluations/<name> or the given folder:

    protocol.json        fixed before the first picture: config, databases' versions, model, captions
    judges/style, judges/content    the judges' training states and curves
    pictures*/           the pictures
    pictures.parquet     one row for each picture: wanted style and content, settings, the judges' results
    summary.json         every number
    index.html           the report

The same call continues a killed evaluation: judges from their last save, pictures by their keys. Another protocol needs
another folder. The report holds every result, favourable or not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import machine
from pipeline.config import canonical_json, default_home, digest
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.data import Caption, Labelled, read_labelled, split_by_content, split_by_picture
from pipeline.evaluation.pictures import Run
from pipeline.evaluation.plan import Study, Trial, open_study, setup_of, test_trials, tuning_trials
from pipeline.evaluation.records import Cost, References, Score, Summary, to_json
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline.evaluation.judges import Judged
    from pipeline.evaluation.scores import Panel
    from pipeline.execution import Backend, Progress


@dataclass
class Laps:
    """Seconds of an evaluation's parts, by name."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self.began, 1)
        self.began = now


def evaluate(
    config: EvaluateConfig, progress: Progress, backend: Backend, *, home: str | None = None, out: str = "",
    device: str = "auto", threads: int = 1, wait_s: float = 0.0,
) -> tuple[Path, Summary]:  # fmt: skip
    """Run the evaluation, or continue it. Returns its folder and summary. Raises RdmpipeError."""
    from pipeline.storage import lease

    folder = folder_of(config, home, out)
    set_up(threads)
    with lease(Storage(str(folder)), f"evaluate {config.database}", wait_s, notify=progress.say):
        return folder, evaluate_in(Run(config, folder, home, progress, backend, device))[0]


def folder_of(config: EvaluateConfig, home: str | None, out: str) -> Path:
    """The folder of an evaluation: the given one, else one in the home, named after the database and the protocol."""
    name = f"{config.database}-{digest(config.to_dict(), 6)}"
    return Path(out or f"{home or default_home()}/evaluations/{name}").absolute()


def set_up(threads: int) -> None:
    """Set torch's threads in this process and flush denormals, so that the judges' training is fast and reproducible."""
    import numpy
    import torch

    torch.set_num_threads(threads)
    numpy.finfo(numpy.float32), numpy.finfo(numpy.float64)  # it warns at its first use after denormals are flushed
    torch.set_flush_denormal(True)


def evaluate_in(run: Run) -> tuple[Summary, list[Score]]:
    """Evaluate one model and write the run's folder. Returns its summary and the rows of its pictures."""
    from pipeline.evaluation.answers import answer_postfix, answer_swap, answer_sweeps, choose_settings
    from pipeline.evaluation.measures import measure_pictures
    from pipeline.evaluation.pictures import build_separate

    laps, config = Laps(), run.config
    _build_missing(run)
    study = open_study(config, run.home)
    _write_protocol(run, study)
    for style in study.place.separate():
        build_separate(run, style)
    laps.end("databases and captions")
    panel, references = _judges(run, study, laps)
    most = study.model.max_neighbours
    tuning, _ = _scored(run, study, panel, tuning_trials(study.place, study.validation, most), "tuning")
    chosen, grids = choose_settings(tuning)
    laps.end("tuning")
    trials = test_trials(study.place, study.test, chosen, most)
    rows, judged = _scored(run, study, panel, trials, "test")
    laps.end("pictures")
    sets = measure_pictures(study, panel, rows, judged)
    laps.end("distances")
    every = [*tuning, *rows]
    summary = Summary(
        setup=setup_of(config, study, run.home),
        judges=references,
        tuning=grids,
        swap=answer_swap(rows, study.place.styles, config.never_seen),
        postfix=answer_postfix(rows),
        sweeps=answer_sweeps(rows),
        retrieved=sets.retrieved,
        distances=sets.distances,
        diversity_over_seeds=sets.diversity_over_seeds,
        copies=sets.copies,
        cost=Cost(len({row.key for row in every}), len(every), laps.seconds),
    )
    _write(run, study, summary, every)
    return summary, every


# ---- before the first picture


def _build_missing(run: Run) -> None:
    """Build the databases of [[build]] that the evaluation reads and that are not published, and the companions (NAME_ENCODER)
    with the vectors of the model's encoder, if possible from the pictures that NAME keeps."""
    from pipeline.building import BuildRequest, build, for_second_encoder, settle
    from pipeline.catalog import companion_name, keeps_pictures, main_database
    from pipeline.database import RetrievalDatabase
    from pipeline.generation import outline_model
    from pipeline.sources import SourceOptions

    config = run.config
    encoder = outline_model(config.model, run.home).encoder if config.build else None
    wanted = set(config.databases())
    wanted |= {companion_name(name, encoder) for name in config.databases() if encoder}
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
            main = main_database(name, entry.encoder, run.home)
            if main and keeps_pictures(RetrievalDatabase(main, run.home)):
                request = for_second_encoder(replace(request, target=main, name=""))
            run.progress.say(f"building database {name}, which is not published yet")
            build(request, run.progress)


def _write_protocol(run: Run, study: Study) -> None:
    """Write the protocol, if it does not exist yet. Raises ConfigError if the folder holds another."""
    storage = Storage(str(run.folder))
    setup = json.loads(canonical_json(to_json(setup_of(run.config, study, run.home))))  # keys in order
    text = json.dumps(setup, indent=1, ensure_ascii=False) + "\n"
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


def _judges(run: Run, study: Study, laps: Laps) -> tuple[Panel, References]:
    """The judges, trained or read, and their results on real pictures."""
    from pipeline.evaluation.judges import HELD_OUT, train_content, train_style
    from pipeline.evaluation.measures import judge_reference, references, style_reference, through_first_stage
    from pipeline.evaluation.scores import Panel, pool_of

    config, labelled = run.config, study.labelled
    pictures = labelled.pictures
    classes = study.place.styles
    rows = [row for row, style in enumerate(pictures.styles) if style in classes]
    training, held_out = split_by_content([pictures.contents[row] for row in rows], HELD_OUT, "style judge")
    style = train_style(pictures, [rows[i] for i in training], classes, config.style_judge,
                        run.judges / "style", run.progress)  # fmt: skip
    laps.end("style judge")
    captioned = read_labelled(config.content_database, config, run.home) if config.content_database else labelled
    known, unseen = split_by_picture(captioned.keys, HELD_OUT, "content judge")
    content = train_content(captioned.pictures, known, config.content_judge, run.judges / "content",
                            run.progress)  # fmt: skip
    laps.end("content judge")
    pool = pool_of((*study.test, *study.validation), [text for text in captioned.pictures.captions if text],
                   config.prompts.candidates)  # fmt: skip
    panel = Panel(style, content, classes, pool, config.prompts.candidates)
    reference = style_reference(panel, labelled, [rows[i] for i in held_out])
    asked = [] if config.content_database else [caption for caption in study.test if caption.content]
    # With prompts from the user or captions of another collection, the real pictures are those held out from the judge.
    asked = asked or _first_captions(captioned, unseen, config.prompts.test)
    made = references(captioned, asked, classes, unseen)
    if made:
        made.insert(1, through_first_stage(made[0], study.model, machine.device(run.device)))
    found = {one.name: judge_reference(panel, one) for one in made}
    laps.end("references")
    return panel, References(reference, found)


def _first_captions(captioned: Labelled, rows: Sequence[int], count: int) -> list[Caption]:
    pictures = captioned.pictures
    captions = {pictures.captions[row]: pictures.contents[row] for row in rows if pictures.captions[row]}
    return [Caption(text, content) for text, content in captions.items()][:count]


def _scored(run: Run, study: Study, panel: Panel, trials: Sequence[Trial], name: str) -> tuple[list[Score], Judged]:
    from pipeline.evaluation.pictures import make_pictures, read_made
    from pipeline.evaluation.scores import Nearest, score_trials

    run.progress.say(f"{name}: {len(trials):,} pictures are asked for")
    made = make_pictures(run, trials, name)
    pixels = read_made(run.folder, made, run.config.size)
    return score_trials(trials, made, pixels, panel, Nearest.of(study.labelled))


def _write(run: Run, study: Study, summary: Summary, rows: Sequence[Score]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.evaluation.report import report

    storage = Storage(str(run.folder))
    with storage.scratch() as scratch:
        part = scratch / "pictures.parquet"
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), part, compression="zstd")
        storage.publish(part, "pictures.parquet")
    storage.write_text("summary.json", json.dumps(summary.to_json(), indent=1, ensure_ascii=False) + "\n")
    storage.write_text("index.html", report(summary, rows, run.folder, study.labelled))


def summary_text(folder: Path, summary: Summary) -> str:
    """The text to print: a line each for the judges, the swap, and swap against postfix, and the path of the report."""
    from pipeline.evaluation.report import number

    swap = summary.swap.all
    lines = [f"style judge on real pictures: {summary.judges.style.accuracy:.3f}"]
    if swap is not None:
        lines.append(f"swap: style {number(swap.style_hit)}, content found {number(swap.found)}")
    for level, made in summary.postfix.items():
        found = made.swap_minus["postfix"]
        lines.append(f"swap minus postfix, {level}: style {number(found.style_hit)}, content {number(found.found)}")
    return "\n".join([*lines, f"look at {folder / 'index.html'}"])
