"""The protocol of a source of pictures, which every reader implements, and the samples that it yields.

A reader is opened from a manifest's [source] table, lists its shards in a defined order (`plan`), and can read any of them
on any machine (`read`). Shards depend on the data, never on the number of workers. To add a kind, write a module with a
class that has these members and name it in `kinds.READERS`; CONTRIBUTING.md has the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Value = str | int | float | bool | None  # a metadata value

Row = dict[str, Any]  # a row from Arrow or JSON, with values of any type

Spec = Mapping[str, Any]  # what a reader needs to read one shard: JSON that it wrote itself


@dataclass(frozen=True)
class SourceOptions:
    """What a command adds to a manifest's source. It never changes a row; `limit` and `shards` change the number of rows."""

    base_url: str = ""  # replaces scheme and host of every address (a mirror, a local server)
    token: str = ""  # Hub token; empty: huggingface_hub's own
    limit: int = 0  # the largest number of rows; 0: all
    shards: tuple[int, int] | None = None  # half-open range of shard ids
    offline: bool = False  # use only the cache
    processes: int = 1  # that a source may use at a time if it computes its pictures
    allow_private: tuple[str, ...] = ()  # private networks, such as 10.1.0.0/16, that URLs may lead into


@dataclass(frozen=True)
class Sample:
    """One row of a source. It has `data` (the picture file's bytes), an `error` (`reason: detail`) or an `address`."""

    item_id: str  # the row's identity in the source: path, URL or row id
    data: bytes | None
    error: str | None = None
    metadata: Mapping[str, Value] = field(default_factory=dict)
    caption: str | None = None
    url: str | None = None
    licence: str | None = None
    status: str = ""  # empty: ok with data, failed with an error; or `filtered` with the reason in error
    patch: int = 0  # the number of this row's crop among the picture's crops
    address: str = ""  # where to fetch `data` from: a source of URLs reads its list first and fetches later


@dataclass(frozen=True)
class ShardSpec:
    """A shard in a plan: its rows, a hash of its input, and what `read` needs. Values are JSON."""

    rows: int
    fingerprint: str
    spec: Row


class Source(Protocol):
    """An opened source. The constructor makes all cheap checks and raises SourceError with the fix."""

    rereadable: bool  # the pictures can be read again (so a thumbnail suffices)

    @property
    def revision_is_whole(self) -> bool:
        """Whether `revision` covers everything that rows are made of; for pictures with a separate CSV it does not."""
        ...

    def columns(self) -> dict[str, str]:
        """The source's metadata columns with their type names (`schema.TYPES`), in order, renamed by `schema.column_name`."""
        ...

    def plan(self) -> Iterator[ShardSpec]:
        """The shards in order, at most `source.shard_rows` rows each; `limit` is observed."""
        ...

    def read(self, spec: Spec) -> Iterator[Sample]:
        """The rows of one shard, in order; bad rows are samples with an error. Raises SourceError if the shard cannot be
        read."""
        ...

    def estimate(self) -> tuple[int, int]:
        """(rows, bytes) of all pictures, for the disk check before work; 0 if not known."""
        ...

    def revision(self) -> str:
        """The present state of the source as one word: Hub commit, archive checksum, folder hash."""
        ...

    def left_out(self) -> dict[str, int]:
        """How many files of the source are not rows, by kind: a suffix, `system files`, `links to folders`."""
        ...


@runtime_checkable
class FetchingSource(Source, Protocol):
    """A source whose `read` lists addresses, so that rows can be left out before anything is fetched."""

    def fetch(self, samples: Sequence[Sample], scratch: Path) -> Iterator[Sample]:
        """The same samples in order; those with an address now have data or an error. `scratch` is an empty local folder."""
        ...
