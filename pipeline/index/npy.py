"""Reading and writing .npy files in parts: headers, shapes, some of the rows.

Files are read without mapping, because mapped pages would count as the process's memory. Writes only headers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


def read_npy_header(handle: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype of a .npy file opened at its beginning. Leaves the handle at the first row."""
    np.lib.format.read_magic(handle)  # type: ignore[no-untyped-call]
    shape, _, dtype = np.lib.format.read_array_header_1_0(handle)  # type: ignore[no-untyped-call]
    return shape, dtype


def write_npy_header(handle: BinaryIO, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file whose data follow in parts."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)  # type: ignore[no-untyped-call]


def npy_shape(path: Path) -> tuple[int, int]:
    """Rows and columns of a two-dimensional .npy file."""
    with path.open("rb") as handle:
        (rows, columns), _ = read_npy_header(handle)
    return rows, columns


def read_rows(path: Path, ordinals: NDArray[np.int64]) -> NDArray[np.float16]:
    """Some rows of a two-dimensional .npy file of float16: (n, D)."""
    with path.open("rb") as handle:
        (_, dim), dtype = read_npy_header(handle)
        rows: NDArray[np.float16] = np.empty((len(ordinals), dim), dtype)
        start = handle.tell()
        for row, ordinal in zip(rows, ordinals.tolist(), strict=True):
            os.preadv(handle.fileno(), [row.data], start + ordinal * row.nbytes)
    return rows
