"""What was purged from a database and may not come back: the block list, and what is left of a row that is on it.

Reads and writes: blocked.txt, a line for each picture (sha256), address (URL) or row of the source (item id), itself as a
hash, so that the list does not publish what was purged. Whatever writes rows consults it; it is no part of a stage's
fingerprint. Does not know a picture again that was coded anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import DatabaseError
from pipeline.schema import FILTERED

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database.layout import RetrievalDatabase
    from pipeline.storage import Storage

FILE = "blocked.txt"

REASON = "purged"

PURGED = f"{REASON}: removed for good, and kept out"

BLOCKED_KINDS = {"sha256": "sha256", "url": "url", "item_id": "item"}  # a row's column: how its values are told apart

KEPT = ("key", "item_id", "source")  # columns of a purged row that keep their values: which row of the source it was


@dataclass(frozen=True)
class BlockList:
    """Hashes of what is kept out."""

    marks: frozenset[str] = frozenset()

    def with_values(self, column: str, values: Iterable[str]) -> BlockList:
        return BlockList(self.marks | {_mark(column, value) for value in values})

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's picture, address or name in the source is kept out."""
        return bool(self.marks) and any(
            row.get(name) and _mark(name, row[name]) in self.marks for name in BLOCKED_KINDS
        )

    def blank(self, rows: Iterable[dict[str, Any]]) -> None:
        """Make of each covered row what is stored of it: which row it was, and that it was purged."""
        for row in rows:
            if self.covers(row):
                row.update(dict.fromkeys(set(row) - set(KEPT)))
                row["status"], row["error"] = FILTERED, PURGED

    def mask(self, table: pa.Table) -> NDArray[Any]:
        """Which rows of a table are covered and not purged yet: bool (rows,)."""
        import numpy as np

        covered = np.zeros(table.num_rows, bool)
        for name in BLOCKED_KINDS:
            values = table[name].to_pylist()
            covered |= np.array([bool(value) and _mark(name, value) in self.marks for value in values], bool)
        return covered & ~purged_mask(table)


def _mark(column: str, value: str) -> str:
    return hashlib.sha256(f"{BLOCKED_KINDS[column]} {value}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def read_block_list(storage: Storage) -> BlockList:
    """The database's block list; an empty one where nothing was ever purged."""
    return BlockList(frozenset((storage.read_text(FILE) or "").split()))


def write_block_list(storage: Storage, blocked: BlockList) -> None:
    storage.write_text(FILE, "".join(f"{mark}\n" for mark in sorted(blocked.marks)))


def purged_mask(table: pa.Table) -> NDArray[Any]:
    """Which rows of a table were purged: bool (rows,)."""
    import numpy as np

    return np.array([error == PURGED for error in table["error"].to_pylist()], bool)


def blank_rows(table: pa.Table, which: NDArray[Any]) -> pa.Table:
    """The table with nothing left in the rows `which` but what BlockList.blank leaves; a vector becomes zeros."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = pa.array(which)
    told = {"status": FILTERED, "error": PURGED}
    for place, field in enumerate(table.schema):
        column = table[field.name].combine_chunks()
        if field.name in KEPT:
            continue
        if field.name == "vector":
            width = field.type.list_size
            flat = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).copy()
            flat[which] = 0
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), field.type.value_type), width)
        elif pa.types.is_nested(field.type):
            column = pa.array([None if gone else value for gone, value in zip(which, column.to_pylist(), strict=True)],
                              field.type)  # fmt: skip
        else:
            column = pc.if_else(mask, pa.scalar(told.get(field.name), field.type), column)
        table = table.set_column(place, field, column)
    assert bool(np.array_equal(purged_mask(table) & which, which))
    return table


PURGE_BEGUN = "purge.json"  # there while a purge is not finished


def require_purged(db: RetrievalDatabase) -> None:
    """Raise DatabaseError where a purge of this database was begun and not finished."""
    if db.storage.exists(PURGE_BEGUN):
        raise DatabaseError(
            f"a purge of database {db.name!r} was interrupted; run `rdmpipe purge {db.name}` first, which finishes it"
        )
