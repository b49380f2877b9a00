"""A version of a database: its shards, its index and its counts, with the checksum of each file.

Reads and writes nothing: RetrievalDatabase keeps a version in versions/<id>.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypedDict

from pipeline.config import canonical_json, digest, from_mapping
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConfigError
from pipeline.storage import Artifact

JsonTable: TypeAlias = Mapping[str, Any]  # a table of plain values whose keys its own module defines


class Totals(TypedDict):
    """Rows of all shards: input = ok + filtered + failed. `reasons` counts the rows that are not ok."""

    input: int
    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int]


class VersionCounts(Totals):
    """`duplicates`: ok rows that are not in the index, because it already holds their picture."""

    duplicates: int


@dataclass(frozen=True)
class ShardEntry:
    """A finished embedding shard of a version."""

    id: int
    ok: int  # rows with a vector
    artifact: Artifact


@dataclass(frozen=True)
class IndexEntry:
    """A finished index. `files` by role: keys, vectors, norms, metadata; of an approximate index faiss, and values if the
    values of columns have lists."""

    id: str
    kind: str  # exact | faiss
    key: str  # faiss index key; "Flat" for exact
    rows: int
    files: Mapping[str, Artifact]
    params: JsonTable = field(default_factory=dict)  # search parameters, e.g. {"nprobe": 16}
    recall: JsonTable = field(default_factory=dict)  # by query kind: value, low, high, queries, k
    build: JsonTable = field(
        default_factory=dict
    )  # memory budget and measured peak memory in bytes, config, duplicates


@dataclass(frozen=True)
class Version:
    """Everything that a reader needs. The id is a hash of the content without times, measured memory and the parent."""

    database: str
    manifest: JsonTable
    encoder: EncoderRecord
    columns: Mapping[str, str]  # the source's metadata columns with their type names
    shards: tuple[ShardEntry, ...]
    index: IndexEntry
    counts: VersionCounts
    images: str  # keep | thumbnail | drop
    plan: str  # id of the plan
    gone: Artifact | None = None  # Parquet of the keys that later refreshes or purges removed
    parent: str = ""

    @property
    def id(self) -> str:
        return _id(asdict(self))

    def files(self) -> list[Artifact]:
        """Every file of the version, with its checksum."""
        shards = [entry.artifact for entry in self.shards]
        return [*shards, *self.index.files.values(), *([self.gone] if self.gone else [])]

    def to_json(self) -> str:
        return canonical_json(self) + "\n"

    @staticmethod
    def from_json(text: str, expected_id: str = "") -> Version:
        """The version in a JSON text. Raises ConfigError if it is not one, or if its content does not hash to `expected_id`."""
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}") from error
        version = from_mapping(Version, table, "version")
        found = _id(table)
        if expected_id and found != expected_id:
            raise ConfigError(f"its content hashes to {found}, not to its id {expected_id}")
        return version


def _id(table: JsonTable) -> str:
    """The id of a version's table, without measured memory, which differs between runs, and without the parent."""
    index = {name: value for name, value in table["index"].items() if name != "build"}
    return digest({**{name: value for name, value in table.items() if name != "parent"}, "index": index}, 12)
