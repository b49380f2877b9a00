"""DuckDB in a sandbox, as an evaluator of expressions, and its errors as FilterErrors.

A connection has no access to files, extensions, Python variables or its own settings. Reads and writes nothing outside memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pipeline.errors import FilterError

TIMEOUT_S = 30.0

MEMORY = 1 << 30  # bytes

Connection: TypeAlias = Any  # duckdb.DuckDBPyConnection: duckdb's types are not checked

Column: TypeAlias = NDArray[Any]  # bool or int64, depending on the query


def sandbox(memory: int = MEMORY, threads: int = 0) -> Connection:
    """An in-memory DuckDB connection with locked settings. memory: DuckDB's own limit in bytes; threads 0: all cores."""
    import duckdb

    config: dict[str, str | bool | int] = {
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
        "python_scan_all_frames": False,
        "memory_limit": f"{max(memory >> 20, 64)}MiB",
    }
    if threads:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET lock_configuration = true").fetchall()
    return connection


def run_sql(connection: Connection, sql: str, expression: str, timeout_s: float) -> Column:
    """The query's one column. DuckDB is interrupted after timeout_s, between two chunks of rows. Raises FilterError.

    The connection can be used again after an error, even if a result was left unread, for example because NumPy lacks its type.
    """
    import duckdb

    with _interrupted_after(connection, timeout_s):
        try:
            column: Column = next(iter(connection.execute(sql).fetchnumpy().values()))
            return column
        except duckdb.Error as error:
            connection.abort()
            raise explained(type(error).__name__, str(error), expression, timeout_s) from None


def explained(kind: str, text: str, expression: str, timeout_s: float) -> FilterError:
    """The FilterError for an exception of DuckDB, given by its class and text."""
    if kind == "InterruptException":
        return too_slow(expression, timeout_s)
    if kind in ("OutOfMemoryException", "MemoryError"):
        return too_large(expression, first_line(text))
    return FilterError(
        f"filter {shown(expression)} cannot be evaluated: {first_line(text)}. TRY_CAST converts a value, and gives NULL "
        "where it cannot, as in TRY_CAST(date AS DATE) >= DATE '1900-01-01'"
    )


def too_slow(expression: str, timeout_s: float) -> FilterError:
    return FilterError(
        f"filter {shown(expression)} ran longer than {timeout_s:g} s and was stopped; use a simpler one, or fewer alternatives"
    )


def too_large(expression: str, reason: str) -> FilterError:
    return FilterError(f"filter {shown(expression)} needs too much memory: {reason}; use a simpler one")


@contextlib.contextmanager
def _interrupted_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    timer = threading.Timer(timeout_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shown(expression: str) -> str:
    """The expression in quotes, on one line, at most 120 characters of it."""
    text = " ".join(expression.split())
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def first_line(text: str) -> str:
    """The first line of DuckDB's message, without its advice on settings, which are locked."""
    lines = text.split(" Use TRY(")[0].strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"
