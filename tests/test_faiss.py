"""Compressed indexes: every kind obeys filters, gives exactly min(k, matches), keeps its budget and states its recall."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import BudgetError, IndexBuildError
from pipeline.index import IndexConfig, IndexInput, Queries, build_index
from pipeline.index.autofaiss import autofaiss_works
from pipeline.index.gpu import check_installation
from pipeline.index.keys import choose_key, compressed_keys, size_of
from pipeline.retrieval import open_search
from tests.vectors import COLUMNS, brute_force, clustered, encoder_record, home_database, unit, version_of, write_shards

ROWS, DIM = 6000, 32
KEYS = (
    "IVF64,Flat",
    "IVF64,SQ8",
    "IVF32,PQ8x4fs",
    "HNSW16",
    "RR32,IVF16,SQ8",
    "SQ8",
    "PQ16",
    "PQ16x4fs",
    "IVF32,RaBitQfs",
)
TEXTS = unit(clustered(30, DIM, seed=5) + 0.3)  # away from the rows, as texts are from pictures
SHARES = {
    "": 1.0,
    "key % 2 = 0": 0.5,
    "key % 10 = 3": 0.1,
    "key % 100 = 7": 0.01,
    "key = 30007": 1 / ROWS,
    "1 = 0": 0.0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list, np.ndarray, pa.Table]:
    home = tmp_path_factory.mktemp("home")
    shards, vectors, table = write_shards(home_database(home), ROWS, DIM, failed_every=17)
    return home, shards, vectors, table


@pytest.fixture(scope="module", params=KEYS)
def built(request: pytest.FixtureRequest, collection: tuple) -> tuple:
    home, shards, vectors, table = collection
    db = home_database(home)
    texts = Queries("captions", tuple(f"t{n}" for n in range(20)), TEXTS[:20])
    config = IndexConfig(key=request.param, queries=20, min_recall=0.8)
    entry = build_index(
        db, config, IndexInput(encoder_record(DIM), COLUMNS, shards, table["key"].to_numpy()[:40]), text=texts
    )
    return db, version_of(db, entry, shards, DIM), vectors, table


@pytest.mark.process
@pytest.mark.parametrize("where", list(SHARES))
def test_every_kind_of_index_gives_exactly_min_k_matches(built: tuple, where: str) -> None:
    db, version, vectors, table = built
    keys = table["key"].to_numpy()
    alive = np.arange(40, len(keys))
    tests = {
        "": alive,
        "key % 2 = 0": alive[keys[alive] % 2 == 0],
        "key % 10 = 3": alive[keys[alive] % 10 == 3],
        "key % 100 = 7": alive[keys[alive] % 100 == 7],
        "key = 30007": alive[keys[alive] == 30007],
        "1 = 0": alive[:0],
    }
    rows = tests[where]
    queries = TEXTS[20:]
    with open_search(db, version, exact_subset=0) as searcher:
        for k in (1, 19, 300):
            results = searcher.search(queries, k, where)
            expected = min(k, len(rows))
            assert results.keys.shape == (10, expected)
            for query, found, scores in zip(queries, results.keys, results.scores, strict=True):
                assert len(set(found.tolist())) == expected
                assert np.isin(found, keys[rows]).all()
                places = np.searchsorted(keys, found)
                np.testing.assert_allclose(scores, vectors[places].astype(np.float64) @ query, atol=1e-6)
                assert (np.diff(scores) <= 0).all()
            if k == 19 and expected:
                best = [brute_force(vectors, query, rows, k)[0][-1] for query in queries]
                hits = int((results.scores >= np.array(best)[:, None] - 1e-3).sum())
                assert hits / (10 * expected) >= 0.75


@pytest.mark.process
def test_a_filter_that_would_open_every_list_reads_its_rows_instead(collection: tuple) -> None:
    home, shards, _, _ = collection
    db = home_database(home)
    config = IndexConfig(key="IVF16,SQ8", queries=20, min_recall=0.8)
    version = version_of(db, build_index(db, config, IndexInput(encoder_record(DIM), COLUMNS, shards)), shards, DIM)
    with open_search(db, version, exact_subset=50) as searcher:
        plans = [searcher.search(TEXTS[20:21], 5, where).plan.plan for where in ("key % 50 = 7", "key % 2 = 0", "")]
    assert plans[0] == "exact scan of the matching rows"
    assert all(plan.startswith("faiss ivf") for plan in plans[1:])


def test_an_entry_tells_key_parameters_recall_and_measured_memory(built: tuple) -> None:
    _, version, _, _ = built
    entry = version.index
    assert entry.kind == "faiss"
    assert entry.key in KEYS
    assert entry.params
    for kind, origin in (("text", "captions"), ("image", "sampled rows, themselves left out")):
        measured = entry.recall[kind]
        assert 0.8 <= measured["value"] <= 1.0
        assert measured["low"] <= measured["value"] <= measured["high"]
        assert (measured["queries"], measured["origin"]) == (20, origin)
    assert 0 < entry.build["peak_bytes"] <= entry.build["budget_bytes"]
    split = {"values"} if entry.key in ("IVF64,Flat", "IVF64,SQ8", "IVF32,PQ8x4fs") else set()  # by the column `nice`
    assert set(entry.files) == {"keys", "norms", "vectors", "metadata", "faiss"} | split


@pytest.mark.process
def test_a_graph_is_built_above_the_exact_size_if_there_are_no_columns_to_filter_by(collection: tuple) -> None:
    home, shards, vectors, _ = collection
    db = home_database(home)
    entry = build_index(db, IndexConfig(exact_rows=1000, queries=20), IndexInput(encoder_record(DIM), {}, shards))
    builder = "autofaiss" if autofaiss_works() else "faiss"
    assert (entry.kind, entry.key, entry.build["builder"]) == ("faiss", "HNSW15", builder)
    assert entry.recall["image"]["value"] >= 0.95
    with open_search(db, version_of(db, entry, shards, DIM), exact_subset=0) as searcher:
        results = searcher.search(unit(vectors[10:11].astype(np.float32)), 19)
    assert results.plan.plan.startswith("faiss hnsw")
    assert results.ordinals[0, 0] == 10


@pytest.mark.process
def test_a_budget_that_cannot_be_kept_is_refused_before_work_with_the_smallest_that_can() -> None:
    rows, dim = 5_000_000, 768
    with pytest.raises(BudgetError, match=r"--memory \d+MB or more") as refused:
        choose_key(rows, dim, IndexConfig(memory=200 << 20))
    least = int(str(refused.value).split("--memory ")[1].split("MB")[0])
    with pytest.raises(BudgetError):
        choose_key(rows, dim, IndexConfig(memory=(least - 1) << 20))
    sizing, builder = choose_key(rows, dim, IndexConfig(memory=least << 20))
    assert builder == "faiss"
    assert sizing.peak <= least << 20
    with pytest.raises(BudgetError, match="HNSW32 takes"):
        choose_key(rows, dim, IndexConfig(memory=1 << 30, key="HNSW32"))


def test_a_tiny_budget_is_refused_and_leaves_nothing_behind(collection: tuple, tmp_path: Path) -> None:
    _, shards, _, _ = collection
    db = home_database(collection[0])
    config = IndexConfig(key="IVF64,Flat", memory=16 << 20)
    before = db.storage.list(f"index/{encoder_record(DIM).id}")
    with pytest.raises(BudgetError):
        build_index(db, config, IndexInput(encoder_record(DIM), COLUMNS, shards))
    assert db.storage.list(f"index/{encoder_record(DIM).id}") == before
    assert db.storage.list(".tmp") == []


@pytest.mark.process
def test_larger_budgets_choose_finer_codes_and_training_stays_capped() -> None:
    chosen = [choose_key(1_000_000, 768, IndexConfig(memory=mb << 20)) for mb in (256, 2048, 4096)]
    assert [sizing.key.split(",")[-1] for sizing, _ in chosen] == ["PQ192x4fs", "SQ8", "HNSW32"]
    assert all(sizing.training_rows <= 200_000 for sizing, _ in chosen)
    assert all(key.startswith("IVF") for key in compressed_keys(10_000_000, 768))


@pytest.mark.parametrize("key", ["IVF64;Flat", "nonsense", "PQ7"])
def test_a_key_faiss_does_not_know_is_an_error_with_examples(key: str) -> None:
    with pytest.raises(IndexBuildError, match="examples: IVF1024,SQ8"):
        size_of(key, 10_000, DIM, 1 << 30)


def test_a_key_that_cannot_be_filtered_is_refused() -> None:
    with pytest.raises(IndexBuildError, match="cannot be searched with a filter"):
        size_of("IVF16,Flat,RFlat", 10_000, DIM, 1 << 30)


@pytest.mark.process
def test_recall_that_stays_too_low_fails_and_says_so(collection: tuple) -> None:
    home, shards, _, _ = collection
    noise = np.random.default_rng(3).standard_normal((20, DIM))
    texts = Queries("captions", tuple(f"noise {n}" for n in range(20)), unit(noise))
    config = IndexConfig(key="HNSW2", queries=20, min_recall=1.0, k=19)
    with pytest.raises(IndexBuildError, match=r"recall@19 stays below 1 .*--min-recall") as failed:
        build_index(home_database(home), config, IndexInput(encoder_record(DIM), COLUMNS, shards), text=texts)
    assert "text 0." in str(failed.value) or "image 0." in str(failed.value)


def test_two_builds_of_faiss_in_one_folder_are_an_error_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_installation()
    (tmp_path / "faiss_gpu_cu12-1.13.2.dist-info").mkdir()
    (tmp_path / "faiss_gpu_cu12-1.13.2.dist-info" / "METADATA").write_text("Name: faiss-gpu-cu12\nVersion: 1.13.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(IndexBuildError, match="pip uninstall -y faiss-cpu faiss-gpu-cu12") as caught:
        check_installation()
    assert "pip install --no-deps faiss-gpu" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("HNSW16", "exact scan for 1 of the queries"),
        ("RR32,IVF64,SQ8", "exact scan for 1 of the queries"),
        ("IVF64,SQ8", "among the lists that hold matching rows"),
        ("IVF64,PQ16x4fs", "among the lists that hold matching rows"),
    ],
)
def test_a_filter_that_leads_away_from_the_query_keeps_its_recall(tmp_path: Path, key: str, words: str) -> None:
    import faiss

    from pipeline.index import SearchIndex
    from pipeline.index.approximate import ladder

    vectors = clustered(8000, DIM, clusters=20)
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float16))
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    query = vectors[:1]
    far = np.argsort(vectors @ query[0])[:1500]
    far.sort()
    search = SearchIndex(tmp_path / "vectors.npy", index, {**ladder(index, 19)[0], "candidates": 800}, exact_subset=200)
    scores, found, plan = search.top(query, 19, far)
    best, _ = brute_force(vectors, query[0], far, 19)
    assert words in plan.plan
    assert (scores[0] >= best[-1] - 1e-3).sum() >= 18 and np.isin(found, far).all()
    even = np.arange(0, 8000, 5)
    assert "exact" not in search.top(query, 19, even)[2].plan, "an index is asked where matches are near"
    many, some = np.repeat(query, 8, axis=0), np.arange(0, 8000, 30)
    assert "exact" not in search.top(query, 19, some)[2].plan
    assert search.top(many, 19, some)[2].plan == "exact scan of the matching rows", "rows are read once for all of them"
    search.close()


def test_only_lists_that_hold_matching_rows_are_opened_the_nearest_first(tmp_path: Path) -> None:
    import faiss

    from pipeline.index import Subset
    from pipeline.index.lists import ListChoice, serves

    vectors = clustered(4000, DIM)
    index = faiss.index_factory(DIM, "IVF64_HNSW16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    assert serves(ivf)
    centroids = ivf.quantizer.reconstruct_n(0, 64)
    _, home = faiss.knn(vectors, centroids, 1, faiss.METRIC_INNER_PRODUCT)
    rows = np.flatnonzero(home[:, 0] % 3 == 0)
    choice = ListChoice(ivf)
    lists, products = choice.ranked(vectors[:5], Subset(rows, 4000))
    held = choice.holding(Subset(rows, 4000))
    assert held[np.unique(home[rows, 0])].mean() > 0.9  # HNSW puts a few rows into other lists
    np.testing.assert_array_equal(np.sort(lists, axis=1), np.repeat([np.flatnonzero(held)], 5, axis=0))
    np.testing.assert_allclose(products, np.take_along_axis(vectors[:5] @ centroids.T, lists, 1), atol=1e-5)
    assert (np.diff(products, axis=1) <= 0).all()
