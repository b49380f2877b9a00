"""Files appear complete or not at all, compare-and-swap has one winner, and nothing leaves the root."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import BusyError, DatabaseError, DiskFullError
from pipeline.storage import Storage, disk_full_is_an_error, lease
from tests.writers import count_up


def test_what_an_operating_system_leaves_in_a_folder_is_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a.json", "._a.json", ".DS_Store", "Thumbs.db", "desktop.ini"):
        storage.write_text(f"versions/{name}", "{}")
    assert storage.list("versions") == storage.list("versions", ".json") == ["a.json"]


def test_a_written_file_reads_back_and_is_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    artifact = storage.write_text("a/b.txt", "héllo")
    assert storage.read_text("a/b.txt") == "héllo"
    assert artifact.bytes == 6
    assert storage.list("a") == ["b.txt"]
    assert storage.list("a", ".json") == []
    assert storage.read_text("a/none") is None
    assert storage.size("a/none") is None


def test_a_path_outside_the_root_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    for bad in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(DatabaseError, match="not a path inside"):
            storage.write_text(bad, "no")
    assert not (tmp_path / "x").exists()


def test_compare_and_swap_loses_no_update_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=count_up, args=(str(tmp_path), 40)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert Storage(str(tmp_path)).read_text("counter") == "120"


def test_a_swap_from_the_wrong_value_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert storage.swap("current", None, "one")
    assert not storage.swap("current", None, "two")
    assert not storage.swap("current", "zero", "two")
    assert storage.read_text("current") == "one"


@pytest.mark.process
def test_a_killed_writer_leaves_no_incomplete_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.storage import Storage\n"
        "storage = Storage(sys.argv[1]); i = 0\n"
        "while True:\n"
        "    storage.write_bytes('file', bytes([i % 251]) * 3_000_000); i += 1; print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    data = (tmp_path / "file").read_bytes()
    assert len(data) == 3_000_000
    assert data == data[:1] * len(data)
    assert Storage(str(tmp_path)).list() == ["file"]


def test_a_full_disk_is_an_error_that_says_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="free some space"), disk_full_is_an_error("x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), disk_full_is_an_error("x"):
        raise PermissionError("something else stays what it is")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_that_error_too() -> None:
    with pytest.raises(DiskFullError), disk_full_is_an_error("/dev/full"), Path("/dev/full").open("wb") as handle:
        handle.write(b"x" * 100_000)


def test_a_second_writer_is_told_who_holds_the_lease(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease(storage, "the first build"), pytest.raises(BusyError, match="the first build"), lease(storage, "second"):
        pass
    with lease(storage, "after it"):
        pass


def test_a_second_writer_can_wait(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    order: list[str] = []

    def second() -> None:
        with lease(storage, "second", wait_s=20):
            order.append("second")

    with lease(storage, "first"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


@pytest.mark.process
def test_a_killed_holder_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipeline.storage import Storage, lease\n"
        "with lease(Storage(sys.argv[1]), 'doomed'):\n    print('held', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(BusyError), lease(Storage(str(tmp_path)), "early"):
        pass
    process.kill()
    process.wait()
    start = time.monotonic()
    with lease(Storage(str(tmp_path)), "next"):
        pass
    assert time.monotonic() - start < 5


def test_a_holder_elsewhere_that_stops_renewing_is_replaced_after_its_term(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_text(
        "lease", '{"holder": "x", "host": "elsewhere", "pid": 1, "purpose": "p", "term": 1.0, "beat": 4}'
    )
    with pytest.raises(BusyError, match="elsewhere"), lease(storage, "too early", term_s=1.0):
        pass
    with lease(storage, "patient", wait_s=10, term_s=1.0):
        pass


def test_a_holder_elsewhere_can_be_asked_to_prove_that_it_lives(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    holder = {"holder": "x", "host": "elsewhere", "pid": 1, "purpose": "p", "term": 1.0, "beat": 4}
    storage.write_text("lease", json.dumps(holder))
    with lease(storage, "takes over from the dead", term_s=1.0, believe=False):
        pass
    storage.write_text("lease", json.dumps(holder))
    beats = threading.Timer(0.3, storage.write_text, ("lease", json.dumps({**holder, "beat": 5})))
    beats.start()
    with pytest.raises(BusyError, match="elsewhere"), lease(storage, "yields", term_s=60.0, believe=False):
        pass
    beats.join()


def test_a_holder_renews_its_lease_while_it_works(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease(storage, "long work", term_s=0.6):
        first = storage.read_text("lease")
        time.sleep(1.0)
        assert storage.read_text("lease") != first
