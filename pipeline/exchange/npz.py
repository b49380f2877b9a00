"""Published embeddings in files: CompVis `.npz` and clip-retrieval folders.

Reads: `.npz` files with `embedding` (N, D) and other arrays of N rows, without ever unpickling; or img_emb/*.npy with
metadata/*.parquet, joined by position: part 3 with part 3. Files are read in natural numeric order: part_2 before
part_10. Files that operating systems leave behind are skipped. Writes nothing. Holds one file in memory at a time.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SourceError
from pipeline.schema import read_parquet
from pipeline.sources import is_junk, kind_of, kind_of_name

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

_UNPACK_RATIO, _MOST_ARRAYS = 50, 1000  # limits of an .npz; vectors hardly compress

NPZ, CLIP_RETRIEVAL = "npz", "clip-retrieval"


@dataclass(frozen=True)
class Part:
    """One published file: its name, vectors (N, D) as they were stored, other arrays of N rows, a metadata table or None."""

    name: str
    vectors: NDArray[np.generic]
    arrays: dict[str, NDArray[np.generic]]
    table: pa.Table | None = None


def natural(path: Path) -> list[object]:
    """A sort key that reads runs of digits as numbers; the name itself decides between 01 and 1."""
    pieces = re.split(r"(\d+)", path.name)
    return [[int(piece) if piece.isdecimal() else piece for piece in pieces], path.name]


def form_of(path: Path) -> str:
    """npz or clip-retrieval. Raises SourceError if it is neither."""
    if path.is_file() and path.suffix.lower() == ".npz":
        return NPZ
    if (path / "img_emb").is_dir():
        return CLIP_RETRIEVAL
    if path.is_dir() and _sorted(path, ".npz"):
        return NPZ
    raise SourceError(
        f"{path}: expected a .npz file, a folder of them, or a clip-retrieval folder (img_emb/*.npy and metadata/*.parquet)"
    )


@dataclass(frozen=True)
class Described:
    """The properties that all files share: dimensions and dtype of the vectors, and the other columns with their type names.

    A type of None means nested values or bytes.
    """

    dim: int
    dtype: np.dtype[np.generic]
    kinds: dict[str, str | None]


def describe(path: Path) -> Described:
    """Read the headers of the files, and of their columns only as much as is needed for a type.

    A column that is null in one file has the type of another file; integers and floats together are floats. Raises
    SourceError, which names the file, the column and both types, if two files do not fit together.
    """
    found: Described | None = None
    first = ""
    untyped: set[str] = set()  # columns that were null in every file so far
    for name, about, nulls in _headers(path):
        if found is None:
            found, first, untyped = about, name, set(nulls)
            continue
        if (about.dim, about.dtype) != (found.dim, found.dtype):
            raise SourceError(
                f"{path}: {name} has {about.dtype} vectors of {about.dim} dimensions, {first} has {found.dtype} of "
                f"{found.dim}: import them separately"
            )
        if set(about.kinds) != set(found.kinds):
            raise SourceError(
                f"{path}: {name} has the columns {', '.join(about.kinds) or 'none'}, {first} has "
                f"{', '.join(found.kinds) or 'none'}: import them separately"
            )
        kinds = dict(found.kinds)
        for column, kind in about.kinds.items():
            if column in nulls or kind == kinds[column]:
                continue
            if column in untyped:
                kinds[column] = kind
                untyped.discard(column)
            elif {kind, kinds[column]} == {"int64", "float64"}:
                kinds[column] = "float64"
            else:
                raise SourceError(
                    f"{path}: column {column!r} holds {kind or 'nested values'} in {name}, and "
                    f"{kinds[column] or 'nested values'} in an earlier file: import them separately, or write one type"
                )
        untyped &= nulls
        found = Described(found.dim, found.dtype, kinds)
    if found is None:
        raise SourceError(f"{path}: no embeddings in it")
    return found


def read_parts(path: Path) -> Iterator[Part]:
    """The published files in natural order. Raises SourceError naming the file that cannot be read or joined."""
    if form_of(path) == NPZ:
        for file in _npz_files(path):
            yield _read_npz(file)
        return
    for array, table in _pairs(path):
        yield _read_pair(array, table)


def _npz_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else _sorted(path, ".npz")


def _sorted(folder: Path, suffix: str) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((file for file in files if file.suffix.lower() == suffix and not is_junk(file.name)), key=natural)


def left_out(path: Path) -> dict[str, int]:
    """How many files beside the published ones are not read, by kind: a suffix, `system files`."""
    form = form_of(path)
    if path.is_file():
        return {}
    read = set(_npz_files(path)) if form == NPZ else {file for pair in _pairs(path) for file in pair}
    others = (file.relative_to(path).as_posix() for file in path.rglob("*") if file not in read and not file.is_dir())
    return dict(sorted(Counter(map(kind_of_name, others)).items()))


def _pairs(path: Path) -> list[tuple[Path, Path]]:
    """The files of a clip-retrieval folder, joined by the number in their names. Raises SourceError."""
    vectors, tables = _sorted(path / "img_emb", ".npy"), _sorted(path / "metadata", ".parquet")
    if not vectors or len(vectors) != len(tables):
        raise SourceError(
            f"{path}: {len(vectors)} files in img_emb and {len(tables)} in metadata; they are joined one to one"
        )
    for array, table in zip(vectors, tables, strict=True):
        if _number(array) != _number(table):
            raise SourceError(
                f"{path}: {array.name} would be joined with {table.name}, a part of another number: a file is missing from "
                "img_emb or metadata. Fetch it, or remove its counterpart"
            )
    return list(zip(vectors, tables, strict=True))


def _number(path: Path) -> int | None:
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else None


def _headers(path: Path) -> Iterator[tuple[str, Described, frozenset[str]]]:
    """(name, its properties, its columns without a value) of each file, from headers and footers."""
    if form_of(path) == NPZ:
        for file in _npz_files(path):
            yield file.name, _npz_header(file), frozenset()
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    for array, metadata in _pairs(path):
        try:
            vectors = np.load(array, mmap_mode="r", allow_pickle=False)
            _check_vectors(array, vectors)
            with pq.ParquetFile(metadata) as parquet:
                schema = parquet.schema_arrow
                kinds = {column.name: _kind_of_column(parquet, column) for column in schema}
                nulls = frozenset(column.name for column in schema if _is_null(parquet, column))
        except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
            raise SourceError(f"{array} with {metadata}: cannot be read: {error}") from error
        yield f"{array.name}|{metadata.name}", Described(vectors.shape[1], vectors.dtype, kinds), nulls


def _kind_of_column(parquet: pq.ParquetFile, column: pa.Field) -> str | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_uint64(column.type):
        largest = pc.max(parquet.read([column.name])[column.name]).as_py()
        return "string" if largest is not None and largest >= 2**63 else "int64"
    return kind_of(column.type)


def _is_null(parquet: pq.ParquetFile, column: pa.Field) -> bool:
    """Whether a column has no value at all, by its type or by the statistics of its row groups."""
    import pyarrow as pa

    if pa.types.is_null(column.type):
        return True
    metadata = parquet.metadata
    places = [i for i in range(len(metadata.schema)) if metadata.schema.column(i).path == column.name]
    if not places or not metadata.num_rows:
        return False
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(places[0]).statistics
        if statistics is None or statistics.null_count != metadata.row_group(group).num_rows:
            return False
    return True


def _npz_header(path: Path) -> Described:
    part = _read_npz(path)
    return Described(part.vectors.shape[1], part.vectors.dtype, {n: _kind_of_array(a) for n, a in part.arrays.items()})


def _kind_of_array(array: NDArray[np.generic]) -> str | None:
    """The type name of an array's rows; rows of several numbers become text."""
    if array.ndim != 1:
        return "string"
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        return "string"
    return {"i": "int64", "u": "int64", "f": "float64", "b": "bool", "U": "string", "S": "string"}.get(array.dtype.kind)


def _read_npz(path: Path) -> Part:
    try:
        _check_members(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except SourceError:
        raise
    except Exception as error:  # zip, zlib and numpy raise different errors for damaged files
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


def _check_members(path: Path) -> None:
    """Raise SourceError if a member of an .npz is not an array, or if the file unpacks to far more than its size."""
    size, total = path.stat().st_size, 0
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_ARRAYS or len({info.filename for info in members}) < len(members):
            raise SourceError(f"{path}: {len(members)} members, or two of the same name; an .npz has a few arrays")
        for info in members:
            if not info.filename.endswith(".npy"):
                raise SourceError(f"{path}: member {info.filename[:80]!r} is not an array (.npy)")
            with archive.open(info) as stored:
                shape, dtype = _header(stored)
                start = stored.tell()
            needed = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or needed != info.file_size - start:
                raise SourceError(
                    f"{path}: member {info.filename[:80]!r} is {dtype} of shape {shape} in {info.file_size - start} bytes; "
                    "arrays of objects have to be stored as numbers or text"
                )
            total += needed
    most = size * _UNPACK_RATIO + (64 << 20)
    if total > most:
        raise SourceError(f"{path}: {size} bytes unpack to {total}, more than {most}: not embeddings")


def _header(stored: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of a .npy stream."""
    numpy_format: Any = np.lib.format  # has no types
    version = numpy_format.read_magic(stored)
    read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
    shape, _, dtype = read(stored)
    return shape, dtype


def _read_pair(array: Path, metadata: Path) -> Part:
    try:
        vectors = np.load(array, allow_pickle=False)
        table = read_parquet(metadata)
    except Exception as error:  # numpy and Arrow raise different errors for damaged files
        raise SourceError(f"{array} with {metadata}: cannot be read: {error}") from error
    _check_vectors(array, vectors)
    if table.num_rows != len(vectors):
        raise SourceError(
            f"{array} has {len(vectors)} rows, {metadata} has {table.num_rows}; they are joined by position"
        )
    return Part(f"{array.name}|{metadata.name}", vectors, {}, table)


def _check_vectors(path: Path, vectors: NDArray[np.generic]) -> None:
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        raise SourceError(f"{path}: embeddings are {vectors.dtype} of shape {vectors.shape}; expected floats (N, D)")
