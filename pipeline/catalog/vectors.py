"""Several encoders for one database: NAME holds its own encoder's vectors, and NAME_ENCODER those of another one.

A database has one encoder, so the vectors of a second encoder form a separate database, NAME's companion. Users only name NAME;
search and generate find the companion here. Reads: versions, manifests and settings in the home. Writes nothing.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from pipeline.catalog.manifests import known_manifests
from pipeline.catalog.names import Selection, resolve_database
from pipeline.config import default_home
from pipeline.database import RetrievalDatabase, Version
from pipeline.encoders import same_encoder
from pipeline.errors import DatabaseError
from pipeline.schema import is_name
from pipeline.storage import Storage


@dataclass(frozen=True)
class Companion:
    """A database with another encoder's vectors. `version` is None if its first build is not finished."""

    database: RetrievalDatabase
    version: Version | None
    encoder: str


def companion_name(base: str, encoder: str) -> str:
    """The name of the database that holds an encoder's vectors for the pictures of `base`: `wikiart_vit_h_14`."""
    slug = re.sub(r"[^a-z0-9]+", "_", encoder.lower()).strip("_")[-40:].strip("_")
    return f"{base}_{slug}"


def companions(base: str, home: str | None = None) -> list[Companion]:
    """The companions of a database, finished or not, in order of their names. Raises DamagedError."""
    root = Storage(home or default_home())
    found = []
    for name in root.list("databases"):
        if not name.startswith(f"{base}_") or not is_name(name):
            continue
        database = RetrievalDatabase(name, home)
        version = database.version() if database.exists() else None
        encoder = version.encoder.name if version else _settings(database).get("encoder", "")
        if name == companion_name(base, str(encoder)):
            found.append(Companion(database, version, str(encoder)))
    return found


def main_database(name: str, encoder: str, home: str | None = None) -> str:
    """The database whose companion `name` is; empty if it is not a companion. `encoder`: the encoder of the vectors in
    `name`."""
    base = name.removesuffix(companion_name("", encoder))
    return base if base != name and is_name(base) and RetrievalDatabase(base, home).exists() else ""


def with_encoder(selection: Selection, encoder: str) -> Selection | None:
    """The same pictures with the vectors of `encoder`: the selection itself, or its companion's current version.

    None if there is no such database, or if the selection is pinned to a version of another encoder.
    """
    if same_encoder(selection.version.encoder.name, encoder):
        return selection
    if "@" in selection.name:
        return None
    for one in companions(selection.database.name, selection.database.home):
        if one.version is not None and same_encoder(one.version.encoder.name, encoder):
            return Selection(selection.name, one.database, one.version, selection.where)
    return None


def resolve_encoded(name: str, encoder: str, home: str | None = None) -> Selection:
    """`resolve_database`, with the vectors of `encoder`; empty: the database's own. Raises DatabaseError with the command that
    adds them."""
    selection = resolve_database(name, home)
    if not encoder:
        return selection
    found = with_encoder(selection, encoder)
    if found is None:
        held = [selection.version.encoder.name]
        held += [one.encoder for one in companions(selection.database.name, home) if one.version is not None]
        raise DatabaseError(
            f"database {name!r} holds no vectors of {encoder}; it holds those of {', '.join(held)}. Add them: "
            f"{command_that_adds(selection.database, encoder)}"
        )
    return found


def difference(asked: Selection, used: Selection) -> str:
    """The note that a companion is used in place of the named database; empty if it is not."""
    if asked.database.name == used.database.name:
        return ""
    text = (
        f"database {asked.name!r}: the vectors of {used.version.encoder.name} come from {used.database.name!r} "
        f"(version {used.version.id})"
    )
    own, other = asked.version.index.rows, used.version.index.rows
    if own != other:
        text += (
            f", which has {other:,} rows where {asked.database.name!r} has {own:,}. Bring it up to date: "
            f"{command_that_adds(asked.database, used.version.encoder.name)}"
        )
    return text


def command_that_adds(database: RetrievalDatabase, encoder: str, from_source: bool = False) -> str:
    """The command, in backquotes, that adds an encoder's vectors to a database or brings them up to date.

    It reads the pictures that the database keeps. If it keeps none, or with `from_source`, it reads the source again.
    """
    if keeps_pictures(database) and not from_source:
        words = ["rdmpipe", "embed", database.name, "--encoder", encoder]
    else:
        name = companion_name(database.name, encoder)
        words = ["rdmpipe", "build-index", source_of(database), "--encoder", encoder, "--name", name]
        if RetrievalDatabase(name, database.home).exists():
            words.append("--refresh")
    return f"`{shlex.join([*words, *home_option(database.home)])}`"


def command_with_thumbnails(database: RetrievalDatabase, version: Version) -> str:
    """The command, in backquotes, that builds the database again under another name and with thumbnails."""
    words = ["rdmpipe", "build-index", source_of(database), "--encoder", version.encoder.name, "--images", "thumbnail"]
    return f"`{shlex.join([*words, '--name', f'{database.name}_pictures', *home_option(database.home)])}`"


def keeps_pictures(database: RetrievalDatabase) -> bool:
    """Whether the database keeps its original pictures on a disk of this machine."""
    return _settings(database).get("images") == "keep" and "://" not in database.storage.url


def source_of(database: RetrievalDatabase) -> str:
    """The target with which `build-index` reads the database's source again: a manifest's name, or the path of the pictures."""
    if database.name in known_manifests(database.home):
        return database.name
    found = database.read_json("manifest.json")
    manifest = found.get("manifest") if isinstance(found, dict) else None
    source = manifest.get("source") if isinstance(manifest, dict) else None
    path = source.get("path") if isinstance(source, dict) else None
    return str(path) if path else database.name


def home_option(home: str) -> list[str]:
    """`--home` as words of a command, if the home is not the default one."""
    return [] if home == default_home() else ["--home", home]


def _settings(database: RetrievalDatabase) -> dict[str, object]:
    """The settings of the database's first build, from its manifest.json."""
    begun = database.read_json("manifest.json")
    settings = begun.get("settings") if isinstance(begun, dict) else None
    return settings if isinstance(settings, dict) else {}
