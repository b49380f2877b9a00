"""Counting of hostile inputs: a test that tries many in one loop reports the number, for jobs/count_hostile.py."""

from __future__ import annotations

import os
from pathlib import Path

FILE = "RDMPIPE_COUNT_ATTEMPTS"


def tried(count: int) -> None:
    """Note that the running test tried so many inputs and all of them held. Without the variable FILE it does nothing."""
    if path := os.environ.get(FILE):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0]
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(f"{count} {test}\n")
