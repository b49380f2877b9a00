"""The plan of a build: which shards there are and what each of them reads.

Writes and reads: plan/<id>.parquet (shard, rows, fingerprint, spec as JSON) and plan/<id>.json (columns, counts, options),
the latter last. Both directions stream: 200,000 shards take no more memory than 1,000. The id is a hash over the shards'
fingerprints and the columns, so that the same input makes the same plan wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.config import canonical_json
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError, SourceError
from pipeline.schema import SHARD_ROWS
from pipeline.sources import ShardSpec, Source, SourceOptions
from pipeline.stage import Shard

_GROUP = 1000  # shards in memory at a time


@dataclass(frozen=True)
class Plan:
    """A plan's header."""

    id: str
    shards: int
    rows: int
    columns: Mapping[str, str]  # the source's metadata columns by type name
    revision: str  # what the source looked like
    options: Mapping[str, Any] = field(default_factory=dict)  # limit and shards


def write_plan(db: RetrievalDatabase, source: Source, options: SourceOptions) -> Plan:
    """List the source's shards into the database. Raises SourceError where the source is empty or cannot be listed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("shard", pa.int64()), ("rows", pa.int64()), ("fingerprint", pa.string()), ("spec", pa.string())]
    )
    columns = source.columns()
    first, behind = options.shards or (0, None)
    hasher = hashlib.sha256(canonical_json(columns).encode())
    shards = rows = 0
    with db.storage.scratch() as scratch:
        part = scratch / "plan.parquet"
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            for number, spec in enumerate(source.plan()):
                if behind is not None and number >= behind:
                    break
                if number < first:
                    continue
                group.append(_line(number, spec))
                hasher.update(f"{number} {spec.rows} {spec.fingerprint}\n".encode())
                shards, rows = shards + 1, rows + spec.rows
                if len(group) == _GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
        if not shards:
            raise SourceError(f"{db.name}: the source has no rows" + (f" in shards {first}:{behind}" if first else ""))
        plan = Plan(
            id=hasher.hexdigest()[:16],
            shards=shards,
            rows=rows,
            columns=columns,
            revision=source.revision(),
            options={"limit": options.limit, "shards": list(options.shards) if options.shards else None},
        )
        db.storage.publish(part, _table(plan.id))
    db.storage.write_text(f"plan/{plan.id}.json", canonical_json(asdict(plan)) + "\n")
    return plan


def read_plan(db: RetrievalDatabase, plan_id: str) -> Plan:
    """A plan's header. Raises DatabaseError."""
    text = db.storage.read_text(f"plan/{plan_id}.json")
    if text is None:
        raise DatabaseError(f"database {db.name!r} has no plan {plan_id!r}; run `rdmpipe build-index {db.name}` again")
    return Plan(**json.loads(text))


def plan_shards(db: RetrievalDatabase, plan_id: str) -> Iterator[Shard]:
    """A plan's shards in order, a few hundred in memory at a time."""
    import pyarrow.parquet as pq

    with db.storage.open(_table(plan_id)) as handle, pq.ParquetFile(handle) as file:
        for batch in file.iter_batches(batch_size=_GROUP):
            for line in batch.to_pylist():
                yield Shard(line["shard"], line["rows"], line["fingerprint"], json.loads(line["spec"]))


def _table(plan_id: str) -> str:
    return f"plan/{plan_id}.parquet"


def _line(number: int, spec: ShardSpec) -> dict[str, Any]:
    if spec.rows > SHARD_ROWS:
        raise SourceError(f"shard {number} has {spec.rows} rows; a shard holds at most {SHARD_ROWS}")
    return {
        "shard": number,
        "rows": spec.rows,
        "fingerprint": spec.fingerprint,
        "spec": json.dumps(spec.spec, sort_keys=True),  # ASCII: file names need not be valid UTF-8
    }
