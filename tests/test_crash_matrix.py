"""The crash matrix (`make test-crash`): kills of driver, worker and actor at ten seeded points of each stage.

All visible files are complete at any time, nothing finished is done again, and the result is that of an uninterrupted build.
The kills of a stage hit one build in succession, each the run that continues after the one before.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.builds import contents, quiet_build
from tests.crashes import KILLS, Driver, Tally, Target, at_work, points, receipts, target_of

pytestmark = pytest.mark.long

BACKENDS = [pytest.param(False, id="inline"), pytest.param(True, id="ray", marks=pytest.mark.cluster)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return target_of(tmp_path_factory.mktemp("matrix"), shards=36)


@pytest.mark.parametrize("ray", BACKENDS)
@pytest.mark.parametrize("stage", ["download", "embed"])
def test_a_driver_killed_again_and_again(target: Target, home: Path, stage: str, ray: bool) -> None:
    tally = Tally()
    for point, pause in points(f"driver {stage} {ray}", target.shards):
        wanted = max(point, len(receipts(home, stage)) + 1)
        driver = Driver(target, home, ray)
        driver.wait_for(lambda wanted=wanted: len(receipts(home, stage)) >= wanted)  # type: ignore[misc]
        time.sleep(pause)
        driver.kill()
        tally.kills += 1
        tally.look(home)
        tally.count_cut(home)
    done = len(receipts(home, "embed"))
    assert done < target.shards, "the build ended before all kills: use more shards"
    summary = Driver(target, home, ray).summary()
    assert summary["shards"]["embed"] == {"ran": target.shards - done, "skipped": done}
    assert summary["input"] == summary["ok"] == target.rows
    tally.look(home)
    assert contents(home) == target.undisturbed
    tally.tell(f"driver {'on Ray' if ray else 'inline'}, {stage}")


@pytest.mark.cluster
@pytest.mark.parametrize("stage", ["download", "embed"])
def test_workers_killed_one_after_another_are_replaced(target: Target, home: Path, stage: str) -> None:
    """Each kill hits a process that works on a shard of the stage, all in one build."""
    tally, killed = Tally(), set[int]()
    driver = Driver(target, home, ray=True)
    for point, pause in points(f"worker {stage}", target.shards):
        driver.wait_for(lambda point=point: len(receipts(home, stage)) >= point)  # type: ignore[misc]
        time.sleep(pause / 4)
        driver.wait_for(lambda: bool(set(at_work(home, stage)) - killed))
        victim = random.Random(f"{stage} {point}").choice(sorted(set(at_work(home, stage)) - killed) or [0])
        if victim:
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            tally.kills += 1
        tally.look(home)
    summary = driver.summary()
    assert tally.kills == KILLS
    again = driver.repeated(stage)
    tally.repeated, tally.most = len(again), 1 if again else 0
    assert len(again) <= KILLS
    assert driver.repeated({"download": "embed", "embed": "download"}[stage]) == []
    assert summary["input"] == summary["ok"] == target.rows
    tally.look(home)
    assert contents(home) == target.undisturbed
    tally.tell(f"{'worker' if stage == 'download' else 'actor'} on Ray, {stage}")


@pytest.fixture(scope="module")
def embedded(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which every shard is embedded and nothing is indexed."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    quiet_build(target.manifest, home=str(home), threads=1, stages=("download", "embed"))
    return home


def _steps(home: Path) -> list[Path]:
    """The files of an index and of a version, in the order in which they appear."""
    root = home / "databases" / "mine"
    patterns = ("index/*/*/keys.npy", "index/*/*/vectors.npy", "index/*/*/entry.json", "versions/*.json", "current")
    return [path for pattern in patterns for path in root.glob(pattern)]


@pytest.mark.parametrize("stage", ["index", "publish"])
def test_a_driver_killed_while_it_indexes_and_publishes(
    target: Target, embedded: Path, tmp_path: Path, stage: str
) -> None:
    """Index: at seeded fractions of its duration. Publish: when each file of the index and the version appears."""
    rng, tally, published = random.Random(f"{stage} points"), Tally(), 0
    whole = 0.0
    for i in range(4 * KILLS):
        if tally.kills == KILLS:
            break
        home = tmp_path / f"home {i}"
        shutil.copytree(embedded, home, ignore=shutil.ignore_patterns("progress.json"))
        driver = Driver(target, home)
        driver.wait_for((home / "databases" / "mine" / "progress.json").exists)
        since = time.monotonic()
        if i == 0:  # the first run measures the duration
            driver.summary()
            whole = time.monotonic() - since
            continue
        if stage == "index":
            time.sleep(rng.uniform(0.0, 0.7) * whole)
        else:
            driver.wait_for(lambda: not driver.process.is_alive() or len(_steps(home)) >= 1 + i % 5)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.004))
        driver.kill()
        assert driver.process.exitcode in (0, -signal.SIGKILL), driver.said()
        tally.kills += driver.process.exitcode != 0
        tally.look(home)
        if driver.process.exitcode != 0:  # else it ended before the kill
            published += (home / "databases" / "mine" / "current").exists()
        assert quiet_build(target.manifest, home=str(home), threads=1).ok == target.rows
        tally.look(home)
        assert contents(home) == target.undisturbed
        tally.finished.clear()
    assert tally.kills == KILLS and published < KILLS
    tally.tell(f"driver inline, {stage}, {published} of them after `current` was set")
