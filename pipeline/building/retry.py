"""Process some rows of a published database again: those that failed (`rdmpipe retry`), or those that a new filter changes.

Reads: the status of the published rows; for a filter, their metadata. Writes: a plan with new shards, which hold these rows
under new keys. The old keys get tombstones. The other shards are kept and not read from the source. The same version gives
the same plan, so that an interrupted build continues. Memory: the keys of the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.building.download import OUTSIDE, DownloadConfig, filter_columns, filterable
from pipeline.building.plan import WHERE, BuildPlan, next_shard, picked, plan_shards, save_changed, save_plan
from pipeline.config import digest
from pipeline.database import Gone, RetrievalDatabase, Version, has_rows_left
from pipeline.errors import ConfigError
from pipeline.execution import Shard
from pipeline.filters import check_filter, filter_mask
from pipeline.schema import FAILED, FILTERED, SHARD_ROWS
from pipeline.sources import FetchingSource, Source

RETRIED, REFILTERED = "retried", "refiltered"  # why a key got a tombstone


@dataclass(frozen=True)
class Retry:
    """The new plan (the old one if there is nothing to do), and the tombstones of the rows that are processed again."""

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
    """Plan another attempt at the version's failed rows. Raises ConfigError if the source is not a list of URLs."""
    if not isinstance(source, FetchingSource):
        raise ConfigError(
            f"database {db.name!r} is not made from a list of URLs: a failed row fails again until its source is fixed. Fix "
            f"the source, then run `rdmpipe build-index {db.name} --refresh`"
        )
    gone: list[Gone] = []
    return _again(db, old, _failed(db, old, version, gone_before, gone), gone, gone_before, shard_rows)


def plan_filter(
    db: RetrievalDatabase, old: BuildPlan, config: DownloadConfig, where: str, gone_before: frozenset[int]
) -> Retry:
    """Plan a version with another filter: rows that enter or leave it are processed again. Raises FilterError."""
    check_filter(where, filter_columns(old.columns))
    gone: list[Gone] = []
    flipped = _flipped(db, old, config, where, gone_before, gone)
    made = _again(db, old, flipped, gone, gone_before, config.manifest.source.shard_rows, where)
    if made.plan is old:  # no row changes, but the filter applies to rows that a refresh adds
        options = {**old.options, WHERE: where}
        return Retry(save_plan(db, plan_shards(db, old.id), old.columns, old.revision, options), ())
    return made


def _again(
    db: RetrievalDatabase,
    old: BuildPlan,
    rows: Iterator[tuple[Shard, list[int]]],
    gone: list[Gone],
    gone_before: frozenset[int],
    shard_rows: int,
    where: str | None = None,
) -> Retry:
    """A plan in which `rows` are in new shards. `gone` is filled while `rows` is read."""
    first = next_shard(db, old)
    fresh = list(_picked_shards(old, rows, first, shard_rows, where))
    if not fresh:
        return Retry(old, ())
    options = {} if where is None else {WHERE: where}
    dead = gone_before | {entry.key for entry in gone}
    kept = (shard for shard in plan_shards(db, old.id) if has_rows_left(shard, dead))
    return Retry(save_changed(db, old, kept, fresh, first, options=options), tuple(gone))


def _failed(
    db: RetrievalDatabase, old: BuildPlan, version: Version, gone_before: frozenset[int], gone: list[Gone]
) -> Iterator[tuple[Shard, list[int]]]:
    """The shards with failed rows, and the positions of these rows. Adds their keys to `gone`."""
    tables = {entry.id: entry.artifact.path for entry in version.shards}
    for shard in plan_shards(db, old.id):
        table = db.read_table(tables[shard.id], ["key", "status"])
        pairs = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
        keys = [key for key, status in pairs if status == FAILED and key not in gone_before]
        if keys:
            gone += [Gone(key, RETRIED) for key in keys]
            yield shard, [key % SHARD_ROWS for key in keys]


def _flipped(
    db: RetrievalDatabase,
    old: BuildPlan,
    config: DownloadConfig,
    where: str,
    gone_before: frozenset[int],
    gone: list[Gone],
) -> Iterator[tuple[Shard, list[int]]]:
    """The rows whose status a new filter changes, by shard. Adds their keys to `gone`."""
    for shard in plan_shards(db, old.id):
        table = db.read_table(db.image_table(shard.id))
        inside = filter_mask(where, filterable(config.columns, table)).tolist()
        states = zip(
            table["key"].to_pylist(), table["status"].to_pylist(), table["error"].to_pylist(), inside, strict=True
        )
        keys = [
            key
            for key, status, error, now in states
            if key not in gone_before and (now if error == OUTSIDE else not now and status != FILTERED)
        ]
        if keys:
            gone += [Gone(key, REFILTERED) for key in keys]
            yield shard, [key % SHARD_ROWS for key in keys]


def _picked_shards(
    plan: BuildPlan, rows: Iterator[tuple[Shard, list[int]]], first: int, most: int, where: str | None
) -> Iterator[Shard]:
    """Shards of at most `most` rows. Each reads only some rows of published shards."""
    number = itertools.count(first)
    parts: list[dict[str, object]] = []
    marks: list[list[object]] = []
    count = 0

    def closed() -> Shard:
        spec = picked(plan, parts, where)
        mark = ["retry", marks, *([spec[WHERE]] if WHERE in spec else [])]
        return Shard(next(number), count, digest(mark, 32), spec)

    for shard, places in rows:
        while places:
            taken, places = places[: most - count], places[most - count :]
            parts.append({"spec": shard.spec, "rows": taken})
            marks.append([shard.id, shard.fingerprint, taken])
            count += len(taken)
            if count == most:
                yield closed()
                parts, marks, count = [], [], 0
    if count:
        yield closed()
