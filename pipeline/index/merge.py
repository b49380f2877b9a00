"""Merge inverted files on disk: the lists of several indexes with one trained quantizer become one faiss file.

Reads: the trained, empty index, and the parts, mapped. Writes one file in faiss's own format, which faiss can load or map. It
holds the sizes of the lists and one list of one part in memory, so neither the parts nor the result need to fit. Rows keep
their ids. (faiss.contrib.ondisk writes two files, of which one holds the other's path.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import IndexBuildError

if TYPE_CHECKING:
    import faiss


def map_index(path: Path) -> faiss.Index:
    """An index whose inverted lists stay in the file, mapped, read only."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def merge_on_disk(trained: Path, parts: Sequence[Path], out: Path) -> int:
    """Write the merged index to `out`. Returns its number of rows.

    Raises IndexBuildError if the installed faiss writes another format than the known one, or if rows are missing afterwards.
    """
    import faiss
    import numpy as np

    opened = [map_index(path) for path in parts]
    lists = [faiss.extract_index_ivf(index).invlists for index in opened]
    index = faiss.read_index(str(trained))
    inverted = faiss.extract_index_ivf(index)
    count, code = int(inverted.nlist), int(inverted.code_size)
    empty = struct.pack("<4sQQ4sQ", b"ilar", count, code, b"sprs", 0)  # inverted lists without entries
    sizes = np.array([[one.list_size(number) for number in range(count)] for one in lists], np.uint64)
    index.ntotal = inverted.ntotal = int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()
    if not head.endswith(empty):
        raise IndexBuildError(
            f"faiss {faiss.__version__} writes {type(inverted).__name__} in a format that is not known here; "
            "install the version that pyproject.toml names, or give --partitions 1"
        )
    with out.open("wb") as file:
        file.write(head[: -len(empty)])
        file.write(struct.pack("<4sQQ4sQ", b"ilar", count, code, b"full", count))
        file.write(sizes.sum(axis=0, dtype=np.uint64).tobytes())
        for number in range(count):
            filled = [one for one, size in zip(lists, sizes[:, number], strict=True) if size]
            for one in filled:
                file.write(faiss.rev_swig_ptr(one.get_codes(number), one.list_size(number) * code).tobytes())
            for one in filled:
                file.write(faiss.rev_swig_ptr(one.get_ids(number), one.list_size(number)).tobytes())
    rows = int(map_index(out).ntotal)
    if rows != index.ntotal:
        raise IndexBuildError(
            f"the merged index holds {rows:,} rows and its parts hold {index.ntotal:,}; run the same command again"
        )
    return rows
