"""Reading a filter: from text somebody typed to SQL that is safe to run.

The text is parsed alone, on a connection that holds no data: it has to be exactly one expression, made of known columns,
constants and a fixed list of operators and functions; subqueries, table functions, aggregates, lambdas, parameters and
everything with a side effect are refused. What runs is DuckDB's own rendering of the checked tree, never the text as it was
typed, so comments and unbalanced parentheses cannot reach the query it is put into. Connections have no access to files,
extensions, Python variables or their own settings, a bound on memory and a bound on time.

Reads and writes nothing outside memory.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import FilterError, nearest
from pipeline.schema import arrow_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMEOUT_S = 30.0

MEMORY = 1 << 30

LONGEST = 200_000  # characters: room for a list of some ten thousand keys

NODES = {
    "CONJUNCTION": {"CONJUNCTION_AND", "CONJUNCTION_OR"},
    "COMPARISON": None,
    "BETWEEN": None,
    "OPERATOR": {
        "COMPARE_IN",
        "COMPARE_NOT_IN",
        "OPERATOR_NOT",
        "OPERATOR_IS_NULL",
        "OPERATOR_IS_NOT_NULL",
        "OPERATOR_COALESCE",
    },
    "CASE": None,
    "CAST": None,
    "CONSTANT": None,
    "COLUMN_REF": None,
    "FUNCTION": None,
    "TYPE": None,
}

CASTS = {"BOOLEAN", "INTEGER", "BIGINT", "HUGEINT", "UBIGINT", "FLOAT", "DOUBLE", "VARCHAR", "DATE"}

# Only functions whose result is no longer than their arguments, is the same every time and touches nothing else: no
# repeat, replace, lpad (a short text could fill the memory), no levenshtein (quadratic), no now, random, getenv.
_NAMES = """
    ~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape
    regexp_matches regexp_full_match contains starts_with ends_with prefix suffix ^@
    lower upper trim ltrim rtrim strip_accents substring substr left right split_part
    length strlen position instr strpos hamming concat || nullif least greatest
    + - * / // % abs sign round floor ceil ceiling sqrt ln log10 mod isnan isfinite isinf year month day
"""

FUNCTIONS = frozenset(_NAMES.split())

_CONDITIONS = """
    ~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape ^@
    regexp_matches regexp_full_match contains starts_with ends_with prefix suffix isnan isfinite isinf
"""

CONDITIONS = frozenset(_CONDITIONS.split())


@dataclass(frozen=True)
class Filter:
    """A checked filter: `sql` is safe to stand inside `WHERE (...)`; `columns` are those it reads."""

    sql: str
    columns: tuple[str, ...]


def check_filter(expression: str, columns: Mapping[str, str]) -> Filter:
    """Parse and check a filter over columns given by type name (schema.TYPES), constants' types too. Raises FilterError."""
    return _read(expression, tuple(columns.items()), True)


def read_filter(expression: str, columns: Mapping[str, str]) -> Filter:
    """check_filter for a filter that is run at once: what is wrong with its types is found then, and this takes a third."""
    return _read(expression, tuple(columns.items()), False)


def parse_filter(expression: str) -> None:
    """See that a filter is one expression, whatever the columns will be. Raises FilterError."""
    with _PARSING:
        _parse(_parser(), expression)


def syntax_of(expression: str) -> dict[str, Any]:
    """DuckDB's syntax tree of a filter, which has to be one expression. Raises FilterError."""
    with _PARSING:
        tree: dict[str, Any] = _parse(_parser(), expression)["statements"][0]["node"]["select_list"][0]
    return tree


def sandbox(memory: int = MEMORY, threads: int = 0) -> Any:
    """An in-memory DuckDB connection that reaches nothing outside itself and whose settings are locked."""
    import duckdb

    config: dict[str, Any] = {
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


_PARSING = threading.Lock()  # a DuckDB connection serves one thread at a time


@functools.lru_cache(maxsize=1)
def _parser() -> Any:
    """The connection that parses; making one takes 15 ms, longer than the search that waits for it."""
    connection = sandbox(threads=1)
    atexit.register(_close, connection)
    return connection


def _close(connection: Any) -> None:
    connection.close()
    _parser.cache_clear()  # DuckDB's bindings complain on standard error about what is left at exit


@functools.lru_cache(maxsize=256)
def _read(expression: str, columns: tuple[tuple[str, str], ...], bind: bool) -> Filter:
    if len(expression) > LONGEST:
        raise FilterError(f"the filter has {len(expression):,} characters; at most {LONGEST:,} are read")
    with _PARSING:
        tree = _parse(_parser(), expression)
        used = _check_tree(tree, expression, dict(columns))
        checked = Filter(_render(_parser(), tree), used)
        if bind or not _is_condition(tree["statements"][0]["node"]["select_list"][0]):
            _bind(_parser(), checked, expression, dict(columns))
    return checked


def _is_condition(node: dict[str, Any]) -> bool:
    """Whether the expression is true or false by its form alone; others have to be bound to find out."""
    if node["class"] == "FUNCTION":
        return node["function_name"] in CONDITIONS
    return node["class"] in ("CONJUNCTION", "COMPARISON", "BETWEEN") or (
        node["class"] == "OPERATOR" and node["type"] != "OPERATOR_COALESCE"
    )


def _bind(connection: Any, checked: Filter, expression: str, columns: Mapping[str, str]) -> None:
    """Run the filter over one row of NULLs: enough for DuckDB to resolve every type and to convert the constants."""
    import pyarrow as pa

    row = {name: pa.nulls(1, arrow_type(columns[name])) for name in checked.columns or tuple(columns)[:1]}
    connection.register("rows", pa.table(row))
    try:
        found = run_sql(connection, f"SELECT ({checked.sql}) AS matched FROM rows", expression, TIMEOUT_S)
    finally:
        connection.unregister("rows")
    if found.dtype != bool:
        raise FilterError(
            f"filter {shown(expression)} gives {found.dtype}, not true or false; write a condition, as in width >= 256"
        )


def _parse(connection: Any, expression: str) -> dict[str, Any]:
    """The syntax tree of `SELECT <expression>`, which has to be that and nothing more."""
    import duckdb

    try:
        rows = connection.execute("SELECT json_serialize_sql(?, skip_default := true)", [f"SELECT\n{expression}\n"])
        tree: dict[str, Any] = json.loads(rows.fetchall()[0][0])
    except (duckdb.Error, ValueError, RecursionError) as error:
        raise FilterError(f"filter {shown(expression)} cannot be parsed: {_first_line(error)}") from None
    if tree.get("error"):
        raise FilterError(
            f"filter {shown(expression)} is not an SQL expression: {tree.get('error_message', '').strip()}. "
            "Write one condition, as in style = 'Baroque' AND width >= 256; text goes in single quotes, "
            'a column with a space or sign in its name in double quotes, as in "Artist Name"'
        )
    statements = tree.get("statements", [])
    node = statements[0]["node"] if len(statements) == 1 else {}
    plain = {"type", "cte_map", "select_list", "from_table", "aggregate_handling"}
    expected = (
        node.get("type") == "SELECT_NODE"
        and set(node) <= plain
        and not node["cte_map"]
        and len(node["select_list"]) == 1
        and not node["select_list"][0].get("alias")
        and node["from_table"].get("type") == "EMPTY"
        and node["aggregate_handling"] == "STANDARD_HANDLING"
    )
    if not expected:
        raise FilterError(
            f"filter {shown(expression)} is more than one expression: a filter is one condition, "
            "without FROM, ORDER BY, LIMIT, UNION, aliases or a second statement"
        )
    return tree


def _check_tree(tree: dict[str, Any], expression: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse whatever is not on the lists above; spell columns as they are stored. Returns the columns in use."""
    used: dict[str, None] = {}
    by_lower = {name.lower(): name for name in columns}

    def visit(item: Any) -> None:
        if isinstance(item, list):
            for part in item:
                visit(part)
        elif isinstance(item, dict):
            if "class" in item:
                check(item)
            for part in item.values():
                visit(part)

    def refuse(what: str) -> FilterError:
        return FilterError(
            f"filter {shown(expression)}: {what} is not allowed; a filter compares columns with constants, by operators, "
            f"LIKE, IN, BETWEEN, IS NULL, CASE, CAST and these functions: "
            f"{', '.join(sorted(name for name in FUNCTIONS if name.isidentifier()))}"
        )

    def check(node: dict[str, Any]) -> None:
        kind, detail = node["class"], node.get("type", "")
        if kind not in NODES or (NODES[kind] is not None and detail not in (NODES[kind] or ())):
            raise refuse(str(detail or kind).lower().replace("_", " "))
        if kind == "FUNCTION":
            name = str(node.get("function_name", ""))
            extra = {"filter", "distinct", "schema", "catalog"} & {key for key, value in node.items() if value}
            named = any(argument.get("name") for argument in node.get("arguments", []) if isinstance(argument, dict))
            if name not in FUNCTIONS or extra or named or node.get("order_bys", {}).get("orders"):
                raise refuse(f"{name}()" if name.isidentifier() else f"operator {name}")
        elif kind == "TYPE":
            if str(node.get("type_name", "")).upper() not in CASTS or node.get("children"):
                raise refuse(f"a cast to {node.get('type_name')}")
        elif kind == "COLUMN_REF":
            path = [str(part) for part in node["column_names"]]
            name = path[0] if path[0] in columns else by_lower.get(path[0].lower(), "")
            if len(path) != 1 or not name:
                raise FilterError(
                    f"filter {shown(expression)}: no column {'.'.join(path)!r}{nearest(path[-1], columns)}; "
                    f"the columns are {', '.join(columns)}. (Text goes in single quotes: double quotes name a column.)"
                )
            node["column_names"] = [name]
            if isinstance(node.get("qualified_name"), dict):
                node["qualified_name"]["path"] = [name]
            used[name] = None

    visit(tree["statements"][0]["node"]["select_list"])
    return tuple(used)


def _render(connection: Any, tree: dict[str, Any]) -> str:
    text = str(connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()[0][0])
    if not text.startswith("SELECT "):
        raise AssertionError(f"DuckDB rendered a SELECT as {text!r}")
    return f"({text.removeprefix('SELECT ')})"


def run_sql(connection: Any, sql: str, expression: str, timeout_s: float) -> NDArray[Any]:
    """The query's one column, with an interrupt after timeout_s. DuckDB's errors become FilterErrors."""
    import duckdb

    with _deadline(connection, timeout_s):
        try:
            column: NDArray[Any] = next(iter(connection.execute(sql).fetchnumpy().values()))
            return column
        except duckdb.InterruptException:
            raise FilterError(
                f"filter {shown(expression)} ran longer than {timeout_s:g} s and was stopped; use a simpler one"
            ) from None
        except duckdb.OutOfMemoryException as error:
            raise FilterError(f"filter {shown(expression)} needs too much memory: {_first_line(error)}") from None
        except duckdb.Error as error:
            raise FilterError(
                f"filter {shown(expression)} cannot be evaluated: {_first_line(error)}. TRY_CAST converts, and gives NULL "
                "where it cannot, as in TRY_CAST(date AS DATE) >= DATE '1900-01-01'"
            ) from None


@contextlib.contextmanager
def _deadline(connection: Any, timeout_s: float) -> Iterator[None]:
    timer = threading.Timer(timeout_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shown(expression: str) -> str:
    text = " ".join(expression.split())
    return repr(text if len(text) <= 120 else f"{text[:117]}...")


def _first_line(error: BaseException) -> str:
    lines = str(error).split(" Use TRY(")[0].strip().splitlines()  # what follows is about settings, which are locked
    return lines[0].rstrip(".") if lines else type(error).__name__
