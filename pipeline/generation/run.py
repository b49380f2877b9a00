"""`rdmpipe generate`: prompts x databases x copies -> pictures, results and gallery; every finished picture is kept.

Reads: a prompt list or rows, databases, a model's folder. Writes below the run's folder, each file whole or not at all:

    images/<prompt>-<seed>-<key>.png    a picture and its provenance; if it exists, it is finished
    inputs/<sha256>                     image prompts
    computing.json                      recipe and precision, which the run keeps
    plan/<id>.json, shards/<id>/        which keys are made together, receipts, seconds and errors
    results.parquet, index.html, contact.png

The plan is a function of the request: after a kill the same request continues with the same batches, and so gives the
same bytes for any number of workers. A picture that another run of this home has made is copied, not made again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import machine as this_machine
from pipeline.catalog import resolve_database
from pipeline.config import canonical_json, default_home, digest, parse_json
from pipeline.database import list_databases
from pipeline.errors import ConfigError, RdmpipeError
from pipeline.execution import Backend, Failure, Progress, Shard, Stage, StageFailed, run_stages
from pipeline.generation.computing import (
    BATCHWISE,
    Machine,
    choose_machine,
    keep_computing,
    read_computing,
    settle_machine,
)
from pipeline.generation.earlier import note_on_earlier
from pipeline.generation.expand import Expander, GenerateConfig
from pipeline.generation.models import default_model, find_model
from pipeline.generation.painter import Rendering
from pipeline.generation.prompt_files import SUFFIXES
from pipeline.generation.prompts import PromptList, accept_rows, read_prompts
from pipeline.generation.provenance import Record, read_record
from pipeline.generation.requests import RECIPE, PictureRequest, RequestedCopy, batches, shards, unique
from pipeline.generation.results import MadeWith, results_table
from pipeline.generation.sampling import Sampling
from pipeline.generation.stage import LogEntry, generate_stage, read_log
from pipeline.schema import read_parquet
from pipeline.storage import Storage, lease

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class GenerateSummary:
    """The result of a run: requested pictures = ok + failed; `pictures` counts distinct ones (equal keys share a file)."""

    run: str
    out: str
    requested: int
    ok: int
    failed: int
    pictures: int
    made: int
    copied: int  # from other runs of this home
    skipped_rows: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def text(self, said: Collection[str] = ()) -> str:
        """The summary to print: the present state, and where the results are. said: notes that were already shown."""
        before = self.pictures - self.made - self.copied - self.failed
        lines = [
            f"{self.run}: {self.requested:,} pictures requested = {self.ok:,} ok + {self.failed:,} failed; "
            f"{self.made:,} made now, {max(before, 0):,} before, {self.copied:,} copied from other runs; {self.seconds:,.1f} s"
        ]
        lines += [f"note: {warning}" for warning in self.warnings if warning not in said]
        lines.append(f"look at {self.out}/index.html")
        return "\n".join(lines)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The run's results: one row for each requested picture, in the order of the request."""
        with Storage(self.out).open("results.parquet") as handle:
            return read_parquet(handle, columns=columns)


# ---- a run


@dataclass(frozen=True)
class Request:
    """A complete, checked request: nothing has to be resolved again."""

    name: str
    title: str
    copies: list[RequestedCopy]
    pictures: Mapping[str, PictureRequest]  # by key
    extra: tuple[str, ...]  # the prompt list's other columns
    skipped: int
    warnings: tuple[str, ...]

    @property
    def files(self) -> dict[str, str]:
        """Picture files by key."""
        return {copy.key: copy.file for copy in self.copies}


@dataclass(frozen=True)
class Run:
    """The folder, the machine's settings and the worker's set-up of a request."""

    config: GenerateConfig
    machine: Machine
    storage: Storage  # the run's folder
    rendering: Rendering
    memory: int  # bytes that a worker needs
    progress: Progress
    backend: Backend


def generate(
    config: GenerateConfig, progress: Progress, backend: Backend | None = None, wait_s: float = 0.0
) -> GenerateSummary:
    """Make every requested picture that does not exist yet, then results, gallery and contact sheet.

    Raises PromptError with all bad rows, and any RdmpipeError for a bad flag, before work starts; StageFailed if shards
    kept failing (results are written even then). After a kill or Ctrl-C the same call continues.
    """
    start, backend = time.monotonic(), backend or Backend()
    prompts = read_prompts(config.prompts)
    config = replace(config, model=config.model or _default_model(config, prompts))
    model = find_model(config.model, config.home)
    name = config.run or run_name(config)
    storage = Storage(config.out or f"{(config.home or default_home()).rstrip('/')}/generations/{name}")
    kept = read_computing(storage, model)
    machine = choose_machine(config, model, kept)
    expander = Expander(config, model, machine.precision)
    request = _request(name, prompts, expander, progress)
    run = _run(storage, request, machine, expander, progress, backend)
    with lease(storage, f"generate {request.name}", wait_s, notify=progress.say):
        storage.clear_scratch()
        progress.record_in(storage)
        notes = [note_on_earlier(
            storage, request.files.values(), {copy.db for copy in request.copies},
            named=config.gallery and bool(config.out or config.run),  # without a gallery, the caller keeps its own table
        )]  # fmt: skip
        keep_computing(storage, run.machine, config, kept)
        for key in expander.images:
            storage.write_bytes(f"inputs/{key}", expander.image_bytes(key))
        copied = _copy_finished(storage, request.files, config) if not config.out else 0
        before = _finished(storage, request.files)
        failures = _make(run, request, before)
        storage.write_text("failures.json", canonical_json([asdict(failure) for failure in failures]) + "\n")
        finished = _finished(storage, request.files)
        notes += _write_pages(run, request, expander)
    for note in filter(None, notes):
        progress.note(note)
    if failures:
        raise StageFailed(tuple(failures))
    ok = sum(copy.key in finished for copy in request.copies)
    return GenerateSummary(
        run=request.name,
        out=storage.url,
        requested=len(request.copies),
        ok=ok,
        failed=len(request.copies) - ok,
        pictures=len(request.pictures),
        made=len(finished) - len(before),
        copied=copied,
        skipped_rows=request.skipped,
        seconds=round(time.monotonic() - start, 3),
        warnings=(*request.warnings, *filter(None, notes)),
    )


def _run(
    storage: Storage, request: Request, machine: Machine, expander: Expander, progress: Progress, backend: Backend
) -> Run:
    """The run of a request. Raises BudgetError if there is too little memory."""
    config, model = expander.config, expander.model
    sizes = {picture.sampling.size for picture in request.pictures.values()}
    machine, memory = settle_machine(machine, config, backend, model, sizes, len(request.pictures))
    cores = this_machine.cores()
    if not config.threads and machine.threads and machine.workers < min(cores, len(request.pictures)):
        progress.say(
            f"{machine.workers} worker(s) of one thread on {cores} cores: --workers or --threads uses more of them"
        )
    rendering = Rendering(
        storage.url, config.home, model, machine.precision, machine.device, machine.threads, expander.text_encoder,
        machine.recipe, machine.workers if backend.kind == "inline" else 1,
    )  # fmt: skip
    return Run(config, machine, storage, rendering, memory, progress, backend)


def _request(name: str, prompts: PromptList, expander: Expander, progress: Progress) -> Request:
    config = expander.config
    requests, bad = expander.requests(prompts)
    rows = accept_rows(prompts, bad, config.skip_bad)
    warnings = [*prompts.warnings, *expander.warnings]
    if skipped := len({row.line for row in (*prompts.bad, *bad)}):
        first = "; ".join(f"{prompts.unit} {row.line}: {row.problem}" for row in (*prompts.bad, *bad)[:5])
        warnings.append(f"{skipped} row(s) of {prompts.source} cannot be used and were left out: {first}")
    for warning in warnings:
        progress.note(warning)
    left_out = len(prompts.rows) + len(prompts.bad) - len(rows)
    return Request(name, _title(config), requests, unique(requests), prompts.extra, left_out, tuple(warnings))


def _make(run: Run, request: Request, before: set[str]) -> Sequence[Failure]:
    """Make the pictures that are not finished `before`; returns the failures. If interrupted, it prints how to continue."""
    if len(before) >= len(request.pictures):
        return ()
    storage, machine = run.storage, run.machine
    plan_id, plan = _plan(storage, request.pictures, before, machine)
    work = shards(request.pictures, plan, run.config.shard or _per_shard(machine, len(request.pictures)))
    stage = generate_stage(
        storage, run.rendering, plan_id, run.memory, max(1, run.machine.threads), run.backend.workers
    )
    _forget_failures(stage, work)
    try:
        return run_stages((stage,), work, run.backend, run.progress, len(work)).failures
    except KeyboardInterrupt:
        done = len(_finished(storage, request.files))
        run.progress.say(f"stopped: {done:,} of {len(request.pictures):,} pictures are finished and kept in {storage.url}. "
                         "Run the same command again to continue.")  # fmt: skip
        raise


def _per_shard(machine: Machine, pictures: int) -> int:
    """Pictures a shard: two batches, but no more than leave work for every worker."""
    if machine.recipe == BATCHWISE:
        return max(2 * machine.batch, 4)
    return max(machine.batch, min(max(2 * machine.batch, 4), -(-pictures // machine.workers)))


def _default_model(config: GenerateConfig, prompts: PromptList) -> str:
    """The model for the encoder of the first database that flags or rows name. Raises ConfigError if none is named."""
    if config.db:
        return default_model(resolve_database(config.db[0], config.home).version.encoder.name, config.home)
    for name in dict.fromkeys(name for row in prompts.rows for name in row.db):
        with contextlib.suppress(RdmpipeError):  # an unknown name is an error of its row
            return default_model(resolve_database(name, config.home).version.encoder.name, config.home)
    if any(row.db for row in prompts.rows):
        return "rdm-768"
    published = (
        ", ".join(list_databases(config.home)) or "none yet: `rdmpipe build-index atelier --limit 200 --encoder mini-2`"
    )
    raise ConfigError(
        f"no database is named, so no model can be chosen: add --db NAME to draw from its pictures (published: "
        f"{published}), or --model NAME to draw from the text alone"
    )


# Fields that are not part of a run's name: where it runs, and with how many workers.
_ELSEWHERE = (
    "prompts",
    "home",
    "out",
    "run",
    "skip_bad",
    "device",
    "batch",
    "shard",
    "threads",
    "n",
    "any_encoder",
    "gallery",
)

# Former defaults of flags, from before models had their own settings. Names of runs use them, so that they do not change.
_NAMED_WITH = Sampling("ddim", 50, None, 0.0)


def run_name(config: GenerateConfig) -> str:
    """The prompts' name and a hash of the flags: an edited list continues in its run, other flags make another run."""
    prompts = config.prompts
    if isinstance(prompts, str):
        is_list = prompts.lower().endswith(SUFFIXES)
        source = str(Path(prompts).absolute()) if is_list and "://" not in prompts else prompts
        stem = Path(source).stem if is_list else source
    else:
        source, stem = canonical_json([row.prompt for row in prompts]), prompts[0].prompt if prompts else ""
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].strip("-") or "prompt"
    flags = {name: value for name, value in asdict(config).items() if name not in _ELSEWHERE}
    del flags["sampling"]
    flags |= asdict(config.sampling.over(_NAMED_WITH))
    for name, unsaid in (("image_scale", None), ("weighting", ""), ("blocks", "")):
        if flags[name] == unsaid:  # names of runs are older than these flags
            del flags[name]
    return f"{slug}-{digest([source, flags], 6)}"


def _title(config: GenerateConfig) -> str:
    if config.run:
        return config.run
    if not isinstance(config.prompts, str):
        return f"{len(config.prompts):,} prompts"
    return Path(config.prompts).stem if config.prompts.lower().endswith(SUFFIXES) else config.prompts.strip()[:120]


# ---- finished pictures


def _finished(storage: Storage, files: Mapping[str, str]) -> set[str]:
    there = set(storage.list("images", ".png"))
    return {key for key, file in files.items() if file.removeprefix("images/") in there}


def _copy_finished(storage: Storage, files: Mapping[str, str], config: GenerateConfig) -> int:
    """Copy pictures that other runs of this home finished. Returns how many."""
    home = Storage(f"{(config.home or default_home()).rstrip('/')}/generations")
    missing = {files[key]: key for key in files.keys() - _finished(storage, files)}
    copied = 0
    for other in home.list():
        if not missing or home.child(other).url == storage.url:
            continue
        for name in set(home.list(f"{other}/images", ".png")) & {file.removeprefix("images/") for file in missing}:
            file = f"images/{name}"
            with home.open(f"{other}/{file}") as handle:
                record = read_record(handle)
            if record is not None and record.get("key") == missing[file]:
                storage.write_bytes(file, home.read_bytes(f"{other}/{file}"))
                del missing[file]
                copied += 1
    return copied


def _plan(
    storage: Storage, pictures: Mapping[str, PictureRequest], finished: set[str], machine: Machine
) -> tuple[str, list[list[str]]]:
    """The request's plan: that of an earlier, interrupted call, else a new one with the unfinished pictures."""
    plan_id = digest([RECIPE, list(pictures), machine.batch], 16)
    text = storage.read_text(f"plan/{plan_id}.json")
    if text is not None:
        plan = _read_plan(text)
        if plan and not (pictures.keys() - finished) - {key for keys in plan for key in keys}:
            return plan_id, plan
    plan = batches({key: picture for key, picture in pictures.items() if key not in finished}, machine.batch)
    storage.write_text(f"plan/{plan_id}.json", canonical_json(plan))
    return plan_id, plan


def _read_plan(text: str) -> list[list[str]]:
    """The batches of a plan; none if it is damaged, so that it is made again."""
    try:
        found = parse_json(text)
    except ValueError:
        return []
    batches = found if isinstance(found, list) else []
    return (
        batches if all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in batches) else []
    )


def _forget_failures(stage: Stage, work: Iterable[Shard]) -> None:
    """Remove the receipts that count a failed picture, so that the next call tries it again."""
    for shard in work:
        receipt = stage.receipt(shard)
        if receipt is not None and receipt.failed:
            stage.storage.remove(stage.receipt_path(shard))


# ---- results and pages


def _write_pages(run: Run, request: Request, expander: Expander) -> list[str]:
    """Write results.parquet and, if wanted, index.html and contact.png. Returns notes, those on pictures counted."""
    from pipeline.database import picture_files
    from pipeline.generation.contact import write_contact_sheet
    from pipeline.generation.gallery import write_gallery

    storage, model = run.storage, run.rendering.model
    table = _write_results(storage, request, MadeWith(model.name, model.hash, run.rendering.precision))
    told = Counter(note for note in table["note"].to_pylist() if note)
    notes = [f"{count:,} picture(s): {note}" for note, count in told.most_common()]
    if not run.config.gallery:
        return notes
    run.progress.say("writing index.html and contact.png")

    def thumbnails(name: str, keys: list[int]) -> Mapping[int, bytes]:
        selection = expander.selections.get(name)
        return picture_files(selection.database, keys) if selection is not None else {}

    write_gallery(storage, table, thumbnails, request.title)
    return [*notes, write_contact_sheet(storage, table, request.title)]


def _write_results(storage: Storage, request: Request, common: MadeWith) -> pa.Table:
    import pyarrow.parquet as pq

    def made(copy: RequestedCopy) -> Record | None:
        file = request.files[copy.key]
        if not storage.exists(file):
            return None
        with storage.open(file) as handle:
            record = read_record(handle)
        if record is None:
            raise ConfigError(
                f"{storage.full(file)} is no picture of this program: move it away, and run the same command again"
            )
        return record

    log: dict[str, LogEntry] = {}
    for plan in storage.list("shards"):
        for name in storage.list(f"shards/{plan}", ".log"):
            log.update(read_log(storage, f"shards/{plan}/{name}"))
    table = results_table(request.copies, request.extra, made, log, common)
    with storage.scratch() as scratch:
        part = scratch / "results.parquet"
        pq.write_table(table, part, compression="zstd")
        storage.publish(part, "results.parquet")
    return table
