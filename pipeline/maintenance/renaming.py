"""`rdmpipe rename`: give a database another name in its home.

Adds OLD to the list `former_names` in the folder <home>/databases/OLD, then moves the folder to NEW in one step, under the
database's lease. If it is killed before that step, the database has its old name; after it, the new one. Nothing else is
written: keys, vectors, version ids and fingerprints stay, because the versions and the manifest keep the name that they were
published under, and a refresh continues as before. OLD then means NEW in searches, views, generations and exports, until a
database called OLD is built; a build of OLD is an error that names NEW.

Does not rename databases on an object store, which cannot move a folder in one step, nor databases that hold another encoder's
vectors for a second database or have such vectors in one. Runs keep the old name in their pictures; a run that is continued
draws its pictures again, because their keys contain the database's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog import companions, listing, main_database
from pipeline.database import RetrievalDatabase, record_former_name
from pipeline.errors import ConfigError, DatabaseError, nearest
from pipeline.schema import check_name
from pipeline.storage import Storage, lease


@dataclass(frozen=True)
class Renaming:
    """The result of a renaming. `views` name the database by its old name, and still work."""

    old: str
    new: str
    version: str
    views: tuple[str, ...]

    def text(self) -> str:
        lines = [f"renamed {self.old} to {self.new}; version {self.version or 'none yet'}"]
        if self.views:
            lines.append(f"its views keep their names: {', '.join(self.views)}")
        return "\n".join(lines)


def rename_database(old: str, new: str, home: str | None = None, wait_s: float = 0.0) -> Renaming:
    """Rename a database. Raises DatabaseError, ConfigError, and BusyError while another process writes it."""
    database, target = RetrievalDatabase(old, home), RetrievalDatabase(check_name(new), home)
    known = Storage(database.home).list("databases")
    if old not in known:
        raise DatabaseError(
            f"no database {old!r} in {database.home}{nearest(old, known)}; it has {', '.join(known) or 'none'}. (To rename a "
            "view, edit the name in its manifest)"
        )
    if new in known:
        raise DatabaseError(f"a database {new!r} exists already; `rdmpipe delete {new}` removes it")
    if not database.storage.is_local:
        raise ConfigError(
            f"{database.home} is an object store, which cannot rename a database in one step: push and pull it, "
            f"`rdmpipe push {old} OWNER/REPO` and `rdmpipe pull OWNER/REPO {new}`"
        )
    if any(line.name == new for line in listing(home)):
        raise DatabaseError(f"{new!r} is a view; give another name")
    _require_alone(database)
    views = tuple(line.name for line in listing(home) if line.base == old)
    version = database.current_id() or ""
    with lease(database.storage, f"rename {old}", wait_s):
        record_former_name(database, old)
        try:
            Path(database.storage.url).rename(target.storage.url)
        except OSError as error:
            raise DatabaseError(
                f"{old!r} cannot be renamed to {new!r}: {error.strerror}; nothing was changed"
            ) from error
        target.storage.write_text("lease", "")
    return Renaming(old, new, version, views)


def _require_alone(database: RetrievalDatabase) -> None:
    """Raise ConfigError for a database that is linked to others by its name."""
    others = [one.database.name for one in companions(database.name, database.home)]
    if others:
        raise ConfigError(
            f"{', '.join(others)} hold other encoders' vectors for {database.name!r}, and belong to it by name. "
            "Remove them with `rdmpipe delete`; after the renaming, `rdmpipe embed NEW --encoder NAME` computes them again"
        )
    if database.exists():
        main = main_database(database.name, database.version().encoder.name, database.home)
        if main:
            raise ConfigError(
                f"{database.name!r} holds another encoder's vectors for {main!r}, and belongs to it by name"
            )
