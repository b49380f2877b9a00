"""Above the exact size: choose a faiss index for a memory budget, and have a process of its own build and tune it.

Reads: vectors.npy. Writes index.faiss beside it. The budget is for the peak resident size of the process that builds,
everything included; it is refused before any work where no index fits, with the smallest that would do, and what was really
used is measured (VmHWM) and recorded.

autofaiss's choice is taken where it is HNSW (autofaiss.py says why). Below the memory that takes, the index is an
inverted file over 8-bit codes, else over 4-bit product codes for fast scans: re-ranked with the stored vectors, those found
what uncompressed inverted files find, at a few milliseconds a query (100,000 x 768; RaBitQ codes of the same size took
twenty times as long). Training uses a seeded sample of all rows, at most 200,000.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BudgetError, IndexBuildError
from pipeline.installation import python_path

if TYPE_CHECKING:
    from pipeline.index.config import IndexConfig
    from pipeline.index.recall import Queries

TRAINING_ROWS = 200_000

PER_LIST = 39  # training rows for each inverted list: faiss warns below it

BASE = 64 << 20  # Python, numpy and faiss

WORKING = 32 << 20  # a batch of rows being added, and what faiss needs to add it; later the queries' exact answers

GROWTH = 1.5  # inverted lists grow by doubling

# Freed blocks go back to the system at once, and threads that wait do not spin: budgets are kept and other work goes on.
FRUGAL = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_WAIT_POLICY": "PASSIVE"}

ROOMY = 2.2  # autofaiss builds where the budget is so many times the index: HNSW's storage grows by copying itself


@dataclass(frozen=True)
class Sizing:
    """What building an index will take, in bytes."""

    key: str
    training_rows: int
    training: int
    index: int

    @property
    def peak(self) -> int:
        return BASE + WORKING + max(self.training, self.index)


def build_faiss(
    folder: Path, rows: int, dim: int, config: IndexConfig, text: Queries | None
) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Build folder/index.faiss over folder/vectors.npy. Returns (key, search parameters, recall, measurements).

    Raises BudgetError before work where config.memory does not suffice, and after it where more was used; IndexBuildError
    for a key faiss does not know, an installation that cannot work, or recall below config.min_recall.
    """
    check_installation()
    sizing, builder = choose(rows, dim, config)
    job = {
        "task": "build",
        "folder": str(folder),
        "sizing": asdict(sizing),
        "builder": builder,
        "config": asdict(config),
        "text": None if text is None else {"origin": text.origin, "texts": list(text.texts)},
    }
    if text is not None and len(text.texts):
        import numpy as np

        np.save(folder / "queries.npy", text.vectors)
    result = run_worker(job, folder)
    if result["peak_bytes"] > config.memory:
        raise BudgetError(
            f"building {sizing.key} took {mb(result['peak_bytes'])} at its peak, more than the {mb(config.memory)} allowed; "
            f"give --memory {math.ceil(result['peak_bytes'] / (1 << 20) * 1.1)}MB"
        )
    build = {
        "budget_bytes": config.memory,
        "planned_bytes": sizing.peak,
        "peak_bytes": result["peak_bytes"],
        "training_rows": result["training_rows"],
        "builder": builder,
        "seconds": result["seconds"],
    }
    return sizing.key, result["params"], result["recall"], build


def choose(rows: int, dim: int, config: IndexConfig) -> tuple[Sizing, str]:
    """The index to build, and who builds it (autofaiss | faiss). Raises BudgetError naming the smallest budget."""
    room = config.memory - BASE - WORKING
    if config.key:
        sizing = size(config.key, rows, dim, room)
        if sizing.peak > config.memory:
            raise _too_small(config.memory, sizing, rows)
        return sizing, "faiss"
    if room > rows:
        chosen = run_worker({"task": "choose", "rows": rows, "dim": dim, "index_bytes": room})["key"]
        if chosen.startswith(("HNSW", "Flat")):
            sizing = size(chosen, rows, dim, room)
            if sizing.peak <= config.memory:
                roomy = config.memory >= ROOMY * sizing.index + (512 << 20)
                return sizing, "autofaiss" if roomy else "faiss"
    keys = compressed_keys(rows, dim)
    for key in keys:
        sizing = size(key, rows, dim, room)
        if sizing.peak <= config.memory:
            return sizing, "faiss"
    raise _too_small(
        config.memory, min((size(key, rows, dim, 0) for key in keys), key=lambda sizing: sizing.peak), rows
    )


def compressed_keys(rows: int, dim: int) -> list[str]:
    """Inverted files, the best first. Lists: a power of two near 4 sqrt(rows) that training rows suffice for, or less."""
    possible = min(4 * math.sqrt(rows), min(TRAINING_ROWS, rows) / PER_LIST)
    most = max(4, int(math.log2(max(possible, 16))))
    products = [f"PQ{dim // step}x4fs" for step in (4, 8, 16) if dim % step == 0]
    codes = ["SQ8", *products]
    keys = []
    for code in codes:
        fewest = 4 if code == codes[-1] else max(4, most - 3)
        for power in range(most, fewest - 1, -1):
            keys.append(f"IVF{2**power}{'_HNSW32' if power >= 10 else ''},{code}")
    return keys


def size(key: str, rows: int, dim: int, room: int, most: int = TRAINING_ROWS) -> Sizing:
    """What building `key` takes with as large a training sample, of at most `most` rows, as fits into `room` bytes."""
    import faiss

    from pipeline.index.approximate import family

    try:
        index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rsplit(": ", 1)[-1]  # what comes before is where in faiss
        raise IndexBuildError(
            f"{key!r} is not a faiss index key for {dim} dimensions ({reason}); examples: IVF1024,SQ8  HNSW32  "
            f"IVF1024,PQ{max(dim // 4, 1)}x4fs"
        ) from None
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    kind = family(inner)
    code = int(inner.code_size) if kind == "ivf" else int(inner.sa_code_size()) if kind == "flat" else 0
    if kind == "hnsw":
        links = int(inner.hnsw.nb_neighbors(0)) * 4
        total = rows * (int(faiss.downcast_index(inner.storage).code_size) + links + links // 16 + 24) + 2 * rows
    elif kind == "ivf":
        total = int(rows * (code + 8) * GROWTH) + int(inner.nlist) * (4 * dim + 400)
    else:
        total = int(rows * code * GROWTH)
    if index.is_trained:
        return Sizing(key, 0, 0, total)
    lists = int(inner.nlist) if kind == "ivf" else 0
    least = min(rows, max(lists * PER_LIST, 2_000))
    # The sample, residuals of it (of few rows for 4-bit codes), and what a transform makes of it.
    copies = 3.0 if inner is not index else 1.2 if isinstance(inner, faiss.IndexIVFFastScan) else 2.0
    centroids = lists * 4 * dim
    affordable = int(max(room - centroids, 0) / (copies * 4 * dim))
    sample = max(least, min(most, rows, 64 * max(lists, 256), affordable))
    if sample > most:
        raise IndexBuildError(
            f"{key}: {lists:,} lists want {sample:,} training rows, at most {most:,} are used; "
            f"ask for at most {most // PER_LIST:,} lists"
        )
    return Sizing(key, sample, int(sample * copies * 4 * dim) + centroids, total)


def run_worker(job: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Run index/worker.py with `job` on its standard input; its last line of output is the answer."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.index.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path(), **FRUGAL},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        if "error" not in answer:
            return answer
        kinds: dict[str, type[Exception]] = {"BudgetError": BudgetError, "IndexBuildError": IndexBuildError}
        raise kinds[answer["kind"]](answer["error"])
    if done.returncode in (-9, 137):
        raise BudgetError(
            "the process that builds the index was killed, most likely for lack of memory; give a smaller --memory, "
            "so that a smaller index is chosen"
        )
    tail = " ".join(done.stderr.split())[-800:]
    raise IndexBuildError(f"the process that builds the index ended with code {done.returncode}: {tail}")


def check_installation() -> None:
    """faiss-cpu and faiss-gpu install into one folder and break each other; both present is an error with the fix."""
    from importlib import metadata

    found = sorted(
        {
            name
            for distribution in metadata.distributions()
            if (name := (distribution.metadata["Name"] or "").lower().replace("_", "-")).startswith("faiss-")
        }
    )
    gpu = [name for name in found if name.startswith("faiss-gpu")]
    if gpu and "faiss-cpu" in found:
        raise IndexBuildError(
            f"{' and '.join(found)} are installed into the same folder and break each other. Keep one: "
            f"`pip uninstall -y {' '.join(found)}`, then `pip install 'faiss-cpu<1.14.2'`, or for a GPU "
            "`pip install --no-deps faiss-gpu-cu12==1.13.2`"
        )


def mb(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MB"


def _too_small(memory: int, sizing: Sizing, rows: int) -> BudgetError:
    least = math.ceil(sizing.peak / (1 << 20))
    return BudgetError(
        f"{mb(memory)} is too little to build an index of {rows:,} rows; {sizing.key} takes {least:,} MB at its peak: "
        f"give --memory {least}MB or more"
    )
