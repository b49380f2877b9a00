"""How busy a build on one machine keeps the cores: wall time, processor time and their ratio, for each kind of local source.

    python jobs/bench_build.py --out DIR [--pictures 2000] [--sources atelier,folder,tar,parquet] [--rounds 1] [--json]

Writes the pictures and the databases below DIR. Each build is a process of its own with the shipped encoder, and all of its
child processes count. `busy` is processor time over wall time times the cores: 1 is the most that is possible. `reference` is
the processor time over the cores: the wall time of a build that kept every core busy from its first moment to its last. Other
work on the machine makes wall times longer: the load is printed, and only an idle machine gives a figure.

`idle s` is an estimate for an idle machine from a run on a busy one (Linux): every hundredth of a second, the processor time
that the build's threads used since, divided by how many of them could run, at most the number of cores. A thread that waits
for another one, or for Python's lock, cannot run; one that waits only for a core can.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import machine
from pipeline.atelier import picture, png_bytes
from pipeline.installation import python_path

SOURCES = ("atelier", "folder", "tar", "parquet")


def write_sources(folder: Path, count: int) -> dict[str, str]:
    """The same pictures as a folder, a tar and a Parquet file; drawn once."""
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = folder / "folder"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pictures.mkdir(parents=True)
        files = [png_bytes(picture(i, size=128).image) for i in range(count)]
        for i, data in enumerate(files):
            (pictures / f"{i:06d}.png").write_bytes(data)
        with tarfile.open(folder / "pictures.tar", "w") as tar:
            for path in sorted(pictures.iterdir()):
                tar.add(path, path.name)
        pq.write_table(pa.table({"image": files}), folder / "pictures.parquet", row_group_size=200)
        (folder / "done").touch()
    return {
        "atelier": "atelier",
        "folder": str(pictures),
        "tar": str(folder / "pictures.tar"),
        "parquet": str(folder / "pictures.parquet"),
    }


def threads_of(process: int) -> Iterator[Path]:
    """The folders in /proc of the threads of a process and of its children."""
    for thread in Path(f"/proc/{process}/task").glob("*"):
        yield thread
        with contextlib.suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield from threads_of(int(child))


def idle_seconds(process: subprocess.Popen[bytes]) -> float:
    """The wall time of a running process on idle cores, estimated until it ends; 0 without /proc."""
    used: dict[Path, int] = {}
    seconds = 0.0
    while process.poll() is None:
        able, spent = 0, 0
        for thread in threads_of(process.pid):
            with contextlib.suppress(OSError, IndexError):
                before, used[thread] = used.get(thread, 0), int((thread / "schedstat").read_text().split()[0])
                spent += used[thread] - before
                able += (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
        seconds += spent / 1e9 / min(machine.cores(), max(1, able))
        time.sleep(0.01)
    return seconds


def build(target: str, home: Path, count: int) -> tuple[float, float, float]:
    """Wall and processor seconds of one build in a process of its own, and the estimate for idle cores."""
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline.cli", "build-index", target, "--name", "bench", "--encoder", "mini"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command += ["--limit", str(count), "--home", str(home)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    idle = idle_seconds(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, idle


def main() -> None:
    parser = argparse.ArgumentParser(description="How busy a build keeps the cores of one machine.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chosen = args.sources.split(",")
    targets = write_sources(args.out / "sources", args.pictures) if chosen != ["atelier"] else {"atelier": "atelier"}
    cores, load = machine.cores(), os.getloadavg()[0]
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen}
    for _ in range(args.rounds):
        for name in chosen:
            taken[name].append(build(targets[name], args.out / "home", args.pictures))
    rows = []
    for name, rounds in taken.items():
        wall, cpu, idle = (statistics.median(column) for column in zip(*rounds, strict=True))
        rows.append({
            "source": name, "ours_s": round(wall, 1), "processor_s": round(cpu, 1), "reference_s": round(cpu / cores, 1),
            "busy": round(cpu / wall / cores, 2), "idle_s": round(idle, 1),
        })  # fmt: skip
    told = {
        "what": "a build with all cores", "pictures": args.pictures, "cores": cores, "load_before": round(load, 1),
        "processor": platform.processor() or platform.machine(), "rows": rows,
    }  # fmt: skip
    if args.json:
        print(json.dumps(told))
        return
    print(f"{args.pictures:,} pictures of 128 pixels, encoder mini, {cores} cores, load before {load:.1f}")
    print(f"{'source':10}{'wall s':>10}{'processor s':>13}{'all cores s':>13}{'busy':>7}{'idle s':>9}")
    for row in rows:
        print(
            f"{row['source']:10}{row['ours_s']:10.1f}{row['processor_s']:13.1f}{row['reference_s']:13.1f}{row['busy']:7.2f}"
            f"{row['idle_s']:9.1f}"
        )


if __name__ == "__main__":
    main()
