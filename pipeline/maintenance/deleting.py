"""`rdmpipe delete`: remove a database with all its versions.

Removes everything below <home>/databases/<name>, under the database's lease. `current` is removed first, so that other
processes find no database instead of an incomplete one. The block list (blocked.txt) is removed too: a later build of
the same name may fetch those rows again. Runs that used the database keep their pictures and their provenance.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.catalog import companions, listing
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError, nearest
from pipeline.storage import Storage, lease


@dataclass(frozen=True)
class Deletion:
    """What a deletion removes: rows of the current version, versions, and the views that no longer work.

    `companions` are databases with other encoders' vectors of the same pictures, which are kept.
    """

    name: str
    rows: int
    versions: int
    views: tuple[str, ...]
    has_block_list: bool
    companions: tuple[str, ...] = ()

    def text(self) -> str:
        """The text to print before the deletion."""
        parts = [f"{self.rows:,} rows in {self.versions} version(s)"]
        if self.views:
            parts.append(f"its view(s) {', '.join(self.views)} will not work")
        if self.has_block_list:
            parts.append("its list of purged rows is lost: a new build may fetch them again")
        if self.companions:
            commands = ", ".join(f"`rdmpipe delete {name}`" for name in self.companions)
            parts.append(
                f"other encoders' vectors of its pictures, and their thumbnails, stay: {commands} removes them"
            )
        return f"{self.name}: " + "; ".join(parts)


def plan_deletion(name: str, home: str | None = None) -> Deletion:
    """What a deletion would remove. Raises DatabaseError if there is no such database, or only a view of that name."""
    database = RetrievalDatabase(name, home)
    known = Storage(database.home).list("databases")
    if name not in known:
        raise DatabaseError(
            f"no database {name!r} in {database.home}{nearest(name, known)}; it has {', '.join(known) or 'none'}. (A view "
            "holds no rows: remove its manifest)"
        )
    rows = database.version().index.rows if database.exists() else 0
    views = tuple(line.name for line in listing(home) if line.base == name)
    more = tuple(one.database.name for one in companions(name, home))
    return Deletion(name, rows, len(database.versions()), views, database.storage.exists("blocked.txt"), more)


def delete_database(name: str, home: str | None = None, wait_s: float = 0.0) -> Deletion:
    """Remove a database. Raises BusyError while a build writes it; may be called again after an interruption."""
    planned = plan_deletion(name, home)
    storage = RetrievalDatabase(name, home).storage
    with lease(storage, f"delete {name}", wait_s):
        storage.remove("current")
        for entry in storage.list():
            if entry != "lease":
                storage.remove(entry)
    storage.remove("")
    return planned
