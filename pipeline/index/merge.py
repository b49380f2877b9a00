"""Inverted files merged on disk: the lists of several indexes, filled under one trained quantizer, as one faiss file.

Reads: the trained, empty index and the parts, mapped. Writes one file in faiss's own format, which faiss reads into memory or
maps. Holds the lists' sizes and one part's list in memory, so that neither parts nor result have to fit. Rows keep the ids they
have. (faiss.contrib.ondisk does the same into two files, of which one holds the other's path.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import IndexBuildError


def map_index(path: Path) -> Any:
    """An index whose inverted lists stay in the file, mapped, read only."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def merge_on_disk(trained: Path, parts: Sequence[Path], out: Path) -> int:
    """Write the merged index. Returns its rows. Raises IndexBuildError where faiss's format is not the one known here."""
    import faiss
    import numpy as np

    opened = [map_index(path) for path in parts]
    lists = [faiss.extract_index_ivf(index).invlists for index in opened]
    index = faiss.read_index(str(trained))
    inverted = faiss.extract_index_ivf(index)
    count, code = int(inverted.nlist), int(inverted.code_size)
    empty = struct.pack("<4sQQ4sQ", b"ilar", count, code, b"sprs", 0)  # inverted lists, none of which has an entry
    sizes = np.array([[one.list_size(number) for number in range(count)] for one in lists], np.uint64)
    index.ntotal = inverted.ntotal = int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()
    if not head.endswith(empty):
        raise IndexBuildError(
            f"this faiss ({faiss.__version__}) writes {type(inverted).__name__} in a format that is not known here; "
            "install one that pyproject.toml names, or ask for --partitions 1"
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
            f"the merged index holds {rows:,} rows where its parts hold {index.ntotal:,}; build it again"
        )
    return rows
