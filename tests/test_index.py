"""The index stage: its files, the same every time, and complete files after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.database import IndexEntry, RetrievalDatabase, ShardEntry
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConfigError, IndexBuildError
from pipeline.index import IndexConfig, IndexInput, Queries, build_index
from pipeline.index.build import index_id
from pipeline.retrieval import open_search
from pipeline.schema import metadata_columns
from pipeline.storage import Artifact
from tests.vectors import COLUMNS, clustered, encoder_record, home_database, unit, version_of, write_shards

DIM = 32
CONFIG = IndexConfig(queries=10)


def paths(db: RetrievalDatabase, entry: IndexEntry) -> dict[str, Path]:
    return {role: db.storage.local(artifact) for role, artifact in entry.files.items()}


def test_an_exact_index_holds_the_ok_rows_in_key_order(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, vectors, table = write_shards(db, 1234, DIM, failed_every=7, copies={40: 3, 1001: 3, 56: 9})
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards[::-1]))
    files = paths(db, entry)
    assert (entry.kind, entry.key, entry.rows) == ("exact", "Flat", table.num_rows)
    np.testing.assert_array_equal(np.load(files["keys"]), table["key"].to_numpy())
    np.testing.assert_array_equal(np.load(files["vectors"]).view(np.uint16), vectors.view(np.uint16))
    np.testing.assert_array_equal(np.load(files["norms"]), table["norm"].to_numpy())
    metadata = pq.read_table(files["metadata"])
    assert metadata.column_names == list(metadata_columns(COLUMNS))
    for name in ("key", "item_id", "caption", "style", "year", "score_", "nice", "licence"):
        assert metadata[name].to_pylist() == table[name].to_pylist()
    by_item = dict(zip(table["item_id"].to_pylist(), table["key"].to_pylist(), strict=True))
    found = {
        item: original
        for item, original in zip(metadata["item_id"].to_pylist(), metadata["duplicate_of"].to_pylist(), strict=True)
        if original is not None
    }
    assert found == {"item-40": by_item["item-3"], "item-1001": by_item["item-3"], "item-56": by_item["item-9"]}
    assert entry.build["duplicates"] == 3


def test_the_first_copy_that_is_left_becomes_the_original(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, table = write_shards(db, 300, DIM, copies={40: 3, 200: 3})
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards, [3]))
    metadata = pq.read_table(paths(db, entry)["metadata"])
    assert 3 not in metadata["key"].to_pylist()
    assert {row["key"]: row["duplicate_of"] for row in metadata.to_pylist() if row["duplicate_of"] is not None} == {
        200: 40
    }
    assert table.num_rows == 300


def test_gone_rows_are_never_returned(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, vectors, table = write_shards(db, 800, DIM)
    gone = table["key"].to_numpy()[::3]
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards, gone))
    with open_search(db, version_of(db, entry, shards, DIM)) as searcher:
        found = searcher.search(unit(vectors[:5].astype(np.float32)), 800).keys
    assert found.shape == (5, 800 - len(gone))
    assert not np.isin(found, gone).any()


def test_building_again_reuses_the_finished_index_and_rebuilds_the_same_bytes(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 900, DIM, failed_every=13)
    first = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    written = {path: path.stat().st_mtime_ns for path in paths(db, first).values()}
    assert build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards)) == first
    assert {path: path.stat().st_mtime_ns for path in paths(db, first).values()} == written
    db.storage.remove(db.index_folder(encoder_record(DIM), first.id))
    # ids and checksums of every file
    assert build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards)) == first


def test_other_inputs_make_another_index(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, table = write_shards(db, 900, DIM)
    ids = {
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards)).id,
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards[:1])).id,
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards, [0])).id,
        build_index(db, IndexConfig(queries=11), IndexInput(encoder_record(DIM), COLUMNS, shards)).id,
    }
    assert len(ids) == 4
    assert table.num_rows == 900


def test_the_id_of_an_index_is_that_of_version_0_1() -> None:
    """Ids are digests of inputs: a database made before finds its finished index again."""
    shard = ShardEntry(0, 1, Artifact("embeddings/0.parquet", "ab" * 32, 100))
    rows = IndexInput(encoder_record(DIM), COLUMNS, [shard], [7, 3])
    text = Queries("captions", ("a", "b"))
    assert index_id(IndexConfig(), rows, None) == "7e5ed18bcce9"
    assert index_id(IndexConfig(key="IVF64,SQ8", memory=1 << 28), rows, text) == "f0e0cfbe1b8f"


def test_an_index_whose_file_was_lost_is_built_again(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 300, DIM)
    first = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    paths(db, first)["vectors"].unlink()
    assert build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards)) == first
    assert paths(db, first)["vectors"].exists()


def test_nothing_to_index_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, table = write_shards(db, 50, DIM)
    with pytest.raises(IndexBuildError, match="no row to index"):
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards, table["key"].to_numpy()))
    with pytest.raises(IndexBuildError, match="no row to index"):
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, []))


def test_a_shard_of_another_encoder_is_an_error(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 50, DIM)
    other = EncoderRecord("random:test", DIM * 2, "0" * 64, "openclip")
    with pytest.raises(IndexBuildError, match="32 dimensions, the encoder's have 64"):
        build_index(db, CONFIG, IndexInput(other, COLUMNS, shards))


def test_a_shard_without_a_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 50, DIM)
    with pytest.raises(IndexBuildError, match="no column medium"):
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), {**COLUMNS, "medium": "string"}, shards))


def test_a_corrupt_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 1200, DIM)
    path = db.storage.local(shards[1].artifact)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(IndexBuildError, match=r"000001\.parquet: this finished shard cannot be read"):
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))


def test_vectors_that_are_not_of_unit_length_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 100, DIM)
    table = pq.read_table(db.storage.local(shards[0].artifact))
    flat = table["vector"].combine_chunks().flatten().to_numpy().copy().reshape(-1, DIM)
    flat[17] = np.nan
    broken = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), DIM)
    db.write_table(shards[0].artifact.path, table.set_column(table.column_names.index("vector"), "vector", broken))
    with pytest.raises(IndexBuildError, match=r"not of unit length, the first that of key 17"):
        build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))


def test_a_single_row_can_be_indexed(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, vectors, _ = write_shards(db, 1, DIM)
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    assert entry.recall["image"] == {"queries": 0, "origin": "none: the index has a single row"}
    with open_search(db, version_of(db, entry, shards, DIM)) as searcher:
        assert searcher.search(unit(vectors.astype(np.float32)), 19).keys.tolist() == [[0]]


@pytest.mark.parametrize(
    "settings", [{"min_recall": 0.0}, {"min_recall": 1.1}, {"k": 0}, {"queries": 0}, {"memory": 0}]
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        IndexConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
def test_a_build_that_is_killed_leaves_whole_files_and_ends_the_same(tmp_path: Path, delay: float) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
        from pathlib import Path
        from tests.vectors import *
        from pipeline.index import IndexConfig, IndexInput, build_index
        from pipeline.storage import Artifact
        db = home_database(Path({str(tmp_path)!r}))
        names = db.storage.list(f"embeddings/{{encoder_record({DIM}).id}}", ".parquet")
        shards = [ShardEntry(n, 500, Artifact(
            f"embeddings/{{encoder_record({DIM}).id}}/{{name}}", str(n), 1)) for n, name in enumerate(names)]
        print("ready", flush=True)
        while True:
            entry = build_index(db, IndexConfig(queries=10), IndexInput(encoder_record({DIM}), COLUMNS, shards))
            folder = db.index_folder(encoder_record({DIM}), entry.id)
            db.storage.remove(folder)
        """
    )
    db = home_database(tmp_path)
    write_shards(db, 4000, DIM)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    root = tmp_path / "databases" / "test" / "index"
    for path in root.rglob("*.npy"):
        np.load(path)  # whole
    for path in root.rglob("*.parquet"):
        pq.read_table(path)
    folder = f"embeddings/{encoder_record(DIM).id}"
    shards = [ShardEntry(n, 500, Artifact(f"{folder}/{n:06d}.parquet", str(n), 1)) for n in range(8)]
    again = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    fresh = home_database(tmp_path / "fresh")
    write_shards(fresh, 4000, DIM)
    assert build_index(fresh, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards)) == again


def test_recall_of_an_exact_index_is_one(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 2000, DIM)
    entry = build_index(db, CONFIG, IndexInput(encoder_record(DIM), COLUMNS, shards))
    assert entry.recall["image"]["value"] == 1.0
    assert entry.recall["image"]["low"] < 1.0
    assert entry.recall["k"] == 19
    assert len(clustered(3, DIM)) == 3
