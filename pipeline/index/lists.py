"""The choice of inverted lists for a filter: only lists that hold matching rows, the nearest first.

A plain search opens the lists nearest to the query. If the matching rows lie elsewhere (a style far from what the text
names), it finds few of them or none. Here only the lists that hold matching rows are ranked, so that the same number of
lists finds them. Reads: the ids of an IVF index, once, unless the rows are those of a value whose lists are known
(index/values.py). Memory: 2 bytes a row. It supports indexes of at most MOST_LISTS lists, because a query is compared
with all centroids.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import faiss

    from pipeline.index.subset import Subset

MOST_LISTS = 8192

NEWCOMERS = 16  # a search of lists ends after a step that brings at most k / 16 new rows into the k best

SAMPLED = 128  # rows of each list that are looked at if many rows match

DENSE = 20  # a filter that passes a twentieth of a value's rows leaves some of them in nearly all of its lists

MANY = 50_000  # rows from which on lists are sampled: finding the list of every row would take most of a search's time


class ListChoice:
    """The lists of `ivf`, a faiss IVF index with an inner-product quantizer over stored centroids."""

    def __init__(self, ivf: faiss.IndexIVF) -> None:
        self.lists = int(ivf.nlist)
        self.sizes = np.array([ivf.invlists.list_size(number) for number in range(self.lists)], np.int64)
        self._ivf, self._centroids = ivf, _centroids(ivf)

    @functools.cached_property
    def _list_of_row(self) -> NDArray[np.uint16]:
        """The list of each row, (N,)."""
        import faiss

        lists = np.zeros(int(self._ivf.ntotal), np.uint16)
        for number in np.flatnonzero(self.sizes).tolist():
            lists[faiss.rev_swig_ptr(self._ivf.invlists.get_ids(number), int(self.sizes[number]))] = number
        return lists

    @functools.cached_property
    def _sample(self) -> NDArray[np.int64]:
        """SAMPLED rows of each list, (lists, SAMPLED): all rows of a short list, some of them several times."""
        import faiss

        rows = np.zeros((self.lists, SAMPLED), np.int64)
        for number in np.flatnonzero(self.sizes).tolist():
            size = int(self.sizes[number])
            ids = faiss.rev_swig_ptr(self._ivf.invlists.get_ids(number), size)
            rows[number] = ids[np.linspace(0, size - 1, SAMPLED).astype(np.int64)]
        return rows

    def holding(self, rows: Subset) -> NDArray[np.bool_]:
        """The lists that hold some of the rows, as a mask (lists,). Of a large share of a value's rows: lists of the value."""
        if rows.part is not None and (rows.whole or rows.count * DENSE >= int(rows.part.per_list.sum())):
            return rows.part.per_list > 0
        return rows.tally(self._list_of_row, self.lists) > 0

    def worth_opening(self, rows: Subset) -> NDArray[np.bool_]:
        """holding(), but if many rows match only those lists that have one of them in a sample of their rows."""
        if not self._samples(rows):
            return self.holding(rows)
        return rows.any_of(self._sample) & (self.sizes > 0)

    def _samples(self, rows: Subset) -> bool:
        return rows.count >= MANY and rows.part is None

    def ranks(self, query: NDArray[np.float32], rows: Subset) -> NDArray[np.int32]:
        """For each of the rows, (count,), how many of the lists that hold some of them are nearer to the query than its own."""
        of_rows = self._list_of_row[rows.ordinals]
        held = np.flatnonzero(np.bincount(of_rows, minlength=self.lists))
        rank = np.zeros(self.lists, np.int32)
        rank[held[np.argsort(-self._products(query[None])[0, held])]] = np.arange(len(held), dtype=np.int32)
        return np.asarray(rank[of_rows])

    def _products(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inner products of the queries (Q, D) with all centroids, (Q, lists)."""
        import faiss

        products = np.empty((len(queries), self.lists), np.float32)
        for query, out in zip(queries, products, strict=True):
            # faiss's own loop, because a matrix product would start the threads of BLAS.
            faiss.fvec_inner_products_ny(
                faiss.swig_ptr(out),
                faiss.swig_ptr(query),
                faiss.swig_ptr(self._centroids),
                self._centroids.shape[1],
                self.lists,
            )
        return products

    def ranked(
        self, queries: NDArray[np.float32], rows: Subset, nearest: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The lists that hold some of the rows, the nearest to each query first, (Q, n), and their inner products.

        If many rows match, lists with few of them may be left out, but not the `nearest` lists of any query.
        """
        products = self._products(queries)
        worth = self.worth_opening(rows)
        if self._samples(rows) and nearest < self.lists:
            near = np.zeros(self.lists, bool)
            near[np.argpartition(-products, nearest, axis=1)[:, :nearest]] = True
            worth = worth | (near & (self.sizes > 0))
        holding = np.flatnonzero(worth)
        products = products[:, holding]
        order = np.argsort(-products, axis=1, kind="stable")
        return holding[order], np.take_along_axis(products, order, 1)


def serves(ivf: faiss.IndexIVF) -> bool:
    """Whether ListChoice supports this index."""
    import faiss

    return (
        int(ivf.nlist) <= MOST_LISTS
        and ivf.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        and _flat(ivf.quantizer) is not None
    )


def splits(index: faiss.Index) -> bool:
    """Whether searches of this index can be restricted to the lists of a value."""
    import faiss

    if not isinstance(index, faiss.IndexIVF) or isinstance(index, faiss.IndexIVFRaBitQFastScan):
        return False
    return serves(index)


def _flat(quantizer: faiss.Index) -> faiss.IndexFlat | None:
    import faiss

    quantizer = faiss.downcast_index(quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer = faiss.downcast_index(quantizer.storage)
    return quantizer if isinstance(quantizer, faiss.IndexFlat) else None


def _centroids(ivf: faiss.IndexIVF) -> NDArray[np.float32]:
    """(lists, D): a view of the quantizer's centroids."""
    import faiss

    flat = _flat(ivf.quantizer)
    assert flat is not None, "serves() was asked first"
    centroids: NDArray[np.float32] = faiss.rev_swig_ptr(flat.get_xb(), int(flat.ntotal) * int(flat.d))
    return centroids.reshape(int(flat.ntotal), int(flat.d))
