"""Filtered search in a retrieval database.

Reads: the index files of a version, mapped; metadata columns when a filter names them. Writes nothing. `column = value` needs
no metadata if the index has lists for the column's values (index/values.py). Any other filter of simple form is evaluated over
arrays (retrieval/columns.py), the rest by DuckDB; index/search.py finds the best of the rows. A result has exactly min(k,
matching rows) entries; equal scores are ordered by key. A Searcher is not thread-safe: open one for each thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.catalog import resolve_database
from pipeline.errors import ConfigError, DatabaseError, nearest
from pipeline.filters import Comparison, Condition, MetadataFilter, OneOf, all_of, conjunction, simple_form
from pipeline.index import EXACT_SUBSET, SearchIndex, SearchPlan, Subset, ValuePart
from pipeline.retrieval.columns import MetadataColumns
from pipeline.schema import metadata_columns, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase, Version

KEPT = 8  # filters whose rows are cached


@dataclass(frozen=True)
class Results:
    """The m = min(k, matching rows) nearest rows of each query, best first."""

    keys: NDArray[np.int64]  # (Q, m)
    scores: NDArray[np.float32]  # (Q, m), inner products with the stored vectors
    ordinals: NDArray[np.int64]  # (Q, m), positions in the index
    plan: SearchPlan


class Searcher:
    """An open version of a database: mapped vectors, and the metadata columns that filters used.

    Close it afterwards, or use it in a `with` statement.
    """

    def __init__(
        self,
        db: RetrievalDatabase,
        version: Version,
        where: str = "",
        threads: int = 0,
        exact_subset: int = EXACT_SUBSET,
        device: str = "auto",
    ) -> None:
        self.version = version
        self.columns = metadata_columns(version.columns)
        entry = version.index
        paths = {role: db.local(artifact) for role, artifact in entry.files.items()}
        self.index = SearchIndex(
            paths["vectors"],
            paths.get("faiss"),
            entry.params,
            threads,
            exact_subset,
            device=device,
            values=paths.get("values"),
        )
        self.keys: NDArray[np.int64] = np.load(paths["keys"], mmap_mode="r")
        self._norms: NDArray[np.float32] = np.load(paths["norms"], mmap_mode="r")
        self._metadata = paths["metadata"]
        self._filter = MetadataFilter(self.columns, self._load, threads=threads)
        self._arrays = MetadataColumns(self._load)
        self._kept: dict[tuple[str, ...], Subset] = {}
        self.where = conjunction(where, columns=self.columns)
        self._originals: NDArray[np.int64] | None = None

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.index.close()
        self._filter.close()

    @property
    def dim(self) -> int:
        return int(self.index.vectors.shape[1])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int = 19,
        where: str = "",
        exclude_keys: Sequence[int] = (),
        distinct: bool = False,
        exact: bool = False,
    ) -> Results:
        """The k best rows for each query, (Q, D) or (D,) of unit length, among those that match `where` and the view's filter.

        `exclude_keys` are left out of the results, for example the row itself in a search by key. `distinct` keeps only
        the first matching row of each picture that occurs more than once, byte for byte. `exact` scans all matching rows.
        Raises FilterError, and ConfigError for queries of another dimension or length.
        """
        start = time.perf_counter()
        queries = np.ascontiguousarray(np.atleast_2d(queries), np.float32)
        self._check(queries, k)
        checked = time.perf_counter()
        rows = self._subset(where)
        if distinct:
            rows = self._distinct(rows)
        filter_s = time.perf_counter() - checked
        matched = len(self.keys) if rows is None else rows.count
        excluded = self._present(exclude_keys, rows)
        scores, found, plan = self.index.top(queries, k + len(excluded), rows, exact)
        if len(excluded):
            keep = min(k, matched - len(excluded))
            # The stable sort by "is excluded" moves excluded rows after the others, which keep their order.
            order = np.argsort(np.isin(found, excluded), axis=1, kind="stable")[:, :keep]
            scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        keys = np.asarray(self.keys)[found]
        search_s = time.perf_counter() - start - filter_s - plan.rerank_s  # so that the times add up to the whole call
        plan = dataclasses.replace(plan, filter_s=filter_s, search_s=search_s, matched=matched - len(excluded))
        return Results(keys, scores, found, plan)

    def matching(self, where: str = "") -> NDArray[np.int64] | None:
        """Ascending ordinals of the rows that match the view's filter and `where`; None if neither is given: all rows.

        They must not be modified. Raises FilterError.
        """
        rows = self._subset(where)
        return None if rows is None else rows.ordinals

    def _subset(self, where: str) -> Subset | None:
        """The rows that match the view's filter and `where`; None if neither is given. The last few are cached."""
        both = tuple(expression for expression in (self.where, where) if expression.strip())
        if not both:
            return None
        rows = self._kept.pop(both, None)
        if rows is None:
            part, whole = self._part(both)
            given: NDArray[np.bool_] | NDArray[np.int64] | None = None
            if not whole:
                mask = self._simple(both)
                given = self._filter.ordinals(*both) if mask is None else mask
            rows = Subset(given, len(self.keys), part)
        self._kept[both] = rows
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return rows

    def _part(self, expressions: tuple[str, ...]) -> tuple[ValuePart | None, bool]:
        """The values that all rows have because of `column = value` or `column IN (values)` in the expressions, if the index
        has lists for them, and whether the expressions ask for nothing else."""
        forms = [simple_form(expression, self.columns) for expression in expressions]
        asked = [part for form in forms if form is not None for part in all_of(form)]
        parts = [part for condition in asked if (part := self._values_of(condition)) is not None]
        if not parts:
            return None, False
        return min(parts, key=lambda part: int(part.per_list.sum())), len(asked) == 1 and None not in forms

    def _values_of(self, condition: Condition) -> ValuePart | None:
        if isinstance(condition, OneOf):
            return self.index.rows_of(condition.column, condition.values)
        if isinstance(condition, Comparison) and condition.operator == "=":
            return self.index.rows_of(condition.column, [condition.value])
        return None

    def _simple(self, expressions: tuple[str, ...]) -> NDArray[np.bool_] | None:
        """The rows that match all expressions, (N,); None if DuckDB has to evaluate one of them."""
        found: NDArray[np.bool_] | None = None
        for expression in expressions:
            condition = simple_form(expression, self.columns)
            mask = None if condition is None else self._arrays.rows_where(condition)
            if mask is None:
                return None
            found = mask if found is None else found & mask
        return found

    def ordinals(self, keys: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The ordinals (n,) of n keys. Raises DatabaseError for a key that is not in this version."""
        wanted = np.asarray(keys, np.int64)
        places = np.searchsorted(self.keys, wanted)
        bad = (places >= len(self.keys)) | (self.keys[np.minimum(places, len(self.keys) - 1)] != wanted)
        if bad.any():
            raise DatabaseError(
                f"database {self.version.database!r} has no row with key {int(wanted[bad][0])} in version "
                f"{self.version.id}; its keys are {int(self.keys[0])} to {int(self.keys[-1])}, with gaps"
            )
        return np.asarray(places, np.int64)

    def vectors(self, keys: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The stored unit vectors (n, D), and their L2 norms (n,) before normalising, in the order of `keys`."""
        places = self.ordinals(keys)
        return self.index.vectors[places].astype(np.float32), np.asarray(self._norms[places], np.float32)

    def metadata(self, keys: Sequence[int] | NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Metadata of rows, in the order of `keys`: all columns, or those named. Reads only the row groups it needs."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(self.columns if columns is None else columns)
        for name in names:
            if name not in self.columns:
                raise ConfigError(
                    f"no column {name!r}{nearest(name, self.columns)}; the columns are {', '.join(self.columns)}"
                )
        places = self.ordinals(keys)
        with pq.ParquetFile(self._metadata, memory_map=True) as file:
            if not len(places):
                return file.schema_arrow.empty_table().select(names)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            group_of = np.searchsorted(starts, places, side="right") - 1
            groups = np.unique(group_of)
            table = file.read_row_groups(groups.tolist(), columns=names)
        before = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])])
        return table.take(pa.array(places - starts[group_of] + before[np.searchsorted(groups, group_of)])).select(names)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole metadata column, in order of ordinals. Reads it each time."""
        return self._load([name])[name]

    def _load(self, names: list[str]) -> pa.Table:
        import pyarrow as pa

        if not names:
            return pa.table({"key": np.asarray(self.keys)})
        return read_parquet(self._metadata, columns=names)

    def _check(self, queries: NDArray[np.float32], k: int) -> None:
        if k < 1:
            raise ConfigError(f"k is {k}; ask for at least one neighbour")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ConfigError(
                f"queries have shape {queries.shape}; database {self.version.database!r} holds vectors of {self.dim} "
                f"dimensions, made by encoder {self.version.encoder.name}: encode the queries with it"
            )
        lengths = np.linalg.norm(queries, axis=1)
        if not bool((np.abs(lengths - 1.0) < 1e-2).all()):
            raise ConfigError("queries must be finite and of unit length: divide each by its L2 norm")

    def _present(self, keys: Sequence[int], rows: Subset | None) -> NDArray[np.int64]:
        """Ordinals of those of `keys` that are in the index and match."""
        wanted = np.unique(np.asarray(keys, np.int64))
        if not len(wanted):
            return wanted
        places = np.searchsorted(self.keys, wanted)
        places = places[(places < len(self.keys)) & (self.keys[np.minimum(places, len(self.keys) - 1)] == wanted)]
        return np.asarray(places if rows is None else places[rows.mask[places]])

    def _distinct(self, rows: Subset | None) -> Subset | None:
        """Leave out every matching row that has the same picture as an earlier matching row."""
        if self._originals is None:
            original = self._load(["duplicate_of"])["duplicate_of"]
            own = np.asarray(self.keys)
            self._originals = np.where(np.asarray(original.is_valid()), original.fill_null(-1).to_numpy(), own)
        within = np.arange(len(self.keys)) if rows is None else rows.ordinals
        originals = self._originals[within]
        copies = originals != self.keys[within]
        if not copies.any():
            return rows
        # Only rows that are copies, and the originals they refer to, have to be examined.
        group = np.flatnonzero(copies | np.isin(originals, originals[copies]))
        _, first = np.unique(originals[group], return_index=True)
        keep = np.ones(len(within), bool)
        keep[group] = False
        keep[group[first]] = True
        return Subset(within[keep], len(self.keys), None if rows is None else rows.part)


def open_database(name: str, home: str | None = None, threads: int = 0) -> Searcher:
    """Open `name` (a database, a view, or either with @version) for searching. Raises DatabaseError if there is none.

    `home` is the folder or address of the databases (None: the default one), `threads` the number for a search (0: all
    cores).
    """
    selection = resolve_database(name, home)
    return open_search(selection.database, selection.version, selection.where, threads)


def open_search(
    db: RetrievalDatabase,
    version: Version,
    where: str = "",
    threads: int = 0,
    exact_subset: int = EXACT_SUBSET,
    device: str = "auto",
) -> Searcher:
    """Open a version for searching. `where` is a view's filter, which applies to every search.

    Up to `exact_subset` matching rows are scanned exactly, with any index. `device` is a --device value: many queries at
    once are searched on a GPU if faiss has one, unless it is `cpu`.
    """
    return Searcher(db, version, where, threads, exact_subset, device)
