"""Exact inner-product search over float16 vectors in a mapped file.

Reads: a (N, D) float16 array, usually vectors.npy, mapped; only the rows that a query selects are copied. Writes nothing.
Inner products are computed in float32: by faiss's half-precision kernels for few queries; for many, a block is decoded once
and multiplied, on a GPU if faiss has one (index/gpu.py). `rescore` gives the final scores, in float64 rounded to float32:
equal rows get equal scores at any position, and a result does not depend on how its candidates were found.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.index.gpu import BLOCK_ROWS as GPU_ROWS
from pipeline.index.gpu import MANY, MOST, open_gpu
from pipeline.machine import cores

if TYPE_CHECKING:
    import faiss

    from pipeline.index.gpu import Gpu

Neighbours = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores (Q, m) and ordinals (Q, m)

GATHER_ROWS = 1024  # rows copied at once for scattered reads: 1.5 MB at 768 dimensions fits the second-level cache

BLOCK_ROWS = 4096  # rows decoded at once for many queries

MANY_QUERIES = 12  # from this number on, decoding a block once and multiplying is faster than half-precision scans

SLACK = 2e-5  # above the largest error of float32 summation for unit vectors


class ExactScan:
    """Top-k by a scan of all rows or of some. Holds a small thread pool. `vectors` is (N, D) float16 in C order."""

    def __init__(self, vectors: NDArray[np.float16], threads: int = 0, device: str = "cpu") -> None:
        self._device = device
        self.vectors = np.asarray(vectors)
        if self.vectors.dtype != np.float16 or not self.vectors.flags.c_contiguous:
            raise ValueError(f"expected a C-ordered float16 array, found {self.vectors.dtype}")
        self._threads = threads or cores()
        self._pool = ThreadPoolExecutor(self._threads, "exact", initializer=one_thread)

    def close(self) -> None:
        self._pool.shutdown()

    @functools.cached_property
    def _gpu(self) -> Gpu | None:
        return open_gpu(self._device)

    def top(self, queries: NDArray[np.float32], k: int, ordinals: NDArray[np.int64] | None = None) -> Neighbours:
        """The m = min(k, rows) best rows for each query, (Q, D): descending scores, and ordinals.

        `ordinals` (ascending) restricts the scan to those rows. Equal scores are ordered by ordinal, also if
        only some of several equal rows are among the k best.
        """
        rows = len(self.vectors) if ordinals is None else len(ordinals)
        wanted, margin = min(k, rows), 16
        queries = np.ascontiguousarray(queries, np.float32)
        if not wanted or not len(queries):
            return np.empty((len(queries), wanted), np.float32), np.empty((len(queries), wanted), np.int64)
        while True:
            fetch = min(wanted + margin, rows)
            rough, found = self._scan(queries, fetch, ordinals)
            scores, order = rescore(self.vectors, queries, found)
            # Rows with the score of the last result may not have been fetched: fetch more until that is impossible.
            cut = scores[:, wanted - 1] - SLACK
            if fetch == rows or bool((rough.min(axis=1) < cut).all()):
                return scores[:, :wanted], order[:, :wanted]
            margin *= 8

    def rough(self, query: NDArray[np.float32], k: int, ordinals: NDArray[np.int64]) -> Neighbours:
        """About the k best of some rows for a query (1, D), in no particular order: float32 scores, and ordinals (1, m)."""
        return self._scan(query, min(k, len(ordinals)), ordinals)

    def _scan(self, queries: NDArray[np.float32], k: int, ordinals: NDArray[np.int64] | None) -> Neighbours:
        rows = len(self.vectors) if ordinals is None else len(ordinals)
        if len(queries) >= MANY and k <= MOST and self._gpu is not None:
            return self._scan_on(self._gpu, queries, k, ordinals)
        parts = max(1, min(self._threads, rows // GATHER_ROWS))
        if parts == 1:
            with _single_thread():  # the pool would take longer than the scan of so few rows
                return self._scan_part(queries, k, ordinals, 0, rows)
        edges = [rows * part // parts for part in range(parts + 1)]
        jobs = [
            self._pool.submit(self._scan_part, queries, k, ordinals, start, end)
            for start, end in itertools.pairwise(edges)
        ]
        done = [job.result() for job in jobs]
        return _best(np.concatenate([part[0] for part in done], 1), np.concatenate([part[1] for part in done], 1), k)

    def _scan_on(
        self, gpu: Gpu, queries: NDArray[np.float32], k: int, ordinals: NDArray[np.int64] | None
    ) -> Neighbours:
        """The k best of all rows, or of the rows `ordinals`, by products on the GPU."""
        rows = len(self.vectors) if ordinals is None else len(ordinals)
        scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for low in range(0, rows, GPU_ROWS):
            chosen = np.arange(low, min(low + GPU_ROWS, rows)) if ordinals is None else ordinals[low : low + GPU_ROWS]
            block = self.vectors[low : low + GPU_ROWS] if ordinals is None else self.vectors[chosen]
            one, places = gpu.top(queries, block.astype(np.float32), min(k, len(chosen)))
            scores, found = _best(np.concatenate([scores, one], 1), np.concatenate([found, chosen[places]], 1), k)
        return scores, found

    def _scan_part(
        self, queries: NDArray[np.float32], k: int, ordinals: NDArray[np.int64] | None, start: int, end: int
    ) -> Neighbours:
        """The k best of the rows (or positions in `ordinals`) start to end, in one thread."""
        many = len(queries) >= MANY_QUERIES
        dim = self.vectors.shape[1]
        if ordinals is None and not many:
            return _half_precision(self.vectors[start:end], queries, k, start)
        step = min(BLOCK_ROWS if many else GATHER_ROWS, end - start)
        gathered = np.empty((step, dim), np.float16)
        decoded = np.empty((step, dim), np.float32) if many else None
        scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        waiting: list[Neighbours] = []
        bound: NDArray[np.float32] | None = None  # (Q,): the k-th best score so far
        for low in range(start, end, step):
            high = min(low + step, end)
            if ordinals is None:
                block, base = self.vectors[low:high], low
            else:
                block, base = gathered[: high - low], 0
                np.take(self.vectors, ordinals[low:high], axis=0, out=block, mode="clip")
            if many:
                one = _matrix(block, queries, k, base, decoded, bound)
            else:
                one = _half_precision(block, queries, k, base)
            waiting.append(one if ordinals is None else (one[0], ordinals[low:high][one[1]]))
            if many or len(waiting) >= 32 or high == end:
                scores, found = _best(
                    np.concatenate([scores, *(part[0] for part in waiting)], 1),
                    np.concatenate([found, *(part[1] for part in waiting)], 1),
                    k,
                )
                waiting.clear()
                if scores.shape[1] == k:
                    bound = scores.min(axis=1)
        return scores, found


def rescore(vectors: NDArray[np.float16], queries: NDArray[np.float32], ordinals: NDArray[np.int64]) -> Neighbours:
    """Final scores of candidates (Q, C), best first, equal ones by ordinal. -1 (no candidate) comes last, with -inf."""
    scores = np.empty(ordinals.shape, np.float32)
    ordered = np.empty_like(ordinals)
    for row, (query, wanted) in enumerate(zip(queries, ordinals, strict=True)):
        # einsum instead of a matrix product, because it sums every row in the same order and starts no threads.
        rows = vectors[wanted].astype(np.float32).astype(np.float64)  # numpy takes longer for this in one step
        exact = np.einsum("cd,d->c", rows, query.astype(np.float64)).astype(np.float32)
        exact[wanted < 0] = -np.inf
        order = np.lexsort((wanted, -exact))
        scores[row], ordered[row] = exact[order], wanted[order]
    return scores, ordered


def score_rows(rows: NDArray[np.float16], query: NDArray[np.float32], k: int) -> Neighbours:
    """The k best of some rows (C, D) for one query (D,): descending scores (k,) and their positions (k,) in `rows`."""
    rough = np.arange(len(rows))[None]
    if len(rows) > k + 128:
        one_thread()  # starting a second one takes longer than the search
        _, rough = half_precision_view(rows).search(query[None], k + 16)
    scores, places = rescore(rows, query[None], rough)
    return scores[0, :k], places[0, :k]


def _best(scores: NDArray[np.float32], found: NDArray[np.int64], k: int) -> Neighbours:
    """The k best columns of each row, in no particular order."""
    if scores.shape[1] <= k:
        return scores, found
    keep = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    return np.take_along_axis(scores, keep, 1), np.take_along_axis(found, keep, 1)


def _half_precision(block: NDArray[np.float16], queries: NDArray[np.float32], k: int, base: int) -> Neighbours:
    scores, found = half_precision_view(block).search(queries, min(k, len(block)))
    return scores, found + base


def _matrix(
    block: NDArray[np.float16],
    queries: NDArray[np.float32],
    k: int,
    base: int,
    decoded: NDArray[np.float32] | None,
    bound: NDArray[np.float32] | None,
) -> Neighbours:
    """The k best rows of the block, or, with a bound, all rows that reach it for some query."""
    import faiss

    codec = faiss.IndexScalarQuantizer(block.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    plain = codec.sa_decode(block.view(np.uint8), None if decoded is None else decoded[: len(block)])
    products = queries @ plain.T
    if bound is not None:
        # Few rows reach the bound, and finding them is much faster than selecting the k best of every block.
        rows = np.flatnonzero((products >= bound[:, None]).any(axis=0))
        return products[:, rows], np.broadcast_to(rows + base, (len(queries), len(rows)))
    keep = min(k, len(block))
    if keep == len(block):
        best = np.broadcast_to(np.arange(keep), products.shape)
    else:
        best = np.argpartition(products, products.shape[1] - keep, axis=1)[:, -keep:]
    return np.take_along_axis(products, best, 1), best.astype(np.int64) + base


def half_precision_view(rows: NDArray[np.float16]) -> faiss.IndexScalarQuantizer:
    """A faiss inner-product index whose codes are the bytes of `rows` (n, D), without a copy.

    faiss's fp16 code is IEEE half precision, so mapped vectors are searched in place. `rows` must outlive the index.
    """
    import faiss

    index = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    start = faiss.swig_ptr(rows.reshape(-1).view(np.uint8))
    codes = index.codes  # create_view() takes a shared pointer that Python cannot make; these are the fields it sets
    codes.is_owned = False
    codes.view_data = codes.c_ptr = start
    codes.view_size = codes.c_size = rows.nbytes
    index.ntotal = len(rows)
    index.is_trained = True
    return index


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Make faiss use a single thread in the block, and then as many as before."""
    import faiss

    before = faiss.omp_get_max_threads()
    one_thread()
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def one_thread() -> None:
    """Make faiss use a single thread for all further calls of this thread."""
    import faiss

    faiss.omp_set_num_threads(1)
