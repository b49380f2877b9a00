"""The plan of a build: the list of shards and what each of them reads.

Writes and reads: plan/<id>.parquet (shard, rows, fingerprint, spec as JSON) and plan/<id>.json (columns, counts, options),
the latter last. Both directions stream: 200,000 shards take no more memory than 1,000. The id is a hash over the shards'
fingerprints and the columns, so that the same input makes the same plan at any path.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from pipeline.config import canonical_json, checked
from pipeline.database import RetrievalDatabase, record_sum, sum_problem, write_recorded
from pipeline.errors import ConfigError, DatabaseError, SourceError
from pipeline.execution import Shard
from pipeline.schema import SHARD_ROWS
from pipeline.sources import Source, SourceOptions
from pipeline.storage import sha256_file

LEFT_OUT, WHERE = "left_out", "where"  # keys of a plan's options: left-out files by kind; the filter in force

PlanOptions: TypeAlias = Mapping[str, Any]  # limit, shards, next_shard, left_out, where; each may be absent

_GROUP = 1000  # shards in memory at a time


@dataclass(frozen=True)
class BuildPlan:
    """A plan's header."""

    id: str
    shards: int
    rows: int
    columns: Mapping[str, str]  # the source's metadata columns by type name
    revision: str  # the state of the source
    options: PlanOptions = field(default_factory=dict)


def write_plan(db: RetrievalDatabase, source: Source, options: SourceOptions) -> BuildPlan:
    """List the source's shards into the database. Raises SourceError if the source is empty or cannot be listed."""
    return save_plan(
        db, listed(source, options), source.columns(), source.revision(), part_of(options), source.left_out
    )


def part_of(options: SourceOptions) -> dict[str, object]:
    """The requested part of a source, as a plan's header and manifest.json record it."""
    return {"limit": options.limit, "shards": list(options.shards) if options.shards else None}


def listed(source: Source, options: SourceOptions) -> Iterator[Shard]:
    """The source's shards, or the range in `options.shards`, numbered by their position in the source's list."""
    first, behind = options.shards or (0, None)
    for number, spec in enumerate(source.plan()):
        if behind is not None and number >= behind:
            break
        if number >= first:
            yield Shard(number, spec.rows, spec.fingerprint, spec.spec)


def save_plan(
    db: RetrievalDatabase,
    shards: Iterable[Shard],
    columns: Mapping[str, str],
    revision: str,
    options: PlanOptions,
    left_out: Callable[[], Mapping[str, int]] | None = None,
) -> BuildPlan:
    """Write a plan, streaming, its header last. Raises SourceError if there are no shards.

    `left_out` is called after the shards are listed; it counts the files of the source that are not rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("shard", pa.int64()), ("rows", pa.int64()), ("fingerprint", pa.string()), ("spec", pa.string())]
    )
    hasher = _hasher(columns)
    count = rows = 0
    with db.storage.scratch() as scratch:
        part = scratch / "plan.parquet"
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            group: list[dict[str, object]] = []
            for shard in shards:
                group.append(_line(shard))
                hasher.update(_hashed(shard))
                count, rows = count + 1, rows + shard.rows
                if len(group) == _GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
        if not count:
            raise SourceError(f"{db.name}: the source has no rows (asked for: {dict(options)})")
        if left_out is not None:
            counted = left_out()
            options = {name: value for name, value in options.items() if name != LEFT_OUT}
            options |= {LEFT_OUT: dict(counted)} if counted else {}
        plan = BuildPlan(hasher.hexdigest()[:16], count, rows, columns, revision, options)
        record_sum(db.storage, _table(plan.id), sha256_file(part))
        db.storage.publish(part, _table(plan.id))
    write_recorded(db.storage, f"plan/{plan.id}.json", canonical_json(asdict(plan)) + "\n")
    return plan


def plan_id(columns: Mapping[str, str], shards: Iterable[Shard]) -> str:
    """The id of a plan of these shards: a hash of their ids, rows and fingerprints, without their specs and options."""
    hasher = _hasher(columns)
    for shard in shards:
        hasher.update(_hashed(shard))
    return hasher.hexdigest()[:16]


def _hasher(columns: Mapping[str, str]) -> hashlib._Hash:
    return hashlib.sha256(canonical_json(columns).encode())


def _hashed(shard: Shard) -> bytes:
    return f"{shard.id} {shard.rows} {shard.fingerprint}\n".encode()


def read_plan(db: RetrievalDatabase, plan_id: str) -> BuildPlan:
    """A plan's header. Raises DatabaseError."""
    found = db.read_json(f"plan/{plan_id}.json")
    if found is None:
        raise DatabaseError(f"database {db.name!r} has no plan {plan_id!r}; run `rdmpipe build-index {db.name}` again")
    try:
        return checked(BuildPlan, found, "plan")
    except ConfigError as error:
        raise db.damaged(f"plan/{plan_id}.json", str(error)) from error


def plan_shards(db: RetrievalDatabase, plan_id: str) -> Iterator[Shard]:
    """A plan's shards in order, a few hundred in memory at a time. Raises DamagedError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A store verifies its objects, and reading the plan once more for each use would take time.
        checksum = db.storage.sha256(_table(plan_id)) if db.storage.is_local else None
        if checksum and (problem := sum_problem(db.storage, _table(plan_id), checksum)):
            raise db.damaged(_table(plan_id), problem)
        with db.storage.open(_table(plan_id)) as handle, pq.ParquetFile(handle) as file:
            for batch in file.iter_batches(batch_size=_GROUP):
                for line in batch.to_pylist():
                    yield Shard(line["shard"], line["rows"], line["fingerprint"], json.loads(line["spec"]))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise db.damaged(_table(plan_id), f"it cannot be read as a plan: {error}") from error


def next_shard(db: RetrievalDatabase, plan: BuildPlan) -> int:
    """The first shard id that no plan of this database has used. Ids are never reused, because keys contain them."""
    return max(int(plan.options.get("next_shard", 0)), 1 + max(shard.id for shard in plan_shards(db, plan.id)))


def save_changed(
    db: RetrievalDatabase,
    old: BuildPlan,
    kept: Iterable[Shard],
    fresh: Sequence[Shard],
    first: int,
    columns: Mapping[str, str] | None = None,
    revision: str | None = None,
    options: PlanOptions | None = None,
    left_out: Callable[[], Mapping[str, int]] | None = None,
) -> BuildPlan:
    """Write a plan of the kept shards and the new ones, which are numbered from `first` on.

    Columns, revision and options are those of the `old` plan unless they are given.
    """
    header = {**old.options, **(options or {}), "next_shard": first + len(fresh)}
    revision = old.revision if revision is None else revision
    shards = heapq.merge(kept, fresh, key=lambda shard: shard.id)
    return save_plan(db, shards, columns or old.columns, revision, header, left_out)


def picked(plan: BuildPlan, parts: Sequence[Mapping[str, object]], where: str | None = None) -> dict[str, object]:
    """The spec of a shard that reads picked rows of other shards, with the filter in force (or `where`)."""
    where = plan.options.get(WHERE) if where is None else where
    return {"picked": list(parts), **({WHERE: where} if where is not None else {})}


def _table(plan_id: str) -> str:
    return f"plan/{plan_id}.parquet"


def _line(shard: Shard) -> dict[str, object]:
    if shard.rows > SHARD_ROWS:
        raise SourceError(f"shard {shard.id} has {shard.rows} rows; a shard holds at most {SHARD_ROWS}")
    return {
        "shard": shard.id,
        "rows": shard.rows,
        "fingerprint": shard.fingerprint,
        "spec": json.dumps(shard.spec, sort_keys=True),  # ASCII: file names need not be valid UTF-8
    }
