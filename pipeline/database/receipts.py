"""The list of a version's receipts, as they were when the version was published.

Reads receipts. Reads and writes .checksums/receipts/<version id> (database/checksums.py). On an object store there is no list,
because there are many receipts and the store verifies its objects.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.database.checksums import read_list, text_sum, write_list
from pipeline.database.layout import RetrievalDatabase
from pipeline.database.version import Version
from pipeline.schema import shard_name
from pipeline.storage import Storage


def receipts_list(version: str) -> str:
    """The name of a version's list."""
    return f"receipts/{version}"


def record_receipts(db: RetrievalDatabase, version: Version) -> None:
    """List the receipts of a version's shards. Called when it is published and after shards were rebuilt."""
    if not db.storage.is_local:
        return
    lines = []
    for entry in version.shards:
        for path in (db.embedding_receipt(version.encoder, entry.id), f"images/{shard_name(entry.id)}.json"):
            text = db.storage.read_text(path)
            if text is not None:  # imported rows have no pictures
                lines.append((text_sum(text), path))
    write_list(db.storage, receipts_list(version.id), lines)


def receipt_sums(storage: Storage, version: str) -> Mapping[str, str]:
    """The checksums of a version's receipts by path; none if there is no list. Raises ValueError."""
    return {path: checksum for checksum, path in read_list(storage, receipts_list(version))}
