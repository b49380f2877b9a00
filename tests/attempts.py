"""Counting of hostile inputs: a test that tries many in one loop reports the number, for jobs/count_hostile.py."""

from __future__ import annotations

import os
from pathlib import Path

FILE = "RDMPIPE_COUNT_ATTEMPTS"


def tried(count: int) -> None:
    """Record that the running test tried this many inputs, all of which passed. Without the variable FILE, do nothing."""
    if path := os.environ.get(FILE):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0]
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(f"{count} {test}\n")
