"""`rdmpipe retry`: the failed URLs of a published database, and nothing else, once more.

Reads: status of the published rows. Writes: a plan in which the failed rows stand in new shards, with new keys; their old keys
get tombstones. Other shards are shared as they are, unread. The same version gives the same plan, so that a retry that was
stopped goes on where it was. Memory: the failed rows' keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.building.plan import BuildPlan, plan_shards, save_plan
from pipeline.config import digest
from pipeline.database import Gone, RetrievalDatabase, Version, has_rows_left
from pipeline.errors import ConfigError
from pipeline.execution import Shard
from pipeline.schema import FAILED, SHARD_ROWS
from pipeline.sources import FetchingSource, Source

RETRIED = "retried"


@dataclass(frozen=True)
class Retry:
    """The new plan (the old one where nothing had failed), and the tombstones of the rows that are tried again."""

    plan: BuildPlan
    gone: tuple[Gone, ...]


def plan_retry(
    db: RetrievalDatabase,
    old: BuildPlan,
    version: Version,
    source: Source,
    gone_before: frozenset[int],
    shard_rows: int,
) -> Retry:
    """Plan another attempt at the version's failed rows. Raises ConfigError where the source is not a list of URLs."""
    if not isinstance(source, FetchingSource):
        raise ConfigError(
            f"database {db.name!r} is not made from a list of URLs; what failed in it fails again until its source is mended: "
            f"`rdmpipe build-index {db.name} --refresh`"
        )
    first = max(int(old.options.get("next_shard", 0)), 1 + max(shard.id for shard in plan_shards(db, old.id)))
    gone: list[Gone] = []
    fresh = list(_new_shards(_failed(db, old, version, gone_before, gone), first, shard_rows))
    if not fresh:
        return Retry(old, ())
    options = {**old.options, "next_shard": first + len(fresh)}
    dead = gone_before | {entry.key for entry in gone}
    kept = (shard for shard in plan_shards(db, old.id) if has_rows_left(shard, dead))
    plan = save_plan(db, itertools.chain(kept, fresh), old.columns, old.revision, options)
    return Retry(plan, tuple(gone))


def _failed(
    db: RetrievalDatabase, old: BuildPlan, version: Version, gone_before: frozenset[int], gone: list[Gone]
) -> Iterator[tuple[Shard, list[int]]]:
    """The shards with failed rows, and which rows those are. Notes their keys in `gone`."""
    tables = {entry.id: entry.artifact.path for entry in version.shards}
    for shard in plan_shards(db, old.id):
        table = db.read_table(tables[shard.id], ["key", "status"])
        pairs = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
        keys = [key for key, status in pairs if status == FAILED and key not in gone_before]
        if keys:
            gone += [Gone(key, RETRIED) for key in keys]
            yield shard, [key % SHARD_ROWS for key in keys]


def _new_shards(failed: Iterator[tuple[Shard, list[int]]], first: int, most: int) -> Iterator[Shard]:
    """Shards of at most `most` rows that read only the failed rows of others."""
    number = itertools.count(first)
    parts: list[dict[str, Any]] = []
    marks: list[Any] = []
    rows = 0

    def closed() -> Shard:
        return Shard(next(number), rows, digest(["retry", marks], 32), {"picked": parts})

    for shard, places in failed:
        while places:
            taken, places = places[: most - rows], places[most - rows :]
            parts.append({"spec": shard.spec, "rows": taken})
            marks.append([shard.id, shard.fingerprint, taken])
            rows += len(taken)
            if rows == most:
                yield closed()
                parts, marks, rows = [], [], 0
    if rows:
        yield closed()
