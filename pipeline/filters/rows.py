"""The rows that a filter matches. A filter that is NULL for a row does not match it.

A filter whose form limits its cost is evaluated in this process, every other filter in a child process with hard limits (see
filters/process.py). Reads and writes nothing outside memory.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import FilterError
from pipeline.filters.expressions import Filter, check_filter, read_filter
from pipeline.filters.process import FilterProcess
from pipeline.filters.sandbox import TIMEOUT_S, run_sql, sandbox, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def conjunction(*expressions: str, columns: Mapping[str, str]) -> str:
    """All expressions joined by AND, after each is checked separately. Empty ones are left out; `""` if none remains."""
    return " AND ".join(check_filter(text, columns).sql for text in expressions if text.strip())


@functools.cache
def _shared_process() -> FilterProcess:
    """The child process for single tables. It runs as long as this process, because starting it takes longer than most
    filters."""
    made = FilterProcess()
    atexit.register(made.close)
    return made


def filter_mask(expression: str, table: pa.Table, timeout_s: float = TIMEOUT_S) -> NDArray[np.bool_]:
    """The rows of an Arrow table that match: bool (rows,). A filter can only name columns of plain types. Raises
    FilterError."""
    import pyarrow.types as kinds

    tests = {
        "string": lambda t: kinds.is_string(t) or kinds.is_large_string(t),
        "int64": kinds.is_integer,
        "float64": lambda t: kinds.is_float32(t) or kinds.is_float64(t),
        "bool": kinds.is_boolean,
    }
    columns = {field.name: name for field in table.schema for name, is_kind in tests.items() if is_kind(field.type)}
    found = check_filter(expression, columns)
    if not table.num_rows:
        return np.zeros(0, bool)
    names = found.columns or tuple(columns)[:1]  # DuckDB needs a column to count rows
    if not names:
        raise FilterError(f"filter {shown(expression)} has no columns to work on")
    rows = table.select(list(names))
    sql = f"SELECT coalesce(({found.sql}), false) AS matched FROM rows"
    if not found.bounded:
        return np.asarray(_shared_process().run(lambda: rows, None, sql, expression, timeout_s), bool)
    with contextlib.closing(sandbox()) as connection:
        connection.register("rows", rows)
        return np.asarray(run_sql(connection, sql, expression, timeout_s), bool)


class MetadataFilter:
    """Filters over the metadata of one index, which is loaded column by column as filters name the columns.

    load(names) returns those columns as an Arrow table, one row per ordinal, in the order of the ordinals.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        load: Callable[[list[str]], pa.Table],
        memory: int = 4 << 30,
        threads: int = 0,
        cached: int = 8,
    ) -> None:
        self._columns = dict(columns)
        self._load = load
        self._connection = sandbox(memory, threads)
        self._process = FilterProcess(threads=threads)
        self._loaded: tuple[str, ...] | None = None
        self._ordinal = "ordinal"
        while self._ordinal in self._columns:
            self._ordinal += "_"
        self._cache: dict[str, NDArray[np.int64]] = {}
        self._cached = cached

    def close(self) -> None:
        """Close the connection and end the child process, if there is one."""
        self._connection.close()
        self._process.close()

    def ordinals(self, *expressions: str, timeout_s: float = TIMEOUT_S) -> NDArray[np.int64]:
        """Ascending ordinals of the rows that match every expression, int64, read-only. Raises FilterError.

        Each expression is checked separately. The last few answers are cached.
        """
        read = [read_filter(expression, self._columns) for expression in expressions]
        sql = " AND ".join(one.sql for one in read) or "true"
        known = self._cache.pop(sql, None)
        if known is None:
            known = self._evaluate(read, sql, " AND ".join(expressions), timeout_s)
            known.flags.writeable = False
        self._cache[sql] = known
        while len(self._cache) > self._cached:
            del self._cache[next(iter(self._cache))]
        return known

    def _evaluate(self, read: list[Filter], sql: str, expression: str, timeout_s: float) -> NDArray[np.int64]:
        names = tuple(dict.fromkeys(name for one in read for name in one.columns))
        query = f'SELECT "{self._ordinal}" AS found FROM rows WHERE {sql}'
        if all(one.bounded for one in read):
            self._ensure(names)
            return np.asarray(run_sql(self._connection, query, expression, timeout_s), np.int64)
        found = self._process.run(
            lambda: self._with_ordinals(self._load(list(names))), names, query, expression, timeout_s
        )
        return np.array(found, np.int64)

    def _with_ordinals(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        return table.append_column(self._ordinal, pa.array(np.arange(table.num_rows, dtype=np.int64)))

    def _ensure(self, names: tuple[str, ...]) -> None:
        """Load the columns `names` into the table, beside those that it holds."""
        wanted = tuple(dict.fromkeys((*(self._loaded or ()), *names)))
        if wanted == self._loaded:
            return
        self._connection.register("incoming", self._with_ordinals(self._load(list(wanted))))
        self._connection.execute("CREATE OR REPLACE TABLE rows AS SELECT * FROM incoming").fetchall()
        self._connection.unregister("incoming")
        self._loaded = wanted
