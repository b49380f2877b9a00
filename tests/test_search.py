"""Search: exactly min(k, matches) results, equal to brute force if the search is exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, DatabaseError, FilterError
from pipeline.filters import simple_form
from pipeline.index import IndexConfig, IndexInput, build_index
from pipeline.index.exact import MANY_QUERIES, ExactScan
from pipeline.retrieval import Searcher, open_search
from tests.vectors import COLUMNS, brute_force, clustered, encoder_record, home_database, unit, version_of, write_shards

ROWS, DIM = 3000, 32
COPIES = {5: 2, 700: 2, 2999: 100}
FILTERS = ("", "style = 'baroque'", "year < 1605", "year = 1700 AND nice", "score_ IS NULL", "true", "1 = 0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object, np.ndarray, pa.Table]:
    home = tmp_path_factory.mktemp("home")
    db = home_database(home)
    shards, vectors, table = write_shards(db, ROWS, DIM, failed_every=11, copies=COPIES)
    entry = build_index(db, IndexConfig(queries=20), IndexInput(encoder_record(DIM), COLUMNS, shards))
    return home, version_of(db, entry, shards, DIM), vectors, table


@pytest.fixture
def searcher(built: tuple) -> Iterator[Searcher]:
    home, version, _, _ = built
    with open_search(home_database(home), version, threads=1) as opened:
        yield opened


def matching(table: pa.Table, where: str) -> np.ndarray:
    """Ordinals of the rows that match, by plain Python."""
    tests = {
        "": lambda row: True,
        "true": lambda row: True,
        "1 = 0": lambda row: False,
        "style = 'baroque'": lambda row: row["style"] == "baroque",
        "year < 1605": lambda row: row["year"] < 1605,
        "year = 1700 AND nice": lambda row: row["year"] == 1700 and row["nice"],
        "score_ IS NULL": lambda row: row["score_"] is None,
        "NOT nice": lambda row: not row["nice"],
    }
    return np.array([n for n, row in enumerate(table.to_pylist()) if tests[where](row)], np.int64)


@pytest.mark.parametrize("count", [1, 3, MANY_QUERIES + 5])
@pytest.mark.parametrize("where", FILTERS)
def test_filtered_search_equals_brute_force(searcher: Searcher, built: tuple, where: str, count: int) -> None:
    _, _, vectors, table = built
    queries = unit(clustered(count, DIM, seed=9))
    rows = matching(table, where)
    for k in (1, 19, 400):
        results = searcher.search(queries, k, where)
        assert results.keys.shape == (count, min(k, len(rows)))
        assert results.plan.matched == len(rows)
        for number, query in enumerate(queries):
            scores, expected = brute_force(vectors, query, rows, k)
            np.testing.assert_array_equal(results.ordinals[number], expected)
            np.testing.assert_allclose(results.scores[number], scores, atol=1e-6)
        np.testing.assert_array_equal(results.keys, table["key"].to_numpy()[results.ordinals])


def test_a_view_is_its_filter_and_the_users(built: tuple) -> None:
    home, version, _, table = built
    with open_search(home_database(home), version, where="style = 'baroque' OR style = 'realism'") as view:
        found = view.search(unit(clustered(1, DIM)), ROWS, "nice OR year = 1700").keys[0]
    expected = {
        row["key"]
        for row in table.to_pylist()
        if row["style"] in ("baroque", "realism") and (row["nice"] or row["year"] == 1700)
    }
    assert set(found.tolist()) == expected


def test_equal_rows_come_in_the_order_of_their_keys_whatever_k_is(searcher: Searcher, built: tuple) -> None:
    _, _, vectors, table = built
    query = unit(vectors[2:3].astype(np.float32))
    same = [row["key"] for row in table.to_pylist() if row["item_id"] in ("item-2", "item-5", "item-700")]
    for k in (1, 2, 3):
        assert searcher.search(query, k).keys[0].tolist() == same[:k]


def test_many_equal_rows_at_the_cut_are_taken_in_order() -> None:
    vectors = np.repeat(unit(np.eye(2, 16, dtype=np.float32) + 0.1), [3000, 3], axis=0).astype(np.float16)
    scan = ExactScan(vectors, threads=2)
    for query, first in ((vectors[0], 0), (vectors[3000], 3000)):
        _, found = scan.top(query[None].astype(np.float32), 10)
        expected = list(range(10)) if first == 0 else [3000, 3001, 3002, *range(7)]
        assert found[0].tolist() == expected
    scan.close()


def test_distinct_shows_each_picture_once_even_when_the_filter_hides_the_original(
    built: tuple, searcher: Searcher
) -> None:
    _, _, vectors, table = built
    query = unit(vectors[2:3].astype(np.float32))
    by_item = {row["item_id"]: row["key"] for row in table.to_pylist()}
    everything = searcher.search(query, ROWS, distinct=True).keys[0]
    assert len(everything) == table.num_rows - 3
    assert by_item["item-2"] in everything
    assert not {by_item["item-5"], by_item["item-700"], by_item["item-2999"]} & set(everything.tolist())
    hidden = searcher.search(query, ROWS, f"key <> {by_item['item-2']}", distinct=True).keys[0]
    assert by_item["item-5"] in hidden
    assert by_item["item-700"] not in hidden


def test_excluded_keys_are_never_returned_and_are_made_up_for(searcher: Searcher, built: tuple) -> None:
    _, _, vectors, table = built
    query = unit(vectors[50:51].astype(np.float32))
    own = int(table["key"][50].as_py())
    assert searcher.search(query, 1).keys[0, 0] == own
    results = searcher.search(query, 19, exclude_keys=[own, 10**12])
    assert results.keys.shape == (1, 19)
    assert own not in results.keys
    everything = searcher.search(query, ROWS, exclude_keys=[own])
    assert everything.keys.shape == (1, table.num_rows - 1)
    assert everything.plan.matched == table.num_rows - 1


def test_the_reported_times_add_up_to_the_whole_call(
    searcher: Searcher, built: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that counts its readings, the last reading minus the first is the sum of the times."""
    readings: list[float] = []

    def clock() -> float:
        readings.append(float(len(readings)))
        return readings[-1]

    query = unit(built[2][:1].astype(np.float32))
    monkeypatch.setattr("time.perf_counter", clock)
    for where in ("", "year < 1605", "style LIKE 'b%'"):
        readings.clear()
        plan = searcher.search(query, 19, where, exclude_keys=[1]).plan
        assert plan.filter_s + plan.search_s + plan.rerank_s == readings[-1] - readings[0] > 0


@pytest.mark.parametrize(("simple", "slow"), [("year < 1605", "year + 0 < 1605"), ("NOT nice", "(NOT nice) AND 1 = 1")])
def test_a_simple_filter_gives_the_rows_that_duckdb_gives(
    searcher: Searcher, built: tuple, simple: str, slow: str
) -> None:
    assert simple_form(simple, searcher.columns) is not None and simple_form(slow, searcher.columns) is None
    query = unit(built[2][:3].astype(np.float32))
    ours, theirs = searcher.search(query, 19, simple), searcher.search(query, 19, slow)
    np.testing.assert_array_equal(ours.keys, theirs.keys)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    for where in (simple, slow):
        np.testing.assert_array_equal(searcher.matching(where), matching(built[3], simple))


def test_vectors_and_norms_come_back_as_they_were_stored(searcher: Searcher, built: tuple) -> None:
    _, _, vectors, table = built
    keys = table["key"].to_numpy()[[7, 3, 3, 2000]]
    found, norms = searcher.vectors(keys)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors[[7, 3, 3, 2000]].astype(np.float32))
    np.testing.assert_array_equal(norms, table["norm"].to_numpy()[[7, 3, 3, 2000]])


def test_metadata_comes_in_the_order_of_the_keys(searcher: Searcher, built: tuple) -> None:
    _, _, _, table = built
    places = [2700, 1, 1, 600]
    keys = table["key"].to_numpy()[places]
    rows = searcher.metadata(keys, ["item_id", "style", "width"]).to_pylist()
    expected = table.select(["item_id", "style", "width"]).take(places).to_pylist()
    assert rows == expected
    assert searcher.metadata([], ["style"]).num_rows == 0
    assert searcher.metadata(keys).column_names == list(searcher.columns)


def test_unknown_keys_columns_filters_and_queries_are_errors_that_say_the_fix(searcher: Searcher) -> None:
    with pytest.raises(DatabaseError, match="no row with key 123456789"):
        searcher.vectors([123456789])
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        searcher.metadata([0], ["styl"])
    with pytest.raises(FilterError, match="did you mean 'style'"):
        searcher.search(unit(clustered(1, DIM)), 3, "styl = 'x'")
    with pytest.raises(ConfigError, match="vectors of 32 dimensions"):
        searcher.search(unit(clustered(1, 16)), 3)
    with pytest.raises(ConfigError, match="unit length"):
        searcher.search(np.full((1, DIM), np.nan, np.float32), 3)
    with pytest.raises(ConfigError, match="at least one"):
        searcher.search(unit(clustered(1, DIM)), 0)


def test_many_queries_with_falling_scores_across_blocks_equal_brute_force() -> None:
    """From the second block on, only rows that reach the bound are compared; here such rows come late, and early."""
    vectors = unit(clustered(20_000, 16, seed=3))
    queries = unit(clustered(MANY_QUERIES, 16, seed=4))
    for order in (np.argsort(vectors @ queries[0]), np.argsort(-(vectors @ queries[0]))):
        stored = vectors[order].astype(np.float16)
        scan = ExactScan(stored, threads=1)
        for rows in (None, np.arange(0, 20_000, 3)):
            scores, found = scan.top(queries, 25, rows)
            for number, query in enumerate(queries):
                within = np.arange(20_000) if rows is None else rows
                expected_scores, expected = brute_force(stored, query, within, 25)
                np.testing.assert_array_equal(found[number], expected)
                np.testing.assert_allclose(scores[number], expected_scores, atol=1e-6)
        scan.close()


def test_a_missing_index_file_is_named_with_the_fix(built: tuple, tmp_path: Path) -> None:
    _, version, _, _ = built
    with pytest.raises(DatabaseError, match=r"the file is missing. `rdmpipe check test --home .* --repair` rebuilds"):
        open_search(home_database(tmp_path), version)
