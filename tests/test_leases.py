"""The holder of a lease: processes that died, zombie processes, processes elsewhere, damaged files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import BusyError
from pipeline.storage import Holder, Storage, holder_of, lease

HOLDING = (
    "import sys, time; from pipeline.storage import Storage, lease\n"
    "with lease(Storage(sys.argv[1]), 'doomed'):\n    print('held', flush=True); time.sleep(600)\n"
)


def hold(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.process
def test_a_killed_holder_that_nobody_collects_does_not_hold_the_lease(tmp_path: Path) -> None:
    storage, process = Storage(str(tmp_path)), hold(tmp_path)
    try:
        with pytest.raises(BusyError, match="doomed"), lease(storage, "early"):
            pass
        os.kill(process.pid, signal.SIGKILL)
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            time.sleep(0.01)
        assert holder_of(storage) is None
        with lease(storage, "second"):  # without waiting, though the process is not collected
            held = holder_of(storage)
            assert held is not None and held.purpose == "second"
    finally:
        process.kill()
        process.communicate()


@pytest.mark.process
def test_a_stopped_holder_still_holds_the_lease(tmp_path: Path) -> None:
    storage, process = Storage(str(tmp_path)), hold(tmp_path)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(BusyError, match="doomed"), lease(storage, "second"):
            pass
    finally:
        process.kill()
        process.communicate()


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease(storage, "first"):
        mine = json.loads(storage.read_text("lease") or "")
    storage.write_text("lease", json.dumps({**mine, "started": "1"}))
    assert holder_of(storage) is None
    with lease(storage, "second"):
        pass


def test_a_holder_in_another_container_of_the_same_name_is_judged_by_its_renewals(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with lease(storage, "first"):
        mine = json.loads(storage.read_text("lease") or "")
    storage.write_text("lease", json.dumps({**mine, "pids": "pid:[1]", "term": 0.5}))
    with pytest.raises(BusyError), lease(storage, "second", term_s=0.5):
        pass
    with lease(storage, "third", wait_s=20, term_s=0.5):
        pass


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_lease_is_taken_over_and_never_a_traceback(tmp_path: Path, seed: int) -> None:
    chance, storage = random.Random(seed), Storage(str(tmp_path))
    whole = Holder("a" * 32, "elsewhere", "", 1, "1", "work", 60.0).to_json().encode()
    damages = [
        b"", b"\x00" * 100, b"{", b"[]", b"null", b'"text"', b"{}", b"\xff\xfe\x80", b"[" * 100_000, b'{"pid": "x"}',
        whole[: chance.randrange(1, len(whole))], whole.replace(b'"pid": 1', b'"pid": 1e400'),
        whole.replace(b'"term": 60.0', b'"term": "long"'), whole.replace(b'"pid": 1', b'"pid": [1]'),
        bytes(byte ^ (chance.random() < 0.2) * chance.randrange(1, 256) for byte in whole),
    ]  # fmt: skip
    (tmp_path / "lease").write_bytes(damages[seed % len(damages)])
    found = holder_of(storage)
    try:
        with lease(storage, "next"):
            now = holder_of(storage)
            assert now is not None and now.purpose == "next"
    except BusyError:
        assert found is not None or b"elsewhere" in (tmp_path / "lease").read_bytes()  # still a whole lease of somebody
