"""Run a chain of stages over shards: in this process, or on Ray. One contract, two backends.

Both go through `run_shard_once`, so a shard is skipped when its receipt is valid, retried when it fails, and reported as a
`Failure` value when it keeps failing; other shards go on. Reads and writes nothing itself. Does not promise order between
shards, nor a time limit inline.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import ConfigError, DatabaseError, DiskFullError, EncoderError, ModelError
from pipeline.progress import Progress
from pipeline.stage import Failure, Shard, Stage, describe_exception, run_shard_once

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


def run(
    chain: tuple[Stage, ...],
    shards: Iterable[Shard],
    backend: Backend | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Outcome:
    """Take every shard through `chain`. A shard whose last stage is done is skipped whole.

    Returns the outcome, failures included; raises at once for what no shard can survive (FATAL).
    """
    backend, progress = backend or Backend(), progress or Progress()
    outcome = Outcome()
    todo = _unfinished(chain, shards, outcome, progress, total)
    if backend.kind == "inline":
        _run_inline(chain, todo, backend, progress, outcome)
    else:
        from pipeline.ray_executor import RayRun

        RayRun(chain, backend, progress, outcome).run(todo)
    return outcome


def _unfinished(
    chain: tuple[Stage, ...], shards: Iterable[Shard], outcome: Outcome, progress: Progress, total: int
) -> Iterator[Shard]:
    """The shards whose last stage is not done yet, found by one listing and then their receipts."""
    last = chain[-1]
    written = set(last.storage.list(last.folder, ".json"))
    for stage in chain:
        progress.begin(stage.name, total)
    for shard in shards:
        if f"{shard.name}.json" in written and last.receipt(shard) is not None:
            last.tidy(shard)
            for stage in chain:
                outcome.count(stage, 0.0)
                progress.advance(stage.name, shard.id, 0, 0.0)
            continue
        yield shard


# ---- in this process


def _run_inline(
    chain: tuple[Stage, ...], shards: Iterator[Shard], backend: Backend, progress: Progress, outcome: Outcome
) -> None:
    contexts = [Context(stage.setup) for stage in chain]
    for shard in shards:
        for stage, context in zip(chain, contexts, strict=True):
            failure = None
            for attempt in range(1, backend.retries + 2):
                try:
                    receipt, seconds = run_shard_once(stage, context, shard)
                except FATAL:
                    raise
                except Exception as error:
                    failure = Failure(stage.name, shard.id, describe_exception(error), attempt)
                    progress.say(f"{stage.name}: shard {shard.name}: attempt {attempt}: {error}")
                    continue
                failure = None
                outcome.count(stage, seconds)
                progress.advance(stage.name, shard.id, receipt.rows, seconds)
                break
            if failure is not None:
                outcome.failures.append(failure)
                progress.advance(stage.name, shard.id, 0, 0.0, problem=last_line(failure.error))
                break
        if len(outcome.failures) >= backend.max_failures:
            return


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
