"""Manifests: one strict TOML file per data set and per view.

Reads: the manifests shipped with the package, those added to the home, or a file by path. A view is a base and a
WHERE clause and stores nothing. Does not reach the network: whether a source can be read is its reader's business.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.config import default_home, digest, from_mapping, read_toml
from pipeline.errors import EncoderError, FilterError, ManifestError, nearest

NAME = re.compile(r"^[a-z0-9][a-z0-9_]*(-[a-z0-9_]+)*$")


@dataclass(frozen=True)
class SourceSpec:
    """Where the pictures come from. Which keys a kind uses is said by its reader in pipeline/sources."""

    kind: str
    repo: str = ""  # Hub data set, owner/name
    revision: str = ""  # Hub commit or tag; empty: resolved once and pinned in the plan
    files: tuple[str, ...] = ()  # paths, globs or URLs inside the source
    url: str = ""  # one archive
    md5: str = ""
    sha256: str = ""
    csv: str = ""  # metadata CSV: path or URL
    csv_md5: str = ""
    path: str = ""  # a folder or file on this machine
    item_id: str = ""  # column that names a row; empty: the source's own position or path
    image: str = "image"  # column with the bytes, or with the URL for URL lists
    caption: str = ""  # column with a text for each picture
    licence: str = ""  # column with a licence for each row
    source_url: str = ""  # column with the address of each picture's page or file
    columns: tuple[str, ...] = ()  # metadata columns to keep; empty: all that are plain values
    shard_rows: int = 1000  # rows a shard
    gated: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # what only one kind of source knows


@dataclass(frozen=True)
class Patches:
    """Random square crops: how many of each picture, their side in pixels, and what they are drawn from."""

    per_image: int
    size: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Manifest:
    """A data set that can be built into a retrieval database."""

    name: str
    title: str
    source: SourceSpec
    licence: str  # SPDX where there is one, else words
    terms: str  # what a user has to know before using the pictures
    opt_out: str  # how a right holder's wish reaches this database
    encoder: str = "vit-l-14"
    expected_rows: int = 0  # 0: not known beforehand
    checked: datetime.date | None = None  # when these facts were last checked
    homepage: str = ""
    where: str = ""  # rows outside it are `filtered`
    patches: Patches | None = None  # rows are crops of the pictures, with image_key and patch_coords

    def fingerprint(self) -> str:
        return digest(self, 64)


@dataclass(frozen=True)
class View:
    """A base database and a WHERE clause, under a name of its own."""

    name: str
    base: str
    where: str
    title: str = ""


def shipped() -> dict[str, Path]:
    """Manifest files that come with the package, by name."""
    try:
        folder = Path(str(resources.files("pipeline.manifests")))
    except ModuleNotFoundError:  # a checkout that is on the path but not installed
        folder = Path(__file__).parent.parent / "manifests"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def parse(table: Mapping[str, Any], where: str) -> Manifest | View:
    """A manifest or a view from its TOML table; ManifestError says what is wrong with it and where."""
    try:
        made: Manifest | View = (
            from_mapping(View, table, where) if "base" in table else from_mapping(Manifest, table, where)
        )
    except ManifestError:
        raise
    except Exception as error:
        raise ManifestError(str(error)) from error
    if not NAME.match(made.name):
        raise ManifestError(f"{where}: name {made.name!r}: use lower-case letters, digits and _, parts joined by -")
    if isinstance(made, View) and not made.where.strip():
        raise ManifestError(f"{where}: a view needs a `where` expression")
    if isinstance(made, View) and not made.name.startswith(f"{made.base}-"):
        raise ManifestError(f"{where}: a view is called <base>-<slug>; {made.name!r} does not start with {made.base}-")
    if isinstance(made, Manifest):
        from pipeline.schema import SHARD_ROWS
        from pipeline.sources import READERS

        if made.source.kind not in READERS:
            raise ManifestError(
                f"{where}: unknown source kind {made.source.kind!r}{nearest(made.source.kind, READERS)}; "
                f"known: {', '.join(READERS)}"
            )
        if not 1 <= made.source.shard_rows <= SHARD_ROWS:
            raise ManifestError(f"{where}: shard_rows is {made.source.shard_rows}; it must be 1 to {SHARD_ROWS}")
        crops = made.patches
        if crops and (crops.per_image < 1 or crops.size < 1 or crops.per_image * made.source.shard_rows > SHARD_ROWS):
            raise ManifestError(
                f"{where}: patches of {crops.size} pixels, {crops.per_image} of each picture: both must be above 0, and "
                f"per_image times shard_rows ({made.source.shard_rows}) at most {SHARD_ROWS}"
            )
    return made


def checked(path: Path, home: str | None = None) -> Manifest | View:
    """A manifest file with all that can be known to be wrong before its source is read. Raises ManifestError."""
    from pipeline.encoder_specs import resolve
    from pipeline.expressions import parse_filter

    if path.suffix != ".toml":
        raise ManifestError(f"{path}: a manifest is a file whose name ends in .toml")
    made = load(str(path), home)
    try:
        if made.where:
            parse_filter(made.where)
        if isinstance(made, Manifest):
            resolve(made.encoder)
    except (FilterError, EncoderError) as error:
        raise ManifestError(f"{path.name}: {error}") from error
    return made


def known(home: str | None = None) -> dict[str, Path]:
    """Manifest files by name: those shipped with the package and those added to a home on this machine (manifests/*.toml)."""
    own = Path(home or default_home()) / "manifests"
    return {**shipped(), **{path.stem: path for path in sorted(own.glob("*.toml"))}}


def add(path: Path, home: str | None = None) -> Path:
    """Copy a checked manifest into the home, so that its name can be used. Raises ManifestError."""
    made = checked(path, home)
    if made.name in shipped():
        raise ManifestError(f"{path}: a manifest called {made.name!r} comes with the package; give yours another name")
    folder = Path(home or default_home()) / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{made.name}.toml"
    target.write_bytes(path.read_bytes())
    return target


def load(name_or_path: str, home: str | None = None) -> Manifest | View:
    """A manifest by name (shipped, or added to the home), or any manifest file by path. Raises ManifestError."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ManifestError(
                f"no manifest file at {name_or_path}; give a path to a .toml file or one of the shipped names"
            )
        return parse(read_toml(path), path.name)
    names = known(home)
    if name_or_path not in names:
        raise ManifestError(
            f"no manifest called {name_or_path!r}{nearest(name_or_path, names)}. `rdmpipe manifests` lists them; "
            "a folder of pictures is given by its path, as in ./my-pictures"
        )
    return parse(read_toml(names[name_or_path]), names[name_or_path].name)


def for_folder(path: Path, name: str = "", encoder: str = "vit-l-14") -> Manifest:
    """The manifest of a folder of pictures (and a metadata.csv with file_name, where there is one)."""
    slug = name or re.sub(r"[^a-z0-9_]+", "_", path.resolve().name.lower()).strip("_") or "pictures"
    if not NAME.match(slug):
        raise ManifestError(
            f"name {slug!r}: use lower-case letters, digits and _, parts joined by -; give another with --name"
        )
    return Manifest(
        name=slug,
        title=f"Pictures in {path.name}",
        source=SourceSpec(kind="folder", path=str(path.resolve())),
        licence="unknown",
        terms="Your own folder: you know under which terms its pictures may be used.",
        opt_out="Remove a picture from the folder and build again.",
        encoder=encoder,
    )
