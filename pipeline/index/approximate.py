"""Candidates from a faiss index: which rows are probably near a query, before they are scored with the stored vectors.

Reads: index.faiss. Promises nothing about how many or how good: index/search.py widens and re-ranks. Handles HNSW, IVF with
any code, and flat codes (PQ, scalar quantizer, fast-scan, RaBitQ), each optionally behind a linear transform such as OPQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBuildError
from pipeline.machine import cores

MOST = 16.0  # how far a filter alone may raise nprobe or efSearch


class ApproximateIndex:
    """A faiss index with its search parameters, in memory, or mapped where it was merged from partitions.

    `params`: nprobe or efSearch, candidates, mapped.
    """

    def __init__(self, index: Path | Any, params: Mapping[str, Any], threads: int = 0) -> None:
        import faiss

        from pipeline.index.merge import map_index

        self._faiss = faiss
        read = map_index if params.get("mapped") else lambda path: faiss.read_index(str(path))
        self.index = read(index) if isinstance(index, Path) else index
        self.params = dict(params)
        self._threads = threads
        inner = self.index
        self._transformed = isinstance(inner, faiss.IndexPreTransform)
        if self._transformed:
            inner = faiss.downcast_index(inner.index)
        self.family = family(inner)
        self._ivf: Any = faiss.extract_index_ivf(self.index) if self.family == "ivf" else None
        # In faiss 1.13 the first of these looks at no selector and the others take none: filtered after the search instead.
        self.selects = not isinstance(inner, faiss.IndexIVFRaBitQFastScan | faiss.IndexFastScan | faiss.IndexPQ)
        self._bare = isinstance(inner, faiss.IndexFastScan | faiss.IndexPQ) and self.family == "flat"
        self.lists = int(self._ivf.nlist) if self._ivf is not None else 0

    def exhausted(self, count: int, share: float, effort: float) -> bool:
        """Whether more effort would find nothing more."""
        if not self.selects and self._fetch(count, share, effort) < self.index.ntotal:
            return False
        if self.family == "ivf":
            return self._probes(share, effort) >= self.lists
        return self.family == "flat" or self._search_width(share, effort) >= 16_384

    def candidates(
        self, queries: NDArray[Any], count: int, allowed: NDArray[Any] | None, share: float = 1.0, effort: float = 1.0
    ) -> NDArray[Any]:
        """Ordinals (Q, count) int64, -1 where nothing was found. `allowed` is a bool mask (N,), `share` how much of it is set.

        A filter that passes a share of the rows leaves that share of every list or neighbourhood, so the search goes wider by
        the root of one over it (what that finds: jobs/bench_search.py); `effort` widens it beyond that.
        """
        faiss = self._faiss
        # One query is searched by one thread anyway, and waking the others would take longer than it.
        faiss.omp_set_num_threads(1 if len(queries) == 1 else self._threads or cores())
        selector = None
        if allowed is not None and self.selects:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        fetch = count if allowed is None else self._fetch(count, share, effort)
        if self.family == "hnsw":
            inner = faiss.SearchParametersHNSW(sel=selector, efSearch=max(self._search_width(share, effort), fetch))
        elif self.family == "ivf":
            probes = self._probes(share, effort)
            inner = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
            if isinstance(faiss.downcast_index(self._ivf.quantizer), faiss.IndexHNSW):
                inner.quantizer_params = coarse = faiss.SearchParametersHNSW(efSearch=max(2 * probes, 64))
                inner.referenced_objects = [*getattr(inner, "referenced_objects", []), coarse]
        else:
            inner = faiss.SearchParameters(sel=selector)
        outer = faiss.SearchParametersPreTransform(index_params=inner) if self._transformed else inner
        _, found = self.index.search(queries, fetch, params=None if self._bare else outer)
        if allowed is not None and not self.selects:
            found = np.where((found >= 0) & allowed[found], found, -1)
        return np.asarray(found, np.int64)

    def _fetch(self, count: int, share: float, effort: float) -> int:
        """How many to ask for so that `count` are left by the filter."""
        return count if self.selects else min(int(count * effort / max(share, 1e-9)), self.index.ntotal)

    def _probes(self, share: float, effort: float) -> int:
        wanted = int(self.params.get("nprobe", 16)) * min(max(share, 1e-9) ** -0.5, MOST) * effort
        return max(1, min(int(wanted), self.lists))

    def _search_width(self, share: float, effort: float) -> int:
        return int(int(self.params.get("efSearch", 64)) * min(max(share, 1e-9) ** -0.5, MOST) * effort)


def ladder(index: Any, k: int) -> list[dict[str, int]]:
    """Search parameters of rising cost, from which the first that reaches the wanted recall is taken."""
    import faiss

    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    kind = family(inner)
    few = k + 32
    if kind == "hnsw":
        coarse = not isinstance(faiss.downcast_index(inner.storage), faiss.IndexFlat)
        return [
            {"efSearch": width, "candidates": width if coarse else few} for width in (64, 128, 256, 512, 1024, 2048)
        ]
    if kind == "flat":
        return [{"candidates": many} for many in (few, 100, 200, 400, 800, 1600, 3200, 6400)]
    fine = isinstance(inner, faiss.IndexIVFFlat) or int(inner.code_size) >= int(inner.d)
    steps = [
        (8, 200),
        (16, 200),
        (32, 400),
        (64, 400),
        (128, 800),
        (256, 1600),
        (512, 1600),
        (1024, 3200),
        (4096, 6400),
    ]
    lists = int(inner.nlist)
    rungs = [{"nprobe": min(probes, lists), "candidates": few if fine else many} for probes, many in steps]
    return list({tuple(rung.values()): rung for rung in rungs}.values())


def family(index: Any) -> str:
    """hnsw, ivf or flat: which search parameters the (inner) index takes. Raises IndexBuildError for what has none of ours."""
    import faiss

    if isinstance(index, faiss.IndexHNSW):
        return "hnsw"
    if isinstance(index, faiss.IndexIVF):
        return "ivf"
    if isinstance(index, faiss.IndexFlatCodes | faiss.IndexFastScan):
        return "flat"
    raise IndexBuildError(
        f"a {type(index).__name__} cannot be searched with a filter here; choose an index key of IVF, HNSW, PQ, SQ or RaBitQ"
    )
