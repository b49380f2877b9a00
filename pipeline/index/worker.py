"""The process that builds and tunes a faiss index: `python -m pipeline.index.worker < job.json`.

Reads: a job (index/records.py) as JSON on standard input; vectors.npy, without mapping, because mapped pages would count as its
memory; queries.npy; value_codes.npy. Writes index.faiss, values.lists, trained.faiss or part.faiss into the job's folder, and
the answer as one line of JSON. Its peak resident size is part of the answer. An index in partitions (index/partitions.py)
takes three kinds of jobs: train once, add for each partition, merge once.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BudgetError, IndexBuildError, RecallError
from pipeline.index.config import IndexConfig
from pipeline.index.gpu import assigner, open_gpu, training_on
from pipeline.index.npy import npy_shape, read_npy_header
from pipeline.machine import cores

if TYPE_CHECKING:
    import faiss
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.index.gpu import Gpu
    from pipeline.index.recall import Queries
    from pipeline.index.records import (
        AddJob,
        Answer,
        BuildJob,
        Built,
        ChooseJob,
        Chosen,
        Job,
        Measured,
        Merged,
        MergeJob,
        QueryRecord,
        Recall,
        Step,
        TrainJob,
        ValueRecall,
    )
    from pipeline.index.splitting import SplitColumn

ADD_ROWS = 2048

HNSW_BUILD = 40  # efConstruction


def main() -> None:
    job: Job = json.load(sys.stdin)
    answer: Answer
    try:
        answer = _run(job)
    except (BudgetError, IndexBuildError) as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)


def _run(job: Job) -> Answer:
    if job["task"] == "choose":
        return _choose(job)
    import faiss

    faiss.omp_set_num_threads(cores())
    if job["task"] == "build":
        return _build(job)
    if job["task"] == "train":
        return _train(job)
    return _add(job) if job["task"] == "add" else _merge(job)


def _choose(job: ChooseJob) -> Chosen:
    from pipeline.index.autofaiss import autofaiss_key

    try:
        return {"key": autofaiss_key(job["rows"], job["dim"], job["index_bytes"]), "reason": ""}
    except BudgetError as error:  # autofaiss's smallest index is larger than ours; the caller tries compressed keys
        return {"key": "", "reason": str(error)}


def _build(job: BuildJob) -> Built:
    import faiss
    import numpy as np

    from pipeline.index.lists import splits
    from pipeline.index.splitting import CODES, SplitColumn
    from pipeline.index.values import VALUES, write_value_lists

    folder, config = Path(job["folder"]), IndexConfig(**job["config"])  # type: ignore[arg-type]
    vectors = folder / "vectors.npy"
    start = time.monotonic()
    gpu, driver = _gpu(job["device"])
    if job["builder"] == "autofaiss":
        from pipeline.index.autofaiss import autofaiss_build

        index = autofaiss_build(vectors, job["key"], job["index_bytes"], config.memory, cores(), folder)
    else:
        index = _train_and_add(vectors, job["key"], job["training_rows"], config.seed, gpu)
    faiss.write_index(index, str(folder / "index.faiss"))
    built = time.monotonic() - start
    text = _queries(job["text"], folder)
    params, recall = _tune(index, vectors, config, text, gpu)
    seconds = {"build": round(built, 1), "tune": round(time.monotonic() - start - built, 1)}
    value_bytes = 0
    columns = [SplitColumn(one["name"], tuple(one["values"])) for one in job["columns"]]
    if columns and splits(index):
        before = time.monotonic()
        value_bytes = write_value_lists(index, columns, np.load(folder / CODES), folder / VALUES)
        if isinstance(index, faiss.IndexIVFPQFastScan):
            index.reset()  # the values' lists have codes of their own, and both might not fit into the memory budget
        value_params, measured = _tune_values(index, params, columns, folder, config, text)
        if measured:
            params, recall = {**params, **value_params}, {**recall, "values": measured}
        else:
            (folder / VALUES).unlink()
            value_bytes = 0
        seconds["values"] = round(time.monotonic() - before, 1)
    return {
        "params": params,
        "recall": recall,
        "training_rows": job["training_rows"],
        "peak_bytes": peak_bytes() - driver,
        "value_bytes": value_bytes,
        "seconds": seconds,
    }


def _train(job: TrainJob) -> Step:
    """trained.faiss: the empty index that all partitions add to."""
    import faiss

    folder, start = Path(job["folder"]), time.monotonic()
    gpu, driver = _gpu(job["device"])
    index = _trained(folder / "vectors.npy", job["key"], job["training_rows"], job["seed"], gpu)
    faiss.write_index(index, str(folder / "trained.faiss"))
    return {"peak_bytes": peak_bytes() - driver, "seconds": round(time.monotonic() - start, 1)}


def _add(job: AddJob) -> Step:
    """part.faiss: the trained index with one partition's rows, numbered from `first` on as in the whole index."""
    import faiss
    import numpy as np

    folder, start, first = Path(job["folder"]), time.monotonic(), job["first"]
    gpu, driver = _gpu(job["device"])
    index = faiss.read_index(job["trained"])
    assigned = assigner(gpu, index)
    for block in _blocks(folder / "vectors.npy"):
        ids = np.arange(first, first + len(block), dtype=np.int64)
        (index.add_with_ids if assigned is None else assigned.add)(block, ids)
        first += len(block)
    faiss.write_index(index, str(folder / "part.faiss"))
    return {"peak_bytes": peak_bytes() - driver, "seconds": round(time.monotonic() - start, 1)}


def _merge(job: MergeJob) -> Merged:
    """index.faiss with the inverted lists of all parts, then tuned. Resident pages of mapped files belong to the page cache."""
    from pipeline.index.merge import map_index, merge_on_disk

    folder, start = Path(job["folder"]), time.monotonic()
    merge_on_disk(Path(job["trained"]), [Path(part) for part in job["parts"]], folder / "index.faiss")
    merged = time.monotonic() - start
    index = map_index(folder / "index.faiss")
    config = IndexConfig(**job["config"])  # type: ignore[arg-type]
    params, recall = _tune(index, folder / "vectors.npy", config, _queries(job["text"], folder), _gpu(job["device"])[0])
    seconds = {"merge": round(merged, 1), "tune": round(time.monotonic() - start - merged, 1)}
    return {"params": {**params, "mapped": 1}, "recall": recall, "seconds": seconds}


def _queries(record: QueryRecord | None, folder: Path) -> Queries | None:
    import numpy as np

    from pipeline.index.recall import Queries

    if record is None:
        return None
    stored = folder / "queries.npy"
    vectors = np.load(stored) if stored.exists() else np.empty((0, 0), np.float32)
    return Queries(record["origin"], tuple(record["texts"]), vectors)


def _gpu(device: str) -> tuple[Gpu | None, int]:
    """The GPU, if faiss has one, and the resident bytes of its driver, which do not count against the budget."""
    before = peak_bytes()
    gpu = open_gpu(device)
    return gpu, peak_bytes() - before if gpu is not None else 0


def _trained(vectors: Path, key: str, training_rows: int, seed: int, gpu: Gpu | None) -> faiss.Index:
    """An empty index under `key`, trained with a sample of the vectors if it needs training."""
    import faiss
    import numpy as np

    index = faiss.index_factory(npy_shape(vectors)[1], key, faiss.METRIC_INNER_PRODUCT)
    quantizer = faiss.downcast_index(faiss.try_extract_index_ivf(index) or index)
    if hasattr(quantizer, "do_polysemous_training"):
        # It is slow, and orders the codes for a kind of search that is not used here.
        quantizer.do_polysemous_training = False
    if not index.is_trained:
        with training_on(gpu, index):
            index.train(_sample(vectors, training_rows, np.random.default_rng(seed)))
    return index


def _train_and_add(vectors: Path, key: str, training_rows: int, seed: int, gpu: Gpu | None) -> faiss.Index:
    import faiss
    import numpy as np

    rows, dim = npy_shape(vectors)
    index = _trained(vectors, key, training_rows, seed, gpu)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = HNSW_BUILD
        codes = faiss.downcast_index(index.storage).codes
        codes.resize(rows * dim * 4)  # reserve memory: growing by doubling would hold the vectors twice
        codes.clear()
    assigned = assigner(gpu, index)
    for block in _blocks(vectors):
        if assigned is None:
            index.add(block)
        else:
            assigned.add(block, np.arange(index.ntotal, index.ntotal + len(block), dtype=np.int64))
    return index


def _tune(
    index: faiss.Index, vectors: Path, config: IndexConfig, text: Queries | None, gpu: Gpu | None = None
) -> tuple[dict[str, int], Recall]:
    """The cheapest search parameters whose recall interval is above config.min_recall, else the best ones, with their recall.

    Raises RecallError if even the best recall is below config.min_recall.
    """
    from pipeline.index.approximate import ladder
    from pipeline.index.recall import describe, probes
    from pipeline.index.search import SearchIndex

    made, k = probes(vectors, config, text, gpu)
    opened = SearchIndex(vectors, index, {}, exact_subset=0, mapped=False)
    assert opened.approximate is not None
    best: tuple[float, dict[str, int], dict[str, Measured]] = (-1.0, {}, {})
    measured: dict[str, Measured]
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
        raise RecallError(
            f"recall@{k} stays below {config.min_recall:g} even with {params}: {found}. Give more memory (--memory), another "
            "key (--index-key), or accept a lower recall (--min-recall)"
        )
    return params, describe(measured, k, text)


def _tune_values(
    index: faiss.Index,
    params: dict[str, int],
    columns: Sequence[SplitColumn],
    folder: Path,
    config: IndexConfig,
    text: Queries | None,
) -> tuple[dict[str, int], list[ValueRecall]]:
    """The cheapest parameters for the lists of values whose recall is at least config.min_recall for each value, with the
    recall of each column; nothing if none reaches it."""
    import numpy as np

    from pipeline.index.approximate import value_ladder
    from pipeline.index.recall import value_probe, value_queries
    from pipeline.index.search import SearchIndex
    from pipeline.index.splitting import CODES
    from pipeline.index.values import VALUES

    vectors, codes = folder / "vectors.npy", np.load(folder / CODES)
    origin, queries = value_queries(vectors, config, text)
    by_column = [
        value_probe(vectors, column, of, queries, origin, config.k) for column, of in zip(columns, codes, strict=True)
    ]
    opened = SearchIndex(vectors, index, params, exact_subset=0, mapped=False, values=folder / VALUES)
    assert opened.approximate is not None
    try:
        lists = opened.approximate.values.values()
        for one in lists:
            one.kept = 0  # to stay within the memory budget
        for rung in value_ladder(opened.approximate.lists) if any(one.has_codes for one in lists) else [{}]:
            opened.approximate.params = {**params, **rung}
            measured = [probe.recall(opened, config.k) for probe in by_column]
            if min(one["least"] for one in measured) >= config.min_recall:
                return rung, measured
    finally:
        opened.close()
    return {}, []


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

    rows, dim = npy_shape(vectors)
    chosen = np.sort(generator.choice(rows, min(count, rows), replace=False))
    sample = np.empty((len(chosen), dim), np.float32)
    start = done = 0
    for block in _blocks(vectors):
        end = int(np.searchsorted(chosen, start + len(block)))
        sample[done:end] = block[chosen[done:end] - start]
        start, done = start + len(block), end
    return sample


def peak_bytes() -> int:
    """The peak resident size of this process, in bytes.

    On Linux this is VmHWM, because ru_maxrss starts at the parent's value. Elsewhere it is ru_maxrss, in bytes on macOS.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
