"""Choose a faiss index key for a memory budget.

Reads and writes nothing. The budget limits the total peak resident size of the building process. If no index fits, the
budget is refused before any work, with the smallest budget that would be enough. Sizes are estimates; the actual use of a build
is measured (VmHWM) and recorded.

A database with metadata columns is searched with filters. It gets an inverted file over 4-bit product codes for fast scans: a
filter opens only lists that hold matching rows, and a view the lists of its value; an HNSW graph has neither. A database
without columns gets an HNSW graph if there is enough memory, as autofaiss chooses it (index/autofaiss.py says why its other
choices are not used): without a filter, the graph is faster. autofaiss chooses the key if it is installed; `graph_key` is
the same rule without it. With less memory, the index is an inverted file over 8-bit codes, else one over product codes. If
an index does not reach the wanted recall, the next possible one is built. With candidates re-ranked by the stored vectors,
product codes had the recall of uncompressed inverted files, in a few milliseconds a query (100,000 x 768);
RaBitQ codes of the same size took twenty times as long. Training uses a seeded sample of all rows, at most TRAINING_ROWS of
them.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import BudgetError, IndexBuildError
from pipeline.index.autofaiss import autofaiss_works
from pipeline.index.process import run_worker

if TYPE_CHECKING:
    from pipeline.index.config import IndexConfig

log = logging.getLogger(__name__)

TRAINING_ROWS = 200_000

PER_LIST = 39  # training rows for each inverted list; faiss warns if there are fewer

BASE = 64 << 20  # Python, numpy and faiss

WORKING = 32 << 20  # a batch of rows and faiss's memory for adding it; later the queries' exact answers

GROWTH = 1.5  # inverted lists grow by doubling

ROOMY = 2.2  # autofaiss builds if the budget is this many times the index, because HNSW's storage grows by copying


@dataclass(frozen=True)
class Sizing:
    """The estimated memory for building an index, in bytes."""

    key: str
    training_rows: int
    training: int
    index: int

    @property
    def peak(self) -> int:
        return BASE + WORKING + max(self.training, self.index)


def choose_key(rows: int, dim: int, config: IndexConfig, filtered: bool = False) -> tuple[Sizing, str]:
    """The first of `possible_keys`."""
    return possible_keys(rows, dim, config, filtered)[0]


def possible_keys(rows: int, dim: int, config: IndexConfig, filtered: bool = False) -> list[tuple[Sizing, str]]:
    """The indexes that fit into the memory, the best first, each with its builder (autofaiss | faiss).

    `filtered`: the database has columns by which searches filter. Raises BudgetError, which names the smallest budget.
    """
    room = config.memory - BASE - WORKING
    if config.key:
        sizing = size_of(config.key, rows, dim, room)
        if sizing.peak > config.memory:
            raise _too_small(config.memory, sizing, rows)
        return [(sizing, "faiss")]

    def first_fitting(keys: list[str]) -> list[tuple[Sizing, str]]:
        sizings = (size_of(key, rows, dim, room) for key in keys)
        return list(itertools.islice(((sizing, "faiss") for sizing in sizings if sizing.peak <= config.memory), 1))

    compressed = compressed_keys(rows, dim)
    found = _graph(rows, dim, config, room) + first_fitting(compressed)
    if filtered:
        found = first_fitting([key for key in compressed if key.endswith(f",PQ{dim // 4}x4fs")]) + found
    if not found:
        least = min((size_of(key, rows, dim, 0) for key in compressed), key=lambda sizing: sizing.peak)
        raise _too_small(config.memory, least, rows)
    return list({sizing.key: (sizing, builder) for sizing, builder in found}.values())


def _graph(rows: int, dim: int, config: IndexConfig, room: int) -> list[tuple[Sizing, str]]:
    """The HNSW graph for the memory and its builder; nothing if none fits."""
    if room <= rows:
        return []
    has_autofaiss = autofaiss_works()
    key = _autofaiss_key(rows, dim, room) if has_autofaiss else graph_key(rows, dim, room)
    if not key.startswith(("HNSW", "Flat")):
        return []
    sizing = size_of(key, rows, dim, room)
    roomy = config.memory >= ROOMY * sizing.index + (512 << 20)
    return [(sizing, "autofaiss" if has_autofaiss and roomy else "faiss")] if sizing.peak <= config.memory else []


@functools.lru_cache(maxsize=8)
def _autofaiss_key(rows: int, dim: int, room: int) -> str:
    """autofaiss's choice; empty if it has none, which is said in the log."""
    chosen = run_worker({"task": "choose", "rows": rows, "dim": dim, "index_bytes": room})
    if chosen["reason"]:
        log.info("%s; the key is chosen by the rule of pipeline/index/keys.py", chosen["reason"])
    return chosen["key"]


def graph_key(rows: int, dim: int, index_bytes: int) -> str:
    """The key of an uncompressed graph for `rows` rows within `index_bytes`; empty if only a compressed index fits.

    The rule is autofaiss's (2.18, get_optimal_index_keys_v2): no graph below 1,000 rows, 15 links a row below 10,000; for more
    rows as many links as the memory allows, from 8 to 32. It counts 4 bytes for each of a row's `dim` components and
    for each of its 2 x `links` neighbours.
    """
    if rows < 1_000:
        return "Flat"
    if rows < 10_000:
        return "HNSW15"
    links = math.floor((index_bytes / (4 * rows) - dim) / 2)
    return f"HNSW{min(links, 32)}" if links >= 8 else ""


def compressed_keys(rows: int, dim: int) -> list[str]:
    """Inverted files, the best first. The number of lists is a power of two near 4 sqrt(rows), or the largest below it
    for which the training rows suffice; smaller ones follow."""
    possible = min(4 * math.sqrt(rows), min(TRAINING_ROWS, rows) / PER_LIST)
    most = max(4, int(math.log2(max(possible, 16))))
    products = [f"PQ{dim // step}x4fs" for step in (4, 8, 16) if dim % step == 0]
    codes = ["SQ8", *products]
    keys = []
    for code in codes:
        fewest = 4 if code == codes[-1] else max(4, most - 3)
        for power in range(most, fewest - 1, -1):
            keys.append(f"IVF{2**power}{'_HNSW32' if power >= 10 else ''},{code}")
    return keys


def size_of(key: str, rows: int, dim: int, room: int, most: int = TRAINING_ROWS) -> Sizing:
    """The memory for building `key`, with the largest training sample of at most `most` rows that fits into `room` bytes.

    Raises IndexBuildError for a key that faiss does not know or that needs more training rows than `most`.
    """
    import faiss

    from pipeline.index.approximate import family_of

    try:
        index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rsplit(": ", 1)[-1]  # without the position in faiss's source
        raise IndexBuildError(
            f"{key!r} is not a faiss index key for {dim} dimensions ({reason}); examples: IVF1024,SQ8  HNSW32  "
            f"IVF1024,PQ{max(dim // 4, 1)}x4fs"
        ) from None
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    family = family_of(inner)
    if family == "hnsw":
        links = int(inner.hnsw.nb_neighbors(0)) * 4
        total = rows * (int(faiss.downcast_index(inner.storage).code_size) + links + links // 16 + 24) + 2 * rows
    elif family == "ivf":
        total = int(rows * (int(inner.code_size) + 8) * GROWTH) + int(inner.nlist) * (4 * dim + 400)
    else:
        total = int(rows * int(inner.sa_code_size()) * GROWTH)
    if index.is_trained:
        return Sizing(key, 0, 0, total)
    lists = int(inner.nlist) if family == "ivf" else 0
    least = min(rows, max(lists * PER_LIST, 2_000))
    # Training holds the sample, its residuals (of few rows for 4-bit codes), and a copy that a transform makes.
    copies = 3.0 if inner is not index else 1.2 if isinstance(inner, faiss.IndexIVFFastScan) else 2.0
    centroids = lists * 4 * dim
    affordable = int(max(room - centroids, 0) / (copies * 4 * dim))
    sample = max(least, min(most, rows, 64 * max(lists, 256), affordable))
    if sample > most:
        raise IndexBuildError(
            f"{key}: {lists:,} lists need {sample:,} training rows, and at most {most:,} are used; "
            f"choose a key with at most {most // PER_LIST:,} lists"
        )
    return Sizing(key, sample, int(sample * copies * 4 * dim) + centroids, total)


def mb(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MB"


def _too_small(memory: int, sizing: Sizing, rows: int) -> BudgetError:
    least = math.ceil(sizing.peak / (1 << 20))
    return BudgetError(
        f"{mb(memory)} is too little to build an index of {rows:,} rows; {sizing.key} takes {least:,} MB at its peak: "
        f"give --memory {least}MB or more"
    )
