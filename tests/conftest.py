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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

# These files import the whole of diffusers, transformers and torch's compiler, which takes ten seconds of processor time. One
# worker runs them all; other tests use the parts of diffusers that rdm imports.
WHOLE = frozenset({
    "tests/test_adapter_families.py", "tests/test_adapter_layouts.py", "tests/test_adapter_runs.py",
    "tests/test_diffusers_pipeline.py", "tests/test_evaluate_models.py", "tests/test_ip_adapter.py",
    "tests/test_rdm_memory.py",
})  # fmt: skip

_running: list[str] = []  # the unit test that runs now


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that starts the others, or the only one
        folder = Path(tempfile.mkdtemp(prefix="rdmray"))
        os.environ[SHARED_RAY] = str(folder)
        compiled = Path(__file__).parent.glob(f"__pycache__/test_*{sys.implementation.cache_tag}*")
        if not (sys.dont_write_bytecode or any(compiled)):
            (folder / "compiling").touch()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """In a new checkout, the first worker compiles tests and libraries. The others wait, and read what it compiled."""
    compiling, worker = Path(os.environ[SHARED_RAY]) / "compiling", os.environ.get("PYTEST_XDIST_WORKER")
    end = time.monotonic() + 180
    while worker not in (None, "gw0") and compiling.exists() and time.monotonic() < end:
        time.sleep(0.2)
    try:
        return (yield)
    finally:
        if worker == "gw0":
            compiling.unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give a worker whole files, and one worker all the files of WHOLE."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "whole libraries" if file in WHOLE else file

    return Scheduling(config, log)


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
