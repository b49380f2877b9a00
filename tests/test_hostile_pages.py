"""Pages of runs and evaluations made of hostile text, in a browser: no script runs, nothing loads, the layout stays."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.pages import dots, heat, html_table, lines, picture_table
from pipeline.pages.templates import environment
from pipeline.scheduling.report import run_report
from pipeline.scheduling.traces import FailedItem, Traces
from tests.attempts import tried
from tests.test_gallery_browser import browser as browser

pytestmark = pytest.mark.process

HOSTILE = [
    "</title><script>window.broken=1</script>", "</style><script>window.broken=1</script>",
    "<img src=x onerror=window.broken=1>",
    '"><svg onload=window.broken=1>', "' onmouseover='window.broken=1", "<iframe srcdoc='<script>parent.broken=1</script>'>",
    "--></p></td></table></div></body><script>window.broken=1</script>", "<base href=http://127.0.0.1:1/>", "&lt;script&gt;",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'>", "<link rel=stylesheet href=http://127.0.0.1:1/x.css>",
    "<form action=http://127.0.0.1:1/><input name=a autofocus onfocus=window.broken=1>", "javascript:window.broken=1",
    "</text></svg><script>window.broken=1</script>", "]]><script>window.broken=1</script>", "<!--", "<plaintext>",
    "<textarea>",
    "w" * 3000, "w" * 50 + "/" * 3000, "\u202e" + "reversed" * 20, "\u0000\u0001\x1b[2J", "\u2028\u2029", "\ud800",
    "{{script}}", "a\nb\tc",
    "Z̶̢̛a̴l̵g̸o" + "\u0301" * 400,
]  # fmt: skip


def run_page(texts: list[str]) -> str:
    """A run's page in which every text is one of these."""
    pick = iter(texts * 40)
    summary: dict[str, Any] = {
        "job": next(pick), "slot": next(pick), "status": next(pick), "exit_code": 1, "command": [next(pick) for _ in range(6)],
        "started": next(pick), "ended": next(pick), "host": next(pick),
        "attempts": [{"started": next(pick), "seconds": 1.0, "exit_code": 1, "error": next(pick)} for _ in range(3)],
        "result": {
            "name": next(pick), "version": next(pick), "input": 3, "reasons": {next(pick): 4, next(pick): 2},
            "changes": {next(pick): next(pick)}, "warnings": [next(pick) for _ in range(4)],
            "index": {"key": next(pick), "recall": {next(pick): {"value": 1.0, next(pick): next(pick)}}},
            "shards": {next(pick): {"ran": next(pick)}}, "left_out": {next(pick): 3},
            "hosts": {next(pick): {"requests": 1, "set_aside": next(pick)}, next(pick): {"bytes": 2}},
        },
    }  # fmt: skip
    progress = {"stages": {next(pick): {"done": 1, "shards": 2, "failed": 0, "rows": 1, "rows_per_second": 1.0}}}
    failures = tuple({"stage": next(pick), "shard": 1, "attempts": 1, "error": next(pick)} for _ in range(5))
    rows = tuple(FailedItem(next(pick), next(pick), next(pick)) for _ in range(5))
    return run_report(summary, Traces(progress, failures, rows, 52, f"rdmpipe failures {next(pick)}"))


def evaluation_page(texts: list[str]) -> str:
    """The parts that an evaluation's page is made of, in which every text is one of these."""
    a, b, c = texts[:3]
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    page = environment().from_string(
        """{% extends "report.html" %}{% block style %}svg { max-width: 100%; height: auto }{% endblock %}{% block body %}
        <h1>{{ a }}</h1><p><b>{{ b }}</b>: {{ texts }}</p>{% for part in parts %}{{ part }}{% endfor %}{% endblock %}"""
    )
    parts = [
        html_table((a, b, c), [(a, 1, b), (b, 2, c)]), dots({a: {b: one, c: one}, b: {a: one}}, c),
        lines({a: {b: one, c: one}, b: {b: one, c: one}}, a), heat([[1.0, 2.0], [3.0, 4.0]], [a, b], [b, c]),
        picture_table([a, b], [(c, [None, None]), (a, [None, None])], corner=b),
    ]  # fmt: skip
    return page.render(title=c, a=a, b=b, texts=" · ".join(texts), parts=parts)


def shows_no_harm(browser: Any, path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")
    browser.get_log("browser")
    browser.set_window_size(900, 900)
    browser.get("about:blank")
    browser.get(path.as_uri())
    assert browser.current_url == path.as_uri()
    asked = browser.execute_script(
        """const page = document.documentElement;
           return {broken: window.broken ?? null, scripts: document.scripts.length, over: page.scrollWidth - page.clientWidth,
           frames: window.length, children: [...document.body.children].map(e => e.tagName),
           elements: document.querySelectorAll('script,iframe,object,embed,form,input,base,link,textarea,plaintext,a').length,
           asked: performance.getEntriesByType('resource').length, base: document.baseURI}"""
    )
    assert asked["broken"] is None and asked["scripts"] == asked["elements"] == asked["frames"] == asked["asked"] == 0
    assert asked["base"] == path.as_uri() and asked["over"] <= 0, asked
    assert set(asked["children"]) <= {"H1", "H2", "H3", "P", "PRE", "DIV", "svg", "SPAN"}
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "page.html"


@pytest.mark.parametrize("make", [run_page, evaluation_page])
def test_no_text_becomes_markup_script_or_a_wide_page(browser: Any, pages: Path, make: Any) -> None:
    for seed in range(6):
        texts = random.Random(seed).sample(HOSTILE, len(HOSTILE))
        shows_no_harm(browser, pages, make(texts))
    tried(6 * len(HOSTILE))


@pytest.mark.long
@pytest.mark.parametrize("make", [run_page, evaluation_page])
def test_no_text_becomes_markup_in_any_place(browser: Any, pages: Path, make: Any) -> None:
    chance = random.Random(f"{make.__name__}")
    for text in HOSTILE:
        shows_no_harm(browser, pages, make([text] * 3))
    for _ in range(30):
        shows_no_harm(browser, pages, make(["".join(chance.choices(HOSTILE, k=3)) for _ in range(9)]))
    tried(len(HOSTILE) + 30)


def test_text_is_shown_as_it_is_and_controls_as_escapes() -> None:
    page = run_page(HOSTILE)
    assert "\u202e" not in page and "\x1b" not in page and "\\u202e" in page and "\\x1b[2J" in page
    assert page.count("<script") == 0 and "&lt;script&gt;" in page
    json.dumps(page.encode("utf-8").decode())
