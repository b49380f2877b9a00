"""A whole run on real pictures: a database of seven styles, and prompts drawn with three of the styles, four times.

    python jobs/whole_run.py --styles ../shared/data/styles --out DIR [--model rdm-mini-2] [--count 40] [--steps 10]

Runs the same request inline, on Ray with two workers, inline with a SIGKILL in the middle and a second call, and on Ray with
the same. All four must end with the same bytes in every picture and the same rows in results.parquet, except the seconds. The
printed JSON and the exit status say whether they did. Writes the database and the four runs, each with its gallery, below DIR,
which must be new or empty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
VIEWS = {"noto": "noto", "openmoji": "openmoji", "unifont": "unifont"}  # a style each, by the slug of its view


def rdmpipe(home: Path, *words: str) -> subprocess.Popen[str]:
    """A command in its own process group, so that a kill reaches all processes that it started."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "RDMPIPE_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    summary: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return summary


def build(home: Path, styles: Path, encoder: str) -> tuple[dict[str, Any], list[str]]:
    """The database `styles` from the folder's Parquet files, and the names of three views of it."""
    manifest = home / "styles.toml"
    manifest.write_text(
        'name = "styles"\ntitle = "Drawing styles of everyday things"\nlicence = "of each row"\n'
        'terms = "Every row carries its collection\'s own licence."\nopt_out = "none"\n'
        f'encoder = "{encoder}"\n[source]\nkind = "parquet"\npath = {json.dumps(str(styles.absolute()))}\nimage = "png"\n'
        'caption = "caption"\nlicence = "license"\nitem_id = "id"\ncolumns = ["style"]\nshard_rows = 1000\n'
    )
    start = time.monotonic()
    words = ("build-index", str(manifest), "--images", "thumbnail", "--threads", "1")
    summary = finish(rdmpipe(home, *words))
    (home / "manifests").mkdir(exist_ok=True)
    names = []
    for slug, style in VIEWS.items():
        names.append(f"styles-{slug}")
        view = f'name = "styles-{slug}"\nbase = "styles"\nwhere = "style = \'{style}\'"\n'
        (home / "manifests" / f"styles-{slug}.toml").write_text(view)
    kept = {name: summary[name] for name in ("input", "ok", "filtered", "failed", "version", "encoder")}
    return {**kept, "seconds": round(time.monotonic() - start, 1)}, names


def made(out: Path) -> int:
    return len(list(out.glob("images/*.png")))


def stopped(process: subprocess.Popen[str], out: Path, count: int) -> int:
    """Kill the run and all that it started when `count` pictures exist. Returns the number of pictures."""
    while made(out) < count:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before it had {count} pictures: nothing to kill")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return made(out)


def drawn(home: Path, out: Path, words: Sequence[str], kill_at: int) -> dict[str, Any]:
    """One of the four runs. With `kill_at` above 0 it is killed at that number of pictures and called again."""
    figures: dict[str, Any] = {}
    command = ("generate", *words, "--out", str(out))
    if kill_at:
        start = time.monotonic()
        figures["left_by_the_killed"] = stopped(rdmpipe(home, *command), out, kill_at)
        figures["seconds_until_killed"] = round(time.monotonic() - start, 1)
    start = time.monotonic()
    summary = finish(rdmpipe(home, *command))
    figures |= {name: summary[name] for name in ("requested", "ok", "failed", "pictures", "made")}
    return {**figures, "seconds": round(time.monotonic() - start, 1)}


def contents(out: Path) -> tuple[dict[str, str], Any]:
    """Checksums of a run's pictures by name, and its rows without the seconds."""
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("images/*.png")}
    return sums, pq.read_table(out / "results.parquet").drop_columns(["seconds"])


def require_one_model(out: Path, names: Sequence[str]) -> None:
    """Refuse to compare runs of different weights: they are different requests."""
    found = {name: sorted(set(contents(out / name)[1]["model_hash"].to_pylist())) for name in names}
    if len({tuple(hashes) for hashes in found.values()}) > 1:
        raise SystemExit(f"the model's weights changed between the runs, so they cannot be compared: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", type=Path, required=True, help="folder of Parquet files, one for each style")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="rdm-mini-2", help="a model's name or folder")
    parser.add_argument("--encoder", default="mini-2", help="the model's encoder")
    parser.add_argument("--prompts", type=Path, default=ROOT / "pipeline" / "assets" / "prompts.txt")
    parser.add_argument("--count", type=int, default=40, help="prompts, from the list's beginning")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    out: Path = args.out.absolute()
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: give a new folder, since a finished run would not be made again")
    home = out / "home"
    home.mkdir(parents=True)
    prompts = [line for line in args.prompts.read_text("utf-8").splitlines() if line.strip()][: args.count]
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    database, views = build(home, args.styles, args.encoder)
    words = [str(out / "prompts.txt"), "--db", ",".join(views), "--model", args.model, "--steps", str(args.steps),
             "--batch", str(args.batch), "--threads", "1"]  # fmt: skip
    third, ray = len(prompts) * len(views) // 3, ["--backend", "ray", "--workers", "2"]
    backends: dict[str, tuple[list[str], int]] = {
        "inline": (["--backend", "inline"], 0), "ray": (ray, 0),
        "inline-killed": (["--backend", "inline"], third), "ray-killed": (ray, third),
    }  # fmt: skip
    runs = {}
    for name, (backend, kill_at) in backends.items():
        runs[name] = drawn(home, out / name, [*words, *backend], kill_at)
        print(f"{name}: {runs[name]}", file=sys.stderr)
    require_one_model(out, list(backends))
    first, rows = contents(out / "inline")
    same = {}
    for name in list(backends)[1:]:
        sums, others = contents(out / name)
        same[name] = {"pictures": sums == first, "rows": bool(others.equals(rows))}
    identical = len(first) == runs["inline"]["pictures"] and all(all(entry.values()) for entry in same.values())
    chosen = {"model": args.model, "steps": args.steps, "batch": args.batch}
    settings = {"prompts": len(prompts), "databases": views, **chosen}
    different = len(set(first.values()))
    print(json.dumps({"settings": settings, "database": database, "runs": runs, "different_pictures": different,
                      "same_as_inline": same, "identical": identical}, indent=2))  # fmt: skip
    raise SystemExit(0 if identical else 1)


if __name__ == "__main__":
    main()
