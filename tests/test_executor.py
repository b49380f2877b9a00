"""The executor's contract for each backend, and the additional promises of Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import DiskFullError, JobError
from pipeline.execution import Backend, Progress, Resources, Shard, run_stages
from tests.stages import lines, order, shards, stage


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.cluster)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "ray":
        request.getfixturevalue("ray_here")
    return Backend(kind=request.param, workers=1 if request.param == "ray" else 0)


@pytest.fixture
def two_workers(backend: Backend) -> Backend:
    """The backend with two workers for each stage, where it has workers."""
    return replace(backend, workers=2 * backend.workers)


@pytest.fixture
def ray_backend(ray_here: None) -> Backend:
    return Backend(kind="ray", workers=2)


def quiet() -> Progress:
    return Progress(stream=io.StringIO())


def test_every_shard_goes_through_every_stage_once(tmp_path: Path, two_workers: Backend) -> None:
    chain = (stage(tmp_path, "first"), stage(tmp_path, "second", before="first"))
    outcome = run_stages(chain, shards(6), two_workers, quiet(), total=6)
    assert outcome.ran == {"first": 6, "second": 6}
    assert outcome.failures == []
    assert sorted(lines(tmp_path, "run")) == sorted(f"run {name} {i}" for name in ("first", "second") for i in range(6))


def test_a_worker_is_set_up_once_for_all_its_shards(tmp_path: Path, two_workers: Backend) -> None:
    run_stages((stage(tmp_path, "only"),), shards(8), two_workers, quiet(), total=8)
    setups = lines(tmp_path, "setup")
    assert 1 <= len(setups) <= (two_workers.workers or 1)
    assert len(setups) == len(set(setups))  # no process was set up twice


def test_a_second_run_does_nothing_again(tmp_path: Path, backend: Backend) -> None:
    chain = (stage(tmp_path, "first"), stage(tmp_path, "second", before="first"))
    run_stages(chain, shards(4), backend, quiet(), total=4)
    before = lines(tmp_path, "run")
    outcome = run_stages(chain, shards(4), backend, quiet(), total=4)
    assert outcome.skipped == {"first": 4, "second": 4}
    assert lines(tmp_path, "run") == before


def test_a_changed_input_or_config_is_done_again_and_nothing_else(tmp_path: Path, backend: Backend) -> None:
    only = stage(tmp_path, "only")
    run_stages((only,), shards(3), backend, quiet(), total=3)
    changed = [replace(shard, fingerprint="new") if shard.id == 1 else shard for shard in shards(3)]
    outcome = run_stages((only,), changed, backend, quiet(), total=3)
    assert outcome.ran == {"only": 1}
    assert lines(tmp_path, "run")[-1] == "run only 1"


def test_a_failed_shard_is_retried_and_then_goes_through(tmp_path: Path, backend: Backend) -> None:
    order(tmp_path, "only", 2, "raise")
    outcome = run_stages((stage(tmp_path, "only"),), shards(4), backend, quiet(), total=4)
    assert outcome.failures == []
    assert lines(tmp_path, "run only 2") == ["run only 2"] * 2


def test_a_shard_that_keeps_failing_is_reported_and_the_others_continue(tmp_path: Path, backend: Backend) -> None:
    order(tmp_path, "first", 1, "always raise")
    chain = (stage(tmp_path, "first"), stage(tmp_path, "second", before="first"))
    outcome = run_stages(chain, shards(4), backend, quiet(), total=4)
    assert [(failure.stage, failure.shard, failure.attempts) for failure in outcome.failures] == [("first", 1, 3)]
    assert "ordered to fail" in outcome.failures[0].error
    assert outcome.ran == {"first": 3, "second": 3}
    assert not (tmp_path / "first" / "000001.json").exists()


def test_rows_that_do_not_add_up_are_a_failure(tmp_path: Path, backend: Backend) -> None:
    order(tmp_path, "only", 0, "always lose rows")
    outcome = run_stages((stage(tmp_path, "only"),), shards(1), backend, quiet(), total=1)
    assert "10 rows in, but 9 ok" in outcome.failures[0].error


def test_an_error_no_shard_can_survive_stops_the_run_with_its_own_class(tmp_path: Path, backend: Backend) -> None:
    order(tmp_path, "only", 0, "full")
    with pytest.raises(DiskFullError, match="free some space"):
        run_stages((stage(tmp_path, "only"),), shards(50), backend, quiet(), total=50)
    assert len(lines(tmp_path, "run")) < 50


def test_it_gives_up_after_too_many_failures(tmp_path: Path, backend: Backend) -> None:
    for i in range(30):
        order(tmp_path, "only", i, "always raise")
    few = replace(backend, max_failures=3, retries=0)
    outcome = run_stages((stage(tmp_path, "only"),), shards(30), few, quiet(), total=30)
    assert 3 <= len(outcome.failures) <= 5


def test_a_dead_worker_is_replaced_and_its_shard_done_again(tmp_path: Path, ray_backend: Backend) -> None:
    order(tmp_path, "only", 3, "die")
    outcome = run_stages((stage(tmp_path, "only"),), shards(8), ray_backend, quiet(), total=8)
    assert outcome.failures == []
    assert outcome.ran == {"only": 8}
    assert lines(tmp_path, "run only 3") == ["run only 3"] * 2
    assert len(lines(tmp_path, "run")) == 9


@pytest.mark.parametrize("how", ["die", "be killed"])
def test_a_shard_that_kills_every_worker_is_a_failure(tmp_path: Path, ray_backend: Backend, how: str) -> None:
    order(tmp_path, "only", 0, f"always {how}")
    outcome = run_stages((stage(tmp_path, "only"),), shards(3), replace(ray_backend, retries=1), quiet(), total=3)
    assert [(failure.shard, failure.attempts) for failure in outcome.failures] == [(0, 2)]
    assert "worker died" in outcome.failures[0].error
    assert outcome.ran == {"only": 2}


@pytest.mark.process
def test_a_stuck_worker_is_timed_out_and_replaced(tmp_path: Path, ray_backend: Backend) -> None:
    order(tmp_path, "only", 1, "hang")
    outcome = run_stages((stage(tmp_path, "only", timeout_s=3.0),), shards(4), ray_backend, quiet(), total=4)
    assert outcome.failures == []
    assert outcome.ran == {"only": 4}


@pytest.mark.process
def test_work_in_flight_is_bounded_when_a_later_stage_is_slow(tmp_path: Path, ray_backend: Backend) -> None:
    chain = (stage(tmp_path, "fast"), stage(tmp_path, "slow", before="fast", pause=0.1))
    run_stages(chain, shards(40), ray_backend, quiet(), total=40)
    waiting = [int(line.split()[1]) for line in lines(tmp_path, "waiting")]
    assert 1 < max(waiting) <= 12  # 2 x 4 workers + 2, and what was being written when it was counted


def test_shards_are_taken_in_as_they_are_needed(tmp_path: Path, ray_backend: Backend) -> None:
    taken = 0

    def many() -> Iterator[Shard]:
        nonlocal taken
        for shard in shards(10_000):
            taken += 1
            yield shard

    order(tmp_path, "only", 5, "full")
    with pytest.raises(DiskFullError):
        run_stages((stage(tmp_path, "only"),), many(), ray_backend, quiet(), total=10_000)
    assert taken < 100


def test_a_cluster_without_room_is_an_error_that_says_what_is_needed(tmp_path: Path, ray_backend: Backend) -> None:
    greedy = replace(stage(tmp_path, "only"), resources=Resources(cpus=64))
    with pytest.raises(JobError, match="64 CPUs"):
        run_stages((greedy,), shards(1), replace(ray_backend, start_timeout_s=2.0), quiet(), total=1)


def test_inline_and_ray_write_the_same_bytes(tmp_path: Path, ray_backend: Backend) -> None:
    found = []
    for kind in ("inline", "ray"):
        root = tmp_path / kind
        root.mkdir()
        run_stages((stage(root, "only"),), shards(5), replace(ray_backend, kind=kind), quiet(), total=5)
        found.append({path.name: path.read_bytes() for path in sorted((root / "only").iterdir())})
    assert found[0] == found[1]
    assert len(found[0]) == 10
