"""Retry an action that may succeed later, with growing waits; report at once an action that cannot succeed.

Reads and writes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import SourceError

T = TypeVar("T")

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long to retry: attempts without progress, the first wait in seconds (doubled each time), the read timeout."""

    attempts: int = 5
    first_wait_s: float = 0.5
    timeout_s: float = 60.0


class Broken(Exception):
    """An attempt that failed, and after which another attempt may succeed."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def patiently(action: Callable[[], T], what: str, patience: Patience, progress: Callable[[], int] = lambda: 0) -> T:
    """Run `action` until it does not raise Broken. An attempt that made progress does not count."""
    tried, reached = 0, progress()
    while True:
        try:
            return action()
        except Broken as error:
            tried = 1 if progress() > reached else tried + 1
            reached = max(reached, progress())
            if tried >= patience.attempts:
                raise SourceError(
                    f"{what}: gave up after {tried} attempt(s): {error}. What was received is kept: check the connection "
                    "and run the same command again."
                ) from error
            wait = patience.first_wait_s * 2 ** (tried - 1) * random.uniform(0.75, 1.25)
            time.sleep(min(max(wait, error.wait_s), 120.0))
