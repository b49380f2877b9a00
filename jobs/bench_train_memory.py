"""Peak memory of training from prepared rows with 1, 10 and 100 times the pictures, and its speed with one worker and with two.

    python jobs/bench_train_memory.py --rows 200 --steps 60

rdm-mini is trained further on tiny drawn pictures. For each size, a separate process builds the database, another prepares it
(`rdmpipe train prepare`), another trains. Two workers share each batch on a local Ray cluster. Prints one JSON document: for
each size the peak resident memory of the preparation and of the training, and pictures a second after the first report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.bench_memory import growing, size_options

PEAK = """
import json, os, resource, sys
from pathlib import Path
from pipeline.execution import Backend, Progress

def end(**found):
    print(json.dumps({"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, **found}))
"""

BUILD = """
from pipeline.building import BuildRequest, build
summary = build(BuildRequest(target=sys.argv[1], images="keep", threads=1, backend=Backend()), Progress())
end(ok=summary.ok)
"""

PREPARE = """
from pipeline.generation import find_model
from pipeline.training import PrepareRequest, prepare
request = PrepareRequest("training", str(find_model("rdm-mini").folder), size=64, neighbours=8, device="cpu")
made = prepare(request, Progress(), Backend())
end(rows=made.rows)
"""

TRAIN = """
from pipeline.config import from_mapping
from pipeline.generation import find_model
from pipeline.training import train, train_on_ray
from pipeline.training.config import TrainConfig
from rdm.train import read_curve
folder, steps, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = from_mapping(TrainConfig, {
    "run": str(folder), "threads": 1, "device": "cpu", "data": {"prepared": "training", "size": 64},
    "rdm": {"name": "trained", "base": str(find_model("rdm-mini").folder), "encoder": "mini",
            "neighbours": 8, "counts": [8], "default_k": 8,
            "train": {"steps": steps, "batch": 64, "report_steps": steps // 3, "warmup": 0, "decay": 0.0}},
}, "run.toml")
if workers == 1:
    train("rdm", config, Progress())
else:
    train_on_ray("rdm", config, Progress(), workers=workers)
curve = read_curve(folder / "rdm" / "curve.csv")
end(pictures_s=[round(64 * (steps // 3) / row["seconds"], 1) for row in curve][1:])
"""


def measured(code: str, home: Path, *arguments: object) -> dict[str, Any]:
    """The last line that a separate process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RDMPIPE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = size_options(__doc__)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pictures"
        for rows in growing(folder, options.rows, options.times):
            lines = ["file_name,caption", *(f"{number:07d}.png,picture number {number}" for number in range(rows))]
            (folder / "metadata.csv").write_text("\n".join(lines))
            home, manifest = Path(root) / f"home{rows}", Path(root) / f"training{rows}.toml"
            manifest.write_text(
                'name = "training"\ntitle = "Training"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\n'
                f'encoder = "mini"\n[source]\nkind = "folder"\npath = "{folder}"\nshard_rows = 200\n'
            )
            one: dict[str, Any] = {"rows": rows, "build": measured(BUILD, home, manifest)}
            one["prepare"] = measured(PREPARE, home)
            one["train"] = measured(TRAIN, home, Path(root) / f"run{rows}", options.steps, 1)
            found.append(one)
            print(json.dumps(one), file=sys.stderr, flush=True)
        two = measured(TRAIN, home, Path(root) / "two", options.steps, 2)
    print(json.dumps({"sizes": found, "two_workers_pictures_s": two["pictures_s"]}))


if __name__ == "__main__":
    main()
