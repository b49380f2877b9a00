"""Filters that try to use up memory or time: their form is limited, and if that does not limit the cost, their process is."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import FilterError
from pipeline.filters import MetadataFilter, check_filter, filter_mask, parse_filter
from pipeline.filters.expressions import FUNCTIONS, MACROS, _is_bounded, _measure, _parse, _parser, _render

pytestmark = pytest.mark.process  # filters that their form does not bound run in a process of their own

COLUMNS = {"caption": "string", "width": "int64"}


def table(captions: list[str]) -> pa.Table:
    return pa.table({"caption": captions, "width": pa.array(range(len(captions)), pa.int64())})


def nested(form: str, times: int, inner: str = "caption") -> str:
    """`form` around itself, with `inner` in the middle."""
    for _ in range(times):
        inner = form.format(inner)
    return inner


# Expressions that are refused by their size alone, before they meet a row.
TOO_LARGE = {
    "arguments": "length(concat(" + ",".join(["caption"] * 1500) + ")) > 0",
    "alternatives": " OR ".join(f"width={i}" for i in range(14_000)),
    "a middle number of alternatives": " OR ".join(f"width={i}" for i in range(1_500)),
    "and or": "true" + " OR true AND true" * 8000,
    "parentheses": "(" * 1000 + "true" + ")" * 1000,
    "many parentheses": "(" * 90_000 + "true" + ")" * 90_000,
    "not": "NOT " * 400 + "true",
    "many not": "NOT " * 40_000 + "true",
    "plus": "width = 1" + "+1" * 300,
    "many plus": "width = 1" + "+1" * 90_000,
    "functions": "lower(" * 200 + "caption" + ")" * 200 + "='a'",
    "many functions": "lower(" * 20_000 + "caption" + ")" * 20_000 + "='a'",
    "case": "CASE WHEN true THEN " * 300 + "true" + " END" * 300,
    "casts": "width" + "::BIGINT" * 300 + "=1",
    "coalesce": "coalesce(" * 300 + "true" + ")" * 300,
    "brackets": "[" * 50_000 + "]" * 50_000,
    "between": "width BETWEEN 0 AND " + "(0 + " * 300 + "1" + ")" * 300,
    "text": "true" + " " * 200_000,
    # DuckDB copies the operand of these when it parses or plans: nested, a short text takes all memory.
    "nested in": "caption" + " IN ('x', 'y')" * 60,
    "nested not in": nested("(({}) NOT IN (true, false, true))", 12, "width = 1"),
    "nested between": nested("(({}) BETWEEN false AND true)", 30, "width = 1"),
    "nested nullif": nested("nullif({}, 'x')", 40) + " = 'a'",
    "nested split_part": nested("split_part({}, ',', 1)", 40) + " = 'a'",
    "nested case": nested("CASE {} WHEN 'a' THEN 'b' WHEN 'c' THEN 'd' END", 40) + " = 'b'",
    "nested case, hidden": nested("CASE {} /* END CASE */ WHEN 'a' THEN 'b' WHEN 'c' THEN 'd' END", 40) + " = 'b'",
    "case with a large operand": "CASE " + "+".join(["width"] * 1500) + " WHEN 1 THEN 1" * 150 + " END = 1",
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_expression_over_a_bound_is_refused_before_it_is_planned(name: str) -> None:
    began = time.process_time()
    with pytest.raises(FilterError):
        check_filter(TOO_LARGE[name], COLUMNS)
    with pytest.raises(FilterError):
        parse_filter(TOO_LARGE[name])
    assert time.process_time() - began < 20  # seconds of this process, where minutes were; no measure of speed


@pytest.mark.parametrize(
    "expression",
    [
        "width IN (" + ",".join(map(str, range(20_000))) + ")",
        " OR ".join(f"width = {i}" for i in range(90)),
        " AND ".join(f"caption <> 'word {i}'" for i in range(300)),
        "(" * 90 + "width = 1" + ")" * 90,
        "width = " + "- " * 500 + "1",  # DuckDB's parser makes one constant of it
        "nullif(nullif(nullif(nullif(caption, ''), '-'), 'n/a'), 'unknown') IS NOT NULL",
        "(lower(caption) IN (" + ",".join(f"'word {i}'" for i in range(2_000)) + ")) IN (true, false)",
        "CASE caption" + "".join(f" WHEN 'word {i}' THEN {i}" for i in range(200)) + " ELSE width END > 100",
    ],
)
def test_large_filters_that_people_write_are_answered(expression: str) -> None:
    assert filter_mask(expression, table(["a", "b"])).dtype == bool


@pytest.mark.parametrize(
    ("expression", "bounded"),
    [
        ("width >= 256 AND caption = 'a'", True),
        ("caption LIKE '%Monet%'", True),
        ("caption ILIKE 'the %'", True),
        ("contains(lower(caption), 'boat')", True),
        ("CASE WHEN width IS NULL THEN false ELSE width BETWEEN 1 AND 9 END", True),
        ("TRY_CAST(caption AS DATE) >= DATE '1900-01-01'", True),
        ("caption LIKE '%a%a%b'", False),  # backtracks
        ("caption LIKE caption", False),
        ("contains(caption, '" + "a" * 5000 + "')", False),
        ("regexp_matches(caption, 'a')", False),
        ("caption || caption = 'x'", False),
        ("length(concat(caption, caption)) > 4", False),
        ("lower(upper(lower(upper(lower(caption))))) = 'a'", False),
        (" OR ".join(f"width = {i}" for i in range(200)), False),
    ],
)
def test_only_what_its_form_bounds_runs_in_this_process(expression: str, bounded: bool) -> None:
    assert _is_bounded(_measure(_parse(_parser(), expression), expression)) is bounded


def test_every_macro_among_the_functions_counts_as_one_that_copies() -> None:
    import duckdb

    found = duckdb.sql("SELECT function_name FROM duckdb_functions() WHERE function_type = 'macro'").fetchall()
    assert {name for (name,) in found} & FUNCTIONS == set(MACROS)


def test_a_tree_that_duckdb_does_not_take_back_is_an_error_of_the_filter() -> None:
    import duckdb

    class Strict:
        def execute(self, *_: object) -> None:
            raise duckdb.SerializationException(
                "Serialization Error: Serialized JSON exceeds the maximum nesting depth of 256"
            )

    with pytest.raises(FilterError, match=r"is not taken by DuckDB: .* depth of 256"):
        _render(Strict(), {}, "caption = 'x'")  # type: ignore[arg-type]


# Expressions of a modest size whose evaluation, or whose constant parts, would take gigabytes or minutes.
HEAVY = {
    "concat": ("length(concat(" + ",".join(["caption"] * 95) + ")) > 0", ["a" * 20_000] * 2048),
    "nested concat": ("length(" + "||".join(["caption"] * 90) + ") > 0", ["a" * 20_000] * 2048),
    "like": (f"caption LIKE '{'%a_' * 12}%b'", ["a" * 200] * 2048),
    "like of a constant": (f"'{'a' * 200}' LIKE '{'%a_' * 12}%b'", ["x"] * 10),
    "glob": (f"caption GLOB '{'*[a-z]' * 12}*b'", ["a" * 200] * 2048),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_filter_that_breaks_a_limit_ends_with_its_process_and_not_ours(name: str) -> None:
    expression, captions = HEAVY[name]
    rows, before = table(captions), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(FilterError):  # a machine may be fast enough for some of them
        filter_mask(expression, rows, timeout_s=3.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # kilobytes
    assert filter_mask("regexp_matches(caption, '^b')", table(["abc", "bcd"])).tolist() == [False, True]


def test_a_filter_over_its_time_is_stopped_inside_one_chunk_of_rows() -> None:
    expression = " OR ".join(f"regexp_matches(caption, caption || '{n}')" for n in range(6))
    captions = ["(a|b|c)*" * 2000 + "z"] * 2048
    with pytest.raises(FilterError, match=r"longer than 1 s and was stopped"):
        filter_mask(expression, table(captions), timeout_s=1.0)


def test_both_ways_give_the_same_rows() -> None:
    rows = 3000
    data = table([f"picture {n} of {n % 17} boats" for n in range(rows)])
    loads: list[list[str]] = []

    def load(names: list[str]) -> pa.Table:
        loads.append(names)
        return data.select(names)

    with contextlib.closing(MetadataFilter(COLUMNS, load)) as metadata:
        inside = metadata.ordinals("caption LIKE '% of 3 %' AND width < 2000")
        for expression in ("regexp_matches(caption, ' of 3 ') AND width < 2000", "caption || '.' LIKE '% of 3 %'"):
            child = metadata.ordinals(expression)
            assert child.dtype == np.int64 and not child.flags.writeable
            assert child[child < 2000].tolist() == inside.tolist()
        assert metadata.ordinals("regexp_matches(caption, '^picture 7 ')", "width < 9").tolist() == [7]
    assert loads == [["caption", "width"], ["caption", "width"], ["caption"], ["caption", "width"]]


def test_the_child_gets_no_secrets_and_ends_with_its_parent() -> None:
    code = (
        "import os, sys\nos.environ['SECRET_TOKEN'] = 'hidden'\n"
        "from pipeline.filters.rows import _shared_process, filter_mask\nimport pyarrow as pa\n"
        "filter_mask(\"regexp_matches(c, 'a')\", pa.table({'c': ['a']}))\n"
        "child = _shared_process()._child.pid\n"
        "print(child, b'hidden' in open(f'/proc/{child}/environ', 'rb').read(), flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    child, leaked = made.stdout.split()
    assert leaked == "False"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _is_running(int(child)):
        time.sleep(0.05)
    assert not _is_running(int(child))


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:  # noqa: PTH123
            return handle.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
