"""Manifests by name: those that ship with the package, those added to a home, and any file by its path.

Reads TOML files; `add_manifest` copies one into the home. Does not use the network.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config import default_home, read_toml
from pipeline.errors import EncoderError, FilterError, ManifestError, nearest
from pipeline.installation import data_folder
from pipeline.schema import is_name
from pipeline.sources import Manifest, View, parse_manifest, source_of_path
from pipeline.storage import is_litter


def shipped_manifests() -> dict[str, Path]:
    """Manifest files that come with the package, by name."""
    return {path.stem: path for path in sorted(data_folder("manifests").glob("*.toml"))}


def check_manifest(path: Path, home: str | None = None) -> Manifest | View:
    """A manifest file, checked without reading its source. Raises ManifestError."""
    from pipeline.encoders import resolve_encoder
    from pipeline.filters import parse_filter

    if path.suffix != ".toml":
        raise ManifestError(f"{path}: a manifest is a file whose name ends in .toml")
    made = load_manifest(str(path), home)
    try:
        if made.where:
            parse_filter(made.where)
        if isinstance(made, Manifest):
            resolve_encoder(made.encoder)
    except (FilterError, EncoderError) as error:
        raise ManifestError(f"{path.name}: {error}") from error
    return made


def known_manifests(home: str | None = None) -> dict[str, Path]:
    """Manifest files by name: those that ship with the package, and <home>/manifests/*.toml of a home on a disk."""
    own = Path(home or default_home()) / "manifests"
    return {
        **shipped_manifests(),
        **{path.stem: path for path in sorted(own.glob("*.toml")) if not is_litter(path.name)},
    }


def add_manifest(path: Path, home: str | None = None) -> Path:
    """Copy a checked manifest into the home, so that its name can be used. Raises ManifestError."""
    made = check_manifest(path, home)
    if made.name in shipped_manifests():
        raise ManifestError(f"{path}: a manifest called {made.name!r} comes with the package; give yours another name")
    folder = Path(home or default_home()) / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{made.name}.toml"
    target.write_bytes(path.read_bytes())
    return target


def load_manifest(name_or_path: str, home: str | None = None) -> Manifest | View:
    """A manifest by name (shipped, or added to the home), or any manifest file by path. Raises ManifestError."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ManifestError(
                f"no manifest file at {name_or_path}; give a path to a .toml file or one of the shipped names"
            )
        return parse_manifest(read_toml(path), path.name)
    names = known_manifests(home)
    if name_or_path not in names:
        raise ManifestError(
            f"no manifest called {name_or_path!r}{nearest(name_or_path, names)}. `rdmpipe manifests` lists them; "
            "give a folder of pictures by its path, such as ./my-pictures"
        )
    return parse_manifest(read_toml(names[name_or_path]), names[name_or_path].name)


def manifest_for_path(path: Path, name: str = "", encoder: str = "vit-l-14") -> Manifest:
    """The manifest of pictures on this machine: a folder of them, or one file that holds them.

    A .parquet file has the pictures in a column `image`. A .tar is a webdataset if its members have captions or metadata,
    else a plain archive. A .csv is a list of addresses. Any other file is one picture. A folder that holds only such files is
    read like the files. Raises ManifestError if the name cannot be a database's, SourceError if a file cannot be read.
    """
    slug = name or re.sub(r"[^a-z0-9_]+", "_", path.resolve().name.split(".")[0].lower()).strip("_") or "pictures"
    if path.is_dir():
        slug = name or re.sub(r"[^a-z0-9_]+", "_", path.resolve().name.lower()).strip("_") or "pictures"
    if not is_name(slug):
        raise ManifestError(
            f"name {slug!r}: use lower-case letters, digits and _, parts joined by -; give another with --name"
        )
    return Manifest(
        name=slug,
        title=f"Pictures in {path.name}",
        source=source_of_path(path.resolve()),
        licence="unknown",
        terms="Your own files: you know under which terms the pictures may be used.",
        opt_out="Remove a picture from the files and build again.",
        encoder=encoder,
    )
