"""The simple form of a filter: columns compared with constants, joined by AND, OR and NOT.

Filters of this form can be evaluated over arrays without DuckDB, which takes longer to parse such a text than arrays take to
evaluate it. The grammar is a small part of SQL. All other texts are left to DuckDB, and so is everything whose
result depends on DuckDB's conversion of types: a constant of another type than the column, a number that the column's type
cannot hold exactly, NULL. Reads and writes nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import FilterError
from pipeline.filters.expressions import syntax_of

Operator = Literal["=", "<>", "<", "<=", ">", ">="]

Value = str | int | float | bool

LONGEST = 2_000  # characters; longer filters go to DuckDB

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<text>'(?:[^'\0]|'')*')
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?![\w.]))
    | (?P<sign><>|!=|<=|>=|<|>|=|\(|\)|,)
    )\s*""",
    re.VERBOSE | re.ASCII,
)

_KEYWORDS = {"AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL", "TRUE", "FALSE"}

_OPERATORS: dict[str, Operator] = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True)
class Comparison:
    """`column operator value`. A bool column compared with true is the column itself."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class OneOf:
    """`column IN (values)`."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class IsNull:
    """`column IS NULL`."""

    column: str


@dataclass(frozen=True)
class Negation:
    """`NOT part`."""

    part: Condition


@dataclass(frozen=True)
class Junction:
    """`parts` joined by AND (`every`) or by OR."""

    every: bool
    parts: tuple[Condition, ...]


Condition = Comparison | OneOf | IsNull | Negation | Junction


def all_of(condition: Condition) -> tuple[Condition, ...]:
    """The conditions that must all be true for this one to be true: the parts of an AND, and of ANDs in it."""
    if isinstance(condition, Junction) and condition.every:
        return tuple(part for one in condition.parts for part in all_of(one))
    return (condition,)


def simple_form(expression: str, columns: Mapping[str, str]) -> Condition | None:
    """The simple form of a filter over columns given with their type names (schema.TYPES), or None if it has none."""
    if len(expression) > LONGEST:
        return None
    return _simple_form(expression, tuple(columns.items()))


@functools.lru_cache(maxsize=256)
def _simple_form(expression: str, columns: tuple[tuple[str, str], ...]) -> Condition | None:
    try:
        reader = _Reader(_tokens(expression), dict(columns))
        found = reader.any_of()
        reader.take("end")
        return found
    except _NotSimple:
        return None


class _NotSimple(Exception):
    pass


def _tokens(expression: str) -> list[tuple[str, str]]:
    """(kind, text) of each token. The kind of a keyword is the keyword in capitals; the kind of a sign is the sign."""
    tokens, place = [], 0
    while place < len(expression):
        found = _TOKEN.match(expression, place)
        if found is None or found.end() == place:
            raise _NotSimple
        kind, text = str(found.lastgroup), found[str(found.lastgroup)]
        if kind == "word" and text.upper() in _KEYWORDS:
            kind = text.upper()
        tokens.append((text if kind == "sign" else kind, text))
        place = found.end()
    return [*tokens, ("end", "")]


class _Reader:
    """Recursive descent over the tokens. OR binds least, then AND, then NOT."""

    def __init__(self, tokens: list[tuple[str, str]], columns: Mapping[str, str]) -> None:
        self._tokens, self._place, self._depth = tokens, 0, 0
        self._columns = columns

    def take(self, *kinds: str) -> tuple[str, str]:
        token = self._tokens[self._place]
        if token[0] not in kinds:
            raise _NotSimple
        self._place += 1
        return token

    def skip(self, kind: str) -> bool:
        """Whether the next token is of this kind; if so, it is consumed."""
        if self._tokens[self._place][0] != kind:
            return False
        self._place += 1
        return True

    def any_of(self) -> Condition:
        parts = [self._all_of()]
        while self.skip("OR"):
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else Junction(False, tuple(parts))

    def _all_of(self) -> Condition:
        parts = [self._negated()]
        while self.skip("AND"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else Junction(True, tuple(parts))

    def _negated(self) -> Condition:
        self._depth += 1
        if self._depth > 50:
            raise _NotSimple
        try:
            if self.skip("NOT"):
                return Negation(self._negated())
            if self.skip("("):
                found = self.any_of()
                self.take(")")
                return found
            return self._predicate()
        finally:
            self._depth -= 1

    def _predicate(self) -> Condition:
        kind, text = self.take("word", "quoted")
        name = _column(kind, text, self._columns)
        if self.skip("IS"):
            negated = self.skip("NOT")
            self.take("NULL")
            return Negation(IsNull(name)) if negated else IsNull(name)
        negated = self.skip("NOT")
        if self.skip("BETWEEN"):
            lower = Comparison(name, ">=", self._value(name))
            self.take("AND")
            found: Condition = Junction(True, (lower, Comparison(name, "<=", self._value(name))))
        elif self.skip("IN"):
            self.take("(")
            values = [self._value(name)]
            while self.skip(","):
                values.append(self._value(name))
            self.take(")")
            found = OneOf(name, tuple(values))
        elif negated:
            raise _NotSimple
        elif self._tokens[self._place][0] in _OPERATORS:
            found = Comparison(name, _OPERATORS[self.take(*_OPERATORS)[0]], self._value(name))
        elif self._columns[name] == "bool":
            found = Comparison(name, "=", True)
        else:
            raise _NotSimple
        return Negation(found) if negated else found

    def _value(self, column: str) -> Value:
        """A constant that the column can hold exactly."""
        kind = self._columns[column]
        given, text = self.take("text", "number", "TRUE", "FALSE")
        if kind == "string" and given == "text":
            return text[1:-1].replace("''", "'")
        if kind == "bool" and given in ("TRUE", "FALSE"):
            return given == "TRUE"
        if given == "number":
            if kind == "int64" and "." not in text and -(2**63) <= int(text) < 2**63:
                return int(text)
            # Up to 15 digits, a decimal that DuckDB converts and a text that Python reads become the same double.
            if kind == "float64" and len(text.strip("-").replace(".", "")) <= 15:
                return float(text)
        raise _NotSimple


def _column(kind: str, text: str, columns: Mapping[str, str]) -> str:
    """The column that a word or a quoted name stands for. DuckDB ignores case."""
    wanted = text[1:-1].replace('""', '"') if kind == "quoted" else text
    if kind == "word" and not _names_a_column(text):
        raise _NotSimple
    if wanted in columns:
        return wanted
    by_lower = {name.lower(): name for name in columns}
    if wanted.lower() not in by_lower:
        raise _NotSimple
    return by_lower[wanted.lower()]


@functools.lru_cache(maxsize=1024)
def _names_a_column(word: str) -> bool:
    """Whether DuckDB reads the unquoted word as a column: some words are keywords or functions without parentheses."""
    try:
        return syntax_of(word).get("class") == "COLUMN_REF"
    except FilterError:
        return False
