"""A disk that is too small is refused before work; one that fills up during work loses nothing that is finished."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import BudgetError
from tests.builds import command, contents, folder_of, last_json, manifest_of, quiet_build

pytestmark = pytest.mark.process


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 6 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", mount], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine does not let a test mount a file system: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_build_that_will_not_fit_is_refused_before_work(small_disk: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 500)
    with pytest.raises(BudgetError, match="--images drop"):
        quiet_build(folder, home=str(small_disk))
    assert not list(small_disk.rglob("*.tar"))


def test_a_disk_that_fills_up_loses_nothing_that_is_finished(small_disk: Path, tmp_path: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 120))
    quiet_build(target, home=str(tmp_path / "undisturbed"))
    filler, stop = small_disk / "filler", threading.Event()

    def fill() -> None:
        """Fill the disk once two shards are embedded."""
        receipts = small_disk / "databases" / "mine" / "embeddings"
        while len(list(receipts.glob("*/*.json"))) < 2 and not stop.is_set():
            time.sleep(0.002)
        with filler.open("wb", buffering=0) as handle:
            while not stop.is_set():
                try:
                    handle.write(b"x" * 4096)
                except OSError:
                    time.sleep(0.001)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    first = command("build-index", target, home=small_disk)
    stop.set()
    thread.join(20)
    error = first.communicate()[1]
    assert first.returncode == 1, error
    assert "no space left" in error
    assert "Traceback" not in error
    filler.unlink()
    kept = len(list((small_disk / "databases/mine/embeddings").glob("*/*.json")))
    assert kept >= 2
    summary = last_json(command("build-index", target, "--json", home=small_disk))
    assert summary["shards"]["embed"] == {"ran": 12 - kept, "skipped": kept}
    assert contents(small_disk) == contents(tmp_path / "undisturbed")
