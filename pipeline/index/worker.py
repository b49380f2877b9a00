"""The process that builds and tunes a faiss index, alone with its memory: `python -m pipeline.faiss_worker < job.json`.

Reads: a job as JSON on standard input, vectors.npy (by plain reads: mapped pages would count as its own), queries.npy. Writes
index.faiss; the answer as one line of JSON. Its peak resident size is part of the answer. An index in partitions
(index/partitions.py) is three jobs: train, add for each partition, merge.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BudgetError, IndexBuildError
from pipeline.index.exact import read_npy_header
from pipeline.machine import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ADD_ROWS = 2048

HNSW_BUILD = 40  # efConstruction


def main() -> None:
    job = json.load(sys.stdin)
    tasks = {"choose": _choose, "build": _build, "train": _train, "add": _add, "merge": _merge}
    try:
        answer = tasks[job["task"]](job)
    except (BudgetError, IndexBuildError) as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)


def _choose(job: dict[str, Any]) -> dict[str, Any]:
    from pipeline.index.autofaiss import choose

    try:
        return {"key": choose(job["rows"], job["dim"], job["index_bytes"])}
    except BudgetError:
        return {"key": ""}  # its smallest is larger than ours: the caller goes on with compressed keys


def _build(job: dict[str, Any]) -> dict[str, Any]:
    import faiss

    from pipeline.index.config import IndexConfig

    folder, sizing, config = Path(job["folder"]), job["sizing"], IndexConfig(**job["config"])
    vectors = folder / "vectors.npy"
    start = time.monotonic()
    faiss.omp_set_num_threads(cores())
    if job["builder"] == "autofaiss":
        from pipeline.index.autofaiss import build

        index = build(vectors, sizing["key"], sizing["index"], config.memory, cores(), folder)
    else:
        index = _train_and_add(vectors, sizing["key"], sizing["training_rows"], config.seed)
    faiss.write_index(index, str(folder / "index.faiss"))
    built = time.monotonic() - start
    params, recall = _tune(index, vectors, config, job["text"])
    return {
        "params": params,
        "recall": recall,
        "training_rows": sizing["training_rows"],
        "peak_bytes": peak_bytes(),
        "seconds": {"build": round(built, 1), "tune": round(time.monotonic() - start - built, 1)},
    }


def _train(job: dict[str, Any]) -> dict[str, Any]:
    """trained.faiss: the empty index that all partitions add to."""
    import faiss

    faiss.omp_set_num_threads(cores())
    folder, start = Path(job["folder"]), time.monotonic()
    with (folder / "vectors.npy").open("rb") as handle:
        (_, dim), _ = read_npy_header(handle)
    index = _trained(folder / "vectors.npy", dim, job["key"], job["training_rows"], job["seed"])
    faiss.write_index(index, str(folder / "trained.faiss"))
    return {"peak_bytes": peak_bytes(), "seconds": round(time.monotonic() - start, 1)}


def _add(job: dict[str, Any]) -> dict[str, Any]:
    """part.faiss: the trained index with one partition's rows, numbered as in the whole index from `first` on."""
    import faiss
    import numpy as np

    faiss.omp_set_num_threads(cores())
    folder, start, first = Path(job["folder"]), time.monotonic(), int(job["first"])
    index = faiss.read_index(job["trained"])
    for block in _blocks(folder / "vectors.npy"):
        index.add_with_ids(block, np.arange(first, first + len(block), dtype=np.int64))
        first += len(block)
    faiss.write_index(index, str(folder / "part.faiss"))
    return {"peak_bytes": peak_bytes(), "seconds": round(time.monotonic() - start, 1)}


def _merge(job: dict[str, Any]) -> dict[str, Any]:
    """index.faiss with the inverted lists of all parts, then tuned. What is resident of mapped files is the page cache."""
    import faiss

    from pipeline.index.config import IndexConfig
    from pipeline.index.merge import map_index, merge_on_disk

    faiss.omp_set_num_threads(cores())
    folder, start = Path(job["folder"]), time.monotonic()
    merge_on_disk(Path(job["trained"]), [Path(part) for part in job["parts"]], folder / "index.faiss")
    merged = time.monotonic() - start
    index = map_index(folder / "index.faiss")
    params, recall = _tune(index, folder / "vectors.npy", IndexConfig(**job["config"]), job["text"])
    seconds = {"merge": round(merged, 1), "tune": round(time.monotonic() - start - merged, 1)}
    return {"params": {**params, "mapped": 1}, "recall": recall, "seconds": seconds}


def _trained(vectors: Path, dim: int, key: str, training_rows: int, seed: int) -> Any:
    """An empty index under `key`, trained with a sample of the vectors where it needs training."""
    import faiss
    import numpy as np

    index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    quantizer = faiss.downcast_index(faiss.try_extract_index_ivf(index) or index)
    if hasattr(quantizer, "do_polysemous_training"):
        quantizer.do_polysemous_training = (
            False  # it orders the codes for a kind of search that is not done here, at length
        )
    if not index.is_trained:
        index.train(_sample(vectors, training_rows, np.random.default_rng(seed)))
    return index


def _train_and_add(vectors: Path, key: str, training_rows: int, seed: int) -> Any:
    import faiss

    with vectors.open("rb") as handle:
        (rows, dim), _ = read_npy_header(handle)
    index = _trained(vectors, dim, key, training_rows, seed)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = HNSW_BUILD
        codes = faiss.downcast_index(index.storage).codes
        codes.resize(rows * dim * 4)  # reserve: growing by doubling would hold the vectors twice
        codes.clear()
    for block in _blocks(vectors):
        index.add(block)
    return index


def _tune(index: Any, vectors: Path, config: Any, text: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Raise the search parameters until recall's whole interval is above the least allowed, or take the best there are;
    IndexBuildError where even those are below it."""
    import numpy as np

    from pipeline.index.approximate import ladder
    from pipeline.index.recall import Queries, describe, probes
    from pipeline.index.search import SearchIndex

    queries = None
    if text is not None:
        stored = vectors.with_name("queries.npy")
        found = np.load(stored) if stored.exists() else np.empty((0, 0), np.float32)
        queries = Queries(text["origin"], tuple(text["texts"]), found)
    made, k = probes(vectors, config, queries)
    opened = SearchIndex(vectors, index, {}, exact_subset=0, mapped=False)
    assert opened.approximate is not None
    best: tuple[float, dict[str, Any], dict[str, Any]] = (-1.0, {}, {})
    try:
        for params in ladder(index, k):
            opened.approximate.params = params
            measured = {probe.kind: probe.recall(opened, k) for probe in made}
            worst = min((one["value"] for one in measured.values()), default=1.0)
            if worst > best[0]:
                best = (worst, params, measured)
            if worst == 1.0 or min(one["low"] for one in measured.values()) >= config.min_recall:
                break
    finally:
        opened.close()
    worst, params, measured = best
    if worst < config.min_recall:
        found = ", ".join(f"{kind} {one['value']:.3f}" for kind, one in measured.items())
        raise IndexBuildError(
            f"recall@{k} stays below {config.min_recall:g} even with {params}: {found}. Give the index more memory "
            "(--memory), another key (--key), or accept less (--min-recall)"
        )
    return params, describe(measured, k, queries)


def _blocks(vectors: Path) -> Iterator[NDArray[np.float32]]:
    """All rows in order, ADD_ROWS at a time, float32."""
    import numpy as np

    with vectors.open("rb") as handle:
        (rows, dim), dtype = read_npy_header(handle)
        for start in range(0, rows, ADD_ROWS):
            size = min(ADD_ROWS, rows - start)
            yield np.fromfile(handle, dtype, size * dim).reshape(size, dim).astype(np.float32)


def _sample(vectors: Path, count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """`count` rows drawn without replacement, in row order, float32."""
    import numpy as np

    with vectors.open("rb") as handle:
        (rows, dim), _ = read_npy_header(handle)
    chosen = np.sort(generator.choice(rows, min(count, rows), replace=False))
    sample = np.empty((len(chosen), dim), np.float32)
    start = done = 0
    for block in _blocks(vectors):
        end = int(np.searchsorted(chosen, start + len(block)))
        sample[done:end] = block[chosen[done:end] - start]
        start, done = start + len(block), end
    return sample


def peak_bytes() -> int:
    """The largest resident size this process ever had (VmHWM: ru_maxrss would start at the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise IndexBuildError("this system does not tell a process's peak memory (/proc/self/status has no VmHWM)")


if __name__ == "__main__":
    main()
