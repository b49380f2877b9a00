"""Work done ahead of a consumer, in order and in bounded memory: for example, pictures are decoded while the model runs.

Reads and writes nothing itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

R = TypeVar("R")


@dataclass
class _Waiting(Generic[T, R]):
    item: T
    weight: int
    result: Future[R]


class _Queue(Generic[T, R]):
    """Items that wait for the consumer: at most `depth` items and at most `most` bytes, except that one item may be larger."""

    def __init__(self, depth: int, most: int) -> None:
        self.depth, self.most = depth, most
        self.waiting: deque[_Waiting[T, R] | BaseException | None] = (
            deque()
        )  # None: the end; an exception: the items ended early
        self.bytes = 0
        self.stopped = False
        self.changed = threading.Condition()

    def fill(
        self, items: Iterable[T], work: Callable[[T], R], weigh: Callable[[T], int], pool: ThreadPoolExecutor
    ) -> None:
        """Start the work for each item as soon as there is room. Runs in a separate thread until `stop`."""
        end: BaseException | None = None
        try:
            for item in items:
                if not self._add(item, weigh(item), work, pool):
                    return
        except BaseException as error:  # the consumer raises it
            end = error
        with self.changed:
            self.waiting.append(end)
            self.changed.notify_all()

    def _add(self, item: T, weight: int, work: Callable[[T], R], pool: ThreadPoolExecutor) -> bool:
        def has_room() -> bool:
            return not self.waiting or (len(self.waiting) < self.depth and self.bytes + weight <= self.most)

        with self.changed:
            self.changed.wait_for(lambda: self.stopped or has_room())
            if self.stopped:
                return False
            self.bytes += weight
            self.waiting.append(_Waiting(item, weight, pool.submit(work, item)))
            self.changed.notify_all()
            return True

    def first(self) -> _Waiting[T, R] | None:
        """The oldest entry, which stays in the queue; None at the end. Raises the exception that ended the items early."""
        with self.changed:
            self.changed.wait_for(lambda: bool(self.waiting))
            entry = self.waiting[0]
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def drop(self, entry: _Waiting[T, R]) -> None:
        with self.changed:
            self.waiting.popleft()
            self.bytes -= entry.weight
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def ahead(
    items: Iterable[T],
    work: Callable[[T], R],
    threads: int,
    depth: int,
    weigh: Callable[[T], int] = lambda item: 0,
    most: int = 256 << 20,
    ending: threading.Event | None = None,
) -> Generator[tuple[T, R], None, None]:
    """Yield `(item, work(item))` for each item, in order, computed by `threads` threads ahead of the consumer.

    At most `depth` items and at most `most` bytes, as `weigh` counts them, wait at a time; one item may be larger. `items`
    is iterated in a separate thread. An exception of `items` or `work` is raised here, at its item. If the iteration ends
    early, `ending` is set before the threads are waited for: long work may look at it.
    """
    queue: _Queue[T, R] = _Queue(depth, most)
    with ThreadPoolExecutor(threads, "decode") as pool:
        feeder = threading.Thread(target=queue.fill, args=(items, work, weigh, pool), name="feed", daemon=True)
        feeder.start()
        try:
            while (entry := queue.first()) is not None:
                result = entry.result.result()
                queue.drop(entry)  # only a finished item makes room for another
                yield entry.item, result
        except BaseException:
            if ending is not None:
                ending.set()
            raise
        finally:
            queue.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            feeder.join()
