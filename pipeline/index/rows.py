"""From finished embedding shards to the row-ordered files of an index.

Reads: embedding shards (Parquet), twice: once to count rows and to find exact duplicates, once to write. Writes into a local
folder keys.npy (int64), norms.npy (float32), vectors.npy (float16, C order) and metadata.parquet, all in key order, without the
rows that are not ok or that are gone. The same shards give the same bytes. Memory is bounded by one shard, one row group and
one bucket of checksums, beside 16 bytes a row. Does not publish anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import IndexBuildError
from pipeline.schema import OK, PATCH_COORDS, arrow_type, metadata_columns, shard_name

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase, ShardEntry

FILES = {"keys": "keys.npy", "norms": "norms.npy", "vectors": "vectors.npy", "metadata": "metadata.parquet"}

GROUP_ROWS = 5_000  # rows in a row group of metadata.parquet: what looking up one result has to read

BUCKET_ROWS = 1_000_000  # rows whose checksums are compared at once: 40 bytes each

MOST_BUCKETS = 256  # files open at once


def write_rows(
    db: RetrievalDatabase,
    shards: Sequence[ShardEntry],
    gone: NDArray[Any],
    columns: Mapping[str, str],
    dim: int,
    folder: Path,
) -> dict[str, int]:
    """Write the files named in FILES into `folder`. Returns the counts {"rows", "duplicates"}.

    `shards` come in ascending order of id; `gone` holds keys, ascending int64. Raises IndexBuildError where a shard lacks
    columns, holds vectors of another dimension or that are not of unit length, or where no row is left.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    crops = [PATCH_COORDS] if PATCH_COORDS in columns else []
    keys, original = _keys_and_duplicates(db, shards, gone, folder, crops)
    if not len(keys):
        raise IndexBuildError(
            f"database {db.name!r} has no row to index: every picture failed, was filtered or is gone. "
            f"`rdmpipe status {db.name}` counts the reasons"
        )
    np.save(folder / FILES["keys"], keys)
    kinds = metadata_columns(columns)
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in kinds.items()])
    stored = [name for name in kinds if name != "duplicate_of"]
    done, waiting = 0, []
    with (
        (folder / FILES["vectors"]).open("wb") as vectors,
        (folder / FILES["norms"]).open("wb") as norms,
        pq.ParquetWriter(folder / FILES["metadata"], schema, compression="zstd") as metadata,
    ):
        _npy_header(vectors, np.float16, (len(keys), dim))
        _npy_header(norms, np.float32, (len(keys),))
        for shard, table in _kept_rows(db, shards, gone, [*stored, "vector", "norm"]):
            end = done + table.num_rows
            vectors.write(_unit_vectors(db, shard, table, dim).tobytes())
            norms.write(table["norm"].to_numpy().astype(np.float32).tobytes())
            of = original[done:end]
            duplicate_of = pa.chunked_array([pa.array(of, pa.int64(), mask=of < 0)])
            arrays = [(duplicate_of if field.name == "duplicate_of" else table[field.name]) for field in schema]
            waiting.append(pa.table([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema))
            done = end
            if sum(part.num_rows for part in waiting) >= GROUP_ROWS:
                metadata.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
                waiting.clear()
        if waiting:
            metadata.write_table(pa.concat_tables(waiting), row_group_size=GROUP_ROWS)
    if done != len(keys):
        raise IndexBuildError(f"the embedding shards of {db.name!r} changed while they were indexed; run it again")
    return {"rows": done, "duplicates": int(np.count_nonzero(original >= 0))}


def write_vectors(
    db: RetrievalDatabase, shards: Sequence[ShardEntry], gone: NDArray[Any], dim: int, rows: int, path: Path
) -> None:
    """The vectors of some shards alone, `rows` of them, as vectors.npy has them: (rows, dim) float16 in key order."""
    import numpy as np

    done = 0
    with path.open("wb") as vectors:
        _npy_header(vectors, np.float16, (rows, dim))
        for shard, table in _kept_rows(db, shards, gone, ["vector"]):
            vectors.write(_unit_vectors(db, shard, table, dim).tobytes())
            done += table.num_rows
    if done != rows:
        raise IndexBuildError(f"the embedding shards of {db.name!r} changed while they were indexed; run it again")


def _kept_rows(
    db: RetrievalDatabase, shards: Sequence[ShardEntry], gone: NDArray[Any], names: list[str]
) -> Iterator[tuple[ShardEntry, pa.Table]]:
    """Each shard's rows that are ok and not gone, in key order, with the columns `names`."""
    import numpy as np
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
                "again: only it is made anew"
            ) from error
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise IndexBuildError(
                f"{shard.artifact.path}: no column {', '.join(missing)}; the shard was made with other columns than the "
                "plan's: build the database again with a new name"
            )
        table = table.filter(pc.equal(table["status"], OK))
        keys = table["key"].to_numpy()
        if len(gone):
            table = table.filter(pa.array(~np.isin(keys, gone, kind="sort")))
            keys = table["key"].to_numpy()
        if len(keys) and (int(keys[0]) <= last or bool((np.diff(keys) <= 0).any())):
            raise IndexBuildError(
                f"{shard.artifact.path}: keys are not ascending; shards have to come in order, each once"
            )
        last = int(keys[-1]) if len(keys) else last
        yield shard, table


def _unit_vectors(db: RetrievalDatabase, shard: ShardEntry, table: pa.Table, dim: int) -> NDArray[Any]:
    """The rows' vectors, (n, D) float16."""
    import numpy as np

    column = table["vector"].combine_chunks()
    width = getattr(column.type, "list_size", -1)
    if width != dim:
        raise IndexBuildError(
            f"{shard.artifact.path}: vectors have {width} dimensions, the encoder's have {dim}. "
            f"Shard {shard_name(shard.id)} was made by another encoder: remove the folder it lies in and embed again"
        )
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors: NDArray[Any] = flat.reshape(table.num_rows, dim).astype(np.float16, copy=False)
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
    db: RetrievalDatabase, shards: Sequence[ShardEntry], gone: NDArray[Any], folder: Path, crops: list[str]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys of all rows, and for each the key of the first row with the same sha256 (and the same crop, where rows are `crops`),
    -1 where it is itself the first.

    Checksums are spread over bucket files by their first bytes, so that equal ones meet in one bucket.
    """
    import numpy as np

    record = np.dtype([("sha", "<u8", 4), ("ordinal", "<i8")])
    buckets = min(MOST_BUCKETS, 1 + sum(shard.ok for shard in shards) // BUCKET_ROWS)
    keys: list[NDArray[Any]] = []
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


def _npy_header(handle: BinaryIO, dtype: Any, shape: tuple[int, ...]) -> None:
    """Begin a .npy file whose data follow in pieces."""
    import numpy as np

    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)  # type: ignore[no-untyped-call]
