"""Run a chain of stages over shards: in this process, or on Ray. One contract, two backends.

Both go through `run_shard_once`, so a shard is skipped when its receipt is valid, retried when it fails, and reported as a
`Failure` value when it keeps failing; other shards go on. Reads and writes nothing itself. Does not promise order between
shards, nor a time limit inline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.execution.backend import FATAL, Backend, Context, Outcome, last_line
from pipeline.execution.progress import Progress
from pipeline.execution.stage import Failure, Shard, Stage, describe_exception, run_shard_once


def run_stages(
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
        from pipeline.execution.ray import RayRun

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
