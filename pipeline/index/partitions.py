"""An index of a very large database: trained once, filled in partitions by workers, merged on disk.

Reads: embedding shards; vectors.npy for training and recall. Writes, while it works, below `<index folder>/parts/`:
trained.faiss, gone.npy, and for each partition <number>.faiss, its receipt, and its measurements (.log). Then it writes
index.faiss into the scratch folder; a search maps that file, so it need not fit into memory. A partition is a shard of a stage:
it is retried, its worker is replaced, and a killed build keeps the finished partitions.

By rule (`IndexConfig.partitions` = 0) an index of more than PARTITION_ROWS rows has one partition for every PARTITION_ROWS of
them, or smaller partitions if there is less memory. The memory budget applies to each building process: training, or one
partition; merging maps its files. Without a named key, the index is an inverted file over 8-bit codes, because fast-scan codes
cannot be merged on disk. It does not extend an index: a refresh trains and adds again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import digest
from pipeline.database import ShardEntry
from pipeline.errors import BudgetError, IndexBuildError
from pipeline.execution import Backend, Progress, Receipt, Resources, Shard, Stage, StageFailed, run_stages
from pipeline.index.gpu import check_installation
from pipeline.index.keys import BASE, GROWTH, PER_LIST, WORKING, Sizing, mb, size_of
from pipeline.index.process import config_record, query_record, run_worker
from pipeline.index.records import BuiltIndex
from pipeline.index.rows import write_vectors
from pipeline.schema import SHARD_ROWS
from pipeline.storage import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase
    from pipeline.index.config import IndexConfig
    from pipeline.index.recall import Queries
    from pipeline.index.records import IndexInput, Step
    from pipeline.index.splitting import SplitColumn

STAGE = "partition"

PARTITION_ROWS = 20_000_000

TRAINING_ROWS = 10_000_000  # at most: 39 for each of 256,000 lists

TIMEOUT_S = 12 * 3600.0


@dataclass(frozen=True)
class IndexJob:
    """An index that is being built: its inputs, its folder in the database and a local folder for its files."""

    db: RetrievalDatabase
    config: IndexConfig
    rows: IndexInput
    text: Queries | None
    folder: str
    scratch: Path
    device: str = "auto"
    columns: tuple[SplitColumn, ...] = ()  # whose values get lists of their own, if the index is not partitioned
    filtered: bool = False  # the key is chosen for searches that filter by columns, if the index is not partitioned


@dataclass(frozen=True)
class Partitioned:
    """The settings for the worker of a partition: the folder of the parts, and how they are made."""

    folder: str  # <index folder>/parts
    dim: int
    memory: int  # bytes
    trained: Artifact
    gone: Artifact
    device: str = "auto"  # not part of the fingerprint: CPU and GPU assign rows to the same lists

    def fingerprint(self) -> str:
        return digest([self.trained.sha256, self.gone.sha256], 32)


def partitions_of(rows: int, dim: int, config: IndexConfig) -> int:
    """The number of partitions of an index over `rows` rows; 1: it is built in one piece."""
    if config.partitions or rows <= PARTITION_ROWS:
        return config.partitions or 1
    kept = max(0, config.memory - BASE - WORKING) / 2 / (GROWTH * (dim + 8))  # half of it for rows, half for centroids
    return math.ceil(rows / max(1.0, min(PARTITION_ROWS, kept)))


def plan_sizing(rows: int, dim: int, config: IndexConfig) -> Sizing:
    """The key, and the peak memory of one process (training, or a partition). Raises BudgetError with a sufficient value."""
    room, part = config.memory - BASE - WORKING, math.ceil(rows / partitions_of(rows, dim, config))
    keys = [config.key] if config.key else partition_keys(rows)
    sizings = [
        replace(size_of(key, rows, dim, room, TRAINING_ROWS), index=size_of(key, part, dim, room, TRAINING_ROWS).index)
        for key in keys
    ]
    for sizing in sizings:
        if sizing.peak <= config.memory:
            return sizing
    least = min(sizings, key=lambda sizing: sizing.peak)
    raise BudgetError(
        f"{mb(config.memory)} is too little for partitions of {part:,} rows; {least.key} takes {mb(least.peak)} at its peak: "
        f"give --memory {math.ceil(least.peak / (1 << 20))}MB, or more --partitions"
    )


def partition_keys(rows: int) -> list[str]:
    """Inverted files over 8-bit codes, the finest first: the number of lists is a power of two near 4 sqrt(rows), or less."""
    most = int(math.log2(max(16.0, min(4 * math.sqrt(rows), min(TRAINING_ROWS, rows) / PER_LIST))))
    return [f"IVF{2**power}{'_HNSW32' if power >= 10 else ''},SQ8" for power in range(most, 3, -1)]


def build_partitioned(job: IndexJob, backend: Backend | None = None, progress: Progress | None = None) -> BuiltIndex:
    """Build index.faiss in the job's scratch folder, which holds vectors.npy and keys.npy.

    Raises BudgetError, IndexBuildError, and StageFailed if partitions failed every time; finished ones are kept.
    """
    import numpy as np

    backend, progress = backend or Backend(), progress or Progress()
    check_installation()
    db, config, folder = job.db, job.config, f"{job.folder}/parts"
    keys: NDArray[np.int64] = np.load(job.scratch / "keys.npy", mmap_mode="r")
    sizing = plan_sizing(len(keys), job.rows.dim, config)
    _check_key(sizing.key, job.rows.dim)
    trained, taught = _train(job, folder, sizing)
    np.save(job.scratch / "gone.npy", job.rows.gone_keys())
    gone = db.storage.publish(job.scratch / "gone.npy", f"{folder}/gone.npy")
    part = Partitioned(folder, job.rows.dim, config.memory, trained, gone, job.device)
    work = plan_partitions(job.rows.sorted_shards(), keys, partitions_of(len(keys), job.rows.dim, config))
    stage = partition_stage(db, part, sizing, backend.workers)
    outcome = run_stages((stage,), work, backend, progress, len(work))
    if outcome.failures:
        raise StageFailed(tuple(outcome.failures))
    receipts = [receipt for shard in work if (receipt := stage.receipt(shard)) is not None]
    progress.say(f"merging {len(receipts)} partitions of {len(keys):,} rows on disk")
    merged = run_worker(
        {
            "task": "merge",
            "device": job.device,
            "folder": str(job.scratch),
            "trained": str(db.storage.local(trained)),
            "parts": [str(db.storage.local(receipt.artifacts[0])) for receipt in receipts],
            "config": config_record(config),
            "text": query_record(job.text, job.scratch),
        },
        job.scratch,
    )
    added: list[Step] = [json.loads(db.storage.read_text(f"{folder}/{shard.name}.log") or "{}") for shard in work]
    return BuiltIndex(
        "faiss",
        sizing.key,
        merged["params"],
        merged["recall"],
        {
            "budget_bytes": config.memory,
            "planned_bytes": sizing.peak,
            "peak_bytes": max(step["peak_bytes"] for step in (taught, *added)),
            "training_rows": sizing.training_rows,
            "builder": "partitions",
            "partitions": len(work),
            "seconds": {
                "train": taught["seconds"],
                "add": round(sum(step["seconds"] for step in added), 1),  # of all workers
                **merged["seconds"],
            },
        },
    )


def _check_key(key: str, dim: int) -> None:
    import faiss

    index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None or isinstance(faiss.downcast_index(inverted), faiss.IndexIVFFastScan):
        raise IndexBuildError(
            f"{key}: partitions are merged on disk list by list, which needs inverted files over plain codes, such as "
            "IVF65536_HNSW32,SQ8 or IVF65536_HNSW32,PQ96; leave out --index-key, or give --partitions 1"
        )


def _train(job: IndexJob, folder: str, sizing: Sizing) -> tuple[Artifact, Step]:
    """The trained, empty index. If an interrupted build published one, it is reused, because finished partitions depend
    on it."""
    path, storage, config = f"{folder}/trained.faiss", job.db.storage, job.config
    if storage.exists(path):
        data = storage.read_bytes(path)
        return Artifact(path, hashlib.sha256(data).hexdigest(), len(data)), {"peak_bytes": 0, "seconds": 0.0}
    answer = run_worker(
        {
            "task": "train",
            "device": job.device,
            "folder": str(job.scratch),
            "key": sizing.key,
            "training_rows": sizing.training_rows,
            "seed": config.seed,
        },
        job.scratch,
    )
    if answer["peak_bytes"] > config.memory:
        raise BudgetError(
            f"training {sizing.key} took {mb(answer['peak_bytes'])} at its peak, more than the {mb(config.memory)} allowed; "
            "give more --memory"
        )
    return storage.publish(job.scratch / "trained.faiss", path), answer


def plan_partitions(shards: Sequence[ShardEntry], keys: NDArray[np.int64], partitions: int) -> list[Shard]:
    """Partitions of whole shards and of about equal size, in order of key. `keys` are the index's, (N,), ascending."""
    import numpy as np

    edges = np.searchsorted(keys, [shard.id * SHARD_ROWS for shard in shards] + [(shards[-1].id + 1) * SHARD_ROWS])
    groups: dict[int, list[tuple[ShardEntry, int, int]]] = {}
    for shard, first, end in zip(shards, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end > first:
            groups.setdefault(first * partitions // len(keys), []).append((shard, first, end))
    return [
        Shard(
            number,
            group[-1][2] - group[0][1],
            digest([(shard.artifact.sha256, first, end) for shard, first, end in group], 32),
            {"first": group[0][1], "shards": [asdict(shard) for shard, _, _ in group]},
        )
        for number, group in enumerate(groups.values())
    ]


def partition_stage(db: RetrievalDatabase, part: Partitioned, sizing: Sizing, workers: int = 0) -> Stage:
    """The stage whose shards are partitions."""
    return Stage(
        name=STAGE,
        folder=part.folder,
        storage=db.storage,
        config=part.fingerprint(),
        setup=functools.partial(_open_parts, db, part),
        run=functools.partial(add_partition, db, part),
        resources=Resources(cpus=1.0, memory=sizing.peak, timeout_s=TIMEOUT_S),
        workers=workers,
    )


def _open_parts(db: RetrievalDatabase, part: Partitioned) -> tuple[Path, NDArray[np.int64]]:
    import numpy as np

    gone: NDArray[np.int64] = np.load(db.storage.local(part.gone))
    return db.storage.local(part.trained), gone


def add_partition(
    db: RetrievalDatabase, part: Partitioned, context: tuple[Path, NDArray[np.int64]], shard: Shard
) -> Receipt:
    """Add one partition's rows to the trained index, in a separate process, and publish it."""
    trained, gone = context
    entries = [ShardEntry(**{**entry, "artifact": Artifact(**entry["artifact"])}) for entry in shard.spec["shards"]]
    with db.storage.scratch() as scratch:
        write_vectors(db, entries, gone, (shard.rows, part.dim), scratch / "vectors.npy")
        answer = run_worker(
            {
                "task": "add",
                "device": part.device,
                "folder": str(scratch),
                "trained": str(trained),
                "first": shard.spec["first"],
            },
            scratch,
        )
        if answer["peak_bytes"] > part.memory:
            raise BudgetError(
                f"a partition of {shard.rows:,} rows took {mb(answer['peak_bytes'])} at its peak, more than the "
                f"{mb(part.memory)} allowed; give more --memory or more --partitions"
            )
        artifact = db.storage.publish(scratch / "part.faiss", f"{part.folder}/{shard.name}.faiss")
        db.storage.write_text(f"{part.folder}/{shard.name}.log", json.dumps(answer))
    return Receipt(STAGE, shard.id, part.fingerprint(), shard.fingerprint, shard.rows, 0, 0, artifacts=(artifact,))
