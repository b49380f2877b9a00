"""Index embedded shards and publish them as a version. Builds, imports and purges all publish with this module.

Reads: embedding shards and receipts. Writes: the index, the version file, and `current` by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.database import RetrievalDatabase, ShardEntry, Version, gone_keys, record_receipts, rows_file, totals
from pipeline.encoders import EncoderRecord
from pipeline.execution import Backend, Progress, Receipt
from pipeline.index import IndexConfig, IndexInput, Queries, build_index
from pipeline.schema import FAILED, FILTERED, OK
from pipeline.storage import Artifact


@dataclass(frozen=True)
class Contents:
    """The facts that a version records about its rows, except the shards and the index."""

    manifest: Mapping[str, object]
    encoder: EncoderRecord
    columns: Mapping[str, str]  # the source's metadata columns with their type names
    images: str  # keep | thumbnail | drop
    plan: str
    gone: Artifact | None = None

    @staticmethod
    def of(version: Version) -> Contents:
        """The contents of a published version."""
        return Contents(version.manifest, version.encoder, version.columns, version.images, version.plan, version.gone)


def shard_entries(receipts: Sequence[Receipt]) -> tuple[ShardEntry, ...]:
    """The embedding shards of these receipts."""
    return tuple(ShardEntry(receipt.shard, receipt.ok, rows_file(receipt)) for receipt in receipts)


def publish(
    db: RetrievalDatabase,
    contents: Contents,
    receipts: Sequence[Receipt],
    config: IndexConfig,
    text: Queries | None,
    before: Version | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> Version:
    """Build the index over the shards of `receipts`, and publish a version that follows `before`.

    `text` holds the text queries with which recall is measured. Raises IndexBuildError, BudgetError, and ConflictError if
    another writer moved `current`.
    """
    shards = shard_entries(receipts)
    for receipt in receipts:
        _check_counts(db, contents.encoder, receipt)
    gone = gone_keys(db, contents.gone)
    rows = IndexInput(contents.encoder, contents.columns, shards, gone)
    index = build_index(db, config, rows, text, backend, progress, device)
    version = Version(
        database=db.name,
        manifest=contents.manifest,
        encoder=contents.encoder,
        columns=contents.columns,
        shards=shards,
        index=index,
        counts={**totals(db, receipts, gone), "duplicates": int(index.build["duplicates"])},
        images=contents.images,
        plan=contents.plan,
        gone=contents.gone,
        parent=before.id if before else "",
    )
    record_receipts(db, version)
    if before and before.id == version.id:
        return before  # only missing files were rebuilt
    db.publish(version, before.id if before else None)
    return version


def _check_counts(db: RetrievalDatabase, encoder: EncoderRecord, receipt: Receipt) -> None:
    """Compare a receipt's counts with its rows, because a version's counts are sums over receipts. Raises DamagedError."""
    rows = db.read_table(rows_file(receipt).path, ["status"])["status"].value_counts().to_pylist()
    found = {row["values"]: row["counts"] for row in rows}
    expected = {OK: receipt.ok, FILTERED: receipt.filtered, FAILED: receipt.failed}
    if {status: count for status, count in expected.items() if count} != found:
        raise db.damaged(
            db.embedding_receipt(encoder, receipt.shard), f"it counts {expected}, and its rows are {found}"
        )
