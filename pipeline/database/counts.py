"""Counts of a database's rows.

Reads receipts, and the rows of shards that have tombstones. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.database.version import Totals
from pipeline.execution import Receipt
from pipeline.schema import FAILED, FILTERED, OK, shard_of
from pipeline.storage import Artifact

if TYPE_CHECKING:
    from pipeline.database.layout import RetrievalDatabase


def rows_file(receipt: Receipt) -> Artifact:
    """The Parquet file among the files that a stage wrote."""
    return next(artifact for artifact in receipt.artifacts if artifact.path.endswith(".parquet"))


def totals(database: RetrievalDatabase, receipts: Iterable[Receipt], gone: Iterable[int] = ()) -> Totals:
    """Counts over all shards without the rows whose keys are in `gone`."""
    receipts = list(receipts)
    counts = {OK: 0, FILTERED: 0, FAILED: 0}
    reasons: dict[str, int] = {}
    for receipt in receipts:
        for name in counts:
            counts[name] += getattr(receipt, name)
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    tables = {receipt.shard: rows_file(receipt) for receipt in receipts}
    for shard, keys in keys_by_shard(gone).items():
        if shard not in tables:
            continue
        for row in database.read_table(tables[shard], ["key", "status", "error"]).to_pylist():
            if row["key"] in keys:
                counts[row["status"]] -= 1
                if row["status"] != OK:
                    reasons[(row["error"] or "unknown").split(":", 1)[0]] -= 1
    return {
        "input": sum(counts.values()),
        "ok": counts[OK],
        "filtered": counts[FILTERED],
        "failed": counts[FAILED],
        "reasons": {reason: count for reason, count in sorted(reasons.items()) if count},
    }


def keys_by_shard(keys: Iterable[int]) -> dict[int, set[int]]:
    """The keys grouped by the shard they belong to."""
    found: dict[int, set[int]] = {}
    for key in keys:
        found.setdefault(shard_of(int(key)), set()).add(int(key))
    return found
