"""Work done ahead of a consumer, in order and in bounded memory: pictures decoded while the model runs.

Reads and writes nothing itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

R = TypeVar("R")


def ahead(
    items: Iterable[T],
    work: Callable[[T], R],
    threads: int,
    depth: int,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 256 << 20,
) -> Generator[tuple[T, R], None, None]:
    """`(item, work(item))` for each item, in order, worked out by `threads` threads ahead of the consumer.

    At most `depth` items and (above one item) `most` bytes, as `weigh` counts them, wait at a time. `items` is iterated in a
    thread of its own. An exception of either comes out here, at its item.
    """
    waiting: deque[tuple[T, int, Future[R]] | BaseException | None] = deque()
    changed = threading.Condition()
    load = 0
    stopped = False

    def feed(pool: ThreadPoolExecutor) -> None:
        nonlocal load
        end: BaseException | None = None
        try:
            for item in items:
                weight = weigh(item)
                with changed:
                    changed.wait_for(lambda: stopped or _has_room(len(waiting), load, weight))  # noqa: B023
                    if stopped:
                        return
                    load += weight
                    waiting.append((item, weight, pool.submit(work, item)))
                    changed.notify_all()
        except BaseException as error:  # handed to the consumer
            end = error
        with changed:
            waiting.append(end)
            changed.notify_all()

    def _has_room(count: int, held: int, weight: int) -> bool:
        return count == 0 or (count < depth and held + weight <= most)

    with ThreadPoolExecutor(threads, "decode") as pool:
        feeder = threading.Thread(target=feed, args=(pool,), name="feed", daemon=True)
        feeder.start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: bool(waiting))
                    entry = waiting[0]
                if entry is None:
                    return
                if isinstance(entry, BaseException):
                    raise entry
                item, weight, future = entry
                result = future.result()
                with changed:  # only now is there room for another
                    waiting.popleft()
                    load -= weight
                    changed.notify_all()
                yield item, result
        finally:
            with changed:
                stopped = True
                changed.notify_all()
            pool.shutdown(wait=False, cancel_futures=True)
            feeder.join()
