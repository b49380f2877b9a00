"""IndexConfig: what an index is built with. It changes the index and so its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    pass

EXACT_ROWS = 200_000  # up to here an exact scan answers within some ten milliseconds and needs no index


@dataclass(frozen=True)
class IndexConfig:
    memory: int = 4 << 30  # bytes the process that builds may take at its peak, above the exact size
    key: str = ""  # a faiss index key; empty: exact up to exact_rows, above it what autofaiss chooses
    exact_rows: int = EXACT_ROWS
    min_recall: float = 0.95
    k: int = 19  # neighbours that recall is measured for: 19 of them and the prompt condition the RDM
    queries: int = 200  # queries of each kind that recall is measured with
    seed: int = 0
    partitions: int = 0  # to build an approximate index in; 0: by rule (index/partitions.py), 1: in one piece

    def __post_init__(self) -> None:
        if not 0.0 < self.min_recall <= 1.0:
            raise ConfigError(f"min_recall is {self.min_recall}; it must be above 0 and at most 1")
        if min(self.k, self.queries, self.memory) < 1 or min(self.exact_rows, self.partitions) < 0:
            raise ConfigError("k, queries and memory must be above zero, exact_rows and partitions not below it")
