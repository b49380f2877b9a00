"""Peak memory of a build with 1, 10 and 100 times the rows, and its growth in bytes a row.

    python jobs/bench_memory.py --rows 100 --encoder random:tests/data/tiny_clip.json?seed=0

Each build (download, embed, exact index; pictures dropped) runs in a separate process over tiny drawn pictures in a folder.
Prints one JSON document: for each size the peak resident memory and its anonymous part at the end, and between the sizes the
growth of the peak in bytes a row.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BUILD = """
import io, json, resource, sys
from pathlib import Path
from pipeline.building import BuildRequest, build
from pipeline.execution import Backend, Progress
request = BuildRequest(target=sys.argv[1], home=sys.argv[2], images="drop", threads=1, backend=Backend())
summary = build(request, Progress(stream=io.StringIO()))
fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"ok": summary.ok, "peak": peak, "anonymous_at_end": 1024 * int(fields["RssAnon"].split()[0]),
                  "seconds": summary.seconds}))
"""


def draw(folder: Path, first: int, last: int) -> None:
    """Write pictures `first` to `last` - 1: 32 x 32 pixels of noise as PNG, all different."""
    import numpy as np
    from PIL import Image

    for number in range(first, last):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=0)
        (folder / f"{number:07d}.png").write_bytes(out.getvalue())


def measure(folder: Path, home: Path, encoder: str, shard_rows: int) -> dict[str, Any]:
    manifest = home.with_suffix(".toml")
    manifest.write_text(
        'name = "memory"\ntitle = "Memory"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\n'
        f'encoder = "{encoder}"\n[source]\nkind = "folder"\npath = "{folder}"\nshard_rows = {shard_rows}\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(manifest), str(home)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def growing(folder: Path, rows: int, times: Sequence[int]) -> Iterator[int]:
    """Draw pictures into a new folder until there are 1, 10, 100 ... times `rows`, and give each number."""
    folder.mkdir()
    drawn = 0
    for factor in times:
        draw(folder, drawn, rows * factor)
        drawn = rows * factor
        yield drawn


def size_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the sizes of a measurement that grows."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", type=int, default=100, help="pictures at 1x")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    return parser


def main() -> None:
    parser = size_options(__doc__)
    parser.add_argument("--shard-rows", type=int, default=100)
    parser.add_argument("--encoder", required=True)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pictures"
        for rows in growing(folder, options.rows, options.times):
            home = Path(root) / f"home{rows}"
            found.append({"rows": rows, **measure(folder, home, options.encoder, options.shard_rows)})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    growth = [
        round((after["peak"] - before["peak"]) / (after["rows"] - before["rows"]), 1)
        for before, after in itertools.pairwise(found)
    ]
    print(json.dumps({"shard_rows": options.shard_rows, "builds": found, "bytes_a_row_between": growth}))


if __name__ == "__main__":
    main()
