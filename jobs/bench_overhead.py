"""The cost of scheduling in seconds a shard, and the speed of a real build with one worker and with two.

    python jobs/bench_overhead.py --out DIR [--shards 1000] [--pictures 4000] [--encoder mini]

Each tiny shard writes one small file. `bare` is a loop over that function; `inline` and `ray` (two workers) are the executor,
with receipts, checks and progress. The start-up ends with the first shard. The cost of scheduling is the time a shard from
there to the end of the last one, minus the bare time (on Ray half of it, because two workers share the work).

The real build draws pictures (the atelier's, 64 pixels) once, and embeds and indexes them on Ray with one worker and with two,
one torch thread each. `embed` is the rate of that stage from the start of its first shard to its end; `process` includes
starting Ray, the encoder and the index. Both builds must publish the same version.

Resumable: every finished step is kept in DIR/state.json and not repeated. The machine should be idle. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.execution import Backend, Progress, Receipt, Resources, Shard, Stage, run_stages
from pipeline.machine import cores
from pipeline.storage import Storage

WORKERS = 2


def nothing() -> None:
    """No set-up."""


def tiny(storage: Storage, context: None, shard: Shard) -> Receipt:
    """The work of a tiny shard: one small file."""
    artifact = storage.write_text(f"tiny/{shard.name}.txt", shard.fingerprint)
    return Receipt("tiny", shard.id, "v1", shard.fingerprint, shard.rows, 0, 0, artifacts=(artifact,))


def tiny_stage(root: Path) -> Stage:
    storage = Storage(str(root))
    work = functools.partial(tiny, storage)
    return Stage("tiny", "tiny", storage, "v1", nothing, work, Resources(cpus=0.5))


def bare_seconds(root: Path, count: int) -> float:
    start = time.monotonic()
    for number in range(count):
        tiny(Storage(str(root)), None, Shard(number, 1, f"input {number}"))
    return time.monotonic() - start


class Clock(Progress):
    """Progress that records when each shard ended."""

    def __init__(self) -> None:
        super().__init__(stream=io.StringIO())
        self.ends: list[float] = []

    def advance(self, stage: str, shard: int, rows: int, seconds: float, problem: str = "") -> None:
        super().advance(stage, shard, rows, seconds, problem)
        self.ends.append(time.monotonic())


def executor_seconds(root: Path, count: int, backend: Backend) -> tuple[float, float]:
    """Seconds to the first shard's end, and seconds a shard from there on."""
    shards = [Shard(number, 1, f"input {number}") for number in range(count)]
    start, clock = time.monotonic(), Clock()
    outcome = run_stages((tiny_stage(root),), shards, backend, clock, count)
    if outcome.ran != {"tiny": count}:
        raise SystemExit(f"expected {count} shards to run, found {outcome.ran} and {outcome.failures[:1]}")
    return clock.ends[0] - start, (clock.ends[-1] - clock.ends[0]) / (count - 1)


def tiny_shards(out: Path, count: int) -> dict[str, Any]:
    """Seconds a shard, bare, inline and on Ray."""
    bare = bare_seconds(out / "bare", count) / count
    made: dict[str, Any] = {"shards": count, "bare": {"seconds_a_shard": bare}}
    for name, backend in (("inline", Backend()), ("ray", Backend("ray", workers=WORKERS))):
        first, each = executor_seconds(out / name, count, backend)
        added = each - bare / max(1, backend.workers)
        made[name] = {"start_seconds": first, "seconds_a_shard": each, "added_seconds_a_shard": added}
    return made


def rdmpipe(home: Path, *words: str) -> tuple[dict[str, Any], float]:
    """A command's JSON, and the seconds its process took. Raises CalledProcessError."""
    start = time.monotonic()
    env = {**os.environ, "RDMPIPE_HOME": str(home)}
    command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1]), time.monotonic() - start


def drawn(out: Path, pictures: int, encoder: str) -> dict[str, Any]:
    """The pictures with which both builds begin."""
    (out / "scaled.toml").write_text(
        'name = "scaled"\ntitle = "Drawn pictures"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\n'
        f'encoder = "{encoder}"\n'
        f'[source]\nkind = "atelier"\nshard_rows = 250\n[source.options]\nsize = 64\ncount = {pictures}\n'
    )
    home = out / "drawn"
    return {"seconds": rdmpipe(home, "download", str(out / "scaled.toml"), "--images", "keep")[1]}


def built(out: Path, workers: int) -> dict[str, Any]:
    """A build of the drawn pictures on Ray with this many workers."""
    home = out / f"home-{workers}"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(out / "drawn", home)
    words = ("build-index", str(out / "scaled.toml"), "--backend", "ray", "--workers", str(workers), "--threads", "1")
    summary, seconds = rdmpipe(home, *words)
    progress = json.loads((home / "databases" / "scaled" / "progress.json").read_text())
    return {
        "version": summary["version"],
        "pictures": summary["ok"],
        "shards": summary["shards"]["embed"],
        "process_seconds": seconds,
        "embed_pictures_a_second": progress["stages"]["embed"]["rows_per_second"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="working folder; a second run continues in it")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--encoder", default="mini")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.json"
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
    settings = {"pictures": arguments.pictures, "encoder": arguments.encoder}
    if state.setdefault("settings", settings) != settings:
        raise SystemExit(f"{out} holds a run with {state['settings']}, not {settings}: give another --out")
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        f"tiny {arguments.shards}": lambda: tiny_shards(out / f"tiny-{time.time_ns()}", arguments.shards),
        "drawn": lambda: drawn(out, arguments.pictures, arguments.encoder),
        "1 worker": lambda: built(out, 1),
        "2 workers": lambda: built(out, 2),
    }
    for name, step in steps.items():
        if name not in state:
            print(name, file=sys.stderr, flush=True)
            state[name] = step()
            state_file.write_text(json.dumps(state))
    one, two = state["1 worker"], state["2 workers"]
    scaling = {
        "embed": two["embed_pictures_a_second"] / one["embed_pictures_a_second"],
        "process": one["process_seconds"] / two["process_seconds"],
        "same_version": one["version"] == two["version"],
    }
    machine = {"cores": cores(), "load": os.getloadavg()}
    print(json.dumps({**state, "scaling 1 to 2 workers": scaling, "machine": machine}))
    return 0 if scaling["same_version"] else 1


if __name__ == "__main__":
    sys.exit(main())
