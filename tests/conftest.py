"""Fixtures for all tests, and the tiers of tests.

    unit      starts no process; a second or so each; the tier of every test without another marker
    process   whole runs (a build, a training, a generation, an evaluation), and whatever starts processes: commands,
              servers, a browser, the process that builds a faiss index
    cluster   runs on Ray
    long      a seeded matrix or a large input; `make test` leaves it out

A unit test that starts a process fails, so that the tiers stay correct.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import authentication, end_shared_cluster, read_authentication_again, shared_cluster

SHARED_RAY = "RDMPIPE_TEST_RAY"  # the folder of the cluster that all tests share
TIERS = ("process", "cluster", "long")
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty")
ASKS = ("lscpu", "ldconfig", "uname")  # what libraries ask the machine when they are imported

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Tests run beside each other: threads of one network would wait for each other at every layer while other tests have the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Ray starts no workers that wait for plain tasks
os.environ.setdefault("RAY_worker_niceness", "0")  # its default of 15 starves workers beside other tests
os.environ.setdefault("RDMPIPE_START_TIMEOUT_S", "600")  # several clusters may start at once on two cores
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_running: list[str] = []  # the unit test that runs now


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that starts the others, or the only one
        os.environ[SHARED_RAY] = tempfile.mkdtemp(prefix="rdmray")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        end_shared_cluster(Path(os.environ.pop(SHARED_RAY)))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test that asks for Ray the tier `cluster`, and a test without another tier the tier `unit`."""
    if "ray_here" in getattr(item, "fixturenames", ()):
        item.add_marker("cluster")
    if not any(item.get_closest_marker(tier) for tier in TIERS):
        item.add_marker("unit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("unit"):
        _running.append(item.nodeid)
    try:
        return (yield)
    finally:
        _running.clear()


def _no_process(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and _running and Path(str(arguments[0] if arguments else "")).name not in ASKS:
        raise AssertionError(f"{_running[0]} is a unit test and starts a process ({arguments[:1]}): mark it `process`")


sys.addaudithook(_no_process)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout, with real pictures (data/) and reference tensors (reference/)."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        message = f"{folder} is absent: it holds the real pictures and reference tensors this test needs"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty RDMPIPE_HOME and RDMPIPE_CACHE."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RDMPIPE_HOME", str(folder))
    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    # Connected for one file: Ray reads its token once a process, and tests/test_cluster.py has a cluster with another.
    import ray

    folder = Path(os.environ[SHARED_RAY])
    address = shared_cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in authentication(folder).items():
            patch.setenv(name, value)
        read_authentication_again()
        root = str(Path(__file__).resolve().parent.parent)
        environment = {"env_vars": {"PYTHONPATH": root}}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
        yield
        ray.shutdown()
    read_authentication_again()


@pytest.fixture
def ray_here(_ray: None) -> None:
    """This process is connected to the Ray cluster that all tests share. The first test that needs it starts it."""
