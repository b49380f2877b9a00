"""The inverted lists of each value of a column: values.lists beside index.faiss.

It serves filters of the form `column = value` over the columns that index/splitting.py chose. For each value the file has the
sizes of its part of every inverted list, the ordinals of its rows and, for fast-scan product codes, a copy of their codes,
packed as faiss scans them. A search of one value reads only these, and neither metadata nor a mask of all rows. For other
codes it uses the index's own lists with a selector, which faiss asks before it decodes a code, so a copy would save nothing.

The file is a sequence of .npy arrays. First a JSON text as bytes; then for each column: sizes (V, lists), int64; ordinals,
int32 or int64, by value, then list, then order in the list; codes, uint8, by value and list, each list padded to whole
blocks of BLOCK rows, or empty. A reader keeps the lists of the last few values in memory. Rows whose value is NULL are in
no list.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.index.npy import read_npy_header, write_npy_header
from pipeline.index.splitting import NO_VALUE, SplitColumn

if TYPE_CHECKING:
    import faiss

VALUES = "values.lists"

BLOCK = 32  # rows in a block of fast-scan codes

KEPT = 256 << 20  # bytes of values' lists that stay in memory, besides those of the last value


@dataclass(frozen=True)
class ValuePart:
    """The rows with one of some values of a column whose values have inverted lists of their own."""

    column: ColumnLists
    numbers: tuple[int, ...]  # of the values

    @functools.cached_property
    def per_list(self) -> NDArray[np.int64]:
        """How many of the rows are in each inverted list, (lists,)."""
        return np.asarray(self.column.sizes[list(self.numbers)].sum(axis=0))

    def ordinals(self) -> NDArray[np.int64]:
        """The rows, ascending. Reads them."""
        rows = [self.column.ordinals(number) for number in self.numbers]
        return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))


class ColumnLists:
    """The lists of the values of one column."""

    def __init__(self, column: SplitColumn, path: Path, handle: BinaryIO) -> None:
        self.name, self.values, self._path = column.name, column.values, path
        self._numbers: dict[str | float, int] = {value: number for number, value in enumerate(column.values)}
        shape, dtype = read_npy_header(handle)
        sizes = np.fromfile(handle, dtype, int(np.prod(shape)))
        self.sizes: NDArray[np.int64] = sizes.astype(np.int64).reshape(shape)  # (V, lists)
        (rows,), self._kind = read_npy_header(handle)
        self._ordinals_at = handle.tell()
        handle.seek(rows * self._kind.itemsize, os.SEEK_CUR)
        (size,), _ = read_npy_header(handle)
        self._codes_at = handle.tell()
        handle.seek(size, os.SEEK_CUR)
        self.has_codes = size > 0
        self._row_starts = np.concatenate([[0], np.cumsum(self.sizes.sum(axis=1))])
        blocks = -(-self.sizes // BLOCK)
        self._block_starts = np.concatenate([[0], np.cumsum(blocks.sum(axis=1))])
        self._block_size = size // max(1, int(self._block_starts[-1]))
        self.kept = KEPT
        self._opened: dict[int, tuple[faiss.IndexIVF, object, int]] = {}  # the index, its lists, bytes; last used last

    def part(self, values: Sequence[str | float]) -> ValuePart:
        """The rows that have one of the values. A value that no row has is allowed."""
        return ValuePart(self, tuple(sorted({self._numbers[value] for value in values if value in self._numbers})))

    def ordinals(self, number: int) -> NDArray[np.int64]:
        """The rows of a value, (n,), by list."""
        start, end = self._row_starts[number : number + 2].tolist()
        at = self._ordinals_at + start * self._kind.itemsize
        return np.fromfile(self._path, self._kind, end - start, offset=at).astype(np.int64)

    def open(self, number: int, ivf: faiss.IndexIVFPQFastScan) -> faiss.IndexIVF:
        """An inverted file like `ivf` with only the rows of a value, for searches with given lists."""
        opened = self._opened.pop(number, None)
        while self._opened and sum(size for _, _, size in self._opened.values()) > self.kept:
            del self._opened[next(iter(self._opened))]
        self._opened[number] = opened or self._read(number, ivf)
        return self._opened[number][0]

    def _read(self, number: int, ivf: faiss.IndexIVFPQFastScan) -> tuple[faiss.IndexIVF, object, int]:
        import faiss

        sizes = self.sizes[number]
        rows = self.ordinals(number)
        start, end = (self._block_starts[number : number + 2] * self._block_size).tolist()
        codes = np.fromfile(self._path, np.uint8, end - start, offset=self._codes_at + start)
        packer = ivf.get_CodePacker()
        packer.thisown = False  # the lists delete it
        lists = faiss.BlockInvertedLists(len(sizes), packer)
        row = byte = 0
        for place in np.flatnonzero(sizes).tolist():
            size = int(sizes[place])
            lists.add_entries(place, size, faiss.swig_ptr(rows[row:]), faiss.swig_ptr(codes[byte:]))
            row, byte = row + size, byte + -(-size // BLOCK) * self._block_size
        # A search with given lists does not use the quantizer, so this one has no centroids.
        made = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatIP(ivf.d), ivf.d, ivf.nlist, ivf.pq.M, ivf.pq.nbits, ivf.metric_type, BLOCK
        )
        made.pq, made.by_residual, made.is_trained, made.ntotal = ivf.pq, ivf.by_residual, True, len(rows)
        made.replace_invlists(lists, False)
        return made, lists, codes.nbytes + rows.nbytes


def read_value_lists(path: Path) -> dict[str, ColumnLists]:
    """The lists of each column, by its name. Reads the sizes of the lists; the rest when a search needs it."""
    with path.open("rb") as handle:
        (size,), _ = read_npy_header(handle)
        columns = [SplitColumn(one["name"], tuple(one["values"])) for one in json.loads(handle.read(size))]
        return {column.name: ColumnLists(column, path, handle) for column in columns}


def write_value_lists(
    index: faiss.IndexIVF, columns: Sequence[SplitColumn], codes: NDArray[np.uint8], path: Path
) -> int:
    """Write the lists of the values of all columns; `codes` (columns, N) are the values of the rows. Returns its size in bytes.

    Memory: one list and the sizes of all lists of one column.
    """
    text = np.frombuffer(json.dumps([asdict(column) for column in columns]).encode(), np.uint8)
    with path.open("w+b") as handle:
        write_npy_header(handle, np.uint8, text.shape)
        handle.write(text.tobytes())
        for column, of_row in zip(columns, codes, strict=True):
            _write_column(index, len(column.values), of_row, handle)
        return handle.seek(0, os.SEEK_END)


def _write_column(ivf: faiss.IndexIVF, count: int, of_row: NDArray[np.uint8], handle: BinaryIO) -> None:
    import faiss

    packer = ivf.get_CodePacker() if isinstance(ivf, faiss.IndexIVFPQFastScan) else None
    lists = [(number, _ids(ivf, number)) for number in range(int(ivf.nlist)) if ivf.invlists.list_size(number)]
    sizes = np.zeros((count, int(ivf.nlist)), np.int64)
    for number, ids in lists:
        sizes[:, number] = np.bincount(of_row[ids], minlength=NO_VALUE + 1)[:count]
    kind = np.dtype(np.int32 if len(of_row) < 2**31 else np.int64)
    block = 0 if packer is None else int(packer.block_size)
    blocks = -(-sizes // BLOCK)
    write_npy_header(handle, np.int64, sizes.shape)
    handle.write(sizes.tobytes())
    write_npy_header(handle, kind, (int(sizes.sum()),))
    rows_at = handle.tell()
    handle.seek(int(sizes.sum()) * kind.itemsize, os.SEEK_CUR)
    write_npy_header(handle, np.uint8, (int(blocks.sum()) * block,))
    codes_at = handle.tell()
    handle.truncate(codes_at + int(blocks.sum()) * block)
    row_starts = (np.cumsum(sizes).reshape(sizes.shape) - sizes) * kind.itemsize + rows_at
    block_starts = (np.cumsum(blocks).reshape(sizes.shape) - blocks) * block + codes_at
    handle.flush()
    for number, ids in lists:
        of = of_row[ids]
        order = np.argsort(of, kind="stable")
        flat = None if packer is None else _unpacked(ivf, packer, number, len(ids))
        first = 0
        for value in np.flatnonzero(sizes[:, number]).tolist():
            chosen = order[first : first + int(sizes[value, number])]
            first += len(chosen)
            os.pwrite(handle.fileno(), ids[chosen].astype(kind).tobytes(), int(row_starts[value, number]))
            if packer is not None and flat is not None:
                os.pwrite(handle.fileno(), _packed(packer, flat[chosen]), int(block_starts[value, number]))
    handle.seek(0, os.SEEK_END)


def _ids(ivf: faiss.IndexIVF, number: int) -> NDArray[np.int64]:
    """The rows in an inverted list: a view."""
    import faiss

    return np.asarray(faiss.rev_swig_ptr(ivf.invlists.get_ids(number), ivf.invlists.list_size(number)))


def _unpacked(ivf: faiss.IndexIVF, packer: faiss.CodePacker, number: int, rows: int) -> NDArray[np.uint8]:
    """The codes of an inverted list, (rows, code size)."""
    import faiss

    blocks = -(-rows // BLOCK)
    packed = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), blocks * int(packer.block_size)).reshape(blocks, -1)
    flat = np.empty((blocks * BLOCK, int(packer.code_size)), np.uint8)
    for place in range(blocks):
        packer.unpack_all(faiss.swig_ptr(packed[place]), faiss.swig_ptr(flat[place * BLOCK :]))
    return flat[:rows]


def _packed(packer: faiss.CodePacker, flat: NDArray[np.uint8]) -> bytes:
    """Codes (n, code size) in whole blocks."""
    import faiss

    blocks = -(-len(flat) // BLOCK)
    padded = np.zeros((blocks * BLOCK, flat.shape[1]), np.uint8)
    padded[: len(flat)] = flat
    packed = np.zeros((blocks, int(packer.block_size)), np.uint8)
    for place in range(blocks):
        packer.pack_all(faiss.swig_ptr(padded[place * BLOCK :]), faiss.swig_ptr(packed[place]))
    return packed.tobytes()
