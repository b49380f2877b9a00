"""An index built in partitions and merged on disk: equal to one that is not partitioned, resumable, and within its
memory limit."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.database import RetrievalDatabase, ShardEntry
from pipeline.errors import BudgetError, IndexBuildError
from pipeline.execution import Backend, Progress
from pipeline.index import IndexConfig, IndexInput, build_index
from pipeline.index.merge import map_index
from pipeline.index.partitions import partition_keys, partitions_of, plan_partitions, plan_sizing
from pipeline.retrieval import open_search
from pipeline.schema import SHARD_ROWS
from pipeline.storage import Artifact, Storage
from tests.cluster import our_actors
from tests.forked import Forked
from tests.vectors import COLUMNS, clustered, encoder_record, home_database, unit, version_of, write_shards

pytestmark = pytest.mark.process

ROWS, DIM = 6000, 32
CONFIG = IndexConfig(key="IVF32,SQ8", partitions=4, queries=20, min_recall=0.8, memory=300 << 20)
GONE = np.arange(40, dtype=np.int64)
Rows = tuple[RetrievalDatabase, list[ShardEntry], np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    db = home_database(tmp_path / "home")
    shards, vectors, _ = write_shards(db, ROWS, DIM)
    return db, shards, vectors


def test_the_merged_index_is_the_one_that_holds_all_rows_under_the_same_quantizer(rows: Rows) -> None:
    db, shards, vectors = rows
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards, GONE))
    assert (entry.kind, entry.key, entry.rows, entry.build["partitions"]) == ("faiss", "IVF32,SQ8", ROWS - 40, 4)
    assert set(entry.files) == {"keys", "norms", "vectors", "metadata", "faiss"}
    assert 0.8 <= entry.recall["image"]["value"] <= 1.0
    path = Path(db.storage.full(entry.files["faiss"].path))
    merged, whole = map_index(path), faiss.read_index(str(path))
    whole.reset()  # its quantizer and codes stay as they were trained
    whole.add(np.ascontiguousarray(vectors[40:].astype(np.float32)))
    assert merged.ntotal == whole.ntotal == ROWS - 40
    queries = unit(clustered(50, DIM, seed=9))
    for probes in (1, 8, 32):
        merged_ivf, whole_ivf = faiss.extract_index_ivf(merged), faiss.extract_index_ivf(whole)
        merged_ivf.nprobe = whole_ivf.nprobe = probes
        scores, found = merged.search(queries, 19)
        expected_scores, expected = whole.search(queries, 19)
        np.testing.assert_array_equal(scores, expected_scores)
        np.testing.assert_array_equal(found, expected)
    with open_search(db, version_of(db, entry, shards, DIM), exact_subset=0) as searcher:
        results = searcher.search(unit(vectors[100:101].astype(np.float32)), 19, "key % 2 = 0")
    assert results.plan.plan.startswith("faiss ivf")
    assert (results.keys % 2 == 0).all()
    assert results.ordinals[0, 0] == 60  # row 100, forty rows before it being gone


@pytest.mark.cluster
def test_a_partition_whose_worker_is_killed_is_built_again(rows: Rows, ray_here: None) -> None:
    db, shards, _ = rows
    undisturbed = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    shutil.rmtree(db.storage.full(db.index_folder(encoder_record(DIM), undisturbed.id)))
    parts = Storage(db.storage.full(f"{db.index_folder(encoder_record(DIM), undisturbed.id)}/parts"))
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.is_set():
            busy = our_actors()
            if parts.exists("gone.npy") and busy and len(parts.list("", ".json")) < 3:
                killed.append(busy[0])
                os.kill(busy[0], signal.SIGKILL)
            time.sleep(0.1)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    try:
        again = build_index(
            db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards), backend=Backend("ray", workers=2)
        )
    finally:
        over.set()
        watcher.join()
    assert killed
    assert (again.id, again.files, again.recall) == (undisturbed.id, undisturbed.files, undisturbed.recall)
    assert not parts.exists("")


def test_a_build_that_was_stopped_continues_with_the_partitions_it_has(rows: Rows) -> None:
    db, shards, _ = rows
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    folder = Path(db.storage.full(db.index_folder(encoder_record(DIM), entry.id)))
    shutil.rmtree(folder)
    script = (
        "from tests.test_partition_index import *\n"
        f"db = home_database(Path({str(db.home)!r}))\n"
        f"shards = {shards!r}\n"
        "build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))\n"
    )
    process = Forked((), code=script)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("parts/*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("parts/*")}
    heard = io.StringIO()
    again = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards), progress=Progress("json", heard))
    told = [json.loads(line) for line in heard.getvalue().splitlines()]
    done = [line["shard"] for line in told if line["message"] == "shard" and line["rows"] == 0]
    assert len(done) == sum(name.endswith(".json") for name in before) >= 2
    assert again == replace(entry, build=again.build)


def test_partitions_keep_a_budget_that_one_piece_is_refused_under(tmp_path: Path) -> None:
    """24,000 rows of 1 kB; training and every partition measure their own peak, and fail above the budget."""
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 24_000, 256, shard_rows=1000)
    config = replace(CONFIG, key="IVF16,Flat", memory=112 << 20, partitions=8)
    with pytest.raises(BudgetError, match=r"takes 1[34]\d MB at its peak"):
        build_index(db, replace(config, partitions=1), IndexInput(encoder_record(256), COLUMNS, shards))
    entry = build_index(db, config, IndexInput(encoder_record(256), COLUMNS, shards))
    assert 0 < entry.build["peak_bytes"] <= entry.build["planned_bytes"] <= config.memory


def test_partitions_are_whole_shards_of_about_equal_size_and_none_is_empty() -> None:
    shards = [ShardEntry(number, 10, Artifact(f"{number}", str(number), 1)) for number in range(10)]
    keys = np.concatenate([np.arange(10) + shard * SHARD_ROWS for shard in range(10) if shard not in (3, 4)])
    made = plan_partitions(shards, keys, 4)
    assert [shard.rows for shard in made] == [20, 20, 20, 20]
    assert [[entry["id"] for entry in shard.spec["shards"]] for shard in made] == [[0, 1], [2, 5], [6, 7], [8, 9]]
    assert [shard.rows for shard in plan_partitions(shards, keys, 100)] == [10] * 8
    changed = [replace(shard, artifact=Artifact("x", "x", 1)) if shard.id == 6 else shard for shard in shards]
    same = [a.fingerprint == b.fingerprint for a, b in zip(made, plan_partitions(changed, keys, 4), strict=True)]
    assert same == [True, True, False, True]


def test_the_rule_asks_for_partitions_by_rows_and_for_lists_by_what_can_be_trained() -> None:
    large = IndexConfig(memory=64 << 30)
    assert [partitions_of(rows, 768, large) for rows in (10**6, 20_000_000, 20_000_001, 2 * 10**9)] == [1, 1, 2, 100]
    assert partitions_of(1000, 768, IndexConfig(partitions=3)) == 3
    assert partition_keys(2 * 10**9)[0] == "IVF131072_HNSW32,SQ8"
    for memory in (4 << 30, 40 << 30):
        sizing = plan_sizing(2 * 10**9, 768, IndexConfig(memory=memory))
        assert sizing.peak <= memory
        assert sizing.training_rows >= 39 * int(sizing.key[3:].split("_")[0])


@pytest.mark.parametrize("key", ["IVF32,PQ8x4fs", "HNSW16", "SQ8"])
def test_a_key_that_cannot_be_merged_is_refused_with_one_that_can(rows: Rows, key: str) -> None:
    db, shards, _ = rows
    with pytest.raises(IndexBuildError, match="IVF65536_HNSW32,SQ8"):
        build_index(db, replace(CONFIG, key=key), IndexInput(encoder_record(DIM), COLUMNS, shards))


def test_a_budget_that_no_partition_keeps_is_refused_with_what_would_do(rows: Rows) -> None:
    db, shards, _ = rows
    with pytest.raises(BudgetError, match=r"give --memory \d+MB, or more --partitions"):
        build_index(db, replace(CONFIG, memory=50 << 20), IndexInput(encoder_record(DIM), COLUMNS, shards))
