"""Published embeddings become databases, and exports give them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError, EncoderError, SourceError
from pipeline.exchange import export_embeddings, import_embeddings
from pipeline.exchange.npz import natural
from pipeline.index import IndexConfig
from pipeline.retrieval import QueryRequest, open_search, run_query
from tests.builds import command, folder_of, last_json, quiet_build
from tests.encoders import RANDOM

DIM = 16  # of the tiny encoder


def npz_files(folder: Path, dtype: str = "float16") -> dict[str, dict[str, Any]]:
    """part_2 and part_10 with 7 and 5 rows: embeddings of any length, ids and patches."""
    folder.mkdir()
    generator, made = np.random.default_rng(0), {}
    for name, rows in (("part_2.npz", 7), ("part_10.npz", 5)):
        made[name] = {
            "embedding": (generator.normal(size=(rows, DIM)) * 9).astype(dtype),
            "img_id": generator.integers(0, 10**9, rows),
            "patch_coords": generator.integers(0, 256, (rows, 4)).astype(np.int32),
            "class_id": np.array([f"class {i}" for i in range(rows)]),
        }
        np.savez(folder / name, **made[name])
    return made


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_npz_comes_back_bit_for_bit(tmp_path: Path, home: Path, dtype: str) -> None:
    made = npz_files(tmp_path / "in", dtype)
    version = import_embeddings("mine", tmp_path / "in", RANDOM)
    files = export_embeddings(RetrievalDatabase("mine"), version, "npz", tmp_path / "out")
    assert [path.name for path in files] == ["part_2.npz", "part_10.npz"]
    for path in files:
        with np.load(path, allow_pickle=False) as found:
            assert set(found.files) == set(made[path.name])
            for name, array in made[path.name].items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                assert found[name].tobytes() == array.tobytes()


def test_imported_rows_are_found_with_their_columns_by_key_and_by_text(tmp_path: Path, home: Path) -> None:
    made = npz_files(tmp_path / "in")
    version = import_embeddings("mine", tmp_path / "in", RANDOM)
    assert (version.counts["ok"], version.counts["failed"], version.encoder.weights) == (12, 0, "unstated")
    assert version.index.recall["text"]["queries"] > 0
    rows = run_query(QueryRequest("mine", key=0, k=12)).rows.to_pylist()
    everything = np.concatenate([part["embedding"] for part in made.values()]).astype(np.float64)
    unit = everything / np.linalg.norm(everything, axis=1, keepdims=True)
    ids = np.concatenate([part["img_id"] for part in made.values()])
    assert [row["img_id"] for row in rows] == [ids[i] for i in np.argsort(-(unit @ unit[0])) if i != 0]
    patch = made["part_2.npz"]["patch_coords"][3]
    found = run_query(QueryRequest("mine", text="a harbour", k=1, where="item_id = 'part_2.npz#3'")).rows.to_pylist()
    assert [row["patch_coords"] for row in found] == [", ".join(map(str, patch))]


def test_a_search_in_an_imported_npz_finds_what_exact_cosine_search_finds(tmp_path: Path, home: Path) -> None:
    """The layout of the published art databases: one file of half-precision vectors that are not normalised."""
    generator = np.random.default_rng(4)
    vectors = (generator.normal(size=(400, DIM)) * generator.uniform(1, 20, (400, 1))).astype(np.float16)
    coordinates = np.tile(np.array([0, 0, 256, 256]), (400, 1))
    np.savez_compressed(tmp_path / "400x16.npz", embedding=vectors, img_id=np.arange(400), patch_coords=coordinates)
    version = import_embeddings("mine", tmp_path / "400x16.npz", RANDOM)
    queries = generator.normal(size=(25, DIM)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = vectors.astype(np.float64)
    scores = queries.astype(np.float64) @ (exact / np.linalg.norm(exact, axis=1, keepdims=True)).T
    with open_search(RetrievalDatabase("mine"), version) as searcher:
        found = searcher.search(queries, 19)
        vector, norm = searcher.vectors(found.keys[0])
    best = -np.sort(-scores, axis=1)[:, :19]
    # Stored unit vectors are float16: two rows whose cosines differ by less than that may change places, no others.
    np.testing.assert_allclose(np.take_along_axis(scores, found.keys, axis=1), best, atol=2e-3)
    np.testing.assert_allclose(found.scores, best, atol=2e-3)
    assert (found.keys == np.argsort(-scores, axis=1)[:, :19]).mean() > 0.95
    np.testing.assert_allclose(vector * norm[:, None], exact[found.keys[0]], rtol=2e-3, atol=1e-2)


def test_a_clip_retrieval_folder_is_joined_by_position_in_natural_order_and_comes_back(
    tmp_path: Path, home: Path
) -> None:
    source, generator, tables = tmp_path / "in", np.random.default_rng(1), {}
    for folder in ("img_emb", "metadata"):
        (source / folder).mkdir(parents=True)
    for number in (2, 10):
        np.save(source / f"img_emb/img_emb_{number}.npy", generator.normal(size=(4, DIM)).astype(np.float16))
        tables[number] = pa.table({"image_path": [f"{number}/{i}" for i in range(4)], "caption": ["a", None, "c", "d"],
                                   "tags": [["x"], [], ["y"], ["z"]]})  # fmt: skip
        pq.write_table(tables[number], source / f"metadata/metadata_{number}.parquet")
    version = import_embeddings("mine", source, RANDOM)
    export_embeddings(RetrievalDatabase("mine"), version, "clip-retrieval", tmp_path / "out")
    for number, table in tables.items():
        name = f"img_emb/img_emb_{number}.npy"
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
        assert pq.read_table(tmp_path / f"out/metadata/metadata_{number}.parquet").equals(table)
    found = run_query(QueryRequest("mine", key=0, k=1, where="image_path = '10/3'")).rows.to_pylist()
    assert [row["key"] for row in found] == [10_003]


def test_bad_vectors_are_failed_rows_and_come_back_too(tmp_path: Path, home: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float16)
    vectors[1], vectors[3, 0] = 0, np.nan
    np.savez(tmp_path / "a.npz", embedding=vectors)
    version = import_embeddings("mine", tmp_path / "a.npz", RANDOM)
    assert (version.counts["input"], version.counts["ok"], version.counts["failed"]) == (5, 3, 2)
    (file,) = export_embeddings(RetrievalDatabase("mine"), version, "npz", tmp_path / "out")
    with np.load(file) as found:
        assert found.files == ["embedding"]
        assert found["embedding"].tobytes() == vectors.tobytes()


def test_what_cannot_be_imported_is_refused_with_the_reason(tmp_path: Path, home: Path) -> None:
    vectors = np.ones((2, DIM), np.float32)
    np.savez(tmp_path / "pickled.npz", embedding=vectors, img_id=np.array([{}, {}], object))
    np.savez(tmp_path / "short.npz", embedding=vectors, img_id=np.arange(3))
    np.savez(tmp_path / "wide.npz", embedding=np.ones((2, DIM + 1), np.float32))
    np.savez(tmp_path / "good.npz", embedding=vectors)
    for name, words in (("pickled", "arrays of objects"), ("short", "img_id")):
        with pytest.raises(SourceError, match=words):
            import_embeddings("mine", tmp_path / f"{name}.npz", RANDOM)
    with pytest.raises(EncoderError, match="17 dimensions"):
        import_embeddings("mine", tmp_path / "wide.npz", RANDOM)
    with pytest.raises(EncoderError, match="16 dimensions, encoder 'vit-b-32' has 512"):
        import_embeddings("mine", tmp_path / "good.npz", "vit-b-32")
    import_embeddings("mine", tmp_path / "good.npz", RANDOM)
    with pytest.raises(DatabaseError, match="already"):
        import_embeddings("mine", tmp_path / "good.npz", RANDOM)


@pytest.mark.process
def test_a_built_database_exports_vectors_with_their_lengths(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 6), name="mine")
    (file,) = [Path(path) for path in last_json(command("export", "mine", tmp_path / "out", "--json", home=home))]
    db = RetrievalDatabase("mine")
    table = db.read_table(db.version().shards[0].artifact.path)
    with np.load(file) as found:
        expected = np.array(table["vector"].to_pylist(), np.float32) * table["norm"].to_numpy()[:, None]
        np.testing.assert_allclose(found["embedding"], expected, rtol=1e-6)
        assert found["img_id"].tolist() == table["item_id"].to_pylist()
        assert found["patch_coords"].tolist() == [[0, 0, 48, 48]] * 6


def test_an_imported_database_is_taken_as_built_and_can_be_indexed_otherwise(tmp_path: Path, home: Path) -> None:
    npz_files(tmp_path / "in")
    version = import_embeddings("mine", tmp_path / "in", RANDOM)
    again = quiet_build("mine", encoder="")
    assert (again.version, again.ok) == (version.id, 12)
    other = quiet_build("mine", encoder="", stages=("index",), index=IndexConfig(k=3))
    assert (other.version != version.id, other.ok) == (True, 12)


def test_a_missing_encoder_leaves_text_recall_unmeasured_and_says_why(tmp_path: Path, home: Path) -> None:
    np.savez(tmp_path / "a.npz", embedding=np.random.default_rng(3).normal(size=(4, DIM)))
    version = import_embeddings("mine", tmp_path / "a.npz", f"local:{tmp_path / 'absent'}")
    assert "cannot be reached" in version.index.recall["text"]["origin"]
    assert run_query(QueryRequest("mine", key=0, k=3)).rows.num_rows == 3


def test_numbers_in_names_decide_the_order() -> None:
    names = [path.name for path in sorted(map(Path, ["b10", "b9", "a1", "b010"]), key=natural)]
    assert names == ["a1", "b9", "b010", "b10"]
