"""Synthetic retrieval databases for tests: clustered unit vectors in real embedding shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.database import IndexEntry, RetrievalDatabase, ShardEntry, Version
from pipeline.encoders import EncoderRecord
from pipeline.schema import embedding_schema, key_of

COLUMNS = {"style": "string", "year": "int64", "score_": "float64", "nice": "bool"}
STYLES = ("baroque", "impressionism", "realism", "ukiyo_e")


def encoder_record(dim: int = 32, has_text: bool = True) -> EncoderRecord:
    return EncoderRecord("random:test", dim, "0" * 64, "openclip", trained=False, has_text=has_text)


def clustered(rows: int, dim: int, clusters: int = 50, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """(rows, dim) float32 unit vectors around `clusters` centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, dim))
    vectors = centres[generator.integers(0, clusters, rows)] + spread * generator.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_shards(
    db: RetrievalDatabase,
    rows: int,
    dim: int = 32,
    shard_rows: int = 500,
    seed: int = 0,
    failed_every: int = 0,
    copies: dict[int, int] | None = None,
    captions: bool = True,
) -> tuple[list[ShardEntry], np.ndarray, pa.Table]:
    """Embedding shards of `rows` rows. Returns entries, the stored vectors of ok rows (float16) and the ok rows' table.

    copies maps a row to the earlier row it is a byte-for-byte copy of; every failed_every-th row failed.
    """
    record = encoder_record(dim)
    vectors = clustered(rows, dim, seed=seed).astype(np.float16)
    for row, original in (copies or {}).items():
        vectors[row] = vectors[original]
    schema = embedding_schema(COLUMNS, dim)
    entries, tables = [], []
    for shard, start in enumerate(range(0, rows, shard_rows)):
        numbers = np.arange(start, min(start + shard_rows, rows))
        failed = (numbers % failed_every == failed_every - 1) if failed_every else np.zeros(len(numbers), bool)
        flat = pa.array(np.where(failed[:, None], 0, vectors[numbers]).astype(np.float16).ravel())
        digests = [hashlib.sha256(str((copies or {}).get(int(n), int(n))).encode()).hexdigest() for n in numbers]
        values = {
            "key": pa.array([key_of(shard, int(n) - start) for n in numbers]),
            "item_id": [f"item-{n}" for n in numbers],
            "status": ["failed" if bad else "ok" for bad in failed],
            "error": ["decode" if bad else None for bad in failed],
            "source": ["test"] * len(numbers),
            "url": [None] * len(numbers),
            "licence": ["CC0-1.0"] * len(numbers),
            "caption": [f"a picture of thing {n}" if captions else None for n in numbers],
            "sha256": [None if bad else digest for bad, digest in zip(failed, digests, strict=True)],
            "phash": ["0" * 16] * len(numbers),
            "width": pa.array(256 + numbers % 7, pa.int32()),
            "height": pa.array(256 + numbers % 5, pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
            "norm": pa.array(np.where(failed, None, 1.0 + numbers / 7), pa.float32(), from_pandas=True),
            "style": [STYLES[n % 4] for n in numbers],
            "year": pa.array(1600 + numbers % 400),
            "score_": [None if n % 10 == 0 else n / rows for n in numbers],
            "nice": pa.array(numbers % 3 == 0),
        }
        table = pa.table([pa.array(values[f.name], f.type) for f in schema], schema=schema)
        artifact = db.write_table(db.embedding_table(record, shard), table)
        entries.append(ShardEntry(shard, int((~failed).sum()), artifact))
        tables.append(table.filter(pa.array(~failed)))
    ok = np.array([not (failed_every and n % failed_every == failed_every - 1) for n in range(rows)])
    return entries, vectors[ok], pa.concat_tables(tables)


def version_of(db: RetrievalDatabase, index: IndexEntry, shards: list[ShardEntry], dim: int = 32) -> Version:
    return Version(
        database=db.name,
        manifest={},
        encoder=encoder_record(dim),
        columns=COLUMNS,
        shards=tuple(shards),
        index=index,
        counts={},
        images="drop",
        plan="test",
    )


def brute_force(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent reference: scores and ordinals of the k best of `rows` (ascending), ties by ordinal; float64."""
    scores = (vectors[rows].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def home_database(home: Path, name: str = "test") -> RetrievalDatabase:
    return RetrievalDatabase(name, str(home))
