"""The index stage: from finished embedding shards to a published index.

Reads: embedding shards. Writes index/<encoder>/<id>/: keys.npy, norms.npy, vectors.npy and metadata.parquet (index/rows.py),
index.faiss above the exact size, values.lists if that is an inverted file and the metadata has columns of few values
(index/splitting.py), and entry.json, last. The id is the digest of all inputs and parameters. A build that was
killed therefore finds the same folder again, and a finished index is reused. An exact index has the same bytes every time. An
approximate index has the same inputs every time, and a recall within its interval.

Every build makes a new index from the stored vectors; no build extends an index, and nothing is embedded again. A refresh
therefore reads all vectors once and, above the exact size, trains and adds again. In return, ordinals stay dense, training is
not biased towards older rows, and an index depends only on a version's rows.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import canonical_json, checked, digest
from pipeline.database import IndexEntry, write_recorded
from pipeline.errors import BudgetError, ConfigError, DamagedError, RecallError
from pipeline.index.config import IndexConfig
from pipeline.index.npy import npy_shape
from pipeline.index.records import BuiltIndex, Measurements
from pipeline.index.rows import FILES, kept_columns, write_rows
from pipeline.index.values import VALUES

if TYPE_CHECKING:
    from pipeline.database import RetrievalDatabase
    from pipeline.execution import Backend, Progress
    from pipeline.index.partitions import IndexJob
    from pipeline.index.recall import Queries
    from pipeline.index.records import IndexInput
    from pipeline.index.splitting import SplitColumn

log = logging.getLogger(__name__)

FORMAT = 1  # part of an index's id: increase it when the code writes other files for the same inputs

VALUES_FORMAT = 1  # the same for values.lists; part of the id of an index that has them

VALUE_MEMORY = 32  # the values of all rows may take 1/32 of the memory budget


def check_index(config: IndexConfig, rows: int, dim: int) -> None:
    """Refuse an index that cannot be built, before any work: an unknown faiss key, or too little memory for `rows` rows.

    `rows` is 0 if the number is not known. Raises IndexBuildError, or BudgetError that names the smallest budget.
    """
    if not config.key and rows <= config.exact_rows:
        return
    from pipeline.index.keys import choose_key, size_of
    from pipeline.index.partitions import partitions_of

    if not rows:
        size_of(config.key, 1, dim, config.memory)
    elif partitions_of(rows, dim, config) < 2:
        choose_key(rows, dim, config)  # if anything fits, so does an index for filters


def build_index(
    db: RetrievalDatabase,
    config: IndexConfig,
    rows: IndexInput,
    text: Queries | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> IndexEntry:
    """Build and publish the index over `rows`, or return the finished one with the same inputs.

    `text` holds the text queries that recall is measured with (see text_queries), None if there are none. `backend` runs
    the partitions of an index that is built in several. `device` (auto, cpu, cuda) says whether a GPU may be used, if faiss has
    one; the index has the same id either way. Raises IndexBuildError (nothing to index, damaged shards, recall that
    cannot be reached), BudgetError (memory too small) and StageFailed (partitions that failed every time).
    """
    # An index that was made before there were keys and lists for filters stays as it is, also if its files are damaged.
    current = _current_index(db)
    plain = index_id(config, rows, text)
    columns: tuple[SplitColumn, ...] = ()
    folder = db.index_folder(rows.encoder, plain)
    entry = _finished(db, folder)
    filtered = bool(rows.columns) and plain != current
    if entry is None and filtered:
        columns, key = _for_filters(db, config, rows)
        filtered = index_id(config, rows, text, columns) != current
        folder = db.index_folder(rows.encoder, index_id(config, rows, text, columns, key if filtered else ""))
        entry = _finished(db, folder)
    if entry is None:
        from pipeline.index.partitions import IndexJob

        with db.storage.scratch() as scratch:
            job = IndexJob(db, config, rows, text, folder, scratch, device, columns, filtered)
            entry = _build(job, backend, progress)
    db.storage.remove(f"{folder}/parts")
    return entry


def _current_index(db: RetrievalDatabase) -> str:
    """The id of the current version's index, whose files may be damaged; empty if there is none."""
    current = db.current_id()
    return "" if current is None else db.version(current).index.id


def _for_filters(db: RetrievalDatabase, config: IndexConfig, rows: IndexInput) -> tuple[tuple[SplitColumn, ...], str]:
    """The columns whose values get inverted lists of their own, and the key of the index if it is chosen because of filters.

    Reads the columns of all shards, if the index is an inverted file that is built in one piece.
    """
    from pipeline.index.splitting import candidate_columns, split_columns

    count = sum(shard.ok for shard in rows.shards)
    if not rows.columns or not count or (not config.key and count <= config.exact_rows):
        return (), ""
    from pipeline.index.keys import choose_key
    from pipeline.index.partitions import partitions_of

    if partitions_of(count, rows.dim, config) > 1:
        return (), ""
    key = choose_key(count, rows.dim, config, filtered=True)[0].key
    changed = "" if key == choose_key(count, rows.dim, config)[0].key else key
    names = candidate_columns(rows.columns)
    if not names or not key.startswith("IVF"):
        return (), changed
    return split_columns(kept_columns(db, rows, names), names, config.memory // VALUE_MEMORY), changed


def index_id(
    config: IndexConfig, rows: IndexInput, text: Queries | None, columns: Sequence[SplitColumn] = (), key: str = ""
) -> str:
    """The id of the index with these inputs: a digest of 12 hex digits. `columns` are those by whose values it is split;
    `key` is its key if a database without columns would get another one."""
    inputs: dict[str, object] = {
        "format": FORMAT,
        "encoder": rows.encoder.id,
        "dim": rows.dim,
        "columns": list(rows.columns.items()),
        "shards": [(shard.id, shard.artifact.sha256) for shard in rows.sorted_shards()],
        "gone": hashlib.sha256(rows.gone_keys().tobytes()).hexdigest(),
        "config": asdict(config),
        "text": text.fingerprint() if text is not None else "",
    }
    if columns:
        inputs["values"] = {"format": VALUES_FORMAT, "columns": [column.name for column in columns]}
    if key:
        inputs["key"] = key
    return digest(inputs, 12)


def _finished(db: RetrievalDatabase, folder: str) -> IndexEntry | None:
    """The entry of an index that was finished before and whose files all exist."""
    try:
        table = db.read_json(f"{folder}/entry.json")
        if table is None:
            return None
        entry = checked(IndexEntry, table, "index")
    except (DamagedError, ConfigError):
        return None  # the index is built again
    whole = all(db.storage.size(artifact.path) == artifact.bytes for artifact in entry.files.values())
    return entry if whole else None


def _build(job: IndexJob, backend: Backend | None, progress: Progress | None) -> IndexEntry:
    from pipeline.index.partitions import build_partitioned, partitions_of

    db, config, scratch = job.db, job.config, job.scratch
    counts = write_rows(db, job.rows, scratch)
    if not config.key and config.partitions < 2 and counts.rows <= config.exact_rows:
        built = build_exact(scratch, config, job.text, job.device)
    elif partitions_of(counts.rows, job.rows.dim, config) > 1:
        built = build_partitioned(job, backend, progress)
    else:
        built = build_whole(scratch, config, job.text, job.device, job.columns, job.filtered)
    names = {**FILES, "faiss": "index.faiss", "values": VALUES}
    entry = IndexEntry(
        id=Path(job.folder).name,
        kind=built.kind,
        key=built.key,
        rows=counts.rows,
        files={
            role: db.storage.publish(scratch / name, f"{job.folder}/{name}")
            for role, name in names.items()
            if (scratch / name).exists()
        },
        params=built.params,
        recall=built.recall,
        build={**built.build, "duplicates": counts.duplicates, "config": asdict(config)},
    )
    write_recorded(db.storage, f"{job.folder}/entry.json", canonical_json(entry) + "\n")
    return entry


def build_exact(folder: Path, config: IndexConfig, text: Queries | None, device: str = "auto") -> BuiltIndex:
    """The index of a small database: searches scan folder/vectors.npy; nothing else is written."""
    from pipeline.index.gpu import open_gpu
    from pipeline.index.recall import measure_recall

    return BuiltIndex(
        "exact", "Flat", {}, measure_recall(folder / FILES["vectors"], config, text, open_gpu(device)), {}
    )


def build_whole(
    folder: Path,
    config: IndexConfig,
    text: Queries | None,
    device: str = "auto",
    columns: Sequence[SplitColumn] = (),
    filtered: bool = False,
) -> BuiltIndex:
    """Build folder/index.faiss over folder/vectors.npy in one piece, and folder/values.lists for the values of `columns`.

    `filtered`: searches filter by columns (index/keys.py). If an index does not reach config.min_recall, the next possible
    one is built. Raises BudgetError before any work if config.memory is too small, and afterwards if more was used;
    IndexBuildError for a key that faiss does not know, an installation that cannot work, or a recall below config.min_recall.
    """
    from pipeline.index.gpu import check_installation
    from pipeline.index.keys import mb, possible_keys
    from pipeline.index.process import config_record, query_record, run_worker
    from pipeline.index.splitting import write_codes

    check_installation()
    rows, dim = npy_shape(folder / FILES["vectors"])
    if columns:
        write_codes(folder, columns)
    possible = possible_keys(rows, dim, config, filtered)
    while True:
        sizing, builder = possible.pop(0)
        try:
            answer = run_worker(
                {
                    "task": "build",
                    "device": device,
                    "folder": str(folder),
                    "key": sizing.key,
                    "index_bytes": sizing.index,
                    "training_rows": sizing.training_rows,
                    "builder": builder,
                    "config": config_record(config),
                    "text": query_record(text, folder),
                    "columns": [{"name": column.name, "values": list(column.values)} for column in columns],
                },
                folder,
            )
            break
        except RecallError as error:
            if not possible:
                raise
            log.warning("%s: %s. Building %s instead", sizing.key, error, possible[0][0].key)
    peak = answer["peak_bytes"]
    if peak > config.memory:
        raise BudgetError(
            f"building {sizing.key} took {mb(peak)} at its peak, more than the {mb(config.memory)} allowed; "
            f"give --memory {math.ceil(peak / (1 << 20) * 1.1)}MB"
        )
    measured: Measurements = {
        "budget_bytes": config.memory,
        "planned_bytes": sizing.peak,
        "peak_bytes": peak,
        "training_rows": answer["training_rows"],
        "builder": builder,
        "seconds": answer["seconds"],
    }
    if answer["value_bytes"]:
        measured["value_bytes"] = answer["value_bytes"]
    return BuiltIndex("faiss", sizing.key, answer["params"], answer["recall"], measured)
