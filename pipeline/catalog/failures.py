"""The rows of a database that failed, with the reason of each.

Reads: the embedding shards of the current version, or the existing shards of an unfinished build. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import checked
from pipeline.database import RetrievalDatabase, Version, gone_keys
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConfigError, DatabaseError
from pipeline.schema import FAILED
from pipeline.storage import Artifact


@dataclass(frozen=True)
class FailedRow:
    """A row that failed: its key, its file or row in the source, its address, and the reason."""

    key: int
    item: str
    url: str
    reason: str  # a slug, as in the counts of a build
    detail: str


def failed_rows(database: RetrievalDatabase, version: Version | None = None) -> Iterator[FailedRow]:
    """The failed rows of a version (None: the current one) in order of key. Holds one shard at a time.

    Raises DatabaseError if there is no such database.
    """
    gone: set[int] = set()
    if version is not None or database.exists():
        version = version or database.version()
        gone = set(gone_keys(database, version.gone))
        tables: list[str | Artifact] = [entry.artifact for entry in version.shards]
    else:
        tables = [*_unfinished(database)]
    for path in tables:
        names = ["key", "item_id", "url", "status", "error"]
        for row in database.read_table(path, names).to_pylist():
            if row["status"] == FAILED and row["key"] not in gone:
                reason, _, detail = (row["error"] or "unknown").partition(": ")
                yield FailedRow(row["key"], row["item_id"], row["url"] or "", reason, detail)


def _unfinished(database: RetrievalDatabase) -> list[str]:
    """The tables of an unfinished build: for each shard the embedded rows, else the downloaded ones."""
    downloaded = database.storage.list("images", ".parquet")
    if not downloaded:
        raise DatabaseError(
            f"no database {database.name!r} in {database.home}, and no build of it; `rdmpipe status` lists what there is"
        )
    try:
        record = database.read_json("encoder.json")
        folder = database.embedding_folder(checked(EncoderRecord, record, "encoder")) if record is not None else ""
    except ConfigError as error:
        raise database.damaged("encoder.json", str(error)) from error
    embedded = set(database.storage.list(folder, ".parquet")) if folder else set()
    return [f"{folder}/{name}" if name in embedded else f"images/{name}" for name in sorted(downloaded)]
