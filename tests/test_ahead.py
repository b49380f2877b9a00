"""Work ahead of a consumer: in order, bounded, with exceptions raised at their item."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.execution import ahead


def test_results_come_in_order_and_every_item_once() -> None:
    def slow_first(n: int) -> int:
        time.sleep(0.02 if n % 4 == 0 else 0)
        return n * n

    assert list(ahead(range(50), slow_first, threads=4, depth=8)) == [(n, n * n) for n in range(50)]


def test_no_more_than_depth_items_are_begun_ahead_of_the_consumer() -> None:
    begun: list[int] = []
    stream = ahead(range(100), begun.append, threads=2, depth=5)
    for n in range(20):
        next(stream)
        time.sleep(0.005)
        assert len(begun) <= n + 1 + 5
    stream.close()


def test_heavy_items_wait_for_room_and_one_too_heavy_goes_alone() -> None:
    held = 0
    most = 0
    lock = threading.Lock()

    def work(weight: int) -> int:
        nonlocal held, most
        with lock:
            held += weight
            most = max(most, held)
        time.sleep(0.005)
        return weight

    for weight, _ in ahead([40] * 10 + [500] + [40] * 10, work, 4, 50, weigh=lambda n: n, most=100):
        with lock:
            held -= weight
    assert most <= 500 + 40  # the consumer has taken one out of the account that it has not counted yet


def test_an_exception_comes_out_at_its_item_and_ends_the_threads() -> None:
    def fails_at_seven(n: int) -> int:
        if n == 7:
            raise KeyError("seven")
        return n

    seen = []
    with pytest.raises(KeyError, match="seven"):
        for n, _ in ahead(range(20), fails_at_seven, threads=3, depth=6):
            seen.append(n)
    assert seen == list(range(7))

    def items() -> object:
        yield 1
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        list(ahead(items(), str, threads=2, depth=4))  # type: ignore[arg-type]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "feed"))]


def test_a_consumer_that_stops_early_leaves_no_thread_behind() -> None:
    stream = ahead(iter(range(10_000)), str, threads=2, depth=4)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(t.name.startswith(("decode", "feed")) for t in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "feed"))]
