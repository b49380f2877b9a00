"""push and pull killed by SIGKILL at seeded points: nothing half-published is visible, and a second run completes it.

The server of tests/hub.py kills its client before or after one of its requests is answered.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from huggingface_hub import constants as hub_constants

from pipeline.catalog import listing, resolve_database
from pipeline.database import RetrievalDatabase, list_databases
from pipeline.errors import DatabaseError
from pipeline.exchange import PullRequest, PushRequest, pull, push_database
from pipeline.maintenance import check_database
from pipeline.retrieval import QueryRequest, run_query
from tests.builds import contents, folder_of, manifest_of, quiet_build
from tests.forked import preloaded_processes
from tests.hub import TOKEN, Hub, hub

REPO = "anna/mine"

POINTS = 10

IN_FLIGHT = 5  # files that huggingface_hub uploads at once

pytestmark = [pytest.mark.long, pytest.mark.process]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two homes with the same database in small shards: at its first version, and with more pictures at its second."""
    root = tmp_path_factory.mktemp("homes")
    manifest = manifest_of(root / "mine.toml", folder_of(root / "pictures", 25), shard_rows=5)
    quiet_build(manifest, home=str(root / "first"), images="thumbnail")
    shutil.copytree(root / "first", root / "second")
    folder_of(root / "pictures", 12, first=25)
    quiet_build(manifest, home=str(root / "second"), refresh=True)
    return root / "first", root / "second"


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as running:
        yield running


def _prepare(cache: str) -> None:
    """Settings of a forked client, which has imported the Hub's library: its constants are set, not its variables."""
    os.environ.update(HF_TOKEN=TOKEN, RDMPIPE_CACHE=cache)
    hub_constants.HF_HUB_DISABLE_XET = True
    sys.stderr = io.StringIO()  # progress bars


def _push(url: str, source: str, cache: str) -> None:
    _prepare(cache)
    push_database(resolve_database("mine", source), PushRequest(REPO, endpoint=url), lambda text: None)


def _pull(url: str, target: str, cache: str) -> None:
    _prepare(cache)
    pull(PullRequest(REPO, home=target, endpoint=url), lambda text: None)


class Clients:
    """Starts clients of one server, and kills one at a point of its work."""

    def __init__(self, server: Hub, folder: Path) -> None:
        self.server, self.cache = server, str(folder / "cache")
        self.running: BaseProcess | None = None

    def run(self, action: Callable[[str, str, str], None], home: Path) -> int:
        """Run a client to its end, which has to be a success. Returns the number of its requests."""
        self.server.requests = 0
        assert self.start(action, home) == 0
        return self.server.requests

    def kill(self, action: Callable[[str, str, str], None], home: Path, at: float, rng: random.Random) -> None:
        """Run a client and kill it at the request `at`, before it is handled or after its answer."""
        when, wait, killed = rng.choice(["begin", "end"]), rng.uniform(0.0, 0.02), []

        def interrupt(number: int, now: str) -> None:
            if (number, now) == (max(1, int(at)), when):
                if when == "end":  # the client goes on with its own work for a moment
                    time.sleep(wait)
                assert self.running is not None and self.running.pid is not None
                killed.append(number)
                os.kill(self.running.pid, signal.SIGKILL)

        self.server.requests, self.server.interrupt = 0, interrupt
        self.start(action, home)
        self.server.interrupt = lambda number, now: None
        assert killed or at < 1, "the client ended before that point"

    def start(self, action: Callable[[str, str, str], None], home: Path) -> int | None:
        self.running = preloaded_processes().Process(target=action, args=(self.server.url, str(home), self.cache))
        self.running.start()
        self.running.join(60)
        return self.running.exitcode


@dataclass
class Undisturbed:
    """Pushes of both versions, one after the other, and a pull after each."""

    push_requests: list[int] = field(default_factory=list)
    pulled: list[dict[str, bytes]] = field(default_factory=list)
    pull_requests: int = 0  # of the first


@pytest.fixture(scope="module")
def undisturbed(homes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder, made = tmp_path_factory.mktemp("undisturbed"), Undisturbed()
    with hub(folder / "hub") as server:
        clients = Clients(server, folder)
        for number, one in enumerate(homes):
            made.push_requests.append(clients.run(_push, one))
            requests = clients.run(_pull, folder / f"pulled{number}")
            made.pull_requests = made.pull_requests or requests
            made.pulled.append(whole(folder / f"pulled{number}"))
    return made


@pytest.fixture
def clients(server: Hub, tmp_path: Path) -> Clients:
    return Clients(server, tmp_path)


def whole(home: Path) -> dict[str, bytes]:
    """The files of the database, without those that a pull adds."""
    found = contents(home)
    found.pop("pulled.json", None)
    return found


@pytest.mark.parametrize("place", range(POINTS))
def test_a_pull_that_is_killed_shows_nothing_and_continues(
    homes: tuple[Path, Path], undisturbed: Undisturbed, clients: Clients, home: Path, place: int
) -> None:
    clients.run(_push, homes[0])
    rng = random.Random(f"pull {place}")
    clients.kill(_pull, home, undisturbed.pull_requests * (place + rng.random()) / POINTS, rng)
    if list_databases(str(home)):
        assert whole(home) == whole(homes[0])
    else:
        assert listing(str(home)) == []
        with pytest.raises(DatabaseError):
            run_query(QueryRequest("mine", key=1, home=str(home)))
    clients.run(_pull, home)
    assert whole(home) == whole(homes[0])
    assert check_database(RetrievalDatabase("mine", str(home))).damages == ()
    assert not list((home / "databases" / "mine").glob(".tmp/*")), "nothing is left of the fetched parts"


@pytest.mark.parametrize("place", range(POINTS))
def test_a_push_that_is_killed_changes_nothing_that_others_pull_and_continues(
    homes: tuple[Path, Path], undisturbed: Undisturbed, clients: Clients, home: Path, tmp_path: Path, place: int
) -> None:
    """The odd points are in the first push of a database, the even ones in a push that replaces its first version."""
    pushes = homes[:1] if place % 2 else homes
    states = undisturbed.pulled[: len(pushes)]
    for one in pushes[:-1]:
        clients.run(_push, one)
    rng = random.Random(f"push {place}")
    clients.kill(_push, pushes[-1], undisturbed.push_requests[len(pushes) - 1] * (place + rng.random()) / POINTS, rng)
    if clients.start(_pull, tmp_path / "between") == 0:
        assert whole(tmp_path / "between") in states
    else:
        assert len(states) == 1 and not list_databases(str(tmp_path / "between"))
    clients.run(_push, pushes[-1])
    clients.run(_pull, home)
    assert whole(home) == states[-1]
    again = len(clients.server.uploads) - len(set(clients.server.uploads))
    assert again <= IN_FLIGHT, "only uploads that the kill cut off are repeated"
