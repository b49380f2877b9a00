"""Published embeddings in files: CompVis `.npz` and clip-retrieval folders.

Reads: `.npz` files with `embedding` (N, D) and other arrays of N rows, without ever unpickling; or img_emb/*.npy with
metadata/*.parquet, joined by position. Files come in natural numeric order: part_2 before part_10. Writes nothing. Holds one
file in memory at a time.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

NPZ, CLIP_RETRIEVAL = "npz", "clip-retrieval"


@dataclass(frozen=True)
class Part:
    """One published file: its name, vectors (N, D) as they were stored, other arrays of N rows, a metadata table or None."""

    name: str
    vectors: NDArray[Any]
    arrays: dict[str, NDArray[Any]]
    table: pa.Table | None = None


def natural(path: Path) -> list[Any]:
    """A sort key that takes runs of digits as numbers; the name itself decides between 01 and 1."""
    pieces = re.split(r"(\d+)", path.name)
    return [[int(piece) if piece.isdecimal() else piece for piece in pieces], path.name]


def form_of(path: Path) -> str:
    """npz or clip-retrieval. Raises SourceError where it is neither."""
    if path.is_file() and path.suffix == ".npz":
        return NPZ
    if (path / "img_emb").is_dir():
        return CLIP_RETRIEVAL
    if path.is_dir() and any(path.glob("*.npz")):
        return NPZ
    raise SourceError(
        f"{path}: expected a .npz file, a folder of them, or a clip-retrieval folder (img_emb/*.npy and metadata/*.parquet)"
    )


def read_parts(path: Path) -> Iterator[Part]:
    """The published files in natural order. Raises SourceError naming the file that cannot be read or joined."""
    if form_of(path) == NPZ:
        for file in [path] if path.is_file() else sorted(path.glob("*.npz"), key=natural):
            yield _read_npz(file)
        return
    vectors = sorted((path / "img_emb").glob("*.npy"), key=natural)
    tables = sorted((path / "metadata").glob("*.parquet"), key=natural)
    if not vectors or len(vectors) != len(tables):
        raise SourceError(
            f"{path}: {len(vectors)} files in img_emb and {len(tables)} in metadata; they are joined one to one"
        )
    for array, table in zip(vectors, tables, strict=True):
        yield _read_pair(array, table)


def _read_npz(path: Path) -> Part:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path}: cannot be read without unpickling ({error}); arrays of objects have to be stored as numbers or text"
        ) from error
    vectors = arrays.pop("embedding", None)
    if vectors is None:
        raise SourceError(f"{path}: no array `embedding`; it has {', '.join(arrays) or 'none'}")
    _check_vectors(path, vectors)
    wrong = [name for name, array in arrays.items() if array.shape[:1] != vectors.shape[:1]]
    if wrong:
        raise SourceError(
            f"{path}: array {wrong[0]!r} has shape {arrays[wrong[0]].shape} beside {len(vectors)} embeddings"
        )
    return Part(path.name, vectors, arrays)


def _read_pair(array: Path, metadata: Path) -> Part:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        vectors = np.load(array, allow_pickle=False)
        table = pq.read_table(metadata)
    except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
        raise SourceError(f"{array} with {metadata}: cannot be read: {error}") from error
    _check_vectors(array, vectors)
    if table.num_rows != len(vectors):
        raise SourceError(
            f"{array} has {len(vectors)} rows, {metadata} has {table.num_rows}; they are joined by position"
        )
    return Part(f"{array.name}|{metadata.name}", vectors, {}, table)


def _check_vectors(path: Path, vectors: NDArray[Any]) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        raise SourceError(f"{path}: embeddings are {vectors.dtype} of shape {vectors.shape}; expected floats (N, D)")
