"""The nearest rows among all or some rows of an index, by an exact scan or by a faiss index and the stored vectors.

Reads: vectors.npy, mapped; index.faiss and values.lists if they are there. Writes nothing. If few rows match, they are scanned
exactly; with an inverted file, more than NEAR_ROWS of them in the nearest lists first, until more lists bring hardly any better
rows. If many match, faiss proposes candidates with a selector, with more effort until there are k, and they are scored with
the stored vectors. The matching rows may lie far from the query (for example, a style without the subject of the prompt). An
index that searches near the query misses the best of these. An inverted file is therefore searched only in lists that hold
matching rows (index/lists.py), and for the values of some columns in lists of their own (index/values.py). For any other
index, if a search without the filter finds far fewer matching rows than their share predicts, the matching rows are scanned
exactly. A search always gives min(k, rows) results; only an exact scan is certain to give the best.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.index.exact import ExactScan, rescore, score_rows
from pipeline.index.lists import NEWCOMERS
from pipeline.index.npy import read_rows
from pipeline.index.subset import Subset
from pipeline.index.values import ValuePart

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray

    from pipeline.index.approximate import ApproximateIndex
    from pipeline.index.records import Params

EXACT_SUBSET = 40_000  # up to this many matching rows, a scan is as fast as any index, and exact

VALUE_SUBSET = 4_000  # the same for rows of a value that has lists of its own

NEAR_ROWS = 2_000  # more matching rows than this are scanned in the nearest lists first, if the index has lists

SINGLE = 4  # up to this many queries have their nearest lists scanned, one query after another

TOGETHER = 8  # a batch may scan up to this many times more rows, because rows are read once for all queries

TOGETHER_SHORT = 1.5  # the same for an index of 4-bit codes, which is asked for many queries in less time

RESCUE = 10  # up to this many times EXACT_SUBSET matching rows are scanned if they lie far from the query

WIDEN = 4.0

LOOK = 128  # rows near a query that are checked for matches of the filter


@dataclass(frozen=True)
class SearchPlan:
    """How a search ran, for --explain. Times are seconds of the whole batch."""

    plan: str  # in words
    rows: int  # in the index
    matched: int  # by the filter
    queries: int
    widened: int = 0
    filter_s: float = 0.0
    search_s: float = 0.0
    rerank_s: float = 0.0


class SearchIndex:
    """The vectors of an index and, above the exact size, its faiss index: top-k among all rows or among some.

    device: `cpu`, or `auto` or `cuda` to search many queries at once on a GPU if faiss has one.
    mapped=False reads the rows to re-rank instead of mapping them: slower, but they do not count as this process's memory.
    values: the file with the lists of values, if there is one (index/values.py). Close it afterwards.
    """

    def __init__(
        self,
        vectors: Path,
        faiss_index: Path | faiss.Index | None = None,
        params: Params | None = None,
        threads: int = 0,
        exact_subset: int = EXACT_SUBSET,
        mapped: bool = True,
        device: str = "cpu",
        values: Path | None = None,
    ) -> None:
        self.vectors: NDArray[np.float16] = np.asarray(np.load(vectors, mmap_mode="r"))
        self.exact = ExactScan(self.vectors, threads, device)
        self.exact_subset = exact_subset
        self._path, self._mapped = vectors, mapped
        self.approximate: ApproximateIndex | None = None
        if faiss_index is not None:
            from pipeline.index.approximate import ApproximateIndex

            self.approximate = ApproximateIndex(faiss_index, params or {}, threads, device, values)

    def close(self) -> None:
        self.exact.close()
        self.approximate = None

    def _rows(self, ordinals: NDArray[np.int64]) -> NDArray[np.float16]:
        return np.asarray(self.vectors[ordinals]) if self._mapped else read_rows(self._path, ordinals)

    def top(
        self,
        queries: NDArray[np.float32],
        k: int,
        rows: Subset | NDArray[np.int64] | None = None,
        exact: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], SearchPlan]:
        """Scores (Q, m) and ordinals (Q, m) of the best m = min(k, rows) of `rows` (None: all; an array: ascending ordinals).

        queries is (Q, D). `exact` scans all the rows.
        """
        start = time.perf_counter()
        total = len(self.vectors)
        if isinstance(rows, np.ndarray):
            rows = Subset(rows, total)
        matched = total if rows is None else rows.count
        plan = SearchPlan("", total, matched, len(queries))
        few = matched <= self._scanned(rows, len(queries))
        if few and not exact and rows is not None and self._near_first(rows, queries, k):
            scores, found = self._near(queries, min(k, matched), rows)
            words = "scan of the matching rows in the nearest lists"
            return scores, found, dataclasses.replace(plan, plan=words, search_s=time.perf_counter() - start)
        if exact or self.approximate is None or few or self._all_lists(self.approximate, rows):
            scores, found = self.exact.top(queries, k, None if rows is None else rows.ordinals)
            words = "exact scan of all rows" if rows is None else "exact scan of the matching rows"
            return scores, found, dataclasses.replace(plan, plan=words, search_s=time.perf_counter() - start)
        if matched == total:
            rows = None
        scores, found, plan = self._approximate(self.approximate, queries, min(k, matched), rows, plan)
        return scores, found, dataclasses.replace(plan, search_s=time.perf_counter() - start - plan.rerank_s)

    def rows_of(self, column: str, values: Sequence[str | float]) -> ValuePart | None:
        """The rows with one of some values of a column; None if the index has no lists for the column's values."""
        lists = None if self.approximate is None else self.approximate.values.get(column)
        return None if lists is None else lists.part(values)

    def _scanned(self, rows: Subset | None, queries: int) -> float:
        """Up to how many matching rows are scanned, because that is as fast as asking the index."""
        index = self.approximate
        if rows is not None and index is not None and index.has_lists_of(rows):
            return min(VALUE_SUBSET, self.exact_subset) * min(queries, TOGETHER)
        short = index is not None and index.has_short_codes
        return self.exact_subset * min(queries, TOGETHER_SHORT if short else TOGETHER)

    def _near_first(self, rows: Subset, queries: NDArray[np.float32], k: int) -> bool:
        """Whether a scan of the rows in the nearest lists is faster than one of all rows."""
        index = self.approximate
        enough = rows.count > max(min(NEAR_ROWS, self.exact_subset), 20 * k)
        return index is not None and enough and len(queries) <= SINGLE and index.chooses_lists

    def _near(
        self, queries: NDArray[np.float32], k: int, rows: Subset
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best of the rows, (Q, k), by scans of those in the nearest lists, until more lists bring hardly any of them."""
        assert self.approximate is not None
        scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for place, query in enumerate(queries):
            best, ordinals = np.empty(0, np.float32), np.empty(0, np.int64)
            for near in self.approximate.near_rows(query, rows):
                if not len(near):
                    continue
                bar = best[k - 1] if len(best) >= k else -np.inf
                new, new_ordinals = self.exact.rough(query[None], k + 16, near)
                both, every = np.concatenate([best, new[0]]), np.concatenate([ordinals, new_ordinals[0]])
                order = np.argsort(-both)[: k + 16]
                best, ordinals = both[order], every[order]
                if len(best) >= k and int((new[0] > bar).sum()) <= k // NEWCOMERS:
                    break
            exact, order = rescore(self.vectors, query[None], ordinals[None])
            scores[place], found[place] = exact[0, :k], order[0, :k]
        return scores, found

    def _all_lists(self, index: ApproximateIndex, rows: Subset | None) -> bool:
        """Whether the index would search all its lists for these rows; then scanning the rows is faster."""
        return (
            rows is not None
            and index.family == "ivf"
            and not index.has_lists_of(rows)
            and rows.count <= min(RESCUE * self.exact_subset, len(self.vectors) // 2)
            and index.exhausted(rows.count, rows, 1.0)
        )

    def _approximate(
        self, index: ApproximateIndex, queries: NDArray[np.float32], k: int, rows: Subset | None, plan: SearchPlan
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], SearchPlan]:
        count = min(max(index.candidate_count(rows), k + 16), plan.matched)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        left = np.arange(len(queries))
        effort, widened, rerank_s, scanned = 1.0, 0, 0.0, 0
        if rows is not None and not index.chooses_lists and rows.count <= RESCUE * self.exact_subset:
            astray = _astray(index, queries, rows)
            if astray.any():
                scores[astray], found[astray] = self.exact.top(queries[astray], k, rows.ordinals)
                scanned, left = int(astray.sum()), left[~astray]
        while len(left):
            candidates = index.candidates(queries[left], count, rows, effort, k)
            enough = (candidates >= 0).sum(axis=1) >= k
            start = time.perf_counter()
            for place, row in zip(left[enough], candidates[enough], strict=True):
                wanted = np.unique(row[row >= 0])
                scores[place], order = score_rows(self._rows(wanted), queries[place], k)
                found[place] = wanted[order]
            rerank_s += time.perf_counter() - start
            left = left[~enough]
            if len(left) and (index.exhausted(count, rows, effort) or effort > 1000):
                scores[left], found[left] = self.exact.top(queries[left], k, None if rows is None else rows.ordinals)
                scanned, left = scanned + len(left), left[:0]
            elif len(left):
                effort, widened = effort * WIDEN, widened + 1
        words = f"faiss {index.family} {index.params}, {_where(index, rows)}"
        words += f", widened {widened} times" if widened else ""
        words += f", exact scan for {scanned} of the queries" if scanned else ""
        return scores, found, dataclasses.replace(plan, plan=words, widened=widened, rerank_s=rerank_s)


def _where(index: ApproximateIndex, rows: Subset | None) -> str:
    """What is searched, in words."""
    if rows is None:
        return "no filter"
    if rows.part is not None and index.has_lists_of(rows):
        values = ", ".join(str(rows.part.column.values[number]) for number in rows.part.numbers)
        return f"in the lists of {rows.part.column.name} = {values}{'' if rows.whole else ', with a selector'}"
    return "with a selector" + (", among the lists that hold matching rows" if index.chooses_lists else "")


def _astray(index: ApproximateIndex, queries: NDArray[np.float32], rows: Subset) -> NDArray[np.bool_]:
    """The queries, as a mask (Q,), whose LOOK nearest unfiltered rows hold less than a quarter of the expected matches."""
    if rows.share >= 0.5:
        return np.zeros(len(queries), bool)
    near = index.candidates(queries, LOOK)
    matches = (rows.mask[np.maximum(near, 0)] & (near >= 0)).sum(axis=1)
    return np.asarray(matches < rows.share * LOOK / 4)
