"""Filters of simple form match the same rows over arrays as in DuckDB; all other filters are left to DuckDB."""

from __future__ import annotations

import math
import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline.filters import MetadataFilter, simple_form
from pipeline.retrieval.columns import MetadataColumns

KINDS = {
    "style": "string",
    "Artist Name": "string",
    "year": "int64",
    "big": "int64",
    "share": "float64",
    "nice": "bool",
}

TEXTS = ("baroque", "Baroque", "", "it's", "ukiyo-e", "été", "z", "Ω", "a%b", "NULL", "-- x", '"')
NUMBERS = ("0", "-0.0", "0.5", "-3", "1.25", "0.3", "1000000", "-0.123456789")
SPECIAL = (math.nan, math.inf, -math.inf, -0.0)


def table(rows: int, seed: int, nulls: bool) -> pa.Table:
    """`rows` rows with equal values, extreme values, NaN and, with `nulls`, NULL in every column."""
    draw = random.Random(seed)

    def column(choose: object, kind: pa.DataType) -> pa.Array:
        values = [None if nulls and draw.random() < 0.15 else choose() for _ in range(rows)]  # type: ignore[operator]
        return pa.array(values, kind)

    return pa.table(
        {
            "style": column(lambda: draw.choice(TEXTS), pa.string()),
            "Artist Name": column(lambda: draw.choice(TEXTS[:4]), pa.string()),
            "year": column(lambda: draw.randint(1600, 1620), pa.int64()),
            "big": column(lambda: draw.choice((2**62, -(2**63), 2**53 + 1, 2**53, 0, 7)), pa.int64()),
            "share": column(lambda: draw.choice((*map(float, NUMBERS), *SPECIAL)), pa.float64()),
            "nice": column(lambda: draw.random() < 0.5, pa.bool_()),
        }
    )


def name_of(column: str, draw: random.Random) -> str:
    if column == "Artist Name" or draw.random() < 0.2:
        return f'"{column}"'
    return draw.choice((column, column.upper(), column.title()))


def constant(column: str, draw: random.Random) -> str:
    kind = KINDS[column]
    if kind == "string":
        return "'" + draw.choice((*TEXTS, "nobody")).replace("'", "''") + "'"
    if kind == "bool":
        return draw.choice(("true", "FALSE"))
    if column == "year":
        return draw.choice((str(draw.randint(1598, 1622)), str(2**40), str(-(2**40))))
    if column == "big":
        return str(draw.choice((2**62, -(2**63), 2**53, 2**53 + 1, 0, 8)))
    return draw.choice(NUMBERS)


def condition(draw: random.Random, depth: int = 3) -> str:
    """A random filter of simple form."""
    form = draw.random()
    if depth and form < 0.5:
        words = draw.choice((" AND ", " OR ", " and "))
        return words.join(f"({condition(draw, depth - 1)})" for _ in range(draw.randint(2, 3)))
    if depth and form < 0.6:
        return f"NOT ({condition(draw, depth - 1)})"
    column = draw.choice(tuple(KINDS))
    name = name_of(column, draw)
    form = draw.random()
    if form < 0.15:
        return f"{name} IS {draw.choice(('', 'NOT '))}NULL"
    if form < 0.3:
        values = ", ".join(constant(column, draw) for _ in range(draw.randint(1, 3)))
        return f"{name} {draw.choice(('', 'NOT '))}IN ({values})"
    if form < 0.45:
        return f"{name} {draw.choice(('', 'NOT '))}BETWEEN {constant(column, draw)} AND {constant(column, draw)}"
    if form < 0.55 and KINDS[column] == "bool":
        return f"{draw.choice(('', 'NOT '))}{name}"
    return f"{name} {draw.choice(('=', '<>', '!=', '<', '<=', '>', '>='))} {constant(column, draw)}"


@pytest.mark.parametrize("nulls", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_filters_match_the_rows_that_duckdb_finds(seed: int, nulls: bool) -> None:
    draw = random.Random(seed)
    rows = table(500, seed, nulls)
    arrays, slow = MetadataColumns(rows.select), MetadataFilter(KINDS, rows.select, threads=1)
    texts = [condition(draw) for _ in range(150)]
    texts += [" AND ".join(condition(draw, 0) for _ in range(4)) for _ in range(50)]
    try:
        for text in texts:
            simple = simple_form(text, KINDS)
            assert simple is not None, text
            found = arrays.rows_where(simple)
            assert found is not None
            np.testing.assert_array_equal(np.flatnonzero(found), slow.ordinals(text), text)
    finally:
        slow.close()


def test_a_column_is_the_same_from_its_second_use_on_when_it_is_sorted() -> None:
    rows = table(400, 9, True)
    arrays, slow = MetadataColumns(rows.select), MetadataFilter(KINDS, rows.select, threads=1)
    for text in (
        "share > 0.25",
        "share >= 0.5 AND share < 1.25",
        "share > 0.25",
        "share <= -3",
        "share > 5",
        "share = 0",
    ):
        simple = simple_form(text, KINDS)
        assert simple is not None
        for _ in range(2):
            np.testing.assert_array_equal(np.flatnonzero(arrays.rows_where(simple)), slow.ordinals(text), text)
    slow.close()


@pytest.mark.parametrize(
    "text",
    [
        "style LIKE 'b%'",
        "lower(style) = 'baroque'",
        "year = '1700'",
        "year < 1700.5",
        "year = 9223372036854775808",
        "style = NULL",
        "year IN (1700, NULL)",
        "share = 0.1234567890123456789",
        "share > 1e3",
        "style = 1",
        "year",
        "1 = 0",
        "true",
        "style = 'a' -- and the rest",
        "year + 1 = 1700",
        "year > 1700 = nice",
        "year = 1700 IS NULL",
        "style = E'a'",
        "order = 'x'",
        "unknown = 3",
        "year >",
        "style = 'x' OR",
        "(" * 300 + "nice" + ")" * 300,
        "nice AND " * 300 + "nice",
    ],
)
def test_what_is_not_simple_is_left_to_duckdb(text: str) -> None:
    assert simple_form(text, {**KINDS, "order": "string"}) is None


def test_a_column_of_many_different_texts_is_left_to_duckdb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.retrieval.columns.MOST_TEXTS", 3)
    rows = table(100, 1, False)
    simple = simple_form("style = 'z' AND year > 0", KINDS)
    assert simple is not None
    assert MetadataColumns(rows.select).rows_where(simple) is None
