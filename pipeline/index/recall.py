"""Recall@k of an index against exact search, with an interval, for text and for image queries.

Reads: vectors.npy in blocks, and the index under test. Writes nothing. Recall is the share of the k results whose score
reaches the exact k-th score minus TOLERANCE, so that a row with the same score as a true neighbour counts. The interval is
Wilson's at 95 %. Its n is the number of queries and not of results, because the results of one query are not independent; the
interval is therefore not empty even at a recall of 1.

Text queries are captions of sampled rows, else sentences made from their metadata, else the prompts that ship with the
package. Text and image vectors occupy different regions, so an index that is good for its own rows can be poor for text.
Image queries are sampled rows; each is left out of its own results. For the lists of a column's values (index/values.py),
recall is measured for each value, among its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from pipeline.config import digest
from pipeline.errors import IndexBuildError
from pipeline.index.gpu import BLOCK_ROWS as GPU_ROWS
from pipeline.index.npy import npy_shape, read_npy_header, read_rows
from pipeline.installation import asset
from pipeline.intervals import wilson

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase
    from pipeline.index.config import IndexConfig
    from pipeline.index.exact import Neighbours
    from pipeline.index.gpu import Gpu
    from pipeline.index.records import IndexInput, Measured, Recall, ValueRecall
    from pipeline.index.search import SearchIndex
    from pipeline.index.splitting import SplitColumn

TOLERANCE = 1e-3

BLOCK_ROWS = 2048

BATCH = 8  # queries searched at once: few enough that an exact index treats them like single queries

VALUE_QUERIES = 20  # for each value of a column

NO_TEXT = "none: the encoder has no text tower"


class TextEncoder(Protocol):
    """The method of an encoder that text queries need: unit vectors, (n, D), of n texts."""

    @property
    def has_text(self) -> bool: ...

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Queries:
    """Query vectors and their origin."""

    origin: str  # captions | metadata | prompts | none: <reason>
    texts: tuple[str, ...] = ()
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (Q, D) float32, unit

    def fingerprint(self) -> str:
        return digest([self.origin, list(self.texts)])


def prompts() -> list[str]:
    """The prompts that ship with the package, one in each line."""
    text = asset("prompts.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def text_queries(encoder: TextEncoder, db: RetrievalDatabase, rows: IndexInput, config: IndexConfig) -> Queries:
    """Up to `config.queries` encoded text queries in the words of this database; without a text tower none, with the reason.

    Raises IndexBuildError if the encoder gives vectors of another dimension than the database's.
    """
    if not (encoder.has_text and rows.encoder.has_text):
        return Queries(NO_TEXT)
    origin, texts = _texts(_sample_rows(db, rows, 5 * config.queries, config.seed), rows.columns, config.queries)
    if not texts:
        origin, texts = "prompts", prompts()[: config.queries]
    vectors = np.ascontiguousarray(encoder.encode_texts(texts), np.float32)
    if vectors.shape != (len(texts), rows.dim):
        raise IndexBuildError(
            f"the text tower gave vectors of shape {vectors.shape} for {len(texts)} texts; the database's have {rows.dim} "
            "dimensions: it was made by another encoder"
        )
    return Queries(origin, tuple(texts), vectors)


def _sample_rows(db: RetrievalDatabase, rows: IndexInput, count: int, seed: int) -> pa.Table:
    """Captions and metadata of about `count` ok rows, from at most 8 shards."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = [shard for shard in rows.shards if shard.ok]
    generator = np.random.default_rng(seed)
    chosen = sorted(generator.choice(len(filled), min(8, len(filled)), replace=False)) if filled else []
    tables = []
    for place in chosen:
        names = [name for name in rows.columns if name != "caption"]
        table = db.read_table(filled[place].artifact.path, ["status", "caption", *names])
        table = table.filter(pc.equal(table["status"], "ok"))
        keep = min(table.num_rows, -(-count // len(chosen)))
        tables.append(table.take(pa.array(np.sort(generator.choice(table.num_rows, keep, replace=False)))))
    return pa.concat_tables(tables) if tables else pa.table({"caption": pa.array([], pa.string())})


def _texts(table: pa.Table, columns: Mapping[str, str], count: int) -> tuple[str, list[str]]:
    """The distinct captions of the sampled rows; if few rows have one, sentences from their metadata."""
    captions = [text.strip()[:300] for text in table["caption"].to_pylist() if text and text.strip()]
    different = list(dict.fromkeys(captions))
    if len(different) >= min(count, max(1, table.num_rows // 4)):
        return "captions", different[:count]
    words = [name for name, kind in columns.items() if kind == "string" and name not in ("caption", "url", "licence")]
    sentences: dict[str, None] = {}
    for row in table.select([name for name in words if name in table.column_names]).to_pylist():
        told = {
            name: str(value).replace("_", " ").strip() for name, value in row.items() if value and len(str(value)) < 80
        }
        if told:
            sentences[_sentence(told)] = None
    return "metadata", list(sentences)[:count]


def _sentence(told: dict[str, str]) -> str:
    """A sentence like a caption from one row's metadata: `a landscape in the style of impressionism, by claude monet`."""
    subject = told.pop("genre", "") or told.pop("title", "") or "a picture"
    style, artist = told.pop("style", ""), told.pop("artist", "")
    if style or artist:
        return subject + (f" in the style of {style}" if style else "") + (f", by {artist}" if artist else "")
    return f"{subject}, {', '.join(f'{name} {value}' for name, value in told.items())}".rstrip(", ")


def exact_top(path: Path, queries: NDArray[np.float32], k: int, gpu: Gpu | None = None) -> Neighbours:
    """The k best of all rows, best first: scores (Q, k) and ordinals (Q, k). Reads vectors.npy in blocks and multiplies."""
    top, block_rows = (_multiply, BLOCK_ROWS) if gpu is None else (gpu.top, GPU_ROWS)
    with path.open("rb") as handle:
        (rows, dim), dtype = read_npy_header(handle)
        k = min(k, rows)
        scores = np.full((len(queries), 0), -np.inf, np.float32)
        ordinals = np.empty((len(queries), 0), np.int64)
        for start in range(0, rows, block_rows):
            size = min(block_rows, rows - start)
            block = np.fromfile(handle, dtype, size * dim).reshape(size, dim).astype(np.float32)
            found, places = top(queries, block, min(k, size))
            scores = np.concatenate([scores, found], 1)
            ordinals = np.concatenate([ordinals, places + start], 1)
            if scores.shape[1] > k:
                best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
                scores, ordinals = np.take_along_axis(scores, best, 1), np.take_along_axis(ordinals, best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ordinals, order, 1)


def _multiply(queries: NDArray[np.float32], rows: NDArray[np.float32], k: int) -> Neighbours:
    """The k best of `rows` for each query, in no particular order."""
    products = queries @ rows.T
    best = np.argpartition(products, len(rows) - k, axis=1)[:, len(rows) - k :]
    return np.take_along_axis(products, best, 1), best


@dataclass(frozen=True)
class Probe:
    """Queries of one kind with the k-th best exact score of each, and the row to leave out of its results."""

    kind: Literal["text", "image"]
    origin: str
    queries: NDArray[np.float32]  # (Q, D)
    kth: NDArray[np.float32]  # (Q,)
    own: NDArray[np.int64]  # (Q,), -1: none

    def recall(self, index: SearchIndex, k: int) -> Measured:
        """Recall@k of the index for these queries."""
        hits = 0
        extra = int((self.own >= 0).any())
        for start in range(0, len(self.queries), BATCH):
            part = slice(start, start + BATCH)
            scores, found, _ = index.top(self.queries[part], k + extra)
            counted = np.where(found == self.own[part, None], -np.inf, scores)
            counted = -np.sort(-counted, axis=1)[:, :k]
            hits += int((counted >= self.kth[part, None] - TOLERANCE).sum())
        value = hits / (len(self.queries) * k)
        low, high = wilson(value, len(self.queries))
        return {"value": value, "low": low, "high": high, "queries": len(self.queries), "origin": self.origin}


@dataclass(frozen=True)
class ValueProbe:
    """Queries with the k-th best exact score among the rows of each value of a column."""

    column: str
    values: tuple[str | int | bool, ...]  # (V,)
    origin: str
    queries: NDArray[np.float32]  # (Q, D)
    kth: NDArray[np.float32]  # (V, Q); of a value with fewer rows, its worst score

    def recall(self, index: SearchIndex, k: int) -> ValueRecall:
        """Recall@k of the index among the rows of each value."""
        from pipeline.index.subset import Subset

        shares = {}
        for value, bars in zip(self.values, self.kth, strict=True):
            part = index.rows_of(self.column, [value])
            scores, _, _ = index.top(self.queries, k, Subset(None, len(index.vectors), part))
            shares[str(value)] = float((scores >= bars[:, None] - TOLERANCE).mean())
        return {
            "column": self.column,
            "k": k,
            "queries": len(self.queries),
            "origin": self.origin,
            "mean": sum(shares.values()) / len(shares),
            "least": min(shares.values()),
            "values": shares,
        }


def value_queries(vectors: Path, config: IndexConfig, text: Queries | None) -> tuple[str, NDArray[np.float32]]:
    """VALUE_QUERIES queries (Q, D) for the recall within values, and their origin: text queries, else sampled rows."""
    if text is not None and len(text.texts):
        return text.origin, np.ascontiguousarray(text.vectors[:VALUE_QUERIES], np.float32)
    rows, _ = npy_shape(vectors)
    chosen = np.random.default_rng(config.seed).choice(rows, min(VALUE_QUERIES, rows), replace=False)
    sampled = read_rows(vectors, chosen).astype(np.float32)
    return "sampled rows", sampled / np.linalg.norm(sampled, axis=1, keepdims=True)


def value_probe(
    vectors: Path, column: SplitColumn, codes: NDArray[np.uint8], queries: NDArray[np.float32], origin: str, k: int
) -> ValueProbe:
    """The probe for a column whose values the rows have by their codes (N,)."""
    best = [np.empty((len(queries), 0), np.float32) for _ in column.values]
    with vectors.open("rb") as handle:
        (rows, dim), dtype = read_npy_header(handle)
        for start in range(0, rows, BLOCK_ROWS):
            of = codes[start : start + BLOCK_ROWS]
            block = np.fromfile(handle, dtype, len(of) * dim).reshape(-1, dim).astype(np.float32)
            order = np.argsort(of, kind="stable")
            products = (queries @ block.T)[:, order]
            edges = np.searchsorted(of[order], np.arange(len(best) + 1))
            for value in np.flatnonzero(np.diff(edges)).tolist():
                both = np.concatenate([best[value], products[:, edges[value] : edges[value + 1]]], axis=1)
                best[value] = both if both.shape[1] <= k else -np.partition(-both, k - 1, axis=1)[:, :k]
    kth = np.array([scores.min(axis=1) for scores in best], np.float32)
    return ValueProbe(column.name, column.values, origin, queries, kth)


def probes(vectors: Path, config: IndexConfig, text: Queries | None, gpu: Gpu | None = None) -> tuple[list[Probe], int]:
    """The probes of an index with their exact scores, and their k (less than config.k in a small index)."""
    rows, _ = npy_shape(vectors)
    k = min(config.k, rows - 1)
    if k < 1:
        return [], 0
    count = min(config.queries, rows)
    own = np.sort(np.random.default_rng(config.seed).choice(rows, count, replace=False))
    images = read_rows(vectors, own).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = text.vectors[: config.queries] if text is not None and len(text.texts) else np.empty((0, images.shape[1]))
    both = np.concatenate([images, texts]).astype(np.float32)
    scores, found = exact_top(vectors, both, k + 1, gpu)
    others = np.where(found[:count] == own[:, None], -np.inf, scores[:count])
    kth = -np.sort(-others, axis=1)[:, k - 1]
    made = [Probe("image", "sampled rows, themselves left out", images, kth, own)]
    if len(texts) and text is not None:
        none = np.full(len(texts), -1, np.int64)
        made.append(Probe("text", text.origin, both[count:], scores[count:, k - 1], none))
    return made, k


def describe(measured: Mapping[str, Measured], k: int, text: Queries | None) -> Recall:
    """The recall for an IndexEntry. For a kind that was not measured, it has the reason."""
    missing = text.origin if text is not None else "none: no text queries were given"
    return {
        "k": k,
        "interval": "Wilson, 95 %, n = queries",
        "image": measured.get("image", {"queries": 0, "origin": "none: the index has a single row"}),
        "text": measured.get("text", {"queries": 0, "origin": missing}),
    }


def measure_recall(vectors: Path, config: IndexConfig, text: Queries | None, gpu: Gpu | None = None) -> Recall:
    """Recall of the exact index over `vectors`, measured like any other's."""
    from pipeline.index.search import SearchIndex

    made, k = probes(vectors, config, text, gpu)
    index = SearchIndex(vectors)
    try:
        return describe({probe.kind: probe.recall(index, k) for probe in made}, k, text)
    finally:
        index.close()
