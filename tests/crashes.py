"""Helpers for the crash tests: a build of many small shards, kills at seeded points, and checks of what they leave.

A kill ends a driver, a worker that downloads, or an actor that embeds. The work of a process is recognised by its files in the
scratch folder: one that writes `images.tar` downloads, one that writes `thumbnails.tar` embeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.building import BuildRequest, build
from pipeline.execution import Backend, Progress
from tests.builds import contents, folder_of, manifest_of, quiet_build
from tests.forked import preloaded_processes

KILLS = 10  # kills of each stage
# A busy machine starts workers slowly, and all kills may hit one shard.
RAY = Backend(kind="ray", workers=2, retries=KILLS, start_timeout_s=900.0)
RECEIPTS = {"download": "images/*.json", "embed": "embeddings/*/*.json"}
AT_WORK = {"download": "images.tar", "embed": "thumbnails.tar"}


@dataclass(frozen=True)
class Target:
    """A manifest, its numbers of shards and rows, and the result of an uninterrupted build."""

    manifest: str
    shards: int
    rows: int
    undisturbed: dict[str, bytes]


def target_of(root: Path, shards: int, shard_rows: int = 10) -> Target:
    rows = shards * shard_rows
    manifest = manifest_of(root / "mine.toml", folder_of(root / "pictures", rows), shard_rows=shard_rows)
    quiet_build(manifest, home=str(root / "undisturbed"), threads=1)
    return Target(manifest, shards, rows, contents(root / "undisturbed"))


def points(what: str, shards: int, count: int = KILLS) -> list[tuple[int, float]]:
    """Seeded points: the number of receipts before the kill, one in each of `count` stretches, and the seconds to wait
    then, so that the kill comes at any moment of the work on a shard."""
    rng = random.Random(f"{what} points")
    stretch = (shards - 6) // count
    return [(1 + i * stretch + rng.randrange(stretch), rng.uniform(0.0, 0.06)) for i in range(count)]


def receipts(home: Path, stage: str) -> list[Path]:
    return list((home / "databases" / "mine").glob(RECEIPTS[stage]))


def _drive(manifest: str, home: str, ray: bool, said: str) -> None:
    """Run one build in its own process group. The last line of its output is the count of shards."""
    os.setsid()
    with Path(said).open("w", buffering=1) as out:
        progress = Progress(stream=out)
        made = build(BuildRequest(manifest, home=home, threads=1, backend=RAY if ray else Backend()), progress)
        out.write(json.dumps(asdict(made)) + "\n")


class Driver:
    """A build in a process that is forked from a server with the large imports, so that it starts quickly."""

    def __init__(self, target: Target, home: Path, ray: bool = False) -> None:
        self.log = home.parent / f"said {time.monotonic_ns()}"
        self.process = preloaded_processes().Process(
            target=_drive, args=(target.manifest, str(home), ray, str(self.log))
        )
        self.process.start()

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, ready: Callable[[], bool], seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, "the build never came to that point"
            assert self.process.is_alive(), f"the build ended before that point: {self.said()}"
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL only to the driver. Ray's own processes notice and end, or are ended here."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.is_alive() else []
        self.process.kill()
        self.process.join()
        _, alive = psutil.wait_procs(children, timeout=5)
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(alive, timeout=20)

    def summary(self) -> dict[str, Any]:
        """The result of the build, which has to succeed."""
        self.process.join(1200)
        assert self.process.exitcode == 0, self.said()
        made: dict[str, Any] = json.loads(self.said().splitlines()[-1])
        return made

    def repeated(self, stage: str) -> list[str]:
        """The shards of a stage that were tried again, once for each attempt."""
        return re.findall(rf"{stage}: shard (\d+): attempt \d", self.said())


@dataclass
class Tally:
    """The results of a series of kills, and the finished shards that have been seen."""

    kills: int = 0
    repeated: int = 0  # shards that were unfinished at a kill
    most: int = 0  # the most of them in one worker at one kill
    finished: dict[Path, tuple[int, int]] = field(default_factory=dict)  # receipt -> its inode and time

    def tell(self, what: str) -> None:
        """Print the results; pytest shows them with -rP."""
        print(
            f"{what}: {self.kills} kills, identical; shards repeated {self.repeated}, of one worker at most {self.most}"
        )

    def look(self, home: Path) -> None:
        """Check that all visible files are complete, and that no finished shard was done again."""
        root = home / "databases" / "mine"
        for receipt in [path for stage in RECEIPTS for path in receipts(home, stage)]:
            for artifact in json.loads(receipt.read_text())["artifacts"]:
                path = root / artifact["path"]
                if not path.exists():  # pictures are removed once they are embedded
                    assert (path.suffix, path.parent.name) == (".tar", "images")
                    continue
                assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"], f"{path} is incomplete"
            status = receipt.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            assert self.finished.setdefault(receipt, seen) == seen, f"{receipt} was made twice"
        for version in root.glob("versions/*.json"):
            files = json.loads(version.read_text())["index"]["files"].values()
            for artifact in files:
                assert hashlib.sha256((root / artifact["path"]).read_bytes()).hexdigest() == artifact["sha256"]

    def count_cut(self, home: Path) -> None:
        """Count the shards that a dead driver's workers had begun, from the files in the scratch folder."""
        for stage in AT_WORK:
            left = at_work(home, stage)
            self.repeated += len(left)
            self.most = max([self.most, *(left.count(pid) for pid in left)])
        assert self.most <= 1, "a worker had begun more than one shard"


def at_work(home: Path, stage: str) -> list[int]:
    """The processes that work on shards of this stage, one for each shard."""
    scratch = home / "databases" / "mine" / ".tmp"
    return [int(path.parent.name.split("-")[0]) for path in scratch.glob(f"*-*/{AT_WORK[stage]}")]
