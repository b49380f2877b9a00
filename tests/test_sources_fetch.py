"""Cached downloads from a real server that makes errors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import BudgetError, SourceError
from pipeline.sources.web.download import fetch, rebase, remote_size
from pipeline.sources.web.retries import Patience
from tests.server import Fault, Server, serve

QUICK = Patience(attempts=3, first_wait_s=0.01, timeout_s=5.0)
DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.bin").write_bytes(DATA)
    with serve(folder) as running:
        yield running


def test_a_file_is_received_once_and_then_comes_from_the_cache(server: Server) -> None:
    first = fetch(f"{server.url}/a.bin", patience=QUICK)
    assert first.path.read_bytes() == DATA
    again = fetch(f"{server.url}/a.bin", identity=first.identity, patience=QUICK)
    assert again == first
    assert len(server.asked("GET", "/a.bin")) == 1


def test_a_file_that_changed_on_the_server_is_received_again(server: Server) -> None:
    first = fetch(f"{server.url}/a.bin", patience=QUICK)
    (server.folder / "a.bin").write_bytes(DATA[:-1])
    second = fetch(f"{server.url}/a.bin", patience=QUICK)
    assert second.identity != first.identity
    assert second.path.read_bytes() == DATA[:-1]
    with pytest.raises(SourceError, match="changed while it was being read"):
        fetch(f"{server.url}/a.bin", identity=first.identity, patience=QUICK)


def test_a_cut_connection_is_resumed_where_it_broke(server: Server) -> None:
    server.fail("/a.bin", Fault("cut", 300_000))
    found = fetch(f"{server.url}/a.bin", md5=hashlib.md5(DATA).hexdigest(), patience=QUICK)
    assert found.path.read_bytes() == DATA
    first, second = server.asked("GET", "/a.bin")
    assert first == "" and second.startswith("bytes=")
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 300_000


def test_what_a_broken_run_received_is_continued_by_the_next_run(server: Server) -> None:
    server.fail("/a.bin", Fault("cut", 300_000))
    server.fail("/a.bin", Fault("status", 503), times=3)
    with pytest.raises(SourceError, match="run the same command again"):
        fetch(f"{server.url}/a.bin", patience=QUICK)
    assert fetch(f"{server.url}/a.bin", patience=QUICK).path.read_bytes() == DATA
    assert server.asked("GET", "/a.bin")[-1].startswith("bytes=")


def test_a_download_that_keeps_breaking_but_advances_is_not_given_up(server: Server) -> None:
    server.fail("/a.bin", Fault("cut", 100_000), times=8)
    assert fetch(f"{server.url}/a.bin", patience=QUICK).path.read_bytes() == DATA


def test_a_file_that_changed_between_two_attempts_is_not_patched_together(server: Server) -> None:
    server.fail("/a.bin", Fault("cut", 300_000))
    server.fail("/a.bin", Fault("status", 500), times=3)
    with pytest.raises(SourceError):
        fetch(f"{server.url}/a.bin", patience=QUICK)
    (server.folder / "a.bin").write_bytes(DATA[::-1])
    assert fetch(f"{server.url}/a.bin", patience=QUICK).path.read_bytes() == DATA[::-1]


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_temporary_errors_are_retried(server: Server, status: int) -> None:
    server.fail("/a.bin", Fault("status", status), times=2)
    assert fetch(f"{server.url}/a.bin", patience=QUICK).path.read_bytes() == DATA


@pytest.mark.parametrize("status", [403, 404, 410])
def test_permanent_errors_are_raised_at_once(server: Server, status: int) -> None:
    server.fail("/a.bin", Fault("status", status))
    with pytest.raises(SourceError, match=f"HTTP {status}"):
        fetch(f"{server.url}/a.bin", patience=QUICK)
    assert len(server.asked("GET", "/a.bin")) == 1


def test_a_wrong_checksum_says_what_was_expected_and_found(server: Server) -> None:
    expected, found = "0" * 32, hashlib.md5(DATA).hexdigest()
    with pytest.raises(SourceError, match=f"expected md5 {expected}, found {found}"):
        fetch(f"{server.url}/a.bin", md5=expected, patience=QUICK)
    assert fetch(f"{server.url}/a.bin", md5=found, patience=QUICK).identity == f"md5:{found}"


def test_a_page_in_place_of_the_file_does_not_pass_the_checksum(server: Server) -> None:
    server.fail("/a.bin", Fault("html"))
    with pytest.raises(SourceError, match="wrong checksum"):
        fetch(f"{server.url}/a.bin", md5=hashlib.md5(DATA).hexdigest(), patience=QUICK)


def test_an_endless_answer_ends_at_the_limit(server: Server) -> None:
    server.fail("/a.bin", Fault("endless"))
    with pytest.raises(SourceError, match="more than the allowed"):
        fetch(f"{server.url}/a.bin", max_bytes=2 << 20, patience=QUICK)


def test_a_file_larger_than_allowed_is_refused_before_it_is_received(server: Server) -> None:
    with pytest.raises(SourceError, match="more than the 1000 that are allowed"):
        fetch(f"{server.url}/a.bin", max_bytes=1000, patience=QUICK)


def test_silence_times_out_and_is_retried(server: Server) -> None:
    server.fail("/a.bin", Fault("slow", 3.0))
    found = fetch(f"{server.url}/a.bin", patience=Patience(attempts=2, first_wait_s=0.01, timeout_s=0.3))
    assert found.path.read_bytes() == DATA
    assert len(server.asked("GET", "/a.bin")) == 2


def test_offline_takes_the_cache_alone(server: Server) -> None:
    with pytest.raises(SourceError, match="not in the cache"):
        fetch(f"{server.url}/a.bin", offline=True)
    fetch(f"{server.url}/a.bin", patience=QUICK)
    asked = len(server.requests)
    assert fetch(f"{server.url}/a.bin", offline=True).path.read_bytes() == DATA
    assert len(server.requests) == asked


def test_an_incomplete_cache_entry_is_not_used(server: Server) -> None:
    first = fetch(f"{server.url}/a.bin", patience=QUICK)
    first.path.write_bytes(DATA[:1000])
    assert fetch(f"{server.url}/a.bin", identity=first.identity, patience=QUICK).path.read_bytes() == DATA


def test_a_server_that_is_not_there_is_an_error_with_the_address(home: Path) -> None:
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9/a\.bin: gave up after 2 attempt"):
        fetch("http://127.0.0.1:9/a.bin", patience=Patience(2, 0.01, 1.0))


def test_an_address_is_moved_to_another_server_with_its_path() -> None:
    assert rebase("https://x.org/files/a.tar?b=1", "http://127.0.0.1:80/m") == "http://127.0.0.1:80/m/files/a.tar?b=1"
    assert rebase("https://x.org/a", "") == "https://x.org/a"


def test_the_size_of_a_remote_file_is_known_without_receiving_it(server: Server) -> None:
    assert remote_size(f"{server.url}/a.bin", patience=QUICK) == len(DATA)
    assert server.asked("GET", "/a.bin") == []


def test_a_file_without_room_on_the_disk_is_refused_before_it_is_received(server: Server, tmp_path: Path) -> None:
    server.fail("/a.bin", Fault("announce", shutil.disk_usage(tmp_path).free + (1 << 30)))
    with pytest.raises(BudgetError, match="RDMPIPE_CACHE"):
        fetch(f"{server.url}/a.bin", patience=QUICK)
