"""Filters: one SQL expression over a row's metadata (read and checked by filters/expressions.py), and the rows it matches.

Reads nothing and writes nothing outside memory. A filter that is NULL for a row does not match it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import FilterError
from pipeline.filters.expressions import TIMEOUT_S, Filter, check_filter, read_filter, run_sql, sandbox, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def conjunction(*expressions: str, columns: Mapping[str, str]) -> str:
    """All of the expressions at once, each checked by itself first; empty ones are left out, `""` when none is left."""
    return " AND ".join(check_filter(text, columns).sql for text in expressions if text.strip())


def filter_mask(expression: str, table: pa.Table, timeout_s: float = TIMEOUT_S) -> NDArray[Any]:
    """Which rows of an Arrow table match: bool (rows,). Columns of other than plain types cannot be named in the filter."""
    import numpy as np
    import pyarrow.types as kinds

    tests = {
        "string": lambda t: kinds.is_string(t) or kinds.is_large_string(t),
        "int64": kinds.is_integer,
        "float64": lambda t: kinds.is_float32(t) or kinds.is_float64(t),
        "bool": kinds.is_boolean,
    }
    columns = {field.name: name for field in table.schema for name, is_kind in tests.items() if is_kind(field.type)}
    checked = check_filter(expression, columns)
    if not table.num_rows:
        return np.zeros(0, bool)
    if not checked.columns:  # DuckDB needs a column to count rows by
        checked = Filter(checked.sql, tuple(columns)[:1])
        if not checked.columns:
            raise FilterError(f"filter {shown(expression)} has no columns to work on")
    with contextlib.closing(sandbox()) as connection:
        connection.register("rows", table.select(list(checked.columns)))
        sql = f"SELECT coalesce(({checked.sql}), false) AS matched FROM rows"
        found = run_sql(connection, sql, expression, timeout_s)
    return np.asarray(found, bool)


class MetadataFilter:
    """The metadata of one index in an in-memory DuckDB table, loaded column by column as filters ask for them.

    load(names) returns those columns, one row per ordinal, in ordinal order.
    """

    def __init__(
        self, columns: Mapping[str, str], load: Any, memory: int = 4 << 30, threads: int = 0, cached: int = 8
    ) -> None:
        self._columns = dict(columns)
        self._load = load
        self._connection = sandbox(memory, threads)
        self._loaded: tuple[str, ...] | None = None
        self._ordinal = "ordinal"
        while self._ordinal in self._columns:
            self._ordinal += "_"
        self._cache: dict[str, NDArray[Any]] = {}
        self._cached = cached

    def close(self) -> None:
        self._connection.close()

    def ordinals(self, *expressions: str, timeout_s: float = TIMEOUT_S) -> NDArray[Any]:
        """Ascending ordinals of the rows that match every expression, int64, not to be written to.

        Each expression has to stand by itself. The last few answers are kept.
        """
        import numpy as np

        read = [read_filter(expression, self._columns) for expression in expressions]
        sql = " AND ".join(one.sql for one in read) or "true"
        known = self._cache.pop(sql, None)
        if known is None:
            self._ensure(tuple(name for one in read for name in one.columns))
            query = f'SELECT "{self._ordinal}" AS found FROM rows WHERE {sql}'
            known = np.asarray(run_sql(self._connection, query, " AND ".join(expressions), timeout_s), np.int64)
            known.flags.writeable = False
        self._cache[sql] = known
        while len(self._cache) > self._cached:
            del self._cache[next(iter(self._cache))]
        return known

    def _ensure(self, names: tuple[str, ...]) -> None:
        """Have the table hold the columns `names` beside those it holds already."""
        import numpy as np
        import pyarrow as pa

        wanted = tuple(dict.fromkeys((*(self._loaded or ()), *names)))
        if wanted == self._loaded:
            return
        table = self._load(list(wanted))
        ordinals = pa.array(np.arange(table.num_rows, dtype=np.int64))
        self._connection.register("incoming", table.append_column(self._ordinal, ordinals))
        self._connection.execute("CREATE OR REPLACE TABLE rows AS SELECT * FROM incoming").fetchall()
        self._connection.unregister("incoming")
        self._loaded = wanted
