"""faiss on a GPU, through the interface of index/gpu.py: a stand-in does a GPU's work on the CPU, and counts calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.index import Queries, SearchIndex, Subset
from pipeline.index import approximate as approximate_module
from pipeline.index import exact as exact_module
from pipeline.index import gpu as gpu_module
from pipeline.index import recall as recall_module
from pipeline.index.config import IndexConfig
from pipeline.index.gpu import MANY, FaissGpu, open_gpu
from pipeline.index.recall import measure_recall
from pipeline.index.worker import _train_and_add
from tests.vectors import clustered, unit

ROWS, DIM = 3000, 32


class StandIn:
    """A GPU without a GPU. Its copies refuse selectors, as faiss's GPU code ignores them."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def flat(self, dim: int, metric: int) -> faiss.Index:
        self.asked["flat"] += 1
        return faiss.IndexFlat(dim, metric)

    def top(self, queries: NDArray[np.float32], rows: NDArray[np.float32], k: int) -> tuple:
        self.asked["top"] += 1
        return faiss.knn(queries, rows, k, faiss.METRIC_INNER_PRODUCT)

    def copy(self, index: faiss.Index) -> faiss.Index | None:
        self.asked["copy"] += 1
        if not isinstance(index, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ):
            return None
        return Copied(faiss.clone_index(index), self.asked)


class Copied:
    def __init__(self, index: faiss.Index, asked: Counter[str]) -> None:
        self.index, self.asked = index, asked

    def search(self, queries: NDArray[np.float32], k: int, params: faiss.SearchParameters) -> tuple:
        assert params.sel is None
        self.asked["search"] += 1
        return self.index.search(queries, k, params=params)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for every module that opens a GPU; `cpu` still means none."""
    stand_in = StandIn()
    for module in (approximate_module, exact_module):
        monkeypatch.setattr(module, "open_gpu", lambda device: None if device == "cpu" else stand_in)
    return stand_in


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.npy"
    np.save(path, clustered(ROWS, DIM).astype(np.float16))
    return path


@pytest.fixture
def queries() -> Iterator[NDArray[np.float32]]:
    yield unit(clustered(MANY, DIM, seed=9) + 0.2)


@pytest.mark.parametrize("key", ["IVF32,Flat", "IVF32_HNSW8,SQ8", "IVF16,PQ8x4", "IVF16,PQ8x4fs"])
def test_an_index_trained_and_filled_with_a_gpus_help_finds_what_another_finds(
    key: str, vectors: Path, queries: NDArray[np.float32], tmp_path: Path
) -> None:
    helper = StandIn()
    plain = _train_and_add(vectors, key, ROWS, 0, None)
    helped = _train_and_add(vectors, key, ROWS, 0, helper)
    assert helped.ntotal == plain.ntotal == ROWS
    assert helper.asked["flat"] == 1 + ("PQ" in key) + ("fs" not in key)  # lists, codes, and where rows are added
    faiss.write_index(helped, str(tmp_path / "index.faiss"))  # nothing points to the GPU any more
    read = faiss.read_index(str(tmp_path / "index.faiss"))
    plain.nprobe = read.nprobe = 8
    _, mine = read.search(queries, 10)
    _, theirs = plain.search(queries, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(mine.tolist(), theirs.tolist(), strict=True)]
    assert np.mean(shared) >= 9


@pytest.mark.parametrize("key", ["HNSW8", "PQ8x4fs"])
def test_an_index_without_lists_asks_nothing_of_the_gpu(key: str, vectors: Path) -> None:
    helper = StandIn()
    assert _train_and_add(vectors, key, ROWS, 0, helper).ntotal == ROWS
    assert not helper.asked


def test_many_queries_are_scanned_on_the_gpu_with_equal_results(
    gpu: StandIn, vectors: Path, queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_module, "GPU_ROWS", 700)  # several blocks
    here, there = SearchIndex(vectors), SearchIndex(vectors, device="auto")
    some = np.arange(0, ROWS, 3)
    for rows in (None, some):
        mine, theirs = there.top(queries, 7, rows), here.top(queries, 7, rows)
        np.testing.assert_array_equal(mine[1], theirs[1])
        np.testing.assert_array_equal(mine[0], theirs[0])
    assert gpu.asked["top"] == 5 + 2
    there.top(queries[: MANY - 1], 7)
    assert gpu.asked["top"] == 7, "few queries stay on the CPU"
    here.close()
    there.close()


def test_a_filtered_search_stays_on_the_cpu(gpu: StandIn, vectors: Path, queries: NDArray[np.float32]) -> None:
    index = _train_and_add(vectors, "IVF32,SQ8", ROWS, 0, None)
    params = {"nprobe": 16, "candidates": 100}
    here, there = (
        SearchIndex(vectors, faiss.clone_index(index), params, exact_subset=0, device=name) for name in ("cpu", "auto")
    )
    every, plain = there.top(queries, 7), here.top(queries, 7)
    assert gpu.asked["search"] == 1
    np.testing.assert_array_equal(every[1], plain[1])
    rows = Subset(np.arange(0, ROWS, 2), ROWS)
    filtered = there.top(queries, 7, rows)
    assert gpu.asked["search"] == 1
    assert (filtered[1] % 2 == 0).all()
    np.testing.assert_array_equal(filtered[1], here.top(queries, 7, rows)[1])
    here.close()
    there.close()


def test_exact_answers_of_recall_come_from_the_gpu(
    vectors: Path, queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall_module, "GPU_ROWS", 1000)
    helper, config = StandIn(), IndexConfig(queries=20)
    text = Queries("captions", tuple(f"t{n}" for n in range(20)), queries[:20])
    assert measure_recall(vectors, config, text, helper) == measure_recall(vectors, config, text)
    assert helper.asked["top"] == 3


@pytest.mark.parametrize(
    ("device", "found"), [("auto", 0), ("cuda", 0), ("cuda:1", 1), ("cpu", None), ("cuda:2", None)]
)
def test_the_device_chooses_the_gpu(device: str, found: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`faiss` here is a build with two GPUs."""

    class Resources:
        pass

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    opened = open_gpu(device)
    assert found is None if opened is None else isinstance(opened, FaissGpu) and opened._number == found


def test_a_faiss_without_gpus_gives_none() -> None:
    assert hasattr(faiss, "StandardGpuResources") or open_gpu("cuda") is None


def test_an_index_that_the_gpu_cannot_hold_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("This index type is not implemented on GPU.")

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", refuse, raising=False)
    assert gpu_module.FaissGpu(0).copy(faiss.IndexHNSWFlat(DIM, 8)) is None
