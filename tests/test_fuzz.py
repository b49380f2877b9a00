"""A small seeded part of jobs/fuzz.py: every input ends in a result or an RdmpipeError."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from jobs.fuzz import Figures, fuzz, parsers, told
from tests.attempts import tried

pytestmark = pytest.mark.process  # some filters run in a process of their own

NAMES = ("filter", "manifest", "job", "prompts.csv", "prompts.jsonl", "tar", "tar.gz", "webdataset", "npz", "checkpoint",
         "receipt", "version", "cron", "picture")  # fmt: skip
SLICE = {"filter": 25, "picture": 60, "checkpoint": 60}  # inputs; of the others 100


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_takes_or_refuses_every_input(name: str, tmp_path: Path, home: Path) -> None:
    known = parsers(tmp_path)
    assert set(known) == set(NAMES)
    figures = fuzz(name, *known[name], seconds=60.0, most=SLICE.get(name, 100))
    assert figures.findings == [], told(figures)
    tried(figures.inputs)
    assert figures.inputs >= SLICE.get(name, 100) or figures.slowest_s > 1


def test_an_exception_and_a_loop_are_findings() -> None:
    from hypothesis import strategies as st

    def parse(data: bytes) -> object:
        if data == b"a":
            raise KeyError(data)
        while data == b"b":
            pass
        return data

    figures = fuzz("x", st.sampled_from((b"a", b"b", b"c")), parse, 20.0, slow=0.2, most=3)
    assert isinstance(figures, Figures) and figures.inputs == 3 and figures.parsed == 1
    assert len(figures.findings) == 2 and "KeyError" in told(figures) and "stopped after 0.2 s" in told(figures)
