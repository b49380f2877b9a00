"""The stage that makes pictures: one shard of a run's plan, and the set-up of its workers.

Reads: the run's inputs, databases and the model through the worker's Painter. Writes, below the run's folder, each file whole
or not at all: images/*.png, and shards/<plan>/<shard>.log with seconds and errors. A picture is finished when its file exists.
"""

from __future__ import annotations

import functools
import hashlib
import time
from typing import TypedDict, cast

from pipeline.config import canonical_json, parse_json
from pipeline.execution import Receipt, Resources, Shard, Stage
from pipeline.generation.kinds import Given
from pipeline.generation.painter import Painter, Rendering, set_up
from pipeline.generation.previews import current_watcher
from pipeline.generation.provenance import Record, encode_png
from pipeline.generation.requests import PictureRequest, file_name
from pipeline.installation import version
from pipeline.storage import Artifact, Storage

NOT_FINITE = "not_finite: the model gave numbers that are no colours; try --precision fp32 or bf16"


class LogEntry(TypedDict, total=False):
    """The entry of one key in a shard's log."""

    seconds: float  # of the worker, divided evenly among the pictures of a batch
    error: str


def read_log(storage: Storage, file: str) -> dict[str, LogEntry]:
    """A shard's log by key; empty if it is absent or damaged, because it holds only times and errors of pictures to retry."""
    try:
        found = parse_json(storage.read_text(file) or "{}")
    except ValueError:
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {str(key): cast("LogEntry", entry) for key, entry in entries if isinstance(entry, dict)}


def generate_shard(painter: Painter, storage: Storage, plan: str, shard: Shard) -> Receipt:
    """Make the shard's pictures that do not exist yet.

    A batch is made whole, so that a picture's bytes do not depend on which pictures of its batch an earlier worker finished
    before it died. Existing files are not rewritten.
    """
    planned = [{entry["key"]: PictureRequest.from_dict(entry) for entry in batch} for batch in shard.spec["batches"]]
    pictures = {key: picture for batch in planned for key, picture in batch.items()}
    files = {key: file_name(picture.prompt, picture.seed, key) for key, picture in pictures.items()}
    present = {key for key, file in files.items() if storage.exists(file)}
    todo = [batch for batch in planned if not present.issuperset(batch)]
    near = painter.near({key: picture for batch in todo for key, picture in batch.items()})
    log_file = f"shards/{plan}/{shard.name}.log"
    log = read_log(storage, log_file)
    for batch in todo:
        start = time.monotonic()
        painted = painter.paint(list(batch.values()), [near[key] for key in batch])
        for (key, picture), pixels in zip(batch.items(), painted, strict=True):
            if pixels is None:
                log[key] = {"error": NOT_FINITE}
            elif key not in present:
                record = provenance(painter, key, picture, near[key])
                storage.write_bytes(files[key], encode_png(pixels, record))
                log[key] = {"seconds": round((time.monotonic() - start) / len(batch), 3)}
        storage.write_text(log_file, canonical_json(log))
    made = [_artifact(storage, file) for file in files.values() if storage.exists(file)]
    failed = len(pictures) - len(made)
    return Receipt(
        "generate", shard.id, plan, shard.fingerprint, ok=len(made), filtered=0, failed=failed,
        reasons={"not_finite": failed} if failed else {}, artifacts=tuple(made),
    )  # fmt: skip


def _artifact(storage: Storage, file: str) -> Artifact:
    data = storage.read_bytes(file)
    return Artifact(file, hashlib.sha256(data).hexdigest(), len(data))


def provenance(painter: Painter, key: str, picture: PictureRequest, given: Given) -> Record:
    """The provenance of a picture for its PNG. It holds no times, and nothing of the row that requested it."""
    rendering, encoder = painter.rendering, painter.record(picture)
    notes = list(given.notes)
    matched = len(given.records) + given.lost
    if matched < picture.k:
        notes.append(f"only {matched} of {picture.k} neighbours: no more match the filter")
    if given.lost:
        notes.append(f"{given.lost} neighbours were left out: their pictures are not stored")
    if encoder is not None and not encoder.trained:
        notes.append("the encoder is untrained: its neighbours mean nothing")
    table = picture.to_dict()
    source = table.pop("source") or {"database": "", "version": "", "where": ()}
    facts = {f"model_{name}": value for name, value in rendering.model.facts.items() if name != "terms"}
    return {
        **table,
        "key": key,
        "database": source["database"],
        "database_version": source["version"],
        "where": list(source["where"]),
        "neighbours": list(given.records),
        "model": rendering.model.name,
        "model_hash": rendering.model.hash,
        **facts,
        "encoder": encoder.id if encoder else "",
        "encoder_name": encoder.name if encoder else "",
        "precision": rendering.precision,
        "recipe": rendering.recipe,
        "rdmpipe": version(),
        "notes": notes,
    }


def generate_stage(
    storage: Storage, rendering: Rendering, plan: str, memory: int = 0, cpus: float = 1.0, workers: int = 0
) -> Stage:
    """The stage: a model on one GPU, or on `cpus` cores, in each worker. `memory`: bytes a worker needs.

    In this process as many shards are made together as the rendering has workers. On a GPU there is one more: its prompts are
    encoded, its neighbours searched and its pictures written while the other is sampled.
    """
    on_gpu = rendering.device.startswith("cuda")
    together = rendering.workers + (on_gpu and current_watcher() is None)
    return Stage(
        name="generate",
        folder=f"shards/{plan}",
        storage=storage,
        config=plan,
        setup=functools.partial(set_up, rendering),
        run=functools.partial(_run, storage, plan),
        resources=Resources(
            cpus=cpus, gpus=1.0 if on_gpu else 0.0, memory=0 if on_gpu else memory, timeout_s=6 * 3600.0
        ),
        workers=workers,
        together=together,
    )


def _run(storage: Storage, plan: str, painter: Painter, shard: Shard) -> Receipt:
    return generate_shard(painter, storage, plan, shard)
