"""The executor in this process: the stages of a chain overlap, each in its own threads.

While the last stage works on a shard, the stages before it work on the next ones: at most `AHEAD` finished shards wait between
two stages. A stage whose `together` is 1 takes one shard after another, in order; a stage with more takes so many shards at a
time. The last stage runs in the calling thread if it takes one shard at a time. Reads receipts; writes nothing itself.

A run that ends early (an error of `FATAL`, Ctrl-C) tells its threads to stop, and waits for them: no thread writes after
`run_inline` has returned.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from pipeline.execution.backend import FATAL, Backend, Outcome, SetUp, last_line
from pipeline.execution.lookahead import ahead
from pipeline.execution.progress import Progress
from pipeline.execution.stage import Failure, Shard, Stage, describe_exception, run_shard_once
from pipeline.execution.stopping import Stopped, stopping_by

AHEAD = 2


@dataclass
class _Run:
    """One run: the counts, which several threads change, and the request to stop."""

    backend: Backend
    progress: Progress
    outcome: Outcome
    stop: threading.Event
    lock: threading.Lock

    def take(self, stage: Stage, ready: SetUp, shard: Shard | None) -> Shard | None:
        """Take a shard through a stage. Returns it, or None if it failed here or before. Raises FATAL errors."""
        if shard is None:
            return None
        error, attempts = "", self.backend.retries + 1
        for attempt in range(1, attempts + 1):
            try:
                finished = run_shard_once(stage, ready, shard)
            except (*FATAL, Stopped):
                raise
            except Exception as raised:
                error = describe_exception(raised)
                with self.lock:
                    self.progress.say(f"{stage.name}: shard {shard.name}: attempt {attempt}: {raised}")
                continue
            with self.lock:
                self.outcome.count(stage, finished)
                self.progress.advance(stage.name, shard.id, finished.receipt.rows, finished.seconds)
            return shard
        with self.lock:
            self.outcome.failures.append(Failure(stage.name, shard.id, error, attempts))
            self.progress.advance(stage.name, shard.id, 0, 0.0, problem=last_line(error))
        return None

    def locked(self, shards: Iterator[Shard]) -> Iterator[Shard | None]:
        """The shards to do. Finished ones are counted while they are looked for."""
        while True:
            with self.lock:
                shard = next(shards, None)
            if shard is None:
                return
            yield shard


def run_inline(
    chain: tuple[Stage, ...], shards: Iterator[Shard], backend: Backend, progress: Progress, outcome: Outcome
) -> None:
    """Take the shards through the chain. Raises FATAL errors at once; other failures are listed in the outcome."""
    run = _Run(backend, progress, outcome, threading.Event(), threading.Lock())
    with contextlib.ExitStack() as streams:
        passing: Iterable[Shard | None] = run.locked(shards)
        for number, stage in enumerate(chain):
            work = _bound(run, stage)
            if number == len(chain) - 1 and stage.together == 1:
                passing = map(work, passing)
                continue
            stream = _ahead(passing, work, stage.together, run.stop)
            streams.enter_context(contextlib.closing(stream))
            passing = stream
        streams.callback(run.stop.set)  # before all else, so that the streams' threads end soon
        for _ in passing:
            if len(outcome.failures) >= backend.max_failures:
                return


def _bound(run: _Run, stage: Stage) -> Callable[[Shard | None], Shard | None]:
    """`_Run.take` for a stage, with the context variables of `run_inline`'s caller, so that any thread can call it."""
    ready = SetUp(stage.setup)
    context = contextvars.copy_context()

    def work(shard: Shard | None) -> Shard | None:
        with stopping_by(run.stop):
            return run.take(stage, ready, shard)

    return lambda shard: context.copy().run(work, shard)


def _ahead(
    items: Iterable[Shard | None],
    work: Callable[[Shard | None], Shard | None],
    together: int,
    stop: threading.Event,
) -> Generator[Shard | None, None, None]:
    stream = ahead(items, work, threads=together, depth=together + AHEAD - 1, ending=stop)
    with contextlib.closing(stream):
        for _, result in stream:
            yield result
