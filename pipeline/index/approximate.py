"""Candidates from a faiss index: rows that are probably near a query, to be scored again with the stored vectors.

Reads: index.faiss, and values.lists if there is one. Writes nothing. It does not promise how many candidates it finds or
how good they are: index/search.py searches again with more effort, and re-ranks. It handles HNSW, IVF with any code, and
flat codes (PQ, scalar quantizer, fast-scan, RaBitQ), each with or without a linear transform such as OPQ before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBuildError
from pipeline.index.gpu import MANY, open_gpu
from pipeline.index.gpu import MOST as GPU_MOST
from pipeline.index.lists import NEWCOMERS
from pipeline.machine import cores

if TYPE_CHECKING:
    import faiss

    from pipeline.index.lists import ListChoice
    from pipeline.index.records import Params
    from pipeline.index.subset import Subset
    from pipeline.index.values import ColumnLists

Family = Literal["hnsw", "ivf", "flat"]

MOST = 16.0  # the largest factor by which a filter may raise nprobe or efSearch

MOST_VALUES = 8  # up to this many values have their lists searched one after another

FEWER = 0.25  # a filter that passes a share s needs s ** FEWER times the candidates that are scored again

WIDER = {"hnsw": 0.5, "ivf": 0.5}  # a filter that passes a share s multiplies the width of a search by s ** -WIDER


class ApproximateIndex:
    """A faiss index with its search parameters, in memory; an index that was merged from partitions is mapped.

    `params`: nprobe or efSearch, candidates, mapped; value_nprobe and value_candidates for the lists of a value.
    `values` is values.lists, if the index is split by the values of columns.
    """

    def __init__(
        self,
        index: Path | faiss.Index,
        params: Params,
        threads: int = 0,
        device: str = "cpu",
        values: Path | None = None,
    ) -> None:
        import faiss

        from pipeline.index.merge import map_index
        from pipeline.index.values import read_value_lists

        read = map_index if params.get("mapped") else lambda path: faiss.read_index(str(path))
        self.index = read(index) if isinstance(index, Path) else index
        self.params: Params = dict(params)
        self._threads, self._device = threads, device
        inner = self.index
        self._transformed = isinstance(inner, faiss.IndexPreTransform)
        if self._transformed:
            inner = faiss.downcast_index(inner.index)
        self.family = family_of(inner)
        if self.family == "ivf":
            self._ivf = faiss.downcast_index(faiss.extract_index_ivf(self.index))
        # In faiss 1.13 the first of these ignores a selector and the others accept none: filter their results afterwards.
        self.selects = not isinstance(inner, faiss.IndexIVFRaBitQFastScan | faiss.IndexFastScan | faiss.IndexPQ)
        self._bare = isinstance(inner, faiss.IndexFastScan | faiss.IndexPQ) and self.family == "flat"
        self.lists = int(self._ivf.nlist) if self.family == "ivf" else 0
        self._choice: ListChoice | None = None
        self.values: dict[str, ColumnLists] = {} if values is None else read_value_lists(values)

    @functools.cached_property
    def chooses_lists(self) -> bool:
        """Whether a filtered search opens only lists that hold matching rows (index/lists.py)."""
        from pipeline.index.lists import serves

        return self.family == "ivf" and self.selects and not self._transformed and serves(self._ivf)

    @functools.cached_property
    def _on_gpu(self) -> faiss.Index | None:
        """The inverted file on the GPU, for searches of many queries without a filter; None if that is not possible."""
        if self.family != "ivf" or self._transformed or self.params.get("mapped"):  # mapped: may be larger than memory
            return None
        gpu = open_gpu(self._device)
        return None if gpu is None else gpu.copy(self.index)

    @functools.cached_property
    def has_short_codes(self) -> bool:
        """Whether it has lists of codes that are much shorter than vectors, and faster to compare."""
        import faiss

        return self.chooses_lists and isinstance(self._ivf, faiss.IndexIVFFastScan)

    def has_lists_of(self, rows: Subset) -> bool:
        """Whether the rows have one of a few values whose lists have codes of their own: a search of them is fast."""
        part = rows.part
        return part is not None and part.column.has_codes and len(part.numbers) <= MOST_VALUES and self.chooses_lists

    def candidate_count(self, rows: Subset | None) -> int:
        """How many candidates a search for some rows scores again, by the tuned parameters."""
        usual = self.params.get("candidates", 0)
        if rows is None:
            return usual
        if self.has_lists_of(rows):
            return self.params.get("value_candidates", usual)
        # Fewer rows have scores near those of the best.
        return int(usual * math.pow(rows.share, FEWER)) if self.chooses_lists else usual

    def exhausted(self, count: int, rows: Subset | None, effort: float) -> bool:
        """Whether more effort cannot find more."""
        if not self.selects and self._fetch(count, rows, effort) < self.index.ntotal:
            return False
        if self.family == "ivf":
            every = self._probes(rows, effort) >= self.lists
            return every or (rows is not None and self.chooses_lists and self._opens_all(rows, effort))
        return self.family == "flat" or self._search_width(rows, effort) >= 16_384

    def candidates(
        self, queries: NDArray[np.float32], count: int, rows: Subset | None = None, effort: float = 1.0, k: int = 0
    ) -> NDArray[np.int64]:
        """Ordinals (Q, count) among `rows` (None: all), -1 if nothing was found; the caller wants the k best of them (0: all).

        A filter that passes a share of the rows leaves that share of every list or neighbourhood. The search is therefore
        widened by a power of the share, WIDER (jobs/bench_search.py measures the recall), or continues list by list until more
        lists find no better rows; `effort` multiplies the width.
        """
        import faiss

        few = rows is None and count <= GPU_MOST and (self.family != "ivf" or self._probes(None, effort) <= GPU_MOST)
        if few and len(queries) >= MANY and self._on_gpu is not None:
            params = faiss.SearchParametersIVF(nprobe=self._probes(None, effort))
            return np.asarray(self._on_gpu.search(queries, count, params=params)[1], np.int64)
        # faiss uses one thread for one query; starting the others would take longer than the search.
        faiss.omp_set_num_threads(1 if len(queries) == 1 else self._threads or cores())
        if rows is not None and self.chooses_lists:
            return self._in_lists(queries, count, rows, effort, min(k or count, count))
        selector = None if rows is None or not self.selects else faiss.IDSelectorBitmap(rows.bitmap)
        fetch = count if rows is None else self._fetch(count, rows, effort)
        if self.family == "hnsw":
            inner = faiss.SearchParametersHNSW(sel=selector, efSearch=max(self._search_width(rows, effort), fetch))
        elif self.family == "ivf":
            probes = self._probes(rows, effort)
            inner = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
            if isinstance(faiss.downcast_index(self._ivf.quantizer), faiss.IndexHNSW):
                inner.quantizer_params = coarse = faiss.SearchParametersHNSW(efSearch=max(2 * probes, 64))
                inner.referenced_objects = [*getattr(inner, "referenced_objects", []), coarse]
        else:
            inner = faiss.SearchParameters(sel=selector)
        outer = faiss.SearchParametersPreTransform(index_params=inner) if self._transformed else inner
        _, found = self.index.search(queries, fetch, params=None if self._bare else outer)
        if rows is not None and not self.selects:
            found = np.where((found >= 0) & rows.mask[found], found, -1)
        return np.asarray(found, np.int64)

    def _in_lists(
        self, queries: NDArray[np.float32], count: int, rows: Subset, effort: float, k: int
    ) -> NDArray[np.int64]:
        """candidates() from the lists that hold some of the rows, the nearest lists first.

        Opens nprobe lists, then repeatedly half as many as are open, until a step brings hardly any row into the k best. If the
        order of the lists were unrelated to their rows, a third of the k best would be new in every step.
        """
        first = self._first_lists(rows, effort)
        lists, products = self._lists().ranked(queries, rows, first)
        indexes, selector = self._holding(rows)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        found = np.full((len(queries), count), -1, np.int64)
        left, start, end = np.arange(len(queries)), 0, first
        while len(left) and start < lists.shape[1]:
            near = lists[left, start:end], products[left, start:end]
            found_in = [scan_lists(index, queries[left], count, selector, *near) for index in indexes]
            if not start and len(found_in) == 1:
                scores, found = found_in[0]
                start, end = end, end + max(1, end // 2)
                continue
            new_scores, new = (np.concatenate(one, axis=1) for one in zip(*found_in, strict=True))
            kth = -np.partition(-scores[left], k - 1, axis=1)[:, k - 1]
            newcomers = ((new >= 0) & (new_scores > kth[:, None])).sum(axis=1)
            both, ordinals = np.concatenate([scores[left], new_scores], 1), np.concatenate([found[left], new], 1)
            best = np.argpartition(-both, count - 1, axis=1)[:, :count]
            scores[left], found[left] = np.take_along_axis(both, best, 1), np.take_along_axis(ordinals, best, 1)
            left = left[(newcomers > k // NEWCOMERS) | ((found[left] >= 0).sum(axis=1) < k)]
            start, end = end, end + max(1, end // 2)
        return found

    def _holding(self, rows: Subset) -> tuple[list[faiss.IndexIVF], faiss.IDSelector | None]:
        """The inverted files that hold the rows, and a selector if they hold others too."""
        import faiss

        part = rows.part
        if part is None or not self.has_lists_of(rows):
            return [self._ivf], faiss.IDSelectorBitmap(rows.bitmap)
        opened = [part.column.open(number, self._ivf) for number in part.numbers]
        return opened, None if rows.whole else faiss.IDSelectorBitmap(rows.bitmap)

    def _first_lists(self, rows: Subset, effort: float) -> int:
        """How many lists a search for some rows opens first."""
        if not self.has_lists_of(rows):
            return self._probes(None, effort)
        probes = self.params.get("value_nprobe", self.params.get("nprobe", 16))
        return max(1, min(int(probes * effort), self.lists))

    def near_rows(self, query: NDArray[np.float32], rows: Subset) -> Iterator[NDArray[np.int64]]:
        """The rows in the lists nearest to the query, ascending, then those in as many more lists, and so on."""
        ranks, ordinals = self._lists().ranks(query, rows), rows.ordinals
        start, end = 0, max(1, self._probes(None, 1.0) // 2)
        while start < self.lists:
            yield ordinals[(ranks >= start) & (ranks < end)]
            start, end = end, 2 * end

    def _opens_all(self, rows: Subset, effort: float) -> bool:
        """Whether all lists that hold some of the rows are opened at once."""
        return self._first_lists(rows, effort) >= int(self._lists().worth_opening(rows).sum())

    def _lists(self) -> ListChoice:
        from pipeline.index.lists import ListChoice

        if self._choice is None:
            self._choice = ListChoice(self._ivf)
        return self._choice

    def _fetch(self, count: int, rows: Subset | None, effort: float) -> int:
        """How many rows to request so that `count` of them pass the filter."""
        if self.selects or rows is None:
            return count
        return min(int(count * effort / max(rows.share, 1e-9)), int(self.index.ntotal))

    def _probes(self, rows: Subset | None, effort: float) -> int:
        wanted = self.params.get("nprobe", 16) * _wider("ivf", 1.0 if rows is None else rows.share) * effort
        return max(1, min(int(wanted), self.lists))

    def _search_width(self, rows: Subset | None, effort: float) -> int:
        return int(self.params.get("efSearch", 64) * _wider("hnsw", 1.0 if rows is None else rows.share) * effort)


def scan_lists(
    index: faiss.IndexIVF,
    queries: NDArray[np.float32],
    count: int,
    selector: faiss.IDSelector | None,
    lists: NDArray[np.int64],
    products: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` best of the selected rows in these lists, (Q, n), by their codes: scores and ordinals (Q, count), -1 for
    none. `products` (Q, n) are the inner products with the centroids."""
    import faiss

    lists, products = np.ascontiguousarray(lists), np.ascontiguousarray(products)  # faiss reads them by pointer
    queries = np.ascontiguousarray(queries)
    scores = np.empty((len(queries), count), np.float32)
    found = np.empty((len(queries), count), np.int64)
    index.search_preassigned_c(
        len(queries),
        faiss.swig_ptr(queries),
        count,
        faiss.swig_ptr(lists),
        faiss.swig_ptr(products),
        faiss.swig_ptr(scores),
        faiss.swig_ptr(found),
        False,
        faiss.SearchParametersIVF(sel=selector, nprobe=lists.shape[1]),
    )
    return np.where(found < 0, np.float32(-np.inf), scores), found


def _wider(kind: str, share: float) -> float:
    return min(math.pow(max(share, 1e-9), -WIDER[kind]), MOST)


def ladder(index: faiss.Index, k: int) -> list[dict[str, int]]:
    """Search parameters in order of cost; the first that reaches the wanted recall is used."""
    import faiss

    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    family = family_of(inner)
    few = k + 32
    if family == "hnsw":
        coarse = not isinstance(faiss.downcast_index(inner.storage), faiss.IndexFlat)
        return [
            {"efSearch": width, "candidates": width if coarse else few} for width in (64, 128, 256, 512, 1024, 2048)
        ]
    if family == "flat":
        return [{"candidates": many} for many in (few, 100, 200, 400, 800, 1600, 3200, 6400)]
    fine = isinstance(inner, faiss.IndexIVFFlat) or int(inner.code_size) >= int(inner.d)
    probes = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    candidates = (200, 200, 400, 400, 800, 1600, 1600, 3200, 6400)
    lists = int(inner.nlist)
    rungs = [
        {"nprobe": min(probe, lists), "candidates": few if fine else many}
        for probe, many in zip(probes, candidates, strict=True)
    ]
    return list({tuple(rung.values()): rung for rung in rungs}.values())


def value_ladder(lists: int) -> list[dict[str, int]]:
    """Search parameters for the lists of a value, in order of cost. A value has few rows, so few candidates are enough."""
    rungs = ((8, 100), (16, 100), (32, 200), (64, 200), (128, 400), (256, 400), (512, 800), (4096, 1600))
    return [{"value_nprobe": min(probe, lists), "value_candidates": many} for probe, many in rungs]


def family_of(index: faiss.Index) -> Family:
    """The kind of an (inner) index, by its search parameters. Raises IndexBuildError for any other kind."""
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
