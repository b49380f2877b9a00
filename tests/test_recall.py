"""Recall: the definition of a hit, the origin of text queries, and the interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IndexBuildError
from pipeline.index import IndexConfig, IndexInput, Queries, SearchIndex, build_index, text_queries
from pipeline.index.recall import Probe, exact_top, probes, prompts
from tests.vectors import COLUMNS, clustered, encoder_record, home_database, unit, write_shards

DIM = 32


class HashingEncoder:
    """A fast text tower: each text's vector is drawn from a generator seeded with the text."""

    def __init__(self, dim: int = DIM, has_text: bool = True) -> None:
        self.dim, self.has_text = dim, has_text
        self.seen: list[str] = []

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self.seen += texts
        return unit(np.stack([np.random.default_rng(list(t.encode())).standard_normal(self.dim) for t in texts]))


def test_exact_top_equals_brute_force_across_blocks(tmp_path: Path) -> None:
    vectors = clustered(5000, DIM).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    queries = unit(clustered(7, DIM, seed=4))
    scores, found = exact_top(tmp_path / "vectors.npy", queries, 25)
    products = queries @ vectors.astype(np.float32).T
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1, kind="stable")[:, :25])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :25], atol=1e-6)


def test_a_hit_is_a_score_within_a_thousandth_of_the_kth(tmp_path: Path) -> None:
    angles = np.arccos([0.9, 0.8, 0.7, 0.6995, 0.6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    index = SearchIndex(tmp_path / "vectors.npy", threads=1)
    query = np.array([[1.0, 0.0]], np.float32)
    none = np.array([-1])
    for kth, hits in ((0.6, 4), (0.7, 4), (0.8, 2), (0.95, 0)):  # of four: the fourth, 0.6995, is as good as 0.7
        probe = Probe("text", "test", query, np.array([kth], np.float32), none)
        assert probe.recall(index, 4)["value"] == hits / 4
    index.close()


def test_image_queries_leave_their_own_row_out(tmp_path: Path) -> None:
    vectors = clustered(400, DIM).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    (image,), k = probes(tmp_path / "vectors.npy", IndexConfig(queries=30), None)
    assert (image.kind, k, len(image.queries)) == ("image", 19, 30)
    products = image.queries @ vectors.astype(np.float32).T
    products[np.arange(30), image.own] = -np.inf
    np.testing.assert_allclose(image.kth, -np.sort(-products, axis=1)[:, 18], atol=1e-6)
    assert image.kth.max() < 0.999


def test_captions_are_the_first_choice_for_text_queries(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, table = write_shards(db, 1000, DIM)
    encoder = HashingEncoder()
    queries = text_queries(encoder, db, IndexInput(encoder_record(DIM), COLUMNS, shards), IndexConfig(queries=40))
    assert queries.origin == "captions"
    assert len(queries.texts) == 40
    assert set(queries.texts) <= set(table["caption"].to_pylist())
    assert queries.vectors.shape == (40, DIM)
    again = text_queries(encoder, db, IndexInput(encoder_record(DIM), COLUMNS, shards), IndexConfig(queries=40))
    assert again.fingerprint() == queries.fingerprint()


def test_without_captions_sentences_are_made_from_metadata(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 1000, DIM, captions=False)
    queries = text_queries(HashingEncoder(), db, IndexInput(encoder_record(DIM), COLUMNS, shards), IndexConfig())
    assert queries.origin == "metadata"
    assert "a picture in the style of ukiyo e" in queries.texts


def test_without_words_the_shipped_prompts_are_used(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    columns = {"year": "int64", "score_": "float64", "nice": "bool"}
    shards, _, _ = write_shards(db, 300, DIM, captions=False)
    queries = text_queries(HashingEncoder(), db, IndexInput(encoder_record(DIM), columns, shards), IndexConfig())
    assert queries.origin == "prompts"
    assert list(queries.texts) == prompts()
    assert len(prompts()) >= 100
    assert len(set(prompts())) == len(prompts())


def test_an_encoder_without_a_text_tower_has_no_text_queries_and_says_so(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 300, DIM)
    encoder = HashingEncoder(has_text=False)
    rows = IndexInput(encoder_record(DIM, has_text=False), COLUMNS, shards)
    queries = text_queries(encoder, db, rows, IndexConfig())
    assert encoder.seen == []
    entry = build_index(
        db, IndexConfig(queries=10), IndexInput(encoder_record(DIM, has_text=False), COLUMNS, shards), text=queries
    )
    assert entry.recall["text"] == {"queries": 0, "origin": "none: the encoder has no text tower"}
    assert entry.recall["image"]["queries"] == 10


def test_a_text_tower_of_another_width_is_an_error(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 300, DIM)
    with pytest.raises(IndexBuildError, match="made by another encoder"):
        text_queries(HashingEncoder(dim=16), db, IndexInput(encoder_record(DIM), COLUMNS, shards), IndexConfig())


def test_an_exact_index_is_measured_with_text_too(tmp_path: Path) -> None:
    db = home_database(tmp_path)
    shards, _, _ = write_shards(db, 700, DIM)
    text = Queries("captions", ("a", "b", "c"), HashingEncoder().encode_texts(["a", "b", "c"]))
    entry = build_index(db, IndexConfig(queries=10), IndexInput(encoder_record(DIM), COLUMNS, shards), text=text)
    assert entry.recall["text"]["value"] == 1.0
    assert entry.recall["text"]["queries"] == 3
