"""IndexConfig: the settings of an index. They are part of its id."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError

EXACT_ROWS = 200_000  # up to this many rows, an exact scan takes some ten milliseconds and needs no index


@dataclass(frozen=True)
class IndexConfig:
    memory: int = 4 << 30  # bytes: limit of the peak of the building process, above the exact size
    key: str = (
        ""  # a faiss index key; empty: exact up to exact_rows rows, above them chosen for the memory (index/keys.py)
    )
    exact_rows: int = EXACT_ROWS
    min_recall: float = 0.95
    k: int = 19  # neighbours for which recall is measured: the RDM is conditioned on the prompt and 19 neighbours
    queries: int = 200  # queries of each kind with which recall is measured
    seed: int = 0
    partitions: int = 0  # of an approximate index; 0: by rule (index/partitions.py), 1: not partitioned

    def __post_init__(self) -> None:
        if not 0.0 < self.min_recall <= 1.0:
            raise ConfigError(f"min_recall is {self.min_recall}; it must be above 0 and at most 1")
        if min(self.k, self.queries, self.memory) < 1:
            raise ConfigError(f"k is {self.k}, queries {self.queries}, memory {self.memory}; each must be at least 1")
        if min(self.exact_rows, self.partitions) < 0:
            raise ConfigError(f"exact_rows is {self.exact_rows}, partitions {self.partitions}; neither may be below 0")
