"""Tombstones: the keys of rows that left a database, and why. Reads and writes gone/<id>.parquet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config import digest
from pipeline.database.layout import RetrievalDatabase
from pipeline.execution import Shard
from pipeline.schema import SHARD_ROWS
from pipeline.storage import Artifact


@dataclass(frozen=True)
class Gone:
    """The key of a row that left the source or was replaced. Counts, index and search leave the row out."""

    key: int
    why: str  # removed | changed | purged | retried


def has_rows_left(shard: Shard, gone: frozenset[int]) -> bool:
    """Whether a shard has a row that is not gone."""
    first = shard.id * SHARD_ROWS
    return any(first + row not in gone for row in range(shard.rows))


def write_gone(db: RetrievalDatabase, before: Artifact | None, more: Iterable[Gone]) -> Artifact:
    """Write the tombstones of a new version, those of its parent included, as Parquet (key, why) sorted by key."""
    import pyarrow as pa

    entries = {} if before is None else {row["key"]: row["why"] for row in db.read_table(before).to_pylist()}
    entries.update({entry.key: entry.why for entry in more})
    keys = sorted(entries)
    table = pa.table({"key": pa.array(keys, pa.int64()), "why": pa.array([entries[key] for key in keys], pa.string())})
    name = digest([[key, entries[key]] for key in keys], 12)
    return db.write_table(f"gone/{name}.parquet", table)


def gone_keys(db: RetrievalDatabase, gone: Artifact | None) -> list[int]:
    """The keys in a version's tombstones, ascending. Raises DamagedError."""
    return [] if gone is None else [int(key) for key in db.read_table(gone, ["key"])["key"].to_pylist()]
