"""The page about a run is complete, needs no other file, and shows foreign text as text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.scheduling.report import run_report
from pipeline.scheduling.traces import FailedItem, Traces, read_traces

SUMMARY: dict[str, Any] = {
    "job": "nightly-wikiart",
    "slot": "20261122t0015z",
    "status": "failed",
    "exit_code": 1,
    "command": ["build-index", "wikiart", "--where", "title < 'b' AND x > 1"],
    "started": "2026-11-22T00:15:04+00:00",
    "ended": "2026-11-22T02:41:40+00:00",
    "host": "node-7",
    "attempts": [
        {"started": "2026-11-22T00:15:05+00:00", "seconds": 4200.2, "exit_code": 1, "error": "it <b>broke</b>"}
    ],
    "result": {
        "name": "wikiart",
        "version": "3f9a0b77c21e",
        "input": 11647,
        "ok": 11590,
        "reasons": {"too_small": 40, "corrupt": 12},
        "changes": {"added": 500},
        "index": {"key": "Flat", "recall": {"text": {"value": 0.9971, "low": 0.99, "k": 19}}},
        "shards": {"embed": {"ran": 7, "skipped": 5}},
        "left_out": {".txt": 3},
        "hosts": {
            "art.example.org": {"requests": 40, "ok": 12, "failed": 28, "slowed": 8, "bytes": 9, "set_aside": "told us"}
        },
        "warnings": ["expected 81,444"],
    },
}
PROGRESS = {"stages": {"embed": {"done": 11, "failed": 1, "shards": 12, "rows": 700, "rows_per_second": 8.4}}}
FAILURES = ({"stage": "embed", "shard": 7, "attempts": 3, "error": "<script>alert(1)</script>"},)
ROWS = (FailedItem("wave/<b>1.jpg", "truncated", "half of it"), FailedItem("http://h/2.jpg", "http_404", "gone"))
LEFT = Traces(PROGRESS, FAILURES, ROWS, 52, "rdmpipe failures wikiart")


class Reader(HTMLParser):
    """The page's text, its tags, and whether they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_command_can_be_copied_into_a_shell() -> None:
    assert "rdmpipe build-index wikiart --where &#39;title &lt; " in run_report(SUMMARY, LEFT)


def test_the_page_shows_counts_stages_failures_and_attempts() -> None:
    page = Reader(run_report(SUMMARY, LEFT))
    assert page.open == []
    text = " ".join(filter(None, page.texts))
    for wanted in ("nightly-wikiart", "failed", "exit code 1", "11,647", "too_small 40", "added 500", "0.9971"):
        assert wanted in text
    assert "embed 11 12 7 1 700 8.40" in text
    assert "Failed shards: 1" in text and "embed, shard 000007, after 3 attempts" in text
    assert "1 h 10 min, exit code 1" in text
    assert "Failed rows: 52 The first 2 of 52. rdmpipe failures wikiart lists all of them." in text
    assert "wave/<b>1.jpg truncated half of it http://h/2.jpg http_404 gone" in text
    assert ".txt 3" in text and "art.example.org 40 12 28 8 9 told us" in text


def test_failed_pictures_of_a_generation_are_listed_and_a_damaged_table_is_not(tmp_path: Path) -> None:
    run = tmp_path / "generations" / "castles-1"
    run.mkdir(parents=True)
    (run / "progress.json").write_text(json.dumps(PROGRESS))
    rows = [{"row": 2, "prompt": "a boat", "status": "ok", "error": None},
            {"row": 3, "prompt": "a castle", "status": "failed", "error": "too_large: 9 GB"}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), run / "results.parquet")
    left = read_traces(str(tmp_path), {"run": "castles-1", "failed": 1}, ())
    assert left.rows == (FailedItem("row 3: a castle", "too_large", "9 GB"),)
    (run / "results.parquet").write_bytes(b"cut")
    assert read_traces(str(tmp_path), {"run": "castles-1", "failed": 1}, ()) == Traces(PROGRESS, (), (), 1)
    assert read_traces(str(tmp_path), {"run": "castles-1"}, (), started=1e9) == Traces({}), (
        "progress of an earlier command"
    )


def test_foreign_text_is_shown_as_text() -> None:
    page = run_report(SUMMARY, LEFT)
    assert "script" not in Reader(page).tags and "b" not in Reader(page).tags
    assert "&lt;script&gt;" in page


def test_the_page_needs_no_other_file() -> None:
    page = run_report(SUMMARY, LEFT)
    assert not re.search(r"(src|href|url)\s*[=(]", page)


def test_a_run_that_said_nothing_has_a_page_too() -> None:
    page = Reader(run_report({"job": "x", "slot": "s", "status": "timeout", "exit_code": 124, "attempts": []}))
    assert "timeout" in page.texts
