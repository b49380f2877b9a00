"""The [source] table of a manifest for a path on this machine: a folder of pictures, or files that hold pictures.

Reads: names in a folder, the footer of a Parquet file, the header line of a CSV, the first members of a tar.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.errors import SourceError
from pipeline.sources.csv_rows import decoded, read_header
from pipeline.sources.manifest import SourceSpec
from pipeline.sources.metadata import NAME_COLUMNS
from pipeline.sources.names import HEAD_BYTES, is_junk, is_picture, looks_like_a_picture
from pipeline.sources.webdataset import TAR_ENDINGS

URL_COLUMNS = ("url", "image_url", "img_url", "link", "image_link", "image", "picture_url", "address")

_LISTS = (".csv", ".tsv")

_LOOK_AT = 200  # members of a tar


def source_of_path(path: Path) -> SourceSpec:
    """The [source] table for a folder or a file. Raises SourceError if a file cannot be read as its suffix says."""
    if path.is_dir():
        kinds = _kinds_in(path)
        for kind in ("parquet", "tar", "list"):
            if kind in kinds and "picture" not in kinds:
                return _of_files(path, kind, kinds[kind])
        return SourceSpec(kind="folder", path=str(path))
    if not path.exists():
        return SourceSpec(kind="folder", path=str(path))  # the reader reports that the folder is empty
    return _of_files(path, _kind(path.name), path)


def _kinds_in(folder: Path) -> Mapping[str, Path]:
    """The kinds of files in a folder, each with its first file; a picture ends the search."""
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not is_junk((Path(root) / name).relative_to(folder).as_posix()):
                found.setdefault(_kind(name), Path(root) / name)
        if "picture" in found:
            break
    return found


def _kind(name: str) -> str:
    lower = name.lower()
    if is_picture(name):
        return "picture"
    if lower.endswith(".parquet"):
        return "parquet"
    if lower.endswith(TAR_ENDINGS):
        return "tar"
    return "list" if lower.endswith(_LISTS) else "other"


def _of_files(path: Path, kind: str, first: Path) -> SourceSpec:
    """The table for the file `first`, or for a folder of such files that contains it."""
    if kind == "parquet":
        return _of_parquet(path, first)
    if kind == "tar":
        return SourceSpec(kind="webdataset" if path.is_dir() or _is_webdataset(first) else "tar", path=str(path))
    if kind == "list":
        return _of_list(path, first)
    if path.suffix.lower() == ".npz":
        raise SourceError(
            f"{path}: embeddings, not pictures; `rdmpipe import NAME {path} --encoder ENCODER` takes them"
        )
    _require_picture(path)
    return SourceSpec(kind="folder", path=str(path.parent), files=(path.name,))


def _require_picture(path: Path) -> None:
    """Raise SourceError for a file that is not a picture, judged by its name and its first bytes."""
    if is_picture(path.name):
        return
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    if looks_like_a_picture(head):
        return
    if decoded(head).lstrip().lower().startswith(("http://", "https://")):
        raise SourceError(
            f"{path}: a list of addresses without a header line; give it one: (echo url; cat {shlex.quote(str(path))}) > "
            "urls.csv, and build from urls.csv"
        )
    raise SourceError(
        f"{path}: expected a picture, a folder, a Parquet file, a tar ({', '.join(TAR_ENDINGS)}) or a CSV list with a column "
        f"of addresses; found a file that begins with {head[:16]!r}"
    )


def _of_parquet(path: Path, first: Path) -> SourceSpec:
    """A source of pictures if a column holds bytes, else of addresses if a column has the name for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(first)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{first}: not a readable Parquet file: {error}") from error
    holds_bytes = [field.name for field in schema if _holds_bytes(field.type)]
    if holds_bytes:
        column = "image" if "image" in holds_bytes else holds_bytes[0]
        return SourceSpec(kind="parquet", path=str(path), image=column)
    address = _address_column(schema.names)
    if address:
        return SourceSpec(kind="urls", path=str(path), image=address)
    raise SourceError(
        f"{first}: no column with pictures (bytes, or a struct with a field `bytes`) or addresses ({', '.join(URL_COLUMNS)}); "
        f'columns: {", ".join(schema.names)}. Name it in a manifest: image = "..."'
    )


def _holds_bytes(kind: object) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)  # type: ignore[attr-defined]
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _of_list(path: Path, first: Path) -> SourceSpec:
    """A list of addresses, or the pictures beside it if it has file names instead."""
    with first.open("rb") as handle:
        names = read_header(handle, str(first)).names
    address = _address_column(names)
    if address:
        patterns = () if path.is_file() else ("*.csv", "*.tsv")
        return SourceSpec(kind="urls", path=str(path), image=address, files=patterns, options={"format": "csv"})
    if path.is_file() and set(NAME_COLUMNS) & set(names):
        return SourceSpec(kind="folder", path=str(path.parent), csv=str(path))
    raise SourceError(
        f"{first}: no column with addresses ({', '.join(URL_COLUMNS)}); columns: {', '.join(names)}. Name it in a manifest: "
        'image = "..."'
    )


def _address_column(names: Iterable[str]) -> str:
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((lower[name] for name in URL_COLUMNS if name in lower), "")


def _is_webdataset(path: Path) -> bool:
    """Whether pictures among the first members of a tar have captions or metadata."""
    pictures: set[str] = set()
    texts: set[str] = set()
    try:
        with tarfile.open(path) as archive:
            for member in islice(archive, _LOOK_AT):
                name = PurePosixPath(member.name)
                stem = str(name.with_suffix(""))
                if is_picture(name.name):
                    pictures.add(stem)
                elif name.suffix.lower() in (".json", ".txt"):
                    texts.add(stem)
    except (tarfile.TarError, OSError, EOFError):
        return False  # the reader reports the fault
    return bool(pictures & texts)
