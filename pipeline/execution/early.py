"""A stage that begins its first shards before its chain runs: for example, pictures are drawn while a model loads.

Reads and writes what the stage does, except receipts: the chain writes the receipt of a shard when it comes to it, so that a
shard counts as run there. Only for a chain that runs in this process.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.execution.stage import Receipt, Shard, Stage
from pipeline.execution.stopping import raise_if_stopped, stopping_by

_LOOK_S = 0.2  # how often a waiting chain looks whether its run has ended


@contextlib.contextmanager
def head_start(stage: Stage, shards: Iterable[Shard]) -> Iterator[Stage]:
    """The stage for a chain, while a thread works on the shards, one after another.

    The chain's call for one of them waits for that work, and raises what it raised; another attempt runs it anew. At the end of
    the block, work that the chain did not come to is stopped and waited for: nothing is written afterwards.
    """
    stop = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(1, "early")
    context = contextvars.copy_context()
    ready = pool.submit(context.run, stage.setup)

    def work(shard: Shard) -> Receipt:
        with stopping_by(stop):
            raise_if_stopped()
            return stage.run(ready.result(), shard)

    begun = {shard.id: pool.submit(context.copy().run, work, shard) for shard in shards}

    def set_up() -> object:
        return ready.result() if ready.exception() is None else stage.setup()

    def run(opened: object, shard: Shard) -> Receipt:
        early = begun.pop(shard.id, None)
        if early is None:
            return stage.run(opened, shard)
        while not concurrent.futures.wait([early], _LOOK_S).done:
            raise_if_stopped()
        return early.result()

    try:
        yield replace(stage, setup=set_up, run=run)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
