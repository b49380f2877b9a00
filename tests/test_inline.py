"""The executor in this process: stages overlap, shards run together, and a run that ends early leaves no thread at work."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DiskFullError
from pipeline.execution import Progress, Receipt, Shard, Stage, head_start, raise_if_stopped, run_stages
from pipeline.storage import Storage
from tests.stages import lines, order, shards, stage


def quiet() -> Progress:
    return Progress(stream=io.StringIO())


def calling(root: Path, name: str, work: Callable[[int], None], together: int = 1) -> Stage:
    """A stage that calls `work` with the shard's number."""

    def run(ready: object, shard: Shard) -> Receipt:
        work(shard.id)
        return Receipt(name, shard.id, "v1", shard.fingerprint, shard.rows, 0, 0)

    return Stage(name, name, Storage(str(root)), "v1", lambda: None, run, together=together)


def test_the_next_shard_is_prepared_while_the_last_stage_works(tmp_path: Path) -> None:
    next_begun = [threading.Event() for _ in range(5)]

    def first(number: int) -> None:
        next_begun[number].set()

    def last(number: int) -> None:
        assert number == 3 or next_begun[number + 1].wait(10), "the next shard was not begun"

    chain = (calling(tmp_path, "first", first), calling(tmp_path, "last", last))
    assert run_stages(chain, shards(4), progress=quiet()).failures == []


def test_at_most_three_shards_are_ahead_of_a_slow_last_stage(tmp_path: Path) -> None:
    begun: list[int] = []

    def last(number: int) -> None:
        time.sleep(0.01)
        assert len(begun) <= number + 1 + 2

    chain = (calling(tmp_path, "first", begun.append), calling(tmp_path, "last", last))
    assert run_stages(chain, shards(12), progress=quiet()).failures == []


def test_shards_run_together_and_share_one_set_up(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)
    outcome = run_stages(
        (calling(tmp_path, "only", lambda _: both.wait() and None, together=2),), shards(6), progress=quiet()
    )
    assert outcome.ran == {"only": 6} and outcome.failures == []
    assert len(list((tmp_path / "only").glob("*.json"))) == 6


def test_an_error_that_ends_the_run_stops_the_other_threads_first(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 1:
            assert begun.wait(60)
            raise DiskFullError("the disk is full: free some space")
        begun.set()
        try:
            for _ in range(1000):
                raise_if_stopped()
                time.sleep(0.01)
        finally:
            ended.set()

    with pytest.raises(DiskFullError):
        run_stages((calling(tmp_path, "only", work, together=2),), reversed(shards(2)), progress=quiet())
    assert ended.is_set() and not list(tmp_path.glob("only/*.json"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "feed"))]


def test_an_interrupt_in_the_last_stage_ends_the_stages_before_it(tmp_path: Path) -> None:
    def first(number: int) -> None:
        while number:
            raise_if_stopped()
            time.sleep(0.01)

    def last(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages((calling(tmp_path, "first", first), calling(tmp_path, "last", last)), shards(9), progress=quiet())
    assert [path.name for path in tmp_path.rglob("*.json")] == ["000000.json"]


def test_a_failed_shard_does_not_reach_the_later_stages(tmp_path: Path) -> None:
    order(tmp_path, "first", 1, "always raise")
    chain = (stage(tmp_path, "first"), stage(tmp_path, "second", before="first"))
    outcome = run_stages(chain, shards(4), progress=quiet())
    assert [(failure.shard, failure.attempts) for failure in outcome.failures] == [(1, 3)]
    assert "run second 1" not in lines(tmp_path, "run second") and outcome.ran == {"first": 3, "second": 3}


def test_a_head_start_begins_shards_before_the_chain_and_they_count_as_run_in_it(tmp_path: Path) -> None:
    worked: list[int] = []
    both = threading.Event()

    def work(number: int) -> None:
        worked.append(number)
        if worked == [0, 1]:
            both.set()

    with head_start(calling(tmp_path, "only", work), shards(2)) as begun:
        assert both.wait(60) and not list(tmp_path.rglob("*.json")), "receipts are written by the chain"
        outcome = run_stages((begun,), shards(4), progress=quiet())
    assert (worked, outcome.ran, outcome.failures) == ([0, 1, 2, 3], {"only": 4}, [])


def test_a_shard_whose_head_start_failed_is_tried_again(tmp_path: Path) -> None:
    worked: list[int] = []

    def work(number: int) -> None:
        worked.append(number)
        if len(worked) == 1:
            raise OSError("a short failure")

    with head_start(calling(tmp_path, "only", work), shards(1)) as begun:
        outcome = run_stages((begun,), shards(1), progress=quiet())
    assert (worked, outcome.ran, outcome.failures) == ([0, 0], {"only": 1}, [])


def test_the_end_of_a_head_start_stops_what_no_chain_came_to(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(number: int) -> None:
        assert number == 0, "the second shard is not begun"
        begun.set()
        try:
            while True:
                raise_if_stopped()
                time.sleep(0.001)
        finally:
            ended.set()

    with pytest.raises(ZeroDivisionError), head_start(calling(tmp_path, "only", work), shards(2)):
        assert begun.wait(60)
        raise ZeroDivisionError
    assert ended.is_set()
