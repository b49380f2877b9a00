"""The choice of an index key: for filters or without, with and without autofaiss."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BudgetError, RecallError
from pipeline.index import IndexConfig, IndexInput
from pipeline.index import keys as index_keys
from pipeline.index import process as index_process
from pipeline.index.autofaiss import autofaiss_key, autofaiss_works
from pipeline.index.build import build_index, build_whole, index_id
from pipeline.index.keys import choose_key, graph_key, possible_keys
from tests.vectors import encoder_record, home_database, write_shards

MB, GB = 1 << 20, 1 << 30

# autofaiss 2.18's first choice; "" for its compressed keys, which are not taken
CHOSEN = {
    (500, 768, GB): "Flat",
    (6_000, 768, GB): "HNSW15",
    (81_000, 768, 4 * GB): "HNSW32",
    (81_000, 768, 64 * MB): "",
    (300_000, 512, 640 * MB): "HNSW23",
    (1_000_000, 768, 3_200_000_000): "HNSW16",
    (1_000_000, 768, GB): "",
    (5_000_000, 512, 12 * GB): "HNSW32",
}


@pytest.mark.parametrize(("rows", "dim", "size"), CHOSEN)
def test_our_rule_gives_what_autofaiss_chose(rows: int, dim: int, size: int) -> None:
    assert graph_key(rows, dim, size) == CHOSEN[rows, dim, size]


@pytest.mark.skipif(not autofaiss_works(), reason="autofaiss is not installed, or NumPy is 2 or newer")
def test_our_rule_and_the_installed_autofaiss_choose_alike() -> None:
    compared = 0
    for rows in (1, 999, 1_000, 9_999, 10_000, 60_000, 200_001, 1_000_000, 7_000_000):
        for dim in (32, 512, 768, 1024):
            for links in (-300, 7, 8, 9, 20, 31, 32, 40):  # around the size at which a graph of so many links fits
                size = max(1 << 20, 4 * rows * (dim + 2 * links))
                for near in (size - 1, size, size + 1):
                    try:
                        theirs = autofaiss_key(rows, dim, near)
                    except BudgetError:
                        theirs = ""
                    theirs = theirs if theirs.startswith(("HNSW", "Flat")) else ""
                    assert graph_key(rows, dim, near) == theirs, (rows, dim, near)
                    compared += 1
    assert compared == 864


@pytest.mark.process
@pytest.mark.skipif(not autofaiss_works(), reason="autofaiss is not installed, or NumPy is 2 or newer")
@pytest.mark.parametrize("memory", [256 * MB, 2 * GB, 4 * GB])
def test_an_installation_without_autofaiss_builds_the_same_key_with_faiss(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(memory=memory)
    with_it, _ = choose_key(1_000_000, 768, config)
    monkeypatch.setattr(index_keys, "autofaiss_works", lambda: False)
    without, builder = choose_key(1_000_000, 768, config)
    assert (without, builder) == (with_it, "faiss")


@pytest.fixture
def no_autofaiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_keys, "autofaiss_works", lambda: False)


@pytest.mark.usefixtures("no_autofaiss")
@pytest.mark.parametrize(
    ("filtered", "memory", "keys"),
    [
        (False, 4 * GB, ["HNSW32", "IVF2048_HNSW32,SQ8"]),
        (True, 4 * GB, ["IVF2048_HNSW32,PQ192x4fs", "HNSW32", "IVF2048_HNSW32,SQ8"]),
        (True, GB, ["IVF2048_HNSW32,PQ192x4fs", "IVF2048_HNSW32,SQ8"]),
        (True, 200 * MB, ["IVF512,PQ192x4fs"]),
    ],
)
def test_a_database_with_columns_gets_lists_of_product_codes_and_then_what_it_would_get_without(
    filtered: bool, memory: int, keys: list[str]
) -> None:
    possible = possible_keys(600_000, 768, IndexConfig(memory=memory), filtered)
    assert [sizing.key for sizing, _ in possible] == keys
    assert all(sizing.peak <= memory for sizing, _ in possible)


@pytest.mark.usefixtures("no_autofaiss")
def test_a_named_key_is_the_only_one_and_vectors_that_product_codes_do_not_divide_keep_their_index() -> None:
    named = possible_keys(600_000, 768, IndexConfig(key="HNSW16"), filtered=True)
    assert [sizing.key for sizing, _ in named] == ["HNSW16"]
    assert possible_keys(600_000, 101, IndexConfig(), True) == possible_keys(600_000, 101, IndexConfig(), False)


def test_why_autofaiss_has_no_key_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = "autofaiss finds no index for 600,001 rows within 1 bytes (ZeroDivisionError: division by zero)"
    monkeypatch.setattr(index_keys, "autofaiss_works", lambda: True)
    monkeypatch.setattr(index_keys, "run_worker", lambda job: {"key": "", "reason": said})
    with caplog.at_level(logging.INFO):
        key = choose_key(600_001, 768, IndexConfig(memory=256 * MB))[0].key
    assert key.endswith(",PQ192x4fs") and said in caplog.text


@pytest.mark.usefixtures("no_autofaiss")
def test_an_index_without_the_wanted_recall_is_replaced_by_the_next_possible_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def worker(job: dict[str, object], folder: Path) -> dict[str, object]:
        built.append(str(job["key"]))
        if "PQ" in built[-1] or job["config"]["min_recall"] == 1.0:  # type: ignore[index]
            raise RecallError("recall@19 stays below 0.95")
        return {"peak_bytes": 0, "training_rows": 0, "seconds": {}, "value_bytes": 0, "params": {}, "recall": {}}

    monkeypatch.setattr(index_process, "run_worker", worker)
    np.save(tmp_path / "vectors.npy", np.zeros((2_000, 8), np.float16))
    assert build_whole(tmp_path, IndexConfig(), None, filtered=True).key == built[1] == "HNSW15"
    with pytest.raises(RecallError):
        build_whole(tmp_path, IndexConfig(min_recall=1.0), None, filtered=True)
    assert len(built) == 5, "all three kinds were tried"


@pytest.mark.usefixtures("no_autofaiss")
def test_a_graph_that_was_built_before_there_were_lists_for_filters_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(job: dict[str, object], folder: Path) -> dict[str, object]:
        (folder / "index.faiss").write_bytes(str(job["key"]).encode())
        return {"peak_bytes": 0, "training_rows": 0, "seconds": {}, "value_bytes": 0, "params": {}, "recall": {}}

    monkeypatch.setattr(index_process, "run_worker", worker)
    db, config = home_database(tmp_path), IndexConfig(exact_rows=100)
    shards, _, _ = write_shards(db, 1_500, 8)
    rows = IndexInput(encoder_record(8), {"year": "int64"}, shards)
    plain = index_id(config, rows, None)
    with monkeypatch.context() as published:  # by the version before, which chose no key for filters
        published.setattr("pipeline.index.build._current_index", lambda db: plain)
        graph = build_index(db, config, rows)
        assert (graph.id, graph.key) == (plain, "HNSW15")
        entry = f"{db.index_folder(rows.encoder, plain)}/entry.json"
        db.storage.remove(entry)
        assert build_index(db, config, rows).key == "HNSW15", "a damaged index is built as it was"
    assert build_index(db, config, rows).key == "HNSW15", "a finished index is reused"
    db.storage.remove(entry)
    inverted = build_index(db, config, rows)
    assert inverted.key.endswith("PQ2x4fs")
    assert inverted.id == index_id(config, rows, None, (), inverted.key) != graph.id
    assert build_index(db, config, rows) == inverted
