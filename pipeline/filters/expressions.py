"""Parse a filter: from the text that a user typed to SQL that is safe to run.

The text is parsed alone, on a connection that holds no data. It must be exactly one expression of bounded size, made of known
columns, constants and a fixed list of operators and functions. Subqueries, table functions, aggregates, lambdas, parameters and
everything with a side effect are refused. DuckDB's rendering of the checked tree is run, never the text as it was
typed, so that comments and unbalanced parentheses cannot reach the query around it.

`Filter.bounded` says whether the form of a filter limits its cost: comparisons and cheap functions of columns, with constant
patterns. Such a filter runs in this process; every other filter runs in a child process with hard limits, even while its
types are checked, because DuckDB then already computes constant parts.

Reads and writes nothing outside memory.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.errors import FilterError, nearest
from pipeline.filters.process import FilterProcess
from pipeline.filters.sandbox import TIMEOUT_S, Column, Connection, first_line, run_sql, sandbox, shown
from pipeline.schema import arrow_type

Node: TypeAlias = dict[str, Any]  # of DuckDB's syntax tree, from json_serialize_sql

LONGEST = 200_000  # characters: room for a list of some ten thousand keys

MOST_WORDS = 8_000  # names, keywords and operators; numbers, texts and commas are not counted

MOST_NODES = 2_000  # of the syntax tree, not counting constants

MOST_ARGUMENTS = 100  # of one function

MOST_NESTING = 100

MOST_COPIES = 100  # that DuckDB makes of one part of the filter while it plans

MOST_PARSED = 300_000  # words of a filter whose CASEs DuckDB's parser writes out

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

# Only functions whose result is no longer than all their arguments together, is always the same and has no side effect. This
# excludes repeat, replace and lpad (a short text could fill the memory), levenshtein (quadratic), now, random and getenv.
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

# Functions whose cost per row is linear in the length of their arguments, and whose result is no longer.
_LINEAR = """
    lower upper trim ltrim rtrim length strlen nullif least greatest
    + - * / // % abs sign round floor ceil ceiling sqrt ln log10 mod isnan isfinite isinf year month day
"""

LINEAR = frozenset(_LINEAR.split())

MACROS = {"nullif": 2, "split_part": 2}  # functions that DuckDB writes out, and how often each argument then occurs

SEARCHES = frozenset({"contains", "starts_with", "ends_with", "prefix", "suffix", "^@"})  # for a short constant text

PATTERNS = frozenset({"~~", "!~~", "~~*", "!~~*"})  # LIKE and ILIKE, with a short constant pattern of at most two %

SHORT = 200  # characters

BOUNDED_NODES = 200

BOUNDED_TEXTS = 4  # functions that make a text from a row's text


@dataclass(frozen=True)
class Filter:
    """A checked filter: `sql` is safe inside `WHERE (...)`, `columns` are those that it reads."""

    sql: str
    columns: tuple[str, ...]
    bounded: bool  # its form limits its cost: it may run in this process


def check_filter(expression: str, columns: Mapping[str, str]) -> Filter:
    """Parse and check a filter over columns with their type names (schema.TYPES), including the types of constants.

    Raises FilterError.
    """
    return _read(expression, tuple(columns.items()), True)


def read_filter(expression: str, columns: Mapping[str, str]) -> Filter:
    """Like check_filter, without the check of types, which takes two thirds of the time. For a filter that is run
    immediately."""
    return _read(expression, tuple(columns.items()), False)


def parse_filter(expression: str) -> None:
    """Check that a filter is one expression of bounded size, before its columns are known. Raises FilterError."""
    with _PARSING:
        _measure(_parse(_parser(), expression), expression)


def syntax_of(expression: str) -> Node:
    """DuckDB's syntax tree of a filter. Raises FilterError for more than one expression or one that is too large."""
    with _PARSING:
        return _measure(_parse(_parser(), expression), expression)


_PARSING = threading.Lock()  # a DuckDB connection serves one thread at a time


@functools.lru_cache(maxsize=1)
def _parser() -> Connection:
    """The connection that parses. It is kept open, because opening one takes 15 ms."""
    connection = sandbox(threads=1)
    atexit.register(_close, connection)
    return connection


def _close(connection: Connection) -> None:
    connection.close()
    _parser.cache_clear()  # DuckDB's bindings print an error about a connection that is open at exit


@functools.lru_cache(maxsize=1)
def _checker() -> FilterProcess:
    """The child process that checks the types of filters that are not bounded."""
    made = FilterProcess(threads=1)
    atexit.register(made.close)
    return made


@functools.lru_cache(maxsize=256)
def _read(expression: str, columns: tuple[tuple[str, str], ...], bind: bool) -> Filter:
    with _PARSING:
        tree = _parse(_parser(), expression)
        root = _measure(tree, expression)
        used = _check_tree(root, expression, dict(columns))
        found = Filter(_render(_parser(), tree, expression), used, _is_bounded(root))
    if bind or not _is_condition(root):
        _bind(found, expression, dict(columns))
    return found


def _check_size(expression: str) -> None:
    """Refuse a text that is too long or has too many words, before DuckDB parses it. Raises FilterError."""
    if len(expression) > LONGEST:
        raise FilterError(f"the filter has {len(expression):,} characters; at most {LONGEST:,} are read")
    depth = deepest = words = 0
    for found in re.finditer(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\d[\w.]*|\w+|[^\s,\w]""", expression):
        text = found[0]
        if text in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif text in ")]}":
            depth -= 1
        elif text[0] != "'" and not text[0].isdigit():
            words += 1
    if _parsed_copies(expression) * (words + 1) > MOST_PARSED:
        raise FilterError(
            f"filter {shown(expression)} has too many CASE <value> WHEN ...; write them as CASE WHEN <condition> "
            "THEN ..., and do not nest them"
        )
    if deepest > MOST_NESTING:
        raise FilterError(f"filter {shown(expression)} nests {deepest:,} deep; at most {MOST_NESTING} is allowed")
    if words > MOST_WORDS:
        raise FilterError(
            f"filter {shown(expression)} has {words:,} names and operators; at most {MOST_WORDS:,} are allowed. Many values of "
            "one column go into a list, as in width IN (100, 200, 300)"
        )


def _parsed_copies(expression: str) -> float:
    """An upper bound of the copies that DuckDB's parser makes of a part: `CASE a WHEN b ... WHEN c ...` copies a for each WHEN.

    Counts in the text as it is, quoted parts and comments included, so that no quoting can hide a CASE.
    """
    cases = len(re.findall(r"(?i)\bcase\b(?!\s+when\b)", expression))
    whens = len(re.findall(r"(?i)\bwhen\b", expression))
    return max([1.0, *((whens / used) ** used for used in range(1, min(cases, 40) + 1))])


def _copies(node: Node) -> int:
    """How many copies of one part DuckDB makes while it plans: IN, BETWEEN and macros copy their operand, nested ones multiply.

    A planner's work cannot be interrupted, hence the bound. The innermost operator of a chain is not counted: DuckDB plans
    `f(column) IN (10,000 values)` without copies.
    """
    children = [each for part in node.values() for each in (part if isinstance(part, list) else [part])]
    inside = [_copies(each) for each in children if isinstance(each, dict) and each.get("class") != "CONSTANT"]
    kind, factor = node.get("class"), 1
    if kind == "BETWEEN":
        factor = 2
    elif kind == "OPERATOR" and node["type"] in ("COMPARE_IN", "COMPARE_NOT_IN"):
        factor = max(len(node["children"]) - 1, 2)
    elif kind == "FUNCTION":
        factor = MACROS.get(str(node["function_name"]), 1)
    most = max(inside, default=0)
    return factor * most if factor == 1 or most else 1


def _measure(tree: Node, expression: str) -> Node:
    """The expression's root in the statement's tree. Raises FilterError for a tree that is too large or too deep."""
    root: Node = tree["statements"][0]["node"]["select_list"][0]
    nodes, waiting = 0, [(root, 0)]
    while waiting:
        item, depth = waiting.pop()
        if "class" in item:
            nodes += item["class"] != "CONSTANT"
            depth += 1
            arguments = len(item.get("arguments") or ()) if item["class"] == "FUNCTION" else 0
            if arguments > MOST_ARGUMENTS:
                raise FilterError(
                    f"filter {shown(expression)}: {item.get('function_name')} has {arguments:,} arguments; at most "
                    f"{MOST_ARGUMENTS} are allowed"
                )
        if depth > MOST_NESTING or nodes > MOST_NODES:
            raise FilterError(
                f"filter {shown(expression)} is too large: at most {MOST_NODES:,} columns, operators and functions, nested "
                f"at most {MOST_NESTING} deep, are allowed. Many values of one column go into a list, as in width IN (100, 200)"
            )
        for part in item.values():
            parts = part if isinstance(part, list) else [part]
            waiting.extend((each, depth) for each in parts if isinstance(each, dict))
    if (copies := _copies(root)) > MOST_COPIES:
        raise FilterError(
            f"filter {shown(expression)} nests IN, BETWEEN, nullif or split_part inside each other: DuckDB would copy a part "
            f"{copies:,} times; at most {MOST_COPIES} are allowed"
        )
    return root


def _is_bounded(root: Node) -> bool:
    """Whether the filter's form limits its cost."""
    nodes = texts = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        kind = node.get("class")
        nodes += kind is not None and kind != "CONSTANT"
        if kind == "FUNCTION":
            name, arguments = str(node["function_name"]), list(node.get("arguments") or ())
            if name in SEARCHES or name in PATTERNS:
                pattern = _text_of(arguments[-1]) if len(arguments) == 2 else None
                if pattern is None or len(pattern) > SHORT or (name in PATTERNS and pattern.count("%") > 2):
                    return False
                texts += name.endswith("*")  # ILIKE makes lower-case copies
            elif name not in LINEAR:
                return False
            texts += name in ("lower", "upper", "trim", "ltrim", "rtrim")
        if nodes > BOUNDED_NODES or texts > BOUNDED_TEXTS:
            return False
        for part in node.values():
            waiting.extend(each for each in (part if isinstance(part, list) else [part]) if isinstance(each, dict))
    return True


def _text_of(node: Node) -> str | None:
    """The text of a function's argument if that is a constant text, else None."""
    literal = node.get("expression", node).get("literal") or {}
    return str(literal["text"]) if literal.get("kind") == "STRING" else None


def _is_condition(node: Node) -> bool:
    """Whether the form alone shows that the expression is boolean. The types of other expressions have to be checked."""
    if node["class"] == "FUNCTION":
        return node["function_name"] in CONDITIONS
    return node["class"] in ("CONJUNCTION", "COMPARISON", "BETWEEN") or (
        node["class"] == "OPERATOR" and node["type"] != "OPERATOR_COALESCE"
    )


def _bind(found: Filter, expression: str, columns: Mapping[str, str]) -> None:
    """Run the filter over one row of NULLs: DuckDB then resolves every type and converts the constants. Raises FilterError."""
    import pyarrow as pa

    names = found.columns or tuple(columns)[:1]
    row = pa.table({name: pa.nulls(1, arrow_type(columns[name])) for name in names})
    sql = f"SELECT ({found.sql}) AS matched FROM rows"
    column: Column
    if found.bounded:
        with _PARSING:
            _parser().register("rows", row)
            try:
                column = run_sql(_parser(), sql, expression, TIMEOUT_S)
            finally:
                _parser().unregister("rows")
    else:
        column = _checker().run(lambda: row, None, sql, expression, TIMEOUT_S)
    if column.dtype != bool:
        kind = "text" if column.dtype.kind in "OS" else column.dtype
        raise FilterError(
            f"filter {shown(expression)} gives {kind}, not true or false; write a condition, as in width >= 256"
        )


def _parse(connection: Connection, expression: str) -> Node:
    """The syntax tree of `SELECT <expression>`. Raises FilterError for anything more than that."""
    import duckdb

    _check_size(expression)
    try:
        rows = connection.execute("SELECT json_serialize_sql(?, skip_default := true)", [f"SELECT\n{expression}\n"])
        tree: Node = json.loads(rows.fetchall()[0][0])
    except (duckdb.Error, ValueError, RecursionError) as error:
        raise FilterError(f"filter {shown(expression)} cannot be parsed: {first_line(str(error))}") from None
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


def _check_tree(root: Node, expression: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Refuse everything that is not on the lists above, and spell columns as they are stored. Returns the columns that
    are used."""
    used: dict[str, None] = {}
    by_lower = {name.lower(): name for name in columns}

    def visit(item: object) -> None:
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

    def check(node: Node) -> None:
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

    visit(root)
    return tuple(used)


def _render(connection: Connection, tree: Node, expression: str) -> str:
    """The SQL of a syntax tree. Raises FilterError: some versions of DuckDB take fewer levels here than in a query."""
    import duckdb

    try:
        text = str(connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()[0][0])
    except duckdb.Error as error:
        raise FilterError(f"filter {shown(expression)} is not taken by DuckDB: {first_line(str(error))}") from None
    if not text.startswith("SELECT "):
        raise AssertionError(f"DuckDB rendered a SELECT as {text!r}")
    return f"({text.removeprefix('SELECT ')})"
