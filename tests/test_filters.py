"""Filters: their meaning, refusals and error messages."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import FilterError
from pipeline.filters import MetadataFilter, check_filter, conjunction, filter_mask
from pipeline.filters.sandbox import sandbox

COLUMNS = {
    "style": "string",
    "artist": "string",
    "width": "int64",
    "weight": "float64",
    "nice": "bool",
    "odd name": "string",
}
TABLE = pa.table(
    {
        "style": ["Baroque", "Realism", None, "Baroque"],
        "artist": ["Claude Monet", "it's -- me", "x", None],
        "width": pa.array([100, 300, 300, None], pa.int32()),
        "weight": [0.5, None, 2.0, -1.0],
        "nice": [True, False, None, True],
        "odd name": ["a", "b", "c", "d"],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8, np.float16)), 2),
    }
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("style = 'Baroque'", [1, 0, 0, 1]),
        ("style <> 'Baroque'", [0, 1, 0, 0]),  # NULL does not match
        ("STYLE = 'Baroque'", [1, 0, 0, 1]),
        ("style = 'Baroque' AND artist LIKE '%Monet%'", [1, 0, 0, 0]),
        ("artist = 'it''s -- me'", [0, 1, 0, 0]),
        ("artist ILIKE '%MONET' OR width BETWEEN 200 AND 400", [1, 1, 1, 0]),
        ("width IN (100, 7)", [1, 0, 0, 0]),
        ("width NOT IN (100, 7)", [0, 1, 1, 0]),
        ("width IS NULL", [0, 0, 0, 1]),
        ("NOT nice", [0, 1, 0, 0]),
        ("nice", [1, 0, 0, 1]),
        ("weight * 2 >= 1 AND width % 100 = 0", [1, 0, 1, 0]),
        ("\"odd name\" IN ('a', 'c')", [1, 0, 1, 0]),
        pytest.param("regexp_matches(artist, '^Cl.*t$')", [1, 0, 0, 0], marks=pytest.mark.process),
        ("coalesce(width, 0) = 0", [0, 0, 0, 1]),
        ("CASE WHEN nice THEN weight > 0 ELSE width = 300 END", [1, 1, 1, 0]),
        ("CAST(width AS DOUBLE) / 3 = 100", [0, 1, 1, 0]),
        ("lower(style) = 'baroque' -- a comment\n AND width = 100", [1, 0, 0, 0]),
        ("true", [1, 1, 1, 1]),
        ("1 = 2", [0, 0, 0, 0]),
    ],
)
def test_a_filter_selects_rows_as_sql_would(expression: str, expected: list[int]) -> None:
    mask = filter_mask(expression, TABLE)
    assert mask.dtype == bool
    assert mask.tolist() == [bool(value) for value in expected]


def test_a_filter_over_no_rows_matches_none() -> None:
    assert filter_mask("width > 1", TABLE.slice(0, 0)).tolist() == []


@pytest.mark.parametrize(
    "expression",
    [
        "1=1); select 42; select (1",
        "1=1) or (1=1",
        "1=1; select 42",
        "1=1; drop table rows",
        "1=1 UNION SELECT true",
        "true FROM range(10)",
        "true WHERE true",
        "true ORDER BY 1",
        "true LIMIT 1",
        "true AS x",
        "true, true",
        "DISTINCT true",
        "*",
        "COLUMNS(*) = 1",
        "width IN (SELECT 1)",
        "EXISTS (SELECT 1)",
        "(SELECT true)",
        "width = (SELECT max(width) FROM rows)",
        "read_csv('/etc/passwd') = 'x'",
        "width IN (SELECT * FROM read_csv('/etc/passwd'))",
        "read_text('/etc/passwd') IS NOT NULL",
        "getenv('HOME') = 'x'",
        "current_setting('memory_limit') = 'x'",
        "query('select 1') = 1",
        "pragma_version() = 'x'",
        "PRAGMA version",
        "ATTACH '/tmp/other.db'",
        "COPY rows TO '/tmp/rows.csv'",
        "INSTALL httpfs",
        "SET memory_limit = '1TB'",
        "count(*) > 1",
        "max(width) > 1",
        "row_number() OVER () = 1",
        "list_transform([1], x -> x) = [1]",
        "unnest([1]) = 1",
        "random() < 0.5",
        "now() > '2020-01-01'",
        "repeat('x', 1000000000) = style",
        "replace(style, 'a', 'aaaaaaaaaa') = 'x'",
        "nextval('s') = 1",
        "width = $1",
        "width = ?",
        "#1 = 1",
        "style::JSON = '1'",
        "main.lower(style) = 'x'",
        "rows.style = 'x'",
        "rowid = 1",
        "-- nothing",
        "/* open",
        "'open",
        "",
        "   ",
    ],
)
def test_everything_but_one_plain_expression_is_refused(expression: str) -> None:
    with pytest.raises(FilterError):
        check_filter(expression, COLUMNS)


def test_an_unknown_column_names_the_nearest_and_lists_the_columns() -> None:
    with pytest.raises(
        FilterError, match=r"no column 'styel' \(did you mean 'style'\?\); the columns are style, artist"
    ):
        check_filter("styel = 'Baroque'", COLUMNS)


def test_double_quoted_text_is_explained() -> None:
    with pytest.raises(FilterError, match="Text goes in single quotes"):
        check_filter('style = "Baroque"', COLUMNS)


def test_something_that_is_no_condition_is_refused() -> None:
    with pytest.raises(FilterError, match="not true or false"):
        check_filter("width + 1", COLUMNS)


def test_a_constant_of_the_wrong_type_is_found_before_any_row_is_read() -> None:
    with pytest.raises(FilterError, match="Could not convert string 'wide'"):
        check_filter("width > 'wide'", COLUMNS)


def test_a_cast_that_fails_on_a_row_is_a_filter_error() -> None:
    with pytest.raises(FilterError, match="cannot be evaluated"):
        filter_mask("CAST(style AS INTEGER) = 1", TABLE)


@pytest.mark.parametrize("size", [5_000, 150_000])
def test_deep_nesting_is_refused_and_not_a_crash(size: int) -> None:
    with pytest.raises(FilterError):
        check_filter("(" * size + "true" + ")" * size, COLUMNS)


def test_a_huge_text_is_refused() -> None:
    with pytest.raises(FilterError, match="at most"):
        check_filter("width = 1 OR " * 50_000 + "width = 2", COLUMNS)


@pytest.mark.process
def test_a_regex_that_would_explode_is_refused() -> None:
    with pytest.raises(FilterError, match="cannot be evaluated"):
        filter_mask("regexp_matches(style, '(((a{1000}){1000}){1000})')", TABLE)


@pytest.mark.process
def test_a_slow_filter_is_stopped() -> None:
    table = pa.table({"text": [f"some longer text number {number} " * 3 for number in range(100_000)]})
    slow = " AND ".join(f"NOT regexp_matches(text, '(x+x+)+y{number}|[a-z ]*q{number}')" for number in range(100))
    with pytest.raises(FilterError, match=r"longer than 0.05 s and was stopped"):
        filter_mask(slow, table, timeout_s=0.05)


def test_a_comment_cannot_swallow_the_other_half_of_a_conjunction() -> None:
    both = conjunction("nice -- and nothing else", "width = 300 /* nor this */", columns=COLUMNS)
    assert filter_mask(both, TABLE).tolist() == [False] * 4
    assert conjunction("", "  ", columns=COLUMNS) == ""


def test_each_half_of_a_conjunction_has_to_stand_alone() -> None:
    with pytest.raises(FilterError):
        conjunction("nice) OR (true", "width = 300", columns=COLUMNS)
    with pytest.raises(FilterError):
        conjunction("(nice", "width = 300)", columns=COLUMNS)


def test_an_alternative_stays_within_its_half_of_a_conjunction() -> None:
    both = conjunction("width = 100 OR width = 300", "nice", columns=COLUMNS)
    assert filter_mask(both, TABLE).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/rdmpipe-escaped.csv'",
        "ATTACH '/tmp/rdmpipe-escaped.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '1TB'",
        "SET enable_external_access = true",
        "SELECT * FROM python_variable",
    ],
)
def test_the_sandbox_itself_reaches_nothing(statement: str) -> None:
    import duckdb

    python_variable = pa.table({"secret": [1]})
    with contextlib.closing(sandbox()) as connection, pytest.raises(duckdb.Error):
        connection.execute(statement).fetchall()
    assert python_variable.num_rows == 1


def test_a_metadata_filter_loads_each_column_once_and_only_those_it_needs() -> None:
    rows = 5_000
    table = pa.table({"a": np.arange(rows), "b": [f"t{n % 7}" for n in range(rows)], "ordinal": np.arange(rows)[::-1]})
    loads: list[list[str]] = []

    def load(names: list[str]) -> pa.Table:
        loads.append(names)
        return table.select(names)

    with contextlib.closing(MetadataFilter({"a": "int64", "b": "string", "ordinal": "int64"}, load)) as metadata:
        assert metadata.ordinals("a >= 4990").tolist() == list(range(4990, 5000))
        assert metadata.ordinals("a >= 4990 AND a < 4992").tolist() == [4990, 4991]
        assert metadata.ordinals("b = 't3'").tolist() == list(range(3, rows, 7))
        assert metadata.ordinals("ordinal < 2").tolist() == [4998, 4999]  # a source may call a column what it likes
        assert len(metadata.ordinals("a % 2 = 0 AND ordinal >= 0 AND b IS NOT NULL")) == rows // 2
    assert loads == [["a"], ["a", "b"], ["a", "b", "ordinal"]]
