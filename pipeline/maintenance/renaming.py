"""`rdmpipe rename`: give a database another name in its home.

Adds OLD to the list `former_names` in the folder <home>/databases/OLD, then moves the folder to NEW, under the database's
lease: on a disk in one step, on an object store as moving.py describes. Databases with other encoders' vectors, which belong to
OLD by name, are moved first. If it is killed, run the same command again: it moves the rest. Keys, vectors, version ids and
fingerprints stay, because the versions and the manifest keep the name that they were published under, and a refresh continues
as before. OLD then means NEW in searches, views, generations and exports, until a database called OLD is built; a build of OLD
is an error that names NEW.

Runs keep the old name in their pictures; a run that is continued draws its pictures again, because their keys contain the
database's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog import companion_name, companions, listing, main_database
from pipeline.config import canonical_json
from pipeline.database import RetrievalDatabase, record_former_name, write_recorded
from pipeline.errors import ConfigError, DatabaseError, nearest
from pipeline.maintenance.moving import finish_move, is_copy_of, move_database
from pipeline.schema import check_name
from pipeline.storage import Storage, lease


@dataclass(frozen=True)
class Renaming:
    """The result of a renaming. `views` name the database by its old name, and still work."""

    old: str
    new: str
    version: str
    views: tuple[str, ...]
    companions: tuple[str, ...] = ()  # new names of the databases with other encoders' vectors

    def text(self) -> str:
        lines = [f"renamed {self.old} to {self.new}; version {self.version or 'none yet'}"]
        if self.views:
            lines.append(f"its views keep their names: {', '.join(self.views)}")
        if self.companions:
            lines.append(f"other encoders' vectors are now in {', '.join(self.companions)}")
        return "\n".join(lines)


def rename_database(old: str, new: str, home: str | None = None, wait_s: float = 0.0) -> Renaming:
    """Rename a database and the databases with other encoders' vectors of it. May be called again after an interruption.

    Raises DatabaseError, ConfigError, and BusyError while another process writes it.
    """
    database, target = RetrievalDatabase(old, home), RetrievalDatabase(check_name(new), home)
    known = Storage(database.home).list("databases")
    if old not in known:
        if new in known and finish_move(old, target):
            return Renaming(old, new, target.current_id() or "", _views_of(new, home))
        raise DatabaseError(
            f"no database {old!r} in {database.home}{nearest(old, known)}; it has {', '.join(known) or 'none'}. (To rename a "
            "view, edit the name in its manifest)"
        )
    _require_main(database)
    moves = [(one.database, RetrievalDatabase(companion_name(new, one.encoder), home)) for one in companions(old, home)]
    for source, place in (*moves, (database, target)):
        if place.name in known and not is_copy_of(source.name, place):
            raise DatabaseError(f"a database {place.name!r} exists already; `rdmpipe delete {place.name}` removes it")
    if any(line.name == new for line in listing(home)):
        raise DatabaseError(f"{new!r} is a view; give another name")
    views, version = _views_of(old, home), database.current_id() or target.current_id() or ""
    with lease(database.storage, f"rename {old}", wait_s):
        for companion, place in moves:
            with lease(companion.storage, f"rename {companion.name}", wait_s):
                _follow(companion, place, database, target)
                _move(companion, place)
            if companion.storage.is_local:
                _manifest_path(companion).unlink(missing_ok=True)
        _move(database, target)
    return Renaming(old, new, version, views, tuple(place.name for _, place in moves))


def _move(source: RetrievalDatabase, target: RetrievalDatabase) -> None:
    """Move a database whose lease is held."""
    if source.storage.is_local or source.exists():
        record_former_name(source, source.name)
    if not source.storage.is_local:
        with lease(target.storage, f"rename {source.name}"):
            move_database(source, target)
        return
    try:
        Path(source.storage.url).rename(target.storage.url)
    except OSError as error:
        raise DatabaseError(
            f"{source.name!r} cannot be renamed to {target.name!r}: {error.strerror}; it was not changed"
        ) from error
    target.storage.write_text("lease", "")


def _follow(
    companion: RetrievalDatabase, place: RetrievalDatabase, database: RetrievalDatabase, target: RetrievalDatabase
) -> None:
    """Let a companion that was embedded from the pictures of `database` find them in `target`, under its new name."""
    if not companion.storage.is_local:  # a database on a store keeps no pictures that a companion reads
        return
    before, after = f"{database.storage.url}/images", f"{target.storage.url}/images"
    begun = companion.read_json("manifest.json")
    manifest = begun.get("manifest") if isinstance(begun, dict) else None
    source = manifest.get("source") if isinstance(manifest, dict) else None
    if isinstance(source, dict) and source.get("path") == before:
        source["path"] = after
        write_recorded(companion.storage, "manifest.json", canonical_json(begun) + "\n")
    path = _manifest_path(companion)
    if path.is_file() and _quoted(before) in (text := path.read_text(encoding="utf-8")):
        text = text.replace(_quoted(before), _quoted(after))
        text = text.replace(f"name = {_quoted(companion.name)}\n", f"name = {_quoted(place.name)}\n")
        part = path.with_name(f"{place.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(_manifest_path(place))


def _manifest_path(database: RetrievalDatabase) -> Path:
    """The manifest that `rdmpipe embed` wrote for a database on a disk."""
    return Path(database.home) / "manifests" / f"{database.name}.toml"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _views_of(name: str, home: str | None) -> tuple[str, ...]:
    return tuple(line.name for line in listing(home) if line.base == name)


def _require_main(database: RetrievalDatabase) -> None:
    """Raise ConfigError for a database that belongs to another one by its name."""
    main = main_database(database.name, database.version().encoder.name, database.home) if database.exists() else ""
    if main:
        raise ConfigError(
            f"{database.name!r} holds another encoder's vectors for {main!r}, and follows its name: "
            f"`rdmpipe rename {main} NEW` renames both"
        )
