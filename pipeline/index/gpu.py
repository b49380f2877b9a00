"""faiss on a GPU: training, assigning rows to lists, exact neighbours, and searches of many queries without a filter.

This needs a faiss with GPU support (`faiss-gpu` in place of `faiss-cpu`); with any other faiss, or without a GPU,
`open_gpu` gives None and everything runs on the CPU. What faiss's GPU code lacks always runs on the CPU: filtered
searches (it ignores selectors), HNSW, fast-scan codes, and encoding rows. Final scores are computed from the stored vectors on
the CPU, so results differ only if candidates differ. Reads and writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBuildError

if TYPE_CHECKING:
    import faiss

MANY = 32  # from this number of queries on, moving rows to the GPU takes less time than scanning them on the CPU

MOST = 2048  # largest number of neighbours and lists in faiss's GPU code

BLOCK_ROWS = 1 << 17  # rows moved at once: 400 MB at 768 dimensions


class Gpu(Protocol):
    """The operations that this package needs of a GPU. FaissGpu is the real one."""

    def flat(self, dim: int, metric: int) -> faiss.Index:
        """An empty, exact index on the GPU: 0 is inner product, 1 is L2 (faiss.METRIC_*)."""
        ...

    def top(
        self, queries: NDArray[np.float32], rows: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best of `rows` (N, D) for each query (Q, D) by inner product: scores and places, both (Q, k)."""
        ...

    def copy(self, index: faiss.Index) -> faiss.Index | None:
        """The index on the GPU; None if faiss has no GPU form of it or it does not fit into memory."""
        ...


class FaissGpu:
    """One GPU, with faiss's scratch memory on it."""

    def __init__(self, number: int) -> None:
        import faiss

        self._faiss, self._number = faiss, number
        self._resources = faiss.StandardGpuResources()

    def flat(self, dim: int, metric: int) -> faiss.Index:
        plain = self._faiss.IndexFlat(dim, metric)
        return self._faiss.index_cpu_to_gpu(self._resources, self._number, plain)

    def top(
        self, queries: NDArray[np.float32], rows: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, places = self._faiss.knn_gpu(
            self._resources, queries, rows, k, metric=self._faiss.METRIC_INNER_PRODUCT, device=self._number
        )
        return scores, places

    def copy(self, index: faiss.Index) -> faiss.Index | None:
        try:
            return self._faiss.index_cpu_to_gpu(self._resources, self._number, index)
        except RuntimeError:  # "This index type is not implemented on GPU", or out of memory
            return None


def check_installation() -> None:
    """Refuse faiss-cpu beside faiss-gpu: both install into one folder and break each other. Raises IndexBuildError."""
    from importlib import metadata

    names = {(found.metadata["Name"] or "").lower().replace("_", "-") for found in metadata.distributions()}
    faiss = sorted(name for name in names if name.startswith("faiss-"))
    if "faiss-cpu" in faiss and any(name.startswith("faiss-gpu") for name in faiss):
        raise IndexBuildError(
            f"{' and '.join(faiss)} are installed into the same folder and break each other. Keep one: "
            f"`pip uninstall -y {' '.join(faiss)}`, then `pip install faiss-cpu`, or for a GPU "
            "`pip install --no-deps faiss-gpu`"
        )


def open_gpu(device: str = "auto") -> Gpu | None:
    """The GPU for a `--device` value (auto, cpu, cuda or cuda:1); None for cpu, or if faiss sees no such GPU.

    Raises IndexBuildError if faiss-cpu and faiss-gpu are both installed, because their files overwrite each other.
    """
    if device == "cpu":
        return None
    import faiss

    number = int(device.partition(":")[2] or 0)
    count = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if number >= count:
        return None
    check_installation()
    return FaissGpu(number)


@contextlib.contextmanager
def training_on(gpu: Gpu | None, index: faiss.Index) -> Iterator[None]:
    """Run k-means on the GPU while the index is trained, for its inverted lists and for its product codes.

    Afterwards no part of the index refers to the GPU, so that it can be written. Does nothing without a GPU or without lists.
    """
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    if gpu is None or inverted is None:
        yield
        return
    inverted = faiss.downcast_index(inverted)
    # As on the CPU: a flat quantizer assigns by its own metric; any other kind (HNSW) gets centroids found by L2.
    is_flat = isinstance(faiss.downcast_index(inverted.quantizer), faiss.IndexFlat)
    lists = gpu.flat(inverted.d, inverted.metric_type if is_flat else faiss.METRIC_L2)
    codes = gpu.flat(int(inverted.pq.dsub), faiss.METRIC_L2) if hasattr(inverted, "pq") else None
    inverted.clustering_index = lists
    if codes is not None:
        inverted.pq.assign_index = codes
    try:
        yield
    finally:
        inverted.clustering_index = None
        if codes is not None:
            inverted.pq.assign_index = None


class Assigner:
    """Adds rows to an inverted file: their lists are found on the GPU, their codes are made on the CPU."""

    def __init__(self, gpu: Gpu, inverted: faiss.IndexIVF) -> None:
        import faiss

        self._inverted = inverted
        self._lists = gpu.flat(inverted.d, faiss.METRIC_INNER_PRODUCT)
        self._lists.add(inverted.quantizer.reconstruct_n(0, int(inverted.nlist)))

    def add(self, rows: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        import faiss

        _, lists = self._lists.search(rows, 1)
        lists = np.ascontiguousarray(lists[:, 0], np.int64)
        rows, ids = np.ascontiguousarray(rows), np.ascontiguousarray(ids, np.int64)
        self._inverted.add_core(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(lists))


def assigner(gpu: Gpu | None, index: faiss.Index) -> Assigner | None:
    """The Assigner for an index; None without a GPU, for other kinds, and for fast-scan codes, which have no add_core."""
    import faiss

    if gpu is None or not isinstance(index, faiss.IndexIVF) or isinstance(index, faiss.IndexIVFFastScan):
        return None
    return Assigner(gpu, index)
