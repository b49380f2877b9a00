"""The nearest rows among all of an index or among some: by exact scan, or by a faiss index and the stored vectors.

Reads: vectors.npy, mapped, and index.faiss where there is one. Few rows are scanned exactly; among many, faiss proposes
candidates under a selector, wider until there are k, and their scores come from the stored vectors. A filter may pass rows
that lie far from the query (a style that is painted otherwise than what the prompt names): then an index that looks near
the query misses the best of them, so where a look without the filter finds far fewer matches than their share, they
are scanned exactly. Always gives min(k, rows) results; only those of an exact scan are certainly the best.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.index.exact import ExactScan, read_rows, score_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.index.approximate import ApproximateIndex

EXACT_SUBSET = 40_000  # up to so many matching rows a scan is as fast as any index, and exact

TOGETHER = 8  # a batch of so many queries may scan as many times more: rows are read once for all of them

RESCUE = 10  # times EXACT_SUBSET: up to so many are scanned for a query that the filter leads away from

WIDEN = 4.0

LOOK = 128  # rows near a query that tell whether the filter's matches are among them


@dataclass(frozen=True)
class SearchPlan:
    """How a search went, for --explain. Times are seconds of the whole batch."""

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

    mapped=False reads the rows to re-rank instead of mapping them: slower, but they do not count as this process's memory.
    """

    def __init__(
        self,
        vectors: Path,
        faiss_index: Path | Any = None,
        params: Mapping[str, Any] | None = None,
        threads: int = 0,
        exact_subset: int = EXACT_SUBSET,
        mapped: bool = True,
    ) -> None:
        self.vectors = np.asarray(np.load(vectors, mmap_mode="r"))
        self.exact = ExactScan(self.vectors, threads)
        self.exact_subset = exact_subset
        self._path, self._mapped = vectors, mapped
        self.approximate: ApproximateIndex | None = None
        if faiss_index is not None:
            from pipeline.index.approximate import ApproximateIndex

            self.approximate = ApproximateIndex(faiss_index, params or {}, threads)

    def close(self) -> None:
        self.exact.close()
        self.approximate = None

    def _rows(self, ordinals: NDArray[Any]) -> NDArray[Any]:
        """Some rows' vectors, float16."""
        return np.asarray(self.vectors[ordinals]) if self._mapped else read_rows(self._path, ordinals)

    def top(
        self, queries: NDArray[Any], k: int, ordinals: NDArray[Any] | None = None, exact: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any], SearchPlan]:
        """Scores (Q, m) and ordinals (Q, m) of the best m = min(k, rows) among `ordinals` (ascending; None: all)."""
        total = len(self.vectors)
        rows = total if ordinals is None else len(ordinals)
        plan = SearchPlan("", total, rows, len(queries))
        start = time.perf_counter()
        few = rows <= self.exact_subset * min(len(queries), TOGETHER)
        if exact or self.approximate is None or few or self._all_lists(rows):
            scores, found = self.exact.top(queries, k, ordinals)
            words = "exact scan of all rows" if ordinals is None else "exact scan of the matching rows"
            return scores, found, dataclasses.replace(plan, plan=words, search_s=time.perf_counter() - start)
        return self._approximate(self.approximate, queries, min(k, rows), ordinals, plan)

    def _all_lists(self, rows: int) -> bool:
        """Whether the index would go through all its lists for these rows: reading the rows themselves is quicker then."""
        index = self.approximate
        return (
            index is not None
            and index.family == "ivf"
            and rows <= min(RESCUE * self.exact_subset, len(self.vectors) // 2)
            and index.exhausted(rows, rows / len(self.vectors), 1.0)
        )

    def _approximate(
        self, index: ApproximateIndex, queries: NDArray[Any], k: int, ordinals: NDArray[Any] | None, plan: SearchPlan
    ) -> tuple[NDArray[Any], NDArray[Any], SearchPlan]:
        start = time.perf_counter()
        allowed = None
        if ordinals is not None:
            allowed = np.zeros(plan.rows, bool)
            allowed[ordinals] = True
        share = plan.matched / plan.rows
        count = max(int(index.params.get("candidates", 0)), k + 16)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        left = np.arange(len(queries))
        effort, widened, search_s, rerank_s, scanned = 1.0, 0, 0.0, 0.0, 0
        if allowed is not None and plan.matched <= RESCUE * self.exact_subset:
            astray = _astray(index, queries, allowed, share)
            if astray.any():
                scores[astray], found[astray] = self.exact.top(queries[astray], k, ordinals)
                scanned, left = int(astray.sum()), left[~astray]
            search_s += time.perf_counter() - start
            start = time.perf_counter()
        while len(left):
            candidates = index.candidates(queries[left], min(count, plan.matched), allowed, share, effort)
            enough = (candidates >= 0).sum(axis=1) >= k
            search_s += time.perf_counter() - start
            start = time.perf_counter()
            for place, row in zip(left[enough], candidates[enough], strict=True):
                wanted = np.unique(row[row >= 0])
                scores[place], order = score_rows(self._rows(wanted), queries[place], k)
                found[place] = wanted[order]
            rerank_s += time.perf_counter() - start
            start = time.perf_counter()
            left = left[~enough]
            if len(left) and (index.exhausted(min(count, plan.matched), share, effort) or effort > 1000):
                scores[left], found[left] = self.exact.top(queries[left], k, ordinals)
                scanned, left = scanned + len(left), left[:0]
                search_s += time.perf_counter() - start
            elif len(left):
                effort, widened = effort * WIDEN, widened + 1
        words = f"faiss {index.family} {index.params}, {'no filter' if ordinals is None else 'with a selector'}"
        words += f", widened {widened} times" if widened else ""
        words += f", exact scan for {scanned} of the queries" if scanned else ""
        return (
            scores,
            found,
            dataclasses.replace(plan, plan=words, widened=widened, search_s=search_s, rerank_s=rerank_s),
        )


def _astray(index: ApproximateIndex, queries: NDArray[Any], allowed: NDArray[Any], share: float) -> NDArray[Any]:
    """Queries (bool, (Q,)) among whose LOOK nearest rows, filter apart, are less than a quarter of the matches to expect."""
    if share >= 0.5:
        return np.zeros(len(queries), bool)
    near = index.candidates(queries, LOOK, None)
    matches = (allowed[np.maximum(near, 0)] & (near >= 0)).sum(axis=1)
    return np.asarray(matches < share * LOOK / 4)
