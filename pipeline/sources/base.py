"""What a source of pictures is: the protocol that every reader follows, and the samples it gives.

A reader is opened from a manifest's [source] table, lists its shards in a defined order (`plan`), and reads any of them
anywhere (`read`). Shards come from the data, never from the number of workers. To add a kind, write a module with a class that
has these members and name it in `kinds.READERS`; CONTRIBUTING.md has the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Value = str | int | float | bool | None  # a metadata value

Row = dict[str, Any]  # a row as Arrow or JSON gives it: values of whatever types the file has

Spec = Mapping[str, Any]  # what a reader needs to read one shard: JSON that it wrote itself


@dataclass(frozen=True)
class SourceOptions:
    """What a command adds to a manifest's source. None of it changes what a row is, `limit` and `shards` only how many."""

    base_url: str = ""  # replaces scheme and host of every address (a mirror, a local server)
    token: str = ""  # Hub token; empty: huggingface_hub's own
    limit: int = 0  # at most so many rows; 0: all
    shards: tuple[int, int] | None = None  # half-open range of shard ids
    offline: bool = False  # use the cache alone
    allow_private: tuple[str, ...] = ()  # networks, as 10.1.0.0/16, that URLs may lead into although not public


@dataclass(frozen=True)
class Sample:
    """One row of a source. It has `data` (the picture file's bytes), an `error` (`reason: detail`) or an `address`."""

    item_id: str  # who this row is, from the source: path, URL or row id
    data: bytes | None
    error: str | None = None
    metadata: Mapping[str, Value] = field(default_factory=dict)
    caption: str | None = None
    url: str | None = None
    licence: str | None = None
    status: str = ""  # empty: ok with data, failed with an error; or `filtered` with the reason in error
    patch: int = 0  # which of a picture's crops this row stands for
    address: str = ""  # where to fetch `data` from: a source of URLs reads its list first, and fetches afterwards


@dataclass(frozen=True)
class ShardSpec:
    """What a plan says of one shard: its rows, a hash naming its input, and what `read` needs. Values are JSON."""

    rows: int
    fingerprint: str
    spec: Row


class Source(Protocol):
    """An opened source. Building it checks what can be checked cheaply and raises SourceError with the fix."""

    rereadable: bool  # the pictures can be had again (so a thumbnail suffices)

    @property
    def revision_is_whole(self) -> bool:
        """Whether `revision` changes with all that rows are made of: that of pictures with a CSV beside them does not."""
        ...

    def columns(self) -> dict[str, str]:
        """Own metadata columns by type name (`schema.TYPES`), in order, already renamed by `schema.column_name`."""
        ...

    def plan(self) -> Iterator[ShardSpec]:
        """The shards in order, at most `source.shard_rows` rows each; `limit` is observed."""
        ...

    def read(self, spec: Spec) -> Iterator[Sample]:
        """The rows of one shard, in order, bad ones as samples with an error. Raises SourceError if the shard is lost."""
        ...

    def estimate(self) -> tuple[int, int]:
        """(rows, bytes) of all pictures, for the disk check before work; 0 if not known."""
        ...

    def revision(self) -> str:
        """What the source looks like now, as one word: Hub commit, archive checksum, folder hash."""
        ...

    def left_out(self) -> dict[str, int]:
        """How many files of the source are no rows, by kind: a suffix, `system files`, `links to folders`."""
        ...


@runtime_checkable
class FetchingSource(Source, Protocol):
    """A source whose `read` lists addresses, so that rows can be left out before anything is fetched."""

    def fetch(self, samples: Sequence[Sample], scratch: Path) -> Iterator[Sample]:
        """The same samples in order, those with an address with their data or error. `scratch` is an empty local folder."""
        ...
