"""Records that the modules of this package pass to each other: inputs, results and measurements of an index.

The TypedDicts are JSON: an IndexEntry, a version file and the worker process hold them with these keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Required, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.database import ShardEntry
    from pipeline.encoders import EncoderRecord

Params = Mapping[str, int]  # search parameters: nprobe or efSearch, candidates, mapped, value_nprobe, value_candidates


@dataclass(frozen=True)
class IndexInput:
    """The rows that an index covers: the ok rows of `shards` whose keys are not in `gone`.

    `columns` are the source's metadata columns with their type names.
    """

    encoder: EncoderRecord
    columns: Mapping[str, str]
    shards: Sequence[ShardEntry]
    gone: Sequence[int] | NDArray[np.int64] = ()

    @property
    def dim(self) -> int:
        return self.encoder.dim

    def sorted_shards(self) -> list[ShardEntry]:
        """The shards by ascending id."""
        return sorted(self.shards, key=lambda shard: shard.id)

    def gone_keys(self) -> NDArray[np.int64]:
        """The keys to leave out, ascending, each once."""
        import numpy as np

        return np.unique(np.asarray(self.gone, np.int64))


class Measured(TypedDict, total=False):
    """Recall for one kind of queries. Without queries, there is no value and `origin` has the reason."""

    queries: Required[int]
    origin: Required[str]
    value: float
    low: float
    high: float


class ValueRecall(TypedDict):
    """Recall@k among the rows of each value of a column: the mean and the least over the values, and all of them."""

    column: str
    k: int
    queries: int  # for each value
    origin: str
    mean: float
    least: float
    values: dict[str, float]


class Recall(TypedDict, total=False):
    """Recall@k of an index. `values` is there if the index has lists for the values of columns."""

    k: Required[int]
    interval: Required[str]
    image: Required[Measured]
    text: Required[Measured]
    values: list[ValueRecall]


class Measurements(TypedDict, total=False):
    """Measurements of a build. Sizes are bytes, peaks are resident sizes of one process, times are seconds by step."""

    budget_bytes: int
    planned_bytes: int
    peak_bytes: int
    training_rows: int
    builder: str  # autofaiss | faiss | partitions
    partitions: int
    value_bytes: int  # of the lists of values
    seconds: dict[str, float]


@dataclass(frozen=True)
class BuiltIndex:
    """An index that was built but is not yet published; its files are in the build's scratch folder."""

    kind: Literal["exact", "faiss"]
    key: str  # faiss index key; "Flat" for an exact index
    params: Params
    recall: Recall
    build: Measurements


class QueryRecord(TypedDict):
    """Text queries in a job; their vectors are in queries.npy."""

    origin: str
    texts: list[str]


class ColumnRecord(TypedDict):
    """A SplitColumn."""

    name: str
    values: list[str | int | bool]


class ChooseJob(TypedDict):
    task: Literal["choose"]
    rows: int
    dim: int
    index_bytes: int


class BuildJob(TypedDict):
    task: Literal["build"]
    device: str  # a --device value
    folder: str
    key: str
    index_bytes: int
    training_rows: int
    builder: str
    config: dict[str, object]
    text: QueryRecord | None
    columns: list[ColumnRecord]  # whose values get lists of their own; the rows' values are in value_codes.npy


class TrainJob(TypedDict):
    task: Literal["train"]
    device: str  # a --device value
    folder: str
    key: str
    training_rows: int
    seed: int


class AddJob(TypedDict):
    task: Literal["add"]
    device: str  # a --device value
    folder: str
    trained: str
    first: int


class MergeJob(TypedDict):
    task: Literal["merge"]
    device: str  # a --device value
    folder: str
    trained: str
    parts: list[str]
    config: dict[str, object]
    text: QueryRecord | None


Job = ChooseJob | BuildJob | TrainJob | AddJob | MergeJob


class Chosen(TypedDict):
    key: str  # empty: autofaiss found none
    reason: str  # why it found none


class Built(TypedDict):
    params: dict[str, int]
    recall: Recall
    training_rows: int
    peak_bytes: int
    value_bytes: int
    seconds: dict[str, float]


class Step(TypedDict):
    """The answer of a train or an add job; an add job's is also stored as the partition's log."""

    peak_bytes: int
    seconds: float


class Merged(TypedDict):
    params: dict[str, int]
    recall: Recall
    seconds: dict[str, float]


class Failed(TypedDict):
    error: str
    kind: str  # BudgetError | IndexBuildError


Answer = Chosen | Built | Step | Merged | Failed
