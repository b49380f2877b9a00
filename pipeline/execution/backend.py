"""Where a chain of stages runs and what a run did: Backend, Outcome, and the errors that stop a run at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError, DatabaseError, DiskFullError, EncoderError, ModelError
from pipeline.execution.stage import Failure, Stage

# Errors that every other shard would meet too: the run stops at once instead of failing shard by shard.
FATAL = (ConfigError, DatabaseError, DiskFullError, EncoderError, ModelError)


@dataclass(frozen=True)
class Backend:
    """Where the work runs. `workers` is per stage; 0 lets each stage and the cluster decide."""

    kind: Literal["inline", "ray"] = "inline"
    address: str = ""  # Ray cluster; empty: RAY_ADDRESS, else a cluster of our own on this machine
    workers: int = 0
    retries: int = 2  # further attempts for a failed shard
    max_failures: int = 100  # give up after so many failed shards
    start_timeout_s: float = float(
        os.environ.get("RDMPIPE_START_TIMEOUT_S") or 180.0
    )  # for the first worker of a stage to get its resources and set up


@dataclass
class Outcome:
    """What a run did. `ran` and `skipped` count shards per stage; `failures` are what is left to do."""

    ran: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # summed over workers
    failures: list[Failure] = field(default_factory=list)

    def count(self, stage: Stage, seconds: float) -> None:
        bucket = self.ran if seconds > 0 else self.skipped
        bucket[stage.name] = bucket.get(stage.name, 0) + 1
        self.seconds[stage.name] = self.seconds.get(stage.name, 0.0) + seconds


class Context:
    """A worker's set-up result, made when the first shard needs it."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self.setup = setup
        self.made: list[Any] = []

    def __call__(self) -> Any:
        if not self.made:
            self.made.append(self.setup())
        return self.made[0]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no message"
