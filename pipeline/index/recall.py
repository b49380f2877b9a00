"""How good an index is: recall@k against exact search, with an interval, for text and for image queries.

Reads: vectors.npy in blocks, and the index under test. Recall is the share of the k results whose score reaches the exact k-th
score minus 1e-3: rows as good as the true neighbours count, whichever they are. The interval is Wilson's at 95 % with n = the
number of queries (not of results, which are not independent within a query), so it does not close at a recall of 1.

Text queries are captions of sampled rows, else sentences made from their metadata, else the prompts shipped with the package;
text and image vectors lie apart, and an index that is good for its own rows can be poor for text. Image queries are
sampled rows, themselves left out of the results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.config import digest
from pipeline.errors import IndexBuildError
from pipeline.index.exact import read_npy_header, read_rows
from pipeline.installation import asset

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase, ShardEntry
    from pipeline.encoders import EncoderRecord
    from pipeline.index.config import IndexConfig
    from pipeline.index.search import SearchIndex

TOLERANCE = 1e-3

BLOCK_ROWS = 2048

BATCH = 8  # queries searched at once: few enough that an exact index takes the path of single queries

NO_TEXT = "none: the encoder has no text tower"


class TextEncoder(Protocol):
    @property
    def has_text(self) -> bool: ...

    def encode_texts(self, texts: list[str]) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Queries:
    """Query vectors and where they come from."""

    origin: str  # captions | metadata | prompts | none: why
    texts: tuple[str, ...] = ()
    vectors: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (Q, D) float32, unit

    def fingerprint(self) -> str:
        return digest([self.origin, list(self.texts)])


def prompts() -> list[str]:
    """The shipped prompts, one a line."""
    text = asset("prompts.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def text_queries(
    encoder: TextEncoder,
    db: RetrievalDatabase,
    record: EncoderRecord,
    columns: Mapping[str, str],
    shards: Sequence[ShardEntry],
    count: int = 200,
    seed: int = 0,
) -> Queries:
    """Up to `count` text queries in the words of this database, encoded; none, and why, where there is no text tower."""
    if not (encoder.has_text and record.has_text):
        return Queries(NO_TEXT)
    origin, texts = _texts(_sample_rows(db, columns, shards, 5 * count, seed), columns, count)
    if not texts:
        origin, texts = "prompts", prompts()[:count]
    vectors = np.ascontiguousarray(encoder.encode_texts(texts), np.float32)
    if vectors.shape != (len(texts), record.dim):
        raise IndexBuildError(
            f"the text tower gave vectors of shape {vectors.shape} for {len(texts)} texts; the database's have {record.dim} "
            "dimensions: it was made by another encoder"
        )
    return Queries(origin, tuple(texts), vectors)


def _sample_rows(
    db: RetrievalDatabase, columns: Mapping[str, str], shards: Sequence[ShardEntry], count: int, seed: int
) -> pa.Table:
    """About `count` ok rows' captions and metadata, from at most 8 shards."""
    import pyarrow as pa
    import pyarrow.compute as pc

    filled = [shard for shard in shards if shard.ok]
    generator = np.random.default_rng(seed)
    chosen = sorted(generator.choice(len(filled), min(8, len(filled)), replace=False)) if filled else []
    tables = []
    for place in chosen:
        names = [name for name in columns if name != "caption"]
        table = db.read_table(filled[place].artifact.path, ["status", "caption", *names])
        table = table.filter(pc.equal(table["status"], "ok"))
        keep = min(table.num_rows, -(-count // len(chosen)))
        tables.append(table.take(pa.array(np.sort(generator.choice(table.num_rows, keep, replace=False)))))
    return pa.concat_tables(tables) if tables else pa.table({"caption": pa.array([], pa.string())})


def _texts(table: pa.Table, columns: Mapping[str, str], count: int) -> tuple[str, list[str]]:
    """Different captions of the sampled rows; where few have one, sentences from their metadata."""
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
    """A caption-like sentence from one row's words: `a landscape in the style of impressionism, by claude monet`."""
    subject = told.pop("genre", "") or told.pop("title", "") or "a picture"
    style, artist = told.pop("style", ""), told.pop("artist", "")
    text = subject + (f" in the style of {style}" if style else "") + (f", by {artist}" if artist else "")
    return (
        text
        if style or artist
        else f"{text}, {', '.join(f'{name} {value}' for name, value in told.items())}".rstrip(", ")
    )


def exact_top(path: Path, queries: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The k best of all rows by reading vectors.npy in blocks and multiplying: scores (Q, k), ordinals (Q, k), best first."""
    with path.open("rb") as handle:
        (rows, dim), dtype = read_npy_header(handle)
        k = min(k, rows)
        scores = np.full((len(queries), 0), -np.inf, np.float32)
        ordinals = np.empty((len(queries), 0), np.int64)
        for start in range(0, rows, BLOCK_ROWS):
            size = min(BLOCK_ROWS, rows - start)
            block = np.fromfile(handle, dtype, size * dim).reshape(size, dim).astype(np.float32)
            products = queries @ block.T
            keep = min(k, size)
            best = np.argpartition(products, size - keep, axis=1)[:, size - keep :]
            scores = np.concatenate([scores, np.take_along_axis(products, best, 1)], 1)
            ordinals = np.concatenate([ordinals, best + start], 1)
            if scores.shape[1] > k:
                best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
                scores, ordinals = np.take_along_axis(scores, best, 1), np.take_along_axis(ordinals, best, 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ordinals, order, 1)


@dataclass(frozen=True)
class Probe:
    """One kind of queries with its exact answers: the k-th best score of each, and the row to leave out of its results."""

    kind: str  # text | image
    origin: str
    queries: NDArray[Any]  # (Q, D) float32
    kth: NDArray[Any]  # (Q,) float32
    own: NDArray[Any]  # (Q,) int64, -1: none

    def recall(self, index: SearchIndex, k: int) -> dict[str, Any]:
        """Recall@k of the index for these queries: value, low, high, queries, origin."""
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


def probes(vectors: Path, config: IndexConfig, text: Queries | None) -> tuple[list[Probe], int]:
    """The probes of an index, with exact answers, and the k they are for (fewer than asked for in a tiny index)."""
    with vectors.open("rb") as handle:
        (rows, _), _ = read_npy_header(handle)
    k = min(config.k, rows - 1)
    if k < 1:
        return [], 0
    count = min(config.queries, rows)
    own = np.sort(np.random.default_rng(config.seed).choice(rows, count, replace=False))
    images = read_rows(vectors, own).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = text.vectors[: config.queries] if text is not None and len(text.texts) else np.empty((0, images.shape[1]))
    both = np.concatenate([images, texts]).astype(np.float32)
    scores, found = exact_top(vectors, both, k + 1)
    others = np.where(found[:count] == own[:, None], -np.inf, scores[:count])
    kth = -np.sort(-others, axis=1)[:, k - 1]
    made = [Probe("image", "sampled rows, themselves left out", images, kth, own)]
    if len(texts) and text is not None:
        none = np.full(len(texts), -1, np.int64)
        made.append(Probe("text", text.origin, both[count:], scores[count:, k - 1], none))
    return made, k


def describe(measured: Mapping[str, Mapping[str, Any]], k: int, text: Queries | None) -> dict[str, Any]:
    """What an IndexEntry says about recall; a kind that was not measured says why."""
    missing = text.origin if text is not None else "none: no text queries were given"
    return {
        "k": k,
        "interval": "Wilson, 95 %, n = queries",
        "image": dict(measured.get("image", {"queries": 0, "origin": "none: the index has a single row"})),
        "text": dict(measured.get("text", {"queries": 0, "origin": missing})),
    }


def measure_recall(vectors: Path, config: IndexConfig, text: Queries | None) -> dict[str, Any]:
    """Recall of the exact index over `vectors`, measured like any other's."""
    from pipeline.index.search import SearchIndex

    made, k = probes(vectors, config, text)
    index = SearchIndex(vectors)
    try:
        return describe({probe.kind: probe.recall(index, k) for probe in made}, k, text)
    finally:
        index.close()


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share observed in n trials (E. B. Wilson, 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(
        share, min(1.0, centre + half)
    )  # rounding: a share of 1 lies inside
