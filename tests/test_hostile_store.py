"""Two builds of one database at once on an object store: its compare-and-swap decides which may write."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.database import RetrievalDatabase
from pipeline.errors import BusyError, ConflictError
from pipeline.maintenance import check_database, list_versions
from pipeline.retrieval import QueryRequest, run_query
from tests.attempts import tried
from tests.builds import folder_of, manifest_of, quiet_build
from tests.s3server import BUCKET, Proxy, proxied, s3_server

pytestmark = [pytest.mark.process, pytest.mark.long]

ROUNDS = 20

Ended = dict[str, BaseException | str]  # by filter: the version that was published, or the error


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    with s3_server() as server, proxied(server, monkeypatch, tmp_path / "cache") as made:
        yield made


def test_two_builds_at_once_publish_one_after_the_other(proxy: Proxy, tmp_path: Path) -> None:
    """Both change the filter of the same published version. Neither change may be lost without an error or mixed with
    the other."""
    manifest = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 8))
    counts = {"won": 0, "conflict": 0, "busy": 0}
    for round_ in range(ROUNDS):
        home = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        first = quiet_build(manifest, home=home, threads=1).version
        barrier, ended = threading.Barrier(2), Ended()
        chance = random.Random(round_)
        filters = [f"item_id < '000{chance.randrange(4, 8)}.png'", f"item_id > '000{chance.randrange(0, 3)}.png'"]

        def work(where: str, home: str = home, barrier: threading.Barrier = barrier, ended: Ended = ended) -> None:
            barrier.wait()
            try:
                ended[where] = quiet_build(manifest, home=home, threads=1, where=where, wait_s=0.0).version
            except BaseException as raised:
                ended[where] = raised

        threads = [threading.Thread(target=work, args=(where,)) for where in filters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        won = [value for value in ended.values() if isinstance(value, str)]
        lost = [value for value in ended.values() if not isinstance(value, str)]
        assert len(ended) == 2 and won, ended
        assert all(isinstance(error, BusyError | ConflictError) for error in lost), lost
        counts["won"] += len(won)
        counts["conflict"] += sum(isinstance(error, ConflictError) for error in lost)
        counts["busy"] += sum(type(error) is BusyError for error in lost)
        database = RetrievalDatabase("mine", home)
        assert database.current_id() in won
        line = [version.version for version in list_versions(database)]
        assert line[-1] == first or first in line
        assert check_database(database).damages == ()
        assert run_query(QueryRequest("mine", key=3, k=8, home=home)).records()
    tried(ROUNDS)
    print(f"{ROUNDS} rounds, {counts}")
