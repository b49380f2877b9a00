"""Database names as every command takes them: `wikiart`, `wikiart@<version>`, or a view such as `artbench-baroque`.

Reads published databases and manifests. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.catalog.manifests import known_manifests, load_manifest, manifest_for_path
from pipeline.database import PULLED, RENAMING, RetrievalDatabase, Version, list_databases, renamed_to
from pipeline.errors import DatabaseError, ManifestError, nearest
from pipeline.schema import is_name
from pipeline.sources import Manifest, View


@dataclass(frozen=True)
class Selection:
    """A database at one version, and the view's WHERE clause (empty for a whole database)."""

    name: str
    database: RetrievalDatabase
    version: Version
    where: str = ""


def resolve_database(name: str, home: str | None = None) -> Selection:
    """The published database, the version and the view's filter that `name` means; `NAME@` is the current version.

    Raises DatabaseError.
    """
    base, _, pinned = name.partition("@")
    database = RetrievalDatabase(base, home)
    if database.exists():
        return Selection(name, database, database.version(pinned))
    view = _view(base, home)
    if view is not None:
        database = RetrievalDatabase(_now_called(view.base, home), home)
        return Selection(name, database, database.version(pinned), view.where)
    if (now := _now_called(base, home)) != base:
        database = RetrievalDatabase(now, home)
        return Selection(name, database, database.version(pinned))
    published = list_databases(home)
    names = [*published, *(other for other in known_manifests(home) if other not in published)]
    begun = any(RetrievalDatabase(base, home).storage.exists(file) for file in ("plan", PULLED, RENAMING))
    if base in names or begun:
        RetrievalDatabase(base, home).version(pinned)  # raises the error that says how to build it or continue
    raise DatabaseError(
        f"no database {base!r} in {database.home}{nearest(base, names)}. Published: {', '.join(published) or 'none yet'}; "
        f"build one with `rdmpipe build-index NAME`"
    )


def _now_called(name: str, home: str | None) -> str:
    """The present name of a database that may have been renamed. Other names are returned unchanged."""
    return name if RetrievalDatabase(name, home).exists() else renamed_to(name, home) or name


def base_of(name: str, home: str | None = None) -> str:
    """The database that `name` means: a view's base, else the name itself, even if there is no such database."""
    if RetrievalDatabase(name, home).storage.exists("manifest.json"):
        return name
    view = _view(name, home)
    return _now_called(name if view is None else view.base, home)


def _view(name: str, home: str | None) -> View | None:
    try:
        made = load_manifest(name, home)
    except ManifestError:
        return None
    return made if isinstance(made, View) else None


def resolve_target(target: str, name: str = "", encoder: str = "", home: str | None = None) -> Manifest:
    """The manifest that `build-index TARGET` means: for a folder or file of pictures, a manifest file, or a name (a view
    means its base).

    Raises ManifestError.
    """
    path = Path(target).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix != ".toml"):
        return manifest_for_path(path, name, encoder or "vit-l-14")
    if "/" in target and path.suffix != ".toml":
        raise ManifestError(
            f"{target}: no such file or folder. Give pictures by their path, or a data set by its name."
        )
    made = load_manifest(target, home)
    if isinstance(made, View):
        made = load_manifest(made.base, home)
    if isinstance(made, View):
        raise ManifestError(f"{target}: a view of a view; its base must be a data set")
    if name:
        if not is_name(name):
            raise ManifestError(f"--name {name!r}: use lower-case letters, digits and _, parts joined by -")
        made = replace(made, name=name)
    return made
