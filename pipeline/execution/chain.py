"""Run a chain of stages over shards, in this process or on Ray.

Both backends use `run_shard_once`. A shard is skipped if its receipt is valid, retried if it fails, and reported as a `Failure`
if it keeps failing; the other shards continue. Reads receipts; writes nothing itself. Promises no order between shards. In this
process, a shard has no time limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.execution.backend import Backend, Outcome
from pipeline.execution.inline import run_inline
from pipeline.execution.progress import Progress
from pipeline.execution.stage import Shard, Stage


def run_stages(
    chain: tuple[Stage, ...],
    shards: Iterable[Shard],
    backend: Backend | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Outcome:
    """Run every shard through `chain`. A shard that is done in the last stage is skipped in all stages.

    total: the number of shards, for the progress display. Returns the outcome, including failures. Raises FATAL errors at once.
    """
    backend, progress = backend or Backend(), progress or Progress()
    outcome = Outcome()
    todo = _unfinished(chain, shards, outcome, progress, total)
    if backend.kind == "inline":
        run_inline(chain, todo, backend, progress, outcome)
    else:
        from pipeline.execution.ray import RayRun

        RayRun(chain, backend, progress, outcome).run(todo)
    return outcome


def _unfinished(
    chain: tuple[Stage, ...], shards: Iterable[Shard], outcome: Outcome, progress: Progress, total: int
) -> Iterator[Shard]:
    """The shards that are not done in the last stage. Reads one listing, then one receipt for each shard that has one."""
    last = chain[-1]
    written = set(last.storage.list(last.folder, ".json"))
    for stage in chain:
        progress.begin(stage.name, total)
    for shard in shards:
        if f"{shard.name}.json" in written and last.receipt(shard) is not None:
            last.tidy(shard)
            for stage in chain:
                outcome.skip(stage)
                progress.advance(stage.name, shard.id, 0, 0.0)
            continue
        yield shard
