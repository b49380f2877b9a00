"""A build that is killed at any point and run again ends like an uninterrupted one, and little is done twice.

One seeded point for each stage, with the command itself; test_crash_matrix.py has ten and more (`make test-crash`).
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.builds import command, contents, folder_of, last_json, manifest_of, quiet_build
from tests.cluster import actors_of
from tests.forked import Forked

pytestmark = pytest.mark.process

SHARDS, SHARD_ROWS = 12, 10
STAGES = ("download", "embed", "index")


def _points(stage: str, count: int) -> list[int]:
    """Seeded points: the number of the stage's receipts before the kill."""
    return random.Random(f"{stage} points").sample(range(1, SHARDS), count)


def _cases(count: int) -> list[tuple[str, int]]:
    return [(stage, point) for stage in STAGES for point in _points(stage, 11)[:count]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """A manifest, and the result of an uninterrupted build."""
    root = tmp_path_factory.mktemp("crash")
    manifest = manifest_of(root / "mine.toml", folder_of(root / "pictures", SHARDS * SHARD_ROWS), shard_rows=SHARD_ROWS)
    quiet_build(manifest, home=str(root / "undisturbed"), threads=1)
    return manifest, contents(root / "undisturbed")


def _receipts(home: Path, stage: str) -> int:
    pattern = {"download": "images/*.json", "embed": "embeddings/*/*.json"}[stage]
    return len(list((home / "databases" / "mine").glob(pattern)))


def _indexing(home: Path) -> bool:
    """Whether every shard is embedded and the index is being built."""
    return _receipts(home, "embed") == SHARDS


def _wait_for(ready: Callable[[], bool], process: Forked, seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the build never came to that point"
        assert process.poll() is None, f"the build ended before that point: {process.communicate()[1]}"
        time.sleep(0.002)


def _drain(process: Forked) -> None:
    """Read its output, so that it never waits for a reader."""
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=stream.read, daemon=True).start()


def _kill_tree(process: Forked, workers: Callable[[int], list[psutil.Process]]) -> None:
    """SIGKILL only to the driver. Its workers notice and end, or are ended here."""
    others = workers(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(others, timeout=20)
    for other in alive:
        other.kill()


def _children(driver: int) -> list[psutil.Process]:
    return psutil.Process(driver).children(recursive=True)


def _after(home: Path, stage: str, point: int) -> Callable[[], bool]:
    if stage == "index":
        return lambda: _indexing(home)
    return lambda: _receipts(home, stage) >= point


def _check_torn(home: Path) -> None:
    """Check that all visible files are complete: every receipt's files have the size and checksum that it names."""
    import hashlib
    import json

    root = home / "databases" / "mine"
    for receipt in [*root.glob("images/*.json"), *root.glob("embeddings/*/*.json")]:
        for artifact in json.loads(receipt.read_text())["artifacts"]:
            path = root / artifact["path"]
            if not path.exists():  # pictures are removed once they are embedded
                assert path.parent.name == "images"
                continue
            assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]


def _kill_driver(
    target: tuple[str, dict[str, bytes]],
    home: Path,
    stage: str,
    point: int,
    *flags: str,
    workers: Callable[[int], list[psutil.Process]] = _children,
) -> None:
    manifest, undisturbed = target
    flags = ("--threads", "1", *flags)  # the same number of threads gives the same bytes, here and on Ray
    first = command("build-index", manifest, *flags, home=home, wait=False)
    _drain(first)
    _wait_for(_after(home, stage, point), first)
    if stage == "index":
        time.sleep(point * 0.04)
    _kill_tree(first, workers)
    _check_torn(home)
    done = _receipts(home, "embed")
    summary = last_json(command("build-index", manifest, *flags, "--json", home=home))
    assert summary["shards"]["embed"] == {"ran": SHARDS - done, "skipped": done}
    assert summary["input"] == summary["ok"] == SHARDS * SHARD_ROWS
    assert contents(home) == undisturbed


@pytest.mark.parametrize(("stage", "point"), _cases(1))
def test_a_killed_driver_is_run_again(target: tuple[str, dict[str, bytes]], home: Path, stage: str, point: int) -> None:
    _kill_driver(target, home, stage, point)


RAY = ("--backend", "ray", "--workers", "2", "--threads", "1")


@pytest.fixture
def on_the_cluster(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands use the cluster that all tests share."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def _kill_actor(target: tuple[str, dict[str, bytes]], home: Path, stage: str, point: int) -> None:
    manifest, undisturbed = target
    process = command("build-index", manifest, *RAY, "--json", home=home, wait=False)
    _wait_for(_after(home, stage, point), process)
    actors = actors_of(process.pid)
    if not actors and stage == "embed" and _indexing(home):
        pytest.fail("the build was over before an actor could be killed: use more shards")
    random.Random(f"{stage} {point}").choice(actors).kill()
    summary = last_json(process)
    assert summary["input"] == summary["ok"] == SHARDS * SHARD_ROWS
    assert summary["shards"]["embed"]["ran"] + summary["shards"]["embed"]["skipped"] == SHARDS
    assert contents(home) == undisturbed


@pytest.mark.cluster
@pytest.mark.parametrize(("stage", "point"), [pytest.param("download", 2, marks=pytest.mark.long), ("embed", 3)])
def test_a_killed_actor_is_replaced(
    target: tuple[str, dict[str, bytes]], home: Path, on_the_cluster: None, stage: str, point: int
) -> None:
    _kill_actor(target, home, stage, point)


@pytest.mark.cluster
@pytest.mark.parametrize(("stage", "point"), [("embed", 4)])
def test_a_killed_driver_on_ray_is_run_again(
    target: tuple[str, dict[str, bytes]], home: Path, on_the_cluster: None, stage: str, point: int
) -> None:
    _kill_driver(target, home, stage, point, *RAY, workers=actors_of)
