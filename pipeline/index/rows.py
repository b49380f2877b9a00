"""From finished embedding shards to the row-ordered files of an index.

Reads: embedding shards (Parquet), twice: once to count rows and to find exact duplicates, once to write. Writes keys.npy
(int64), norms.npy (float32), vectors.npy (float16, C order) and metadata.parquet into a local folder. All are in key order,
without rows that are not ok or gone. The same shards give the same bytes. It holds one shard, one row group, one
bucket of checksums and 16 bytes a row in memory. It publishes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pipeline.errors import IndexBuildError
from pipeline.index.npy import write_npy_header
from pipeline.schema import OK, PATCH_COORDS, arrow_type, metadata_columns, shard_name

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase, ShardEntry
    from pipeline.index.records import IndexInput

FILES = {"keys": "keys.npy", "norms": "norms.npy", "vectors": "vectors.npy", "metadata": "metadata.parquet"}

GROUP_ROWS = 5_000  # rows in a row group of metadata.parquet, which a look-up of one result has to read

BUCKET_ROWS = 1_000_000  # rows whose checksums are compared at once: 40 bytes each

MOST_BUCKETS = 256  # files open at once


@dataclass(frozen=True)
class RowCounts:
    """`duplicates` is the number of rows that are byte-for-byte copies of an earlier row."""

    rows: int
    duplicates: int


def write_rows(db: RetrievalDatabase, rows: IndexInput, folder: Path) -> RowCounts:
    """Write the files named in FILES into `folder`.

    Raises IndexBuildError if a shard lacks columns, holds vectors of another dimension or not of unit length, or if no row is
    left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards, gone = rows.sorted_shards(), rows.gone_keys()
    crops = [PATCH_COORDS] if PATCH_COORDS in rows.columns else []
    keys, original = _keys_and_duplicates(db, shards, gone, folder, crops)
    if not len(keys):
        raise IndexBuildError(
            f"database {db.name!r} has no row to index: every picture failed, was filtered or is gone. "
            f"`rdmpipe status {db.name}` counts the reasons"
        )
    np.save(folder / FILES["keys"], keys)
    kinds = metadata_columns(rows.columns)
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in kinds.items()])
    stored = [name for name in kinds if name != "duplicate_of"]
    done = 0
    with (
        (folder / FILES["vectors"]).open("wb") as vectors,
        (folder / FILES["norms"]).open("wb") as norms,
        pq.ParquetWriter(folder / FILES["metadata"], schema, compression="zstd") as metadata,
    ):
        write_npy_header(vectors, np.float16, (len(keys), rows.dim))
        write_npy_header(norms, np.float32, (len(keys),))
        waiting: list[pa.Table] = []
        for shard, table in _kept_rows(db, shards, gone, [*stored, "vector", "norm"]):
            vectors.write(_unit_vectors(db, shard, table, rows.dim).tobytes())
            norms.write(table["norm"].to_numpy().astype(np.float32).tobytes())
            waiting.append(_metadata(table, original[done : done + table.num_rows], schema))
            done += table.num_rows
            if sum(part.num_rows for part in waiting) >= GROUP_ROWS:
                metadata.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
                waiting.clear()
        if waiting:
            metadata.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
    _require_all(db, done, len(keys))
    return RowCounts(done, int(np.count_nonzero(original >= 0)))


def _metadata(table: pa.Table, original: NDArray[np.int64], schema: pa.Schema) -> pa.Table:
    """A shard's metadata columns. `original` holds the key of the first copy of each row, or -1."""
    import pyarrow as pa

    of = pa.chunked_array([pa.array(original, pa.int64(), mask=original < 0)])
    arrays = [of if field.name == "duplicate_of" else table[field.name] for field in schema]
    return pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema)


def _require_all(db: RetrievalDatabase, done: int, expected: int) -> None:
    if done != expected:
        raise IndexBuildError(
            f"the embedding shards of {db.name!r} changed while they were indexed: {done:,} rows instead of {expected:,}; "
            "run the same command again"
        )


def write_vectors(
    db: RetrievalDatabase,
    shards: Sequence[ShardEntry],
    gone: NDArray[np.int64],
    shape: tuple[int, int],
    path: Path,
) -> None:
    """Write only the vectors of some shards' rows, in the form of vectors.npy: `shape` (rows, D), float16, in key order."""
    done = 0
    with path.open("wb") as vectors:
        write_npy_header(vectors, np.float16, shape)
        for shard, table in _kept_rows(db, shards, gone, ["vector"]):
            vectors.write(_unit_vectors(db, shard, table, shape[1]).tobytes())
            done += table.num_rows
    _require_all(db, done, shape[0])


def kept_columns(db: RetrievalDatabase, rows: IndexInput, names: list[str]) -> Iterator[pa.Table]:
    """Some metadata columns of the rows that an index covers, shard by shard, in key order. Raises IndexBuildError."""
    return (table for _, table in _kept_rows(db, rows.sorted_shards(), rows.gone_keys(), names))


def _kept_rows(
    db: RetrievalDatabase, shards: Sequence[ShardEntry], gone: NDArray[np.int64], names: list[str]
) -> Iterator[tuple[ShardEntry, pa.Table]]:
    """Each shard's rows that are ok and not gone, in key order, with the columns `names`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    last = -1
    for shard in shards:
        try:
            with db.storage.open(shard.artifact.path) as handle:
                table = pq.ParquetFile(handle).read([*dict.fromkeys([*names, "key", "status"])])
        except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
            raise IndexBuildError(
                f"{shard.artifact.path}: this finished shard cannot be read ({error}); remove it and its receipt and build "
                "again: only this shard is embedded again"
            ) from error
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise IndexBuildError(
                f"{shard.artifact.path}: no column {', '.join(missing)}; the shard was made with other columns than the "
                "plan's; build the database again under a new name"
            )
        table = table.filter(pc.equal(table["status"], OK))
        keys = table["key"].to_numpy()
        if len(gone):
            table = table.filter(pa.array(~np.isin(keys, gone, kind="sort")))
            keys = table["key"].to_numpy()
        if len(keys) and (int(keys[0]) <= last or bool((np.diff(keys) <= 0).any())):
            raise IndexBuildError(
                f"{shard.artifact.path}: keys are not ascending; give every shard once, in order of its id"
            )
        last = int(keys[-1]) if len(keys) else last
        yield shard, table


def _unit_vectors(db: RetrievalDatabase, shard: ShardEntry, table: pa.Table, dim: int) -> NDArray[np.float16]:
    """The rows' vectors, (n, D) float16. Raises IndexBuildError for another dimension, or a length that is not 1."""
    column = table["vector"].combine_chunks()
    width = getattr(column.type, "list_size", -1)
    if width != dim:
        raise IndexBuildError(
            f"{shard.artifact.path}: vectors have {width} dimensions, the encoder's have {dim}. "
            f"Shard {shard_name(shard.id)} was made by another encoder: remove its folder and embed again"
        )
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors: NDArray[np.float16] = flat.reshape(table.num_rows, dim).astype(np.float16, copy=False)
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1.0) < 0.01))
    if len(bad):
        key = table["key"][int(bad[0])].as_py()
        raise IndexBuildError(
            f"{shard.artifact.path}: {len(bad)} vector(s) are not of unit length, the first that of key {key} "
            f"(length {lengths[bad[0]]:.3g}); remove the shard and its receipt and embed again"
        )
    return vectors


def _keys_and_duplicates(
    db: RetrievalDatabase, shards: Sequence[ShardEntry], gone: NDArray[np.int64], folder: Path, crops: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys of all rows, and for each row the key of the first row with the same sha256, -1 if it is itself the first.

    `crops` names columns that must also be equal, for rows that are crops of pictures. Checksums are distributed over bucket
    files by their first bytes, so that equal ones are in one bucket.
    """
    record = np.dtype([("sha", "<u8", 4), ("ordinal", "<i8")])
    buckets = min(MOST_BUCKETS, 1 + sum(shard.ok for shard in shards) // BUCKET_ROWS)
    keys: list[NDArray[np.int64]] = []
    rows = 0
    spill = folder / "checksums"
    spill.mkdir()
    handles: list[BinaryIO] = [(spill / str(bucket)).open("wb") for bucket in range(buckets)]
    try:
        for shard, table in _kept_rows(db, shards, gone, ["key", "sha256", *crops]):
            keys.append(table["key"].to_numpy())
            present = np.asarray(table["sha256"].is_valid())
            try:
                sums = table["sha256"].drop_null().to_pylist()
                for name in crops:
                    boxes = table[name].filter(table["sha256"].is_valid()).to_pylist()
                    sums = [hashlib.sha256(f"{a} {b}".encode()).hexdigest() for a, b in zip(sums, boxes, strict=True)]
                digests = bytes.fromhex("".join(sums))
                part = np.zeros(int(present.sum()), record)
                part["sha"] = np.frombuffer(digests, "<u8").reshape(len(part), 4)
            except ValueError as error:
                raise IndexBuildError(f"{shard.artifact.path}: sha256 is not 64 hex digits: {error}") from error
            part["ordinal"] = rows + np.flatnonzero(present)
            rows += table.num_rows
            home = part["sha"][:, 0] % np.uint64(buckets)
            for bucket in np.unique(home):
                handles[int(bucket)].write(part[home == bucket].tobytes())
    finally:
        for handle in handles:
            handle.close()
    every = np.concatenate(keys) if keys else np.empty(0, np.int64)
    original = np.full(rows, -1, np.int64)
    for bucket in range(buckets):
        part = np.fromfile(spill / str(bucket), record)
        order = np.lexsort((part["ordinal"], *part["sha"].T))
        part = part[order]
        same = np.zeros(len(part), bool)
        same[1:] = (part["sha"][1:] == part["sha"][:-1]).all(axis=1)
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(part))))
        original[part["ordinal"][same]] = every[part["ordinal"][first[same]]]
        (spill / str(bucket)).unlink()
    spill.rmdir()
    return every, original
