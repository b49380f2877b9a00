"""Versions of a database: list them, and remove those that are no longer needed.

Reads: version files and plans. Removes files under the database's lease. Because versions share files, only files that
neither a kept version nor an unfinished build needs are removed. `current` is always kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.building import plan_shards
from pipeline.database import RetrievalDatabase, Version, list_path, receipts_list, remove_recorded
from pipeline.errors import ConfigError, DatabaseError
from pipeline.schema import shard_name
from pipeline.storage import Storage, lease


@dataclass(frozen=True)
class VersionLine:
    """One line of `rdmpipe versions`."""

    version: str
    current: bool
    rows: int
    shards: int
    gone: bool
    encoder: str
    index: str
    parent: str


def lineage(database: RetrievalDatabase) -> list[Version]:
    """The published versions, newest first: the current one, its parent, and so on. Raises DatabaseError."""
    found = [database.version()]
    known = set(database.versions())
    while found[-1].parent in known and len(found) <= len(known):
        found.append(database.version(found[-1].parent))
    return found


def list_versions(database: RetrievalDatabase) -> list[VersionLine]:
    """Every version, newest first; then those that are not ancestors of the current one."""
    line = lineage(database)
    on_line = {version.id for version in line}
    others = [database.version(name) for name in database.versions() if name not in on_line]
    return [
        VersionLine(
            version=version.id,
            current=version is line[0],
            rows=version.index.rows,
            shards=len(version.shards),
            gone=version.gone is not None,
            encoder=version.encoder.name,
            index=version.index.key,
            parent=version.parent,
        )
        for version in [*line, *others]
    ]


@dataclass(frozen=True)
class Collected:
    """The result of `gc`."""

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    files: int
    bytes: int


def collect(database: RetrievalDatabase, keep: int, say: Callable[[str], None] = lambda text: None) -> Collected:
    """Remove all but the `keep` newest versions and what only they need. Raises BusyError while a build is running."""
    if keep < 1:
        raise ConfigError(f"--keep {keep}: at least one version is kept, the current one")
    if not database.exists():
        raise DatabaseError(f"no database {database.name!r} in {database.home}; nothing to collect")
    with lease(database.storage, f"gc {database.name}", notify=say):
        kept = lineage(database)[:keep]
        doomed = [database.version(name) for name in database.versions() if name not in {v.id for v in kept}]
        needed = paths_of(database, kept)
        plans_of_doomed = {version.plan for version in doomed}
        needed |= _unfinished(database, kept, plans_of_doomed)
        removed = bytes_removed = 0
        # Version files first, so that nobody can open a version that is being removed.
        for version in doomed:
            _remove_version(database.storage, version.id)
        for path in sorted(paths_of(database, doomed) - needed):
            size = database.storage.size(path)
            if size is not None:
                _remove(database.storage, path)
                removed, bytes_removed = removed + 1, bytes_removed + size
        return Collected(tuple(v.id for v in kept), tuple(v.id for v in doomed), removed, bytes_removed)


def remove_versions(database: RetrievalDatabase, doomed: list[str]) -> tuple[tuple[str, ...], int]:
    """Remove versions, and every file that no other version needs, including those of an unfinished build.

    The caller holds the lease. Writes a note for each version, so that opening it by id gives the reason. Also removes this
    machine's copies of a store's files. Returns all versions that were removed this way so far, and the number of files.
    """
    storage = database.storage
    for name in doomed:
        storage.write_text(f"versions/{name}.purged", "")
        for file in database.version(name).files():
            storage.forget(file)
        _remove_version(storage, name)
    needed = paths_of(database, [database.version(name) for name in database.versions()])
    removed = 0
    for path in sorted(_files(storage, ("images", "thumbnails", "embeddings", "index", "plan", "gone")) - needed):
        _remove(storage, path)
        removed += 1
    return tuple(name.removesuffix(".purged") for name in storage.list("versions", ".purged")), removed


def _remove_version(storage: Storage, version: str) -> None:
    remove_recorded(storage, f"versions/{version}.json")
    storage.remove(list_path(receipts_list(version)))


def _remove(storage: Storage, path: str) -> None:
    """Remove a file that no version needs, and its recorded checksum if it has one."""
    if path.startswith("plan/") or path.endswith("/entry.json"):
        remove_recorded(storage, path)
    else:
        storage.remove(path)


def _files(storage: Storage, folders: tuple[str, ...]) -> set[str]:
    """Every file below some folders."""
    found: set[str] = set()
    for folder in folders:
        for name in storage.list(folder):
            path = f"{folder}/{name}"
            if PurePosixPath(name).suffix:
                found.add(path)
            else:
                found |= _files(storage, (path,))
    return found


def paths_of(database: RetrievalDatabase, versions: list[Version]) -> set[str]:
    """Every file that belongs to the versions: shards with receipts and pictures, indexes, tombstones, plans."""
    paths: set[str] = set()
    for version in versions:
        for shard in version.shards:
            paths |= _shard_paths(database, shard.id)
            paths |= {shard.artifact.path, database.embedding_receipt(version.encoder, shard.id)}
        paths |= {artifact.path for artifact in version.index.files.values()}
        paths.add(f"{database.index_folder(version.encoder, version.index.id)}/entry.json")
        if version.gone is not None:
            paths.add(version.gone.path)
        paths |= {f"plan/{version.plan}.parquet", f"plan/{version.plan}.json"}
    return paths


def _shard_paths(database: RetrievalDatabase, shard: int) -> set[str]:
    return {
        database.image_tar(shard),
        database.image_table(shard),
        f"images/{shard_name(shard)}.json",
        database.thumbnail_tar(shard),
    }


def _unfinished(database: RetrievalDatabase, kept: list[Version], doomed_plans: set[str]) -> set[str]:
    """The files of an interrupted refresh: the shards of plans that belong to no version."""
    finished = {version.plan for version in kept} | doomed_plans
    paths: set[str] = set()
    for name in database.storage.list("plan", ".json"):
        plan = name.removesuffix(".json")
        if plan in finished:
            continue
        paths |= {f"plan/{plan}.parquet", f"plan/{plan}.json"}
        for shard in plan_shards(database, plan):
            paths |= _shard_paths(database, shard.id)
            for version in kept:
                paths.add(database.embedding_table(version.encoder, shard.id))
                paths.add(database.embedding_receipt(version.encoder, shard.id))
    return paths
