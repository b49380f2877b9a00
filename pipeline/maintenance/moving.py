"""Give a published database's folder another name on an object store, which cannot rename a folder in one step.

Copies every file inside the store, then moves `current`, then removes the old folder:

    1. NEW/renaming.json says what is copied; all files, with manifest.json last
    2. NEW/current is written: both names are the complete database
    3. OLD/current is removed, then OLD's other files, then NEW/renaming.json

The same call continues after an interruption at any point. Reads and writes the two folders; the caller holds both leases. Does
not promise that a process that has the old folder open can read on while it is removed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pipeline.config import canonical_json
from pipeline.database import BEGUN, RENAMING, RetrievalDatabase
from pipeline.errors import ConflictError, DatabaseError
from pipeline.storage import Storage

_OWN = ("lease", "current", RENAMING)  # files that are not copied

_SMALL = 4 << 20  # bytes; files up to this size are copied again, because some of them change between two versions

_AT_ONCE = 8  # copies


def move_database(source: RetrievalDatabase, target: RetrievalDatabase) -> None:
    """Move a published database, or continue.

    Raises DatabaseError if it is not published, or if both folders are and one of them changed; ConflictError if files changed.
    """
    version, there, copied = source.current_id(), target.current_id(), _copied(source, target)
    if version is None and (copied is None or there is None):
        raise DatabaseError(
            f"database {source.name!r} is not published, and on an object store only a published one can be renamed: "
            f"run `{source.build_command()}` first, or `rdmpipe delete {source.name}`"
        )
    if version is not None:
        if there is None:
            _copy(source, target, version, again=copied == version)
        elif not there == version == copied:
            raise DatabaseError(
                f"{source.name!r} (version {version}) and its copy {target.name!r} (version {there}) are both published, and "
                "one of them changed since the renaming was interrupted. Keep one: `rdmpipe delete` removes the other"
            )
        source.storage.remove("current")
    for file in BEGUN:  # first, so that the old name stops being a database
        source.storage.remove(file)
    for entry in source.storage.list():
        if entry != "lease":
            source.storage.remove(entry)
    source.storage.remove("")
    target.storage.remove(RENAMING)


def finish_move(old: str, target: RetrievalDatabase) -> bool:
    """Whether a move from `old` was interrupted after its last removal. If so, it is finished now."""
    found = target.read_json(RENAMING)
    if not isinstance(found, dict) or found.get("from") != old or not target.exists():
        return False
    target.storage.remove(RENAMING)
    return True


def is_copy_of(old: str, target: RetrievalDatabase) -> bool:
    """Whether `target` is the copy that an interrupted renaming of `old` left."""
    found = target.read_json(RENAMING)
    return isinstance(found, dict) and found.get("from") == old


def _copied(source: RetrievalDatabase, target: RetrievalDatabase) -> str | None:
    """The version whose copying was begun; None if none was."""
    found = target.read_json(RENAMING)
    return str(found.get("version")) if isinstance(found, dict) and found.get("from") == source.name else None


def _copy(source: RetrievalDatabase, target: RetrievalDatabase, version: str, again: bool) -> None:
    """Make the target a published copy of the source. `again`: it holds part of a copy of the same version."""
    one, other = source.storage, target.storage
    if not again:  # what another version left must not survive: a purge may have removed its rows
        for entry in other.list():
            if entry != "lease":
                other.remove(entry)
        other.write_text(RENAMING, canonical_json({"from": source.name, "version": version}) + "\n")
    wanted = {path: size for path, size in one.sizes().items() if path not in _OWN}
    have = other.sizes()
    for path in have.keys() - wanted.keys() - {*_OWN}:
        other.remove(path)
    early = [path for path in sorted(wanted) if path not in BEGUN]
    late = [path for path in BEGUN if path in wanted]

    def take(path: str) -> None:
        if wanted[path] <= _SMALL or have.get(path) != wanted[path]:
            one.copy_to(path, other)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(take, early):
            pass
    for path in late:
        take(path)
    _require_same(one, other, wanted)
    if not other.swap("current", None, version):
        raise ConflictError(f"another process published {target.name!r} in the meantime; nothing was removed")


def _require_same(one: Storage, other: Storage, wanted: dict[str, int]) -> None:
    """Raise ConflictError unless every file arrived with its size and the source did not change."""
    arrived = other.sizes()
    differing = [path for path, size in wanted.items() if arrived.get(path) != size]
    differing += sorted(one.sizes().keys() - wanted.keys() - {*_OWN})
    if differing:
        raise ConflictError(
            f"{one.url}: {len(differing):,} files changed while they were copied, such as {differing[0]}; nothing was removed. "
            "Run the same command again"
        )
