"""Manifests: descriptions of data sets and of the source of their pictures, and views.

Reads and writes nothing: `parse_manifest` takes the table of a TOML file. A view is a base and a WHERE clause, and stores
nothing. Whether a source can be read is checked by its reader.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.config import digest, from_mapping
from pipeline.errors import ManifestError, nearest

NAME = re.compile(r"[a-z0-9][a-z0-9_]*(-[a-z0-9_]+)*\Z")


@dataclass(frozen=True)
class SourceSpec:
    """Where the pictures come from. The reader of each kind, in pipeline/sources, documents the keys that it uses."""

    kind: str  # parquet, tar, folder, webdataset, urls or atelier
    repo: str = ""  # Hub data set, owner/name
    revision: str = ""  # Hub commit or tag; empty: resolved once and pinned in the plan
    files: tuple[str, ...] = ()  # paths, globs or URLs inside the source
    url: str = ""  # one archive
    md5: str = ""  # of the archive
    sha256: str = ""  # of the archive
    csv: str = ""  # metadata CSV: path or URL
    csv_md5: str = ""  # of the CSV
    path: str = ""  # a folder or file on this machine
    item_id: str = ""  # column that names a row; empty: the source's own position or path
    image: str = "image"  # column with the bytes, or with the URL for URL lists
    caption: str = ""  # column with a text for each picture
    licence: str = ""  # column with a licence for each row
    source_url: str = ""  # column with the address of each picture's page or file
    columns: tuple[str, ...] = ()  # metadata columns to keep; empty: all that hold plain values
    shard_rows: int = 1000  # rows in each shard
    gated: bool = False  # for information: its terms have to be accepted with an account before a download
    options: Mapping[str, object] = field(default_factory=dict)  # further settings of one kind of source


@dataclass(frozen=True)
class Patches:
    """Random square crops: how many of each picture, their side in pixels, and the seed of their positions."""

    per_image: int  # crops of each picture
    size: int = 256  # side in pixels
    seed: int = 0  # seed of the positions


@dataclass(frozen=True)
class Manifest:
    """A data set that can be built into a retrieval database."""

    name: str  # the database's name
    title: str  # for people
    source: SourceSpec
    licence: str  # SPDX identifier if there is one, else words
    terms: str  # what a user must know before using the pictures
    opt_out: str  # how right holders can have pictures removed, and how that reaches this database
    encoder: str = "vit-l-14"  # the default of --encoder
    expected_rows: int = 0  # 0: not known in advance
    checked: datetime.date | None = None  # when these facts were last checked
    homepage: str = ""  # an address with more about the data set
    where: str = ""  # a filter; rows that do not match are `filtered`
    patches: Patches | None = None  # rows are crops of the pictures, with image_key and patch_coords

    def fingerprint(self) -> str:
        return digest(self, 64)


@dataclass(frozen=True)
class View:
    """A base database and a filter, under a new name."""

    name: str  # <base>-<slug>
    base: str  # a data set's name
    where: str  # a filter over its rows
    title: str = ""  # for people


def parse_manifest(table: Mapping[str, object], where: str) -> Manifest | View:
    """A manifest or a view from its TOML table. Raises ManifestError, which states the fault and its place."""
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
        raise ManifestError(
            f"{where}: the name of a view is <base>-<slug>; {made.name!r} does not start with {made.base}-"
        )
    if isinstance(made, Manifest):
        from pipeline.schema import SHARD_ROWS
        from pipeline.sources.kinds import READERS

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
