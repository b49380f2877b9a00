"""The block list: what was purged from a database and must not come back, and the values that a purged row keeps.

Reads and writes blocked.txt: one line for each picture (sha256), address (URL) or row of the source (item id). Each line is a
hash of that value, so that the list does not publish what was purged. Its checksum is recorded (database/checksums.py).
All code that writes rows consults the list; it is not part of a stage's fingerprint. It does not recognise a picture that was
encoded again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pipeline.database.checksums import list_path, recorded_problem, write_recorded
from pipeline.errors import DamagedError, DatabaseError
from pipeline.schema import FILTERED

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database.layout import RetrievalDatabase
    from pipeline.storage import Storage

FILE = "blocked.txt"

REASON = "purged"

PURGED = f"{REASON}: removed for good, and kept out"  # stored in error columns

BLOCKED_KINDS = {"sha256": "sha256", "url": "url", "item_id": "item"}  # a row's column: the prefix of its hashed values

KEPT = ("key", "item_id", "source")  # columns of a purged row that keep their values: they identify the source's row

Row: TypeAlias = dict[str, object]

_MARK = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class BlockList:
    """The hashes of the blocked values."""

    marks: frozenset[str] = frozenset()

    def with_values(self, column: str, values: Iterable[str]) -> BlockList:
        return BlockList(self.marks | {_mark(column, value) for value in values})

    def covers(self, row: Mapping[str, object]) -> bool:
        """Whether the row's picture, address or item id is on the list."""
        return bool(self.marks) and any(
            row.get(name) and _mark(name, str(row[name])) in self.marks for name in BLOCKED_KINDS
        )

    def blank(self, rows: Iterable[Row]) -> None:
        """Remove from each covered row all values except those that identify it, and mark it as purged."""
        for row in rows:
            if self.covers(row):
                row.update(dict.fromkeys(set(row) - set(KEPT)))
                row["status"], row["error"] = FILTERED, PURGED

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        """The rows of a table that are covered and not purged yet: bool (rows,)."""
        import numpy as np

        covered = np.zeros(table.num_rows, bool)
        for name in BLOCKED_KINDS:
            values = table[name].to_pylist()
            covered |= np.array([bool(value) and _mark(name, value) in self.marks for value in values], bool)
        return covered & ~purged_mask(table)


def _mark(column: str, value: str) -> str:
    return hashlib.sha256(f"{BLOCKED_KINDS[column]} {value}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def read_block_list(storage: Storage) -> BlockList:
    """The database's block list; an empty one if nothing was ever purged. Raises DamagedError.

    An unreadable line or another checksum is an error, because ignoring it would let a purged picture come back.
    """
    text = storage.read_text(FILE)
    marks = (text or "").split()
    bad = [mark for mark in marks if not _MARK.fullmatch(mark)]
    problem = f"expected lines of 32 hex digits, and found {bad[0][:40]!r}" if bad else ""
    problem = problem or recorded_problem(storage, FILE, text)
    if problem:
        raise DamagedError(
            f"{storage.full(FILE)} is damaged: {problem}. Restore it from a copy. Without one, remove it and "
            f"{storage.full(list_path(FILE))}, and run `rdmpipe purge` again for everything that was purged"
        )
    return BlockList(frozenset(marks))


def write_block_list(storage: Storage, blocked: BlockList) -> None:
    write_recorded(storage, FILE, "".join(f"{mark}\n" for mark in sorted(blocked.marks)))


def purged_mask(table: pa.Table) -> NDArray[np.bool_]:
    """The rows of a table that were purged: bool (rows,)."""
    import numpy as np

    return np.array([error == PURGED for error in table["error"].to_pylist()], bool)


def blank_rows(table: pa.Table, which: NDArray[np.bool_]) -> pa.Table:
    """The table with the rows `which` (bool, one per row) blanked as by BlockList.blank; their vectors become zeros."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = pa.array(which)
    stated = {"status": FILTERED, "error": PURGED}
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
            column = pc.if_else(mask, pa.scalar(stated.get(field.name), field.type), column)
        table = table.set_column(place, field, column)
    assert bool(np.array_equal(purged_mask(table) & which, which))
    return table


PURGE_BEGUN = "purge.json"  # exists while a purge is not finished


def require_purged(db: RetrievalDatabase) -> None:
    """Raise DatabaseError if a purge of this database was begun and not finished."""
    if db.storage.exists(PURGE_BEGUN):
        raise DatabaseError(
            f"a purge of database {db.name!r} was interrupted; run `rdmpipe purge {db.name}` first, which finishes it"
        )
