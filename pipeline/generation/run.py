"""`rdmpipe generate`: prompts x databases x copies -> pictures, results and gallery; resumable picture by picture.

Reads: a prompt list, published databases, a model's folder. Writes below the run's folder, each file whole or not at all:

    images/<prompt>-<seed>-<key>.png    a picture and its provenance; it exists = it is finished
    inputs/<sha256>                     image prompts
    plan/<id>.json, shards/<id>/        which keys are made together, receipts, seconds and errors
    results.parquet, index.html, contact.png

The plan is a function of the request: the same request goes on with the same batches after a kill, and so gives the same bytes
whatever the number of workers. What another request of this home has made already is copied, not made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.catalog import resolve_database
from pipeline.config import canonical_json, default_home, digest
from pipeline.errors import ConfigError, RdmpipeError
from pipeline.execution import Backend, Progress, Shard, Stage, StageFailed, run_stages
from pipeline.generation.expand import Expander, GenerateConfig
from pipeline.generation.models import check_memory, default_model, find_model
from pipeline.generation.painter import Rendering
from pipeline.generation.prompts import SUFFIXES, PromptList, accept_rows, read_prompts
from pipeline.generation.provenance import read_record
from pipeline.generation.requests import RECIPE, PictureRequest, RequestedCopy, batches, shards, unique
from pipeline.generation.results import results_table
from pipeline.generation.stage import generate_stage
from pipeline.storage import Storage, lease

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class GenerateSummary:
    """How a run ended: requested pictures = ok + failed; `pictures` counts different ones (equal keys share a file)."""

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

    def text(self) -> str:
        """For people: what there is now, and where to look."""
        before = self.pictures - self.made - self.copied - self.failed
        lines = [
            f"{self.run}: {self.requested:,} pictures asked for = {self.ok:,} ok + {self.failed:,} failed; "
            f"{self.made:,} made now, {max(before, 0):,} before, {self.copied:,} copied from other runs; {self.seconds:,.1f} s"
        ]
        lines += [f"note: {warning}" for warning in self.warnings]
        lines.append(f"look at {self.out}/index.html")
        return "\n".join(lines)


# ---- a run


def generate(
    config: GenerateConfig, progress: Progress, backend: Backend | None = None, wait_s: float = 0.0
) -> GenerateSummary:
    """Make every requested picture that is not there yet, then results, gallery and contact sheet.

    Raises PromptError with all bad rows, and any RdmpipeError for a bad flag, before work starts; StageFailed where shards
    kept failing (results are written even then). After a kill or Ctrl-C the same call goes on.
    """
    start, backend = time.monotonic(), backend or Backend()
    prompts = read_prompts(config.prompts)
    config = replace(config, model=config.model or _default_model(config, prompts))
    model = find_model(config.model, config.home)
    device, precision, batch = _machine(config)
    expander = Expander(config, model, precision)
    requests, bad = expander.requests(prompts)
    rows = accept_rows(prompts, bad, config.skip_bad)
    skipped = len({row.line for row in (*prompts.bad, *bad)})
    warnings = [*prompts.warnings, *expander.warnings]
    if skipped:
        first = "; ".join(f"{prompts.unit} {row.line}: {row.problem}" for row in (*prompts.bad, *bad)[:5])
        warnings.append(f"{skipped} row(s) of {prompts.source} cannot be used and were left out: {first}")
    for warning in warnings:
        progress.say(f"note: {warning}")
    pictures = unique(requests)
    sizes = {(picture.height, picture.width) for picture in pictures.values()}
    workers = max(1, backend.workers) if backend.kind == "ray" else 1
    memory = check_memory(model, precision, device, batch, sizes, 0 if backend.address else workers)
    name = config.run or run_name(config)
    storage = Storage(config.out or f"{(config.home or default_home()).rstrip('/')}/generations/{name}")
    rendering = Rendering(storage.url, config.home, model.folder, model.config.name, model.hash, precision, device,
                          _threads(config, device, workers, progress), expander.text_encoder)  # fmt: skip
    with lease(storage, f"generate {name}", wait_s, notify=progress.say):
        storage.clear_scratch()
        progress.record_in(storage)
        for key in expander.images:
            storage.write_bytes(f"inputs/{key}", expander.image_bytes(key))
        files = {request.key: request.file for request in requests}
        copied = _copy_finished(storage, files, config) if not config.out else 0
        before = _finished(storage, files)
        failures = []
        if len(before) < len(pictures):
            plan_id, plan = _plan(storage, pictures, before, batch)
            work = shards(pictures, plan, config.shard or max(2 * batch, 4))
            stage = generate_stage(storage, rendering, plan_id, memory, max(1, rendering.threads), backend.workers)
            _forget_failures(stage, work)
            try:
                failures = run_stages((stage,), work, backend, progress, len(work)).failures
            except KeyboardInterrupt:
                done = len(_finished(storage, files))
                progress.say(f"stopped: {done:,} of {len(pictures):,} pictures are finished and kept in {storage.url}. "
                             "Run the same command again to go on.")  # fmt: skip
                raise
        storage.write_text("failures.json", canonical_json([asdict(failure) for failure in failures]) + "\n")
        finished = _finished(storage, files)
        common = {"model": model.config.name, "model_hash": model.hash, "precision": precision}
        table = _write_results(storage, requests, prompts.extra, common)
        if config.gallery:
            progress.say("writing index.html and contact.png")
            _write_gallery(storage, table, expander, _title(config, name))
    if failures:
        raise StageFailed(tuple(failures))
    return GenerateSummary(
        run=name,
        out=storage.url,
        requested=len(requests),
        ok=sum(request.key in finished for request in requests),
        failed=sum(request.key not in finished for request in requests),
        pictures=len(pictures),
        made=len(finished) - len(before),
        copied=copied,
        skipped_rows=len(prompts.rows) + len(prompts.bad) - len(rows),
        seconds=round(time.monotonic() - start, 3),
        warnings=tuple(warnings),
    )


def _default_model(config: GenerateConfig, prompts: PromptList) -> str:
    """By the encoder of the first database that flags or rows name; rdm-768 where none is named."""
    if config.db:
        return default_model(resolve_database(config.db[0], config.home).version.encoder.name, config.home)
    for name in dict.fromkeys(name for row in prompts.rows for name in row.db):
        with contextlib.suppress(RdmpipeError):  # a row that names what is not there is that row's error
            return default_model(resolve_database(name, config.home).version.encoder.name, config.home)
    return "rdm-768"


def _machine(config: GenerateConfig) -> tuple[str, str, int]:
    """(device, precision, batch) where the config says auto."""
    import torch

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        on_gpu = torch.device(device).type == "cuda"
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r}: expected auto, cpu, cuda or cuda:N") from error
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: torch sees no GPU here; leave --device out, or say cpu")
    if config.precision == "auto":
        precision: str = "fp16" if on_gpu else "fp32"
    else:
        precision = config.precision
    if precision not in ("fp32", "fp16", "bf16"):
        raise ConfigError(f"--precision {precision!r}: expected auto, fp32, fp16 or bf16")
    if config.batch < 0 or config.shard < 0 or config.threads < 0:
        raise ConfigError("--batch, --shard and --threads are numbers from 1; 0 leaves the choice to rdmpipe")
    return device, precision, config.batch or (4 if on_gpu else 1)


def _threads(config: GenerateConfig, device: str, workers: int, progress: Progress) -> int:
    """torch's threads in each worker: one on a CPU unless told, however many workers there are, since the number of threads
    changes the last digits of a picture's numbers and with them a few of its pixels by one level. 0: torch's own, on a GPU."""
    if config.threads or device.startswith("cuda"):
        return config.threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < cores:
        progress.say(f"{workers} worker(s) of one thread on {cores} cores: --workers or --threads uses more of them")
    return 1


def run_name(config: GenerateConfig) -> str:
    """The prompts' name and a mark of the flags: an edited list goes on in its run, other flags make another run."""
    is_list = config.prompts.lower().endswith(SUFFIXES)
    source = str(Path(config.prompts).absolute()) if is_list and "://" not in config.prompts else config.prompts
    stem = Path(source).stem if is_list else source
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:32].strip("-") or "prompt"
    elsewhere = {
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
    }
    flags = {name: value for name, value in asdict(config).items() if name not in elsewhere}
    return f"{slug}-{digest([source, flags], 6)}"


def _title(config: GenerateConfig, name: str) -> str:
    if config.run:
        return config.run
    return Path(config.prompts).stem if config.prompts.lower().endswith(SUFFIXES) else config.prompts.strip()[:120]


# ---- what is there already


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
    storage: Storage, pictures: Mapping[str, PictureRequest], finished: set[str], batch: int
) -> tuple[str, list[list[str]]]:
    """The request's plan: the one an earlier, interrupted call wrote, else batches of what is not finished, now written."""
    plan_id = digest([RECIPE, list(pictures), batch], 16)
    text = storage.read_text(f"plan/{plan_id}.json")
    if text is not None:
        plan: list[list[str]] = json.loads(text)
        if not (pictures.keys() - finished) - {key for keys in plan for key in keys}:
            return plan_id, plan
    plan = batches({key: picture for key, picture in pictures.items() if key not in finished}, batch)
    storage.write_text(f"plan/{plan_id}.json", canonical_json(plan))
    return plan_id, plan


def _forget_failures(stage: Stage, work: Iterable[Shard]) -> None:
    """Pictures that failed are tried again by the next call: take back the receipts that count one."""
    for shard in work:
        receipt = stage.receipt(shard)
        if receipt is not None and receipt.failed:
            stage.storage.remove(stage.receipt_path(shard))


# ---- what comes of it


def _write_results(
    storage: Storage, requests: list[RequestedCopy], extra: tuple[str, ...], common: Mapping[str, Any]
) -> pa.Table:
    import pyarrow.parquet as pq

    made = {}
    for key, file in {request.key: request.file for request in requests}.items():
        if storage.exists(file):
            with storage.open(file) as handle:
                record = read_record(handle)
            if record is None:
                raise ConfigError(f"{storage.full(file)} is no picture of this program: move it away, and run again")
            made[key] = record
    log: dict[str, Any] = {}
    for plan in storage.list("shards"):
        for name in storage.list(f"shards/{plan}", ".log"):
            log.update(json.loads(storage.read_bytes(f"shards/{plan}/{name}")))
    table = results_table(requests, extra, made, log, common)
    with storage.scratch() as scratch:
        part = scratch / "results.parquet"
        pq.write_table(table, part, compression="zstd")
        storage.publish(part, "results.parquet")
    return table


def _write_gallery(storage: Storage, table: pa.Table, expander: Expander, title: str) -> None:
    from pipeline.database import picture_files
    from pipeline.generation.contact import write_contact_sheet
    from pipeline.generation.gallery import write_gallery

    def thumbnails(name: str, keys: list[int]) -> Mapping[int, bytes]:
        selection = expander.selections.get(name)
        return picture_files(selection.database, keys) if selection is not None else {}

    write_gallery(storage, table, thumbnails, title)
    write_contact_sheet(storage, table, title)
