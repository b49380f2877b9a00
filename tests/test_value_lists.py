"""Inverted lists of the values of a column: the same rows, codes and results as the whole index, without a mask of all rows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.index import IndexConfig, IndexInput, SearchIndex, Subset, build_index
from pipeline.index import lists as lists_module
from pipeline.index import search as search_module
from pipeline.index import splitting as splitting_module
from pipeline.index.approximate import scan_lists
from pipeline.index.build import index_id
from pipeline.index.lists import splits
from pipeline.index.splitting import NO_VALUE, SplitColumn, split_columns
from pipeline.index.values import read_value_lists, write_value_lists
from pipeline.retrieval import open_search
from tests.vectors import COLUMNS, brute_force, clustered, encoder_record, home_database, unit, version_of, write_shards

ROWS, DIM, LISTS = 6000, 32, 32
COLUMN = SplitColumn("style", ("baroque", "few", "realism", "rococo"))
KEYS = ("IVF32,PQ16x4fs", "IVF32,SQ8")
PARAMS = {"nprobe": 8, "candidates": 200, "value_nprobe": 16, "value_candidates": 500}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS, DIM, clusters=20)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """The value of each row: 7 rows of a rare one, and 100 rows without one."""
    made = np.random.default_rng(1).choice([0, 2, 3], ROWS, p=[0.5, 0.3, 0.2]).astype(np.uint8)
    made[100:107], made[200:300] = 1, NO_VALUE
    return made


@pytest.fixture(scope="module", params=KEYS)
def built(request: pytest.FixtureRequest, vectors: np.ndarray, codes: np.ndarray, tmp_path_factory) -> tuple:
    import faiss

    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("index")
    index = faiss.index_factory(DIM, request.param, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    np.save(folder / "vectors.npy", vectors.astype(np.float16))
    assert splits(index)
    size = write_value_lists(index, [COLUMN], codes[None], folder / "values.lists")
    assert size == (folder / "values.lists").stat().st_size
    return folder, index


def opened(built: tuple, values: bool = True) -> SearchIndex:
    folder, index = built
    path = folder / "values.lists" if values else None
    return SearchIndex(folder / "vectors.npy", index, PARAMS, exact_subset=100, values=path)


def test_every_row_with_a_value_is_in_one_list_of_its_value(built: tuple, codes: np.ndarray) -> None:
    folder, index = built
    lists = read_value_lists(folder / "values.lists")["style"]
    home = index.quantizer.search(np.load(folder / "vectors.npy").astype(np.float32), 1)[1][:, 0]
    for number in range(len(COLUMN.values)):
        rows = lists.ordinals(number)
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(codes == number))
        assert lists.sizes[number].sum() == len(rows)
        apart = np.bincount(home[rows], minlength=LISTS) - lists.sizes[number]
        assert np.abs(apart).sum() <= 0.02 * len(rows)  # vectors.npy is rounded to half precision
    assert lists.part(["baroque", "unknown"]).per_list.sum() == (codes == 0).sum()
    assert lists.part(["unknown"]).per_list.sum() == 0


def test_the_lists_of_a_value_hold_the_codes_of_the_index(built: tuple, vectors: np.ndarray, codes: np.ndarray) -> None:
    import faiss

    folder, index = built
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        assert not read_value_lists(folder / "values.lists")["style"].has_codes
        return
    lists = read_value_lists(folder / "values.lists")["style"]
    every = np.tile(np.arange(LISTS, dtype=np.int64), (3, 1))
    zeros = np.zeros((3, LISTS), np.float32)
    for number in range(len(COLUMN.values)):
        rows = np.flatnonzero(codes == number)
        alone = lists.open(number, index)
        k = min(10, len(rows))
        scores, found = scan_lists(alone, vectors[:3], k, None, every, zeros)
        expected, _ = scan_lists(index, vectors[:3], k, faiss.IDSelectorBatch(rows), every, zeros)
        np.testing.assert_array_equal(scores, expected)
        assert np.isin(found, rows).all()


@pytest.mark.parametrize("values", [("baroque",), ("few",), ("rococo",), ("realism", "few"), ("unknown",), ()])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_value_is_searched_like_its_rows(
    built: tuple, vectors: np.ndarray, codes: np.ndarray, values: tuple, share: float
) -> None:
    index = opened(built)
    part = index.rows_of("style", values)
    assert part is not None
    mask = np.isin(codes, [COLUMN.values.index(value) for value in values if value in COLUMN.values])
    mask &= np.random.default_rng(2).random(ROWS) < share
    rows = Subset(None, ROWS, part) if share == 1.0 else Subset(mask, ROWS, part)
    within = np.flatnonzero(mask)
    queries = unit(clustered(5, DIM, clusters=20, seed=3) + 0.1)
    for k in (1, 19, 150):
        scores, found, plan = index.top(queries, k, rows)
        assert found.shape == (5, min(k, len(within))) and plan.matched == len(within)
        assert np.isin(found, within).all()
        best = [brute_force(vectors.astype(np.float16), query, within, k)[0] for query in queries]
        assert (scores >= np.array(best)[:, -1:] - 1e-3).mean() >= 0.95 if len(within) else scores.size == 0
    np.testing.assert_array_equal(rows.ordinals, within)
    index.close()


def test_the_plan_names_the_lists_that_were_searched(built: tuple) -> None:
    index = opened(built)
    part = index.rows_of("style", ["baroque"])
    assert part is not None
    plan = index.top(unit(np.ones((1, DIM), np.float32)), 19, Subset(None, ROWS, part))[2].plan
    has_codes = part.column.has_codes
    assert ("in the lists of style = baroque" in plan) == has_codes
    assert ("with a selector" in plan) == (not has_codes)
    few = Subset(None, ROWS, index.rows_of("style", ["few"]))
    assert index.top(unit(np.ones((1, DIM), np.float32)), 19, few)[2].plan == "exact scan of the matching rows"
    index.close()


def test_lists_stay_in_memory_up_to_a_size_and_the_last_ones_always(built: tuple) -> None:
    folder, index = built
    lists = read_value_lists(folder / "values.lists")["style"]
    if not lists.has_codes:
        return
    first = lists.open(0, index)
    assert lists.open(2, index) is not first and lists.open(0, index) is first
    lists.kept = 0
    third = lists.open(3, index)
    assert lists.open(3, index) is third and lists.open(0, index) is not first


@pytest.mark.parametrize("far", [False, True])
def test_few_rows_are_scanned_in_the_nearest_lists_first(
    built: tuple, vectors: np.ndarray, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "NEAR_ROWS", 100)
    folder, index = built
    query = unit(vectors[:1] + 0.1)
    order = np.argsort(vectors @ query[0])
    within = np.sort(order[:900]) if far else np.arange(0, ROWS, 7)
    search = SearchIndex(folder / "vectors.npy", index, {"nprobe": 4, "candidates": 200}, exact_subset=1000)
    read = count_rows(search, monkeypatch)
    scores, found, plan = search.top(query, 19, within)
    assert plan.plan == "scan of the matching rows in the nearest lists" and plan.matched == len(within)
    assert far or sum(read) < len(within)
    assert len(np.unique(found)) == 19 and np.isin(found, within).all() and (np.diff(scores) <= 0).all()
    best, _ = brute_force(vectors.astype(np.float16), query[0], within, 19)
    assert (scores[0] >= best[-1] - 1e-3).sum() >= 18
    assert search.top(query, 19, within, exact=True)[2].plan == "exact scan of the matching rows"
    assert search.top(query, len(within), within)[1].shape == (1, len(within))
    search.close()


def count_rows(search: SearchIndex, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each scan of some rows, from now on."""
    read: list[int] = []
    rough = search.exact.rough

    def counted(query: np.ndarray, k: int, ordinals: np.ndarray) -> tuple:
        read.append(len(ordinals))
        return rough(query, k, ordinals)

    monkeypatch.setattr(search.exact, "rough", counted)
    return read


def test_of_many_rows_lists_without_one_in_a_sample_are_left_out_unless_they_are_near(
    built: tuple, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists_module, "MANY", 100)
    _, index = built
    choice = lists_module.ListChoice(index)
    query = vectors[:1]
    nearest = choice.ranked(query, Subset(np.ones(ROWS, bool), ROWS))[0][0]
    home = index.quantizer.search(vectors, 1)[1][:, 0]
    mask = np.isin(home, nearest[8:20])
    rare = np.flatnonzero(home == nearest[0])[3]  # one row in the nearest list, which a sample may miss
    mask[rare] = True
    lists, _ = choice.ranked(query, Subset(mask, ROWS), nearest=2)
    assert set(nearest[8:20]) | {nearest[0]} <= set(lists[0].tolist())
    assert len(lists[0]) <= 14


@pytest.mark.parametrize(
    ("column", "chosen"),
    [
        (["a"] * 60 + ["b"] * 40, True),
        ([True] * 50 + [False] * 50, True),
        ([1, 2, 3, 4] * 25, True),
        (["a"] * 60 + ["b"] * 36 + [None] * 4, True),
        (["a"] * 60 + ["b"] * 30 + [None] * 10, False),  # too many NULLs
        (["a"] * 90 + ["b"] * 10, False),  # one value has nearly all rows
        (["a"] * 100, False),
        (list("abcdefghijk") * 9 + ["a"], False),  # fewer than ROWS rows a value
    ],
)
def test_columns_of_few_values_are_split(column: list, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting_module, "ROWS", 10)
    tables = [pa.table({"c": pa.array(part, pa.array(column).type)}) for part in (column[:30], column[30:])]
    expected = (SplitColumn("c", tuple(sorted(set(column) - {None}))),) if chosen else ()
    assert split_columns(tables, ["c"], most_bytes=100) == expected
    assert split_columns(tables, ["c"], most_bytes=99) == ()


def test_the_columns_with_the_rarest_frequent_value_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting_module, "ROWS", 10)
    table = pa.table({"half": ["a", "b"] * 50, "third": ["a", "b", "c"] * 33 + ["a"], "fifth": list("abcde") * 20})
    assert [column.name for column in split_columns([table], table.column_names, 1000)] == ["fifth", "third"]


@pytest.mark.process
def test_a_built_database_searches_a_view_in_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = home_database(tmp_path)
    shards, _, table = write_shards(db, ROWS, DIM, failed_every=17)
    config = IndexConfig(key="IVF32,PQ16x4fs", queries=20, min_recall=0.8)
    rows = IndexInput(encoder_record(DIM), COLUMNS, shards, table["key"].to_numpy()[:40])
    monkeypatch.setattr(splitting_module, "ROWS", 10**9)
    unsplit = build_index(db, config, rows)
    assert unsplit.id == index_id(config, rows, None) and "values" not in unsplit.files
    monkeypatch.setattr(splitting_module, "ROWS", 1000)
    assert build_index(db, config, rows) == unsplit, "a finished index stays as it is"
    db.storage.remove(f"{db.index_folder(rows.encoder, unsplit.id)}/entry.json")
    entry = build_index(db, config, rows)
    assert entry.id != index_id(config, rows, None)
    assert entry.build["value_bytes"] == entry.files["values"].bytes
    style = next(one for one in entry.recall["values"] if one["column"] == "style")
    assert set(style["values"]) == {"baroque", "impressionism", "realism", "ukiyo_e"}
    assert 0.8 <= style["least"] <= style["mean"] <= 1.0 and style["queries"] == 20
    assert build_index(db, config, rows) == entry
    version = version_of(db, entry, shards, DIM)
    plain = dataclasses.replace(entry, files={role: file for role, file in entry.files.items() if role != "values"})
    filters = {
        "": lambda row: row["style"] == "realism",
        "year < 1700": lambda row: row["style"] == "realism" and row["year"] < 1700,
        "nice": lambda row: row["style"] == "realism" and row["nice"],
        "style IN ('realism', 'rococo')": lambda row: row["style"] == "realism",
        "style = 'baroque'": lambda row: False,
        "year + 0 < 1700": lambda row: row["style"] == "realism" and row["year"] < 1700,
    }
    queries = unit(clustered(4, DIM, seed=8) + 0.1)
    alive = table.slice(40).to_pylist()
    with (
        open_search(db, version, "style = 'realism'", exact_subset=50) as view,
        open_search(db, version_of(db, plain, shards, DIM), "style = 'realism'", exact_subset=50) as old,
    ):
        for where, test in filters.items():
            expected = {row["key"] for row in alive if test(row)}
            found = view.search(queries, 19, where)
            assert found.keys.shape == (4, min(19, len(expected))) and found.plan.matched == len(expected)
            assert set(found.keys.ravel().tolist()) <= expected
            best = old.search(queries, 19, where, exact=True)
            assert (found.scores >= best.scores[:, -1:] - 1e-3).mean() >= 0.9 if expected else True
            assert old.search(queries, 19, where).keys.shape == found.keys.shape
        assert "in the lists of style = realism" in view.search(queries, 19).plan.plan
        own = view.search(queries, 1).keys[0, 0]
        assert own not in view.search(queries, 19, exclude_keys=[int(own)]).keys[0]
