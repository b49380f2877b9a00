"""Measure a refresh: pictures are added, changed and removed, and only those are processed again.

    python jobs/bench_refresh.py STYLES [--out DIR] [--pictures 0] [--added 500] [--changed 100] [--removed 100]

STYLES is a folder of Parquet files with picture bytes in a column `png` and texts in `caption` and `style`. The script writes
them to a folder of pictures, builds a database from it, and changes the folder: it adds pictures of the atelier, mirrors some
pictures and deletes some. The refresh is `rdmpipe build-index --refresh`; a second refresh must find nothing new.

Counts from receipts: `untouched` shards have the same receipt and rows as before, byte for byte and with the same time in
nanoseconds; `redone` shards do not; `new` shards did not exist before. Searches run in the new version and in the old
one, pinned: each picture that the version should hold (all that changed and about 500 others) must find itself, as a
result with its checksum and no result with a better score; a picture that it should not hold must not be found. Prints
one JSON document; the exit code is 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.atelier import picture, png_bytes
from pipeline.database import RetrievalDatabase
from pipeline.encoders import load_recorded
from pipeline.retrieval import open_search
from pipeline.retrieval.query import encode_image_files

NAME = "refreshed"
TIE = 1e-3  # scores with at most this difference count as equal


def write_pictures(styles: Path, folder: Path, limit: int) -> None:
    """The Parquet files' pictures as a folder with a metadata.csv."""
    lines: list[tuple[str, str, str]] = []
    for path in sorted(styles.glob("*.parquet")):
        (folder / path.stem).mkdir(parents=True)
        for row in pq.read_table(path, columns=["png", "caption", "style"]).to_pylist():
            name = f"{path.stem}/{len(lines):06d}.png"
            (folder / name).write_bytes(row["png"])
            lines.append((name, row["caption"], row["style"]))
            if len(lines) == limit:
                break
        if len(lines) == limit:
            break
    _write_csv(folder, lines)


def _write_csv(folder: Path, lines: list[tuple[str, str, str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("file_name", "caption", "style"), *lines])


def change(folder: Path, spare: Path, added: int, changed: int, removed: int) -> dict[str, list[str]]:
    """Change the folder; changed or removed pictures are copied to `spare`. Returns the names by kind of change."""
    import cv2

    with (folder / "metadata.csv").open(encoding="utf-8") as handle:
        lines = {row["file_name"]: (row["file_name"], row["caption"], row["style"]) for row in csv.DictReader(handle)}
    chosen = [str(name) for name in np.random.default_rng(0).permutation(list(lines))[: changed + removed]]
    names = {"changed": sorted(chosen[:changed]), "removed": sorted(chosen[changed:]), "added": []}
    for name in chosen:
        (spare / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(spare / name)
    for name in names["changed"]:
        pixels = cv2.imread(str(spare / name), cv2.IMREAD_UNCHANGED)
        pixels = pixels[::-1] if np.array_equal(pixels, pixels[:, ::-1]) else pixels[:, ::-1]
        cv2.imwrite(str(folder / name), np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    for name in names["removed"]:
        del lines[name]
    (folder / "atelier").mkdir()
    for number in range(added):
        drawn = picture(number, size=64)
        name = f"atelier/{number:06d}.png"
        (folder / name).write_bytes(png_bytes(drawn.image))
        lines[name] = (name, str(drawn.metadata["caption"]), str(drawn.metadata["style"]))
        names["added"].append(name)
    _write_csv(folder, list(lines.values()))
    return names


def rdmpipe(home: Path, *words: str) -> tuple[dict[str, Any], float]:
    """A command's JSON, and the seconds its process took. Raises CalledProcessError."""
    start = time.monotonic()
    env = {**os.environ, "RDMPIPE_HOME": str(home)}
    command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1]), round(time.monotonic() - start, 2)


def shards_on_disk(database: RetrievalDatabase) -> dict[str, tuple[str, int]]:
    """Receipts and rows of all embedded shards: digest of the bytes, and time, by name."""
    folder = Path(database.storage.full(database.embedding_folder(database.version().encoder)))
    found = sorted(folder.iterdir())
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in found}


def compared(before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]) -> dict[str, int]:
    names = {name.split(".")[0] for name in before}
    untouched = {
        name for name in names if all(after.get(f"{name}.{s}") == before[f"{name}.{s}"] for s in ("json", "parquet"))
    }
    new = {name.split(".")[0] for name in after} - names
    return {"before": len(names), "untouched": len(untouched), "redone": len(names - untouched), "new": len(new)}


def searched(home: Path, version: str, there: list[Path], absent: list[tuple[str, Path]]) -> dict[str, int]:
    """How many of the pictures find themselves in this version, and how many are not in it under their name."""
    database = RetrievalDatabase(NAME, str(home))
    pinned = database.version(version)
    record = pinned.encoder
    encoder = load_recorded(record, "cpu")
    with open_search(database, pinned) as searcher:
        held = searcher.metadata(np.asarray(searcher.keys), ["key", "item_id", "sha256"])
        digest_of = dict(zip(held["key"].to_pylist(), held["sha256"].to_pylist(), strict=True))
        itself = 0
        for start in range(0, len(there), 100):
            part = there[start : start + 100]
            found = searcher.search(encode_image_files(encoder, part), 10)
            for path, keys, scores in zip(part, found.keys, found.scores, strict=True):
                wanted = hashlib.sha256(path.read_bytes()).hexdigest()
                itself += any(digest_of[int(k)] == wanted for k in keys[scores >= scores[0] - TIE])
        pairs = set(zip(held["item_id"].to_pylist(), held["sha256"].to_pylist(), strict=True))
        gone = sum((name, hashlib.sha256(path.read_bytes()).hexdigest()) not in pairs for name, path in absent)
    return {"rows": len(digest_of), "asked": len(there), "found": itself, "asked_absent": len(absent), "absent": gone}


def measure(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    folder, spare, home = out / "pictures", out / "spare", out / "home"
    start = time.monotonic()
    write_pictures(arguments.styles, folder, arguments.pictures)
    written = round(time.monotonic() - start, 2)
    manifest = out / f"{NAME}.toml"
    manifest.write_text(
        f'name = "{NAME}"\ntitle = "Refreshed"\nlicence = "see the files"\nterms = "none"\nopt_out = "none"\n'
        f'encoder = "{arguments.encoder}"\n[source]\nkind = "folder"\npath = "{folder}"\nshard_rows = {arguments.shard_rows}\n'
    )
    database = RetrievalDatabase(NAME, str(home))
    build = ("build-index", str(manifest), "--threads", "1")
    first, first_s = rdmpipe(home, *build)
    before = shards_on_disk(database)
    originals = sorted(folder.rglob("*.png"))
    names = change(folder, spare, arguments.added, arguments.changed, arguments.removed)
    second, second_s = rdmpipe(home, *build, "--refresh")
    receipts = compared(before, shards_on_disk(database))
    third, third_s = rdmpipe(home, *build, "--refresh")
    new = [(name, folder / name) for name in names["added"] + names["changed"]]
    old = [(name, spare / name) for name in names["changed"] + names["removed"]]
    touched = {path for _, path in new}
    kept = [path for path in originals if path.exists() and path not in touched][:: max(1, len(originals) // 500)]
    now = searched(home, second["version"], [path for _, path in new] + kept, old)
    pinned = searched(home, first["version"], [path for _, path in old] + kept, new)
    ran = second["shards"]["embed"]["ran"]
    redone = -(-(arguments.added + arguments.changed) // arguments.shard_rows)
    promised = {
        "changes are those made": second["changes"] == {n: len(names[n]) for n in ("added", "changed", "removed")},
        "only new and changed rows are done": (receipts["redone"], receipts["new"], ran) == (0, redone, redone),
        "the new version holds the new state": now["found"] == now["asked"] and now["absent"] == now["asked_absent"],
        "the old version holds the old one": pinned["found"] == pinned["asked"] and pinned["absent"] == pinned["asked_absent"],
        "nothing new publishes nothing": third["version"] == second["version"] and not any(third["changes"].values()),
    }  # fmt: skip
    return {
        "pictures": first["input"],
        "encoder": arguments.encoder,
        "shard_rows": arguments.shard_rows,
        "changes": second["changes"],
        "shards": receipts,
        "seconds": {"write pictures": written, "first build": first_s, "refresh": second_s, "nothing new": third_s},
        "index": {
            "kind": second["index"]["kind"],
            "rows": second["index"]["rows"],
            "recall": second["index"]["recall"],
        },
        "search": {"new version": now, "old version, pinned": pinned},
        "promised": promised,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("styles", type=Path)
    parser.add_argument("--out", type=Path, help="an empty folder to work in; else a temporary one")
    parser.add_argument("--pictures", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--added", type=int, default=500)
    parser.add_argument("--changed", type=int, default=100)
    parser.add_argument("--removed", type=int, default=100)
    parser.add_argument("--shard-rows", type=int, default=500)
    parser.add_argument("--encoder", default="mini")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = measure(arguments, arguments.out or Path(temporary))
    print(json.dumps(made))
    return 0 if all(made["promised"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
