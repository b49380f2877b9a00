"""Small real stages for the executor's contract: they write files, and fail as files in `orders/` tell them to."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

from pipeline.errors import DiskFullError
from pipeline.execution import Receipt, Resources, Shard, Stage
from pipeline.storage import Storage


def set_up(root: str, name: str) -> str:
    log(root, f"setup {name} {os.getpid()}")
    return f"context of {name}"


def log(root: str, line: str) -> None:
    with (Path(root) / "log").open("a") as handle:
        handle.write(line + "\n")


def orders(root: str, name: str, shard: Shard) -> str:
    """Read one order for this shard, and remove it unless it says `always`."""
    path = Path(root) / "orders" / f"{name}-{shard.id}"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ""
    if not text.startswith("always"):
        path.unlink()
    return text.removeprefix("always").strip()


def work(root: str, name: str, before: str, pause: float, home: Storage, context: str, shard: Shard) -> Receipt:
    assert context == f"context of {name}"
    log(root, f"run {name} {shard.id}")
    order = orders(root, name, shard)
    if order == "raise":
        raise ValueError("ordered to fail")
    if order == "die":
        os._exit(1)
    if order == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "hang":
        time.sleep(600)
    if order == "full":
        raise DiskFullError("the disk is full: free some space")
    if order == "lose rows":
        return Receipt(name, shard.id, "v1", shard.fingerprint, ok=shard.rows - 1, filtered=0, failed=0)
    time.sleep(pause)
    if before:
        assert home.exists(f"{before}/{shard.name}.txt"), "the earlier stage is not done"
        log(root, f"waiting {len(home.list(before, '.txt')) - len(home.list(name, '.txt'))}")
    artifact = home.write_text(f"{name}/{shard.name}.txt", f"{name} {shard.fingerprint}")
    return Receipt(name, shard.id, "v1", shard.fingerprint, shard.rows, 0, 0, artifacts=(artifact,))


def stage(
    root: Path,
    name: str,
    before: str = "",
    pause: float = 0.0,
    timeout_s: float = 60.0,
    cpus: float = 0.5,
    storage: Storage | None = None,
) -> Stage:
    """A stage with its log and its orders in `root`, and its files in `storage` (by default also in `root`)."""
    home = storage or Storage(str(root))
    return Stage(
        name=name,
        folder=name,
        storage=home,
        config="v1",
        setup=functools.partial(set_up, str(root), name),
        run=functools.partial(work, str(root), name, before, pause, home),
        resources=Resources(cpus=cpus, timeout_s=timeout_s),
    )


def shards(count: int) -> list[Shard]:
    return [Shard(i, rows=10, fingerprint=f"input {i}") for i in range(count)]


def order(root: Path, name: str, shard: int, what: str) -> None:
    folder = root / "orders"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{shard}").write_text(what)


def lines(root: Path, word: str) -> list[str]:
    path = root / "log"
    return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []
