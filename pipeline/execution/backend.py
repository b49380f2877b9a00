"""Where a chain of stages runs (Backend), the result of a run (Outcome), and the errors that stop a run at once (FATAL).

Reads the environment variable RDMPIPE_START_TIMEOUT_S. Writes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigError, DatabaseError, DiskFullError, EncoderError, ModelError
from pipeline.execution.stage import Failure, Finished, Ready, Stage

# Errors that would fail every other shard too. They stop the run at once.
FATAL = (ConfigError, DatabaseError, DiskFullError, EncoderError, ModelError)


def _start_timeout_s() -> float:
    text = os.environ.get("RDMPIPE_START_TIMEOUT_S") or "180"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"RDMPIPE_START_TIMEOUT_S is {text!r}; expected a number of seconds, such as 180") from None


@dataclass(frozen=True)
class Backend:
    """Where the work runs. `workers` is per stage, on Ray; 0 leaves the number to each stage and the cluster."""

    kind: Literal["inline", "ray"] = "inline"
    address: str = ""  # Ray cluster; empty: RAY_ADDRESS, else a local cluster that the run starts
    workers: int = 0
    retries: int = 2  # further attempts for a failed shard
    max_failures: int = 100  # give up after so many failed shards
    start_timeout_s: float = field(default_factory=_start_timeout_s)  # until the first worker of a stage must be set up


@dataclass
class Outcome:
    """The result of a run. `ran` and `skipped` count shards per stage; `failures` are the shards that remain to be done."""

    ran: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # summed over workers
    failures: list[Failure] = field(default_factory=list)

    def count(self, stage: Stage, finished: Finished) -> None:
        """Count a shard that has passed a stage."""
        if not finished.ran:
            self.skip(stage)
            return
        self.ran[stage.name] = self.ran.get(stage.name, 0) + 1
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + finished.seconds

    def skip(self, stage: Stage) -> None:
        """Count a shard that was done before."""
        self.skipped[stage.name] = self.skipped.get(stage.name, 0) + 1
        self.seconds.setdefault(stage.name, 0.0)


class SetUp:
    """A worker's set-up: it runs when the first shard needs it, and its result is kept."""

    def __init__(self, setup: Callable[[], Ready]) -> None:
        self._setup = setup
        self._made: list[Ready] = []
        self._lock = threading.Lock()

    def __call__(self) -> Ready:
        with self._lock:
            if not self._made:
                self._made.append(self._setup())
            return self._made[0]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no message"
