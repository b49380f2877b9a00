"""How many rows a database's shards account for.

Reads: receipts, and the rows of shards in which some are gone. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.database import RetrievalDatabase
from pipeline.schema import shard_of
from pipeline.stage import Receipt
from pipeline.storage import Artifact


def rows_file(receipt: Receipt) -> Artifact:
    """The Parquet file among what a stage wrote."""
    return next(artifact for artifact in receipt.artifacts if artifact.path.endswith(".parquet"))


def totals(database: RetrievalDatabase, receipts: Iterable[Receipt], gone: Iterable[int] = ()) -> dict[str, Any]:
    """Counts over all shards: input, ok, filtered, failed and reasons; rows that are gone are in none of them."""
    receipts = list(receipts)
    counts = {"ok": 0, "filtered": 0, "failed": 0}
    reasons: dict[str, int] = {}
    for receipt in receipts:
        for name in counts:
            counts[name] += getattr(receipt, name)
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    tables = {receipt.shard: rows_file(receipt).path for receipt in receipts}
    by_shard: dict[int, set[int]] = {}
    for key in gone:
        by_shard.setdefault(shard_of(int(key)), set()).add(int(key))
    for shard, keys in by_shard.items():
        for row in (
            database.read_table(tables[shard], ["key", "status", "error"]).to_pylist() if shard in tables else ()
        ):
            if row["key"] in keys:
                counts[row["status"]] -= 1
                if row["status"] != "ok":
                    reasons[(row["error"] or "unknown").split(":", 1)[0]] -= 1
    kept = {reason: count for reason, count in sorted(reasons.items()) if count}
    return {"input": sum(counts.values()), **counts, "reasons": kept}
