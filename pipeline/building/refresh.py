"""`--refresh`, and growing to a larger part of the source: the plan of a new version, and the keys that are gone.

Reads: the source's list, and the rows of shards whose input changed; the published version's plan and image rows. Writes: the
new plan. A key is never moved or reused. A row that left the source, or whose bytes or metadata changed, gets a tombstone,
and new and changed rows are put into new shards. Shards with the same input are kept and not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.building.download import DownloadConfig, image_row, read_spec
from pipeline.building.plan import WHERE, BuildPlan, listed, next_shard, part_of, picked, plan_shards, save_changed
from pipeline.config import digest
from pipeline.database import PURGED, BlockList, Gone, RetrievalDatabase, has_rows_left, read_block_list
from pipeline.errors import DatabaseError
from pipeline.execution import Shard
from pipeline.schema import IMAGE_KEY, PATCH_COORDS, shard_of
from pipeline.sources import FetchingSource, Row, Source, Spec


@dataclass(frozen=True)
class Refresh:
    """The new plan (the old one if nothing changed), the keys that are gone, and the numbers of new and changed rows."""

    plan: BuildPlan
    gone: tuple[Gone, ...]
    added: int
    changed: int
    warnings: tuple[str, ...] = ()  # columns whose new values do not fit the type that the database has

    @property
    def removed(self) -> int:
        return sum(1 for entry in self.gone if entry.why == "removed")


def plan_refresh(
    db: RetrievalDatabase,
    old: BuildPlan,
    config: DownloadConfig,
    source: Source,
    gone_before: frozenset[int],
    grown: bool = False,
) -> Refresh:
    """Compare the source with the published plan. `grown`: a larger part of the source is wanted than the plan has.

    Raises DatabaseError if the source lost a column.
    """
    revision, blocked = source.revision(), read_block_list(db.storage)
    same_source = bool(revision) and revision == old.revision and not grown
    if (
        same_source
        and source.revision_is_whole
        and not any(_holds_blocked(db, shard, blocked, gone_before) for shard in plan_shards(db, old.id))
    ):
        return Refresh(old, (), 0, 0)
    columns = source.columns()
    _require_columns(db, old.columns, columns)
    unread: dict[str, list[Shard]] = {}
    for shard in plan_shards(db, old.id):
        unread.setdefault(shard.fingerprint, []).append(shard)
    holed = {shard_of(key) for key in gone_before}
    kept: list[Shard] = []
    changed_specs: list[Row] = []
    for spec in listed(source, config.options):
        same = [shard for shard in unread.get(spec.fingerprint, []) if shard.id not in holed]
        if same and not _holds_blocked(db, same[0], blocked, gone_before):
            kept.append(same[0])
            unread[spec.fingerprint].remove(same[0])
        else:
            changed_specs.append(spec.spec)
    loose = sorted((shard for shards in unread.values() for shard in shards), key=lambda shard: shard.id)
    listed_only = isinstance(source, FetchingSource)
    known = _rows_by_item(db, loose, config, gone_before, listed_only)
    picked_rows: list[tuple[int, str, str]] = []  # (which of changed_specs, item id, digest of the row)
    for number, part in enumerate(changed_specs):
        for item, row_digest in _items(source, part, config, blocked):
            candidates = known.get(item, [])
            unchanged = next((entry for entry in candidates if entry["digest"] == row_digest), None)
            if unchanged is not None:
                candidates.remove(unchanged)
            else:
                picked_rows.append((number, item, row_digest))
    new_items = {item for _, item, _ in picked_rows}
    gone = tuple(
        Gone(entry["key"], "changed" if item in new_items else "removed")
        for item, entries in known.items()
        for entry in entries
    )
    if same_source and not picked_rows and not gone:  # the metadata is also the same
        return Refresh(old, (), 0, 0)
    before = gone_before | {entry.key for entry in gone}
    loose = [shard for shard in loose if has_rows_left(shard, before)]
    first = next_shard(db, old)
    fresh = list(_picked_shards(old, picked_rows, changed_specs, first, config.manifest.source.shard_rows))
    stay = sorted([*kept, *loose], key=lambda shard: shard.id)
    part = part_of(config.options)
    plan = save_changed(db, old, stay, fresh, first, revision=revision, options=part, left_out=source.left_out)
    changed = sum(1 for entry in gone if entry.why == "changed")
    ordered = tuple(sorted(gone, key=lambda entry: entry.key))
    return Refresh(plan, ordered, len(picked_rows) - changed, changed, _narrowed(old.columns, columns))


def _holds_blocked(db: RetrievalDatabase, shard: Shard, blocked: BlockList, gone: frozenset[int]) -> bool:
    """Whether a published shard holds a row that was blocked after the shard was made and is not gone yet."""
    if not blocked.marks:
        return False
    table = db.read_table(db.image_table(shard.id), ["key", "item_id", "error", "url", "sha256"])
    return not gone.issuperset(table["key"].filter(blocked.mask(table)).to_pylist())


def _require_columns(db: RetrievalDatabase, old: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise DatabaseError if the source lost a column that the database has.

    A database keeps the columns and the types that it was built with: new columns of the source are left out, and values are
    stored as the old type if they fit it.
    """
    lost = [name for name in old if name not in now]
    if lost:
        raise DatabaseError(
            f"database {db.name!r} has the metadata columns {', '.join(old)}, and the source no longer has {', '.join(lost)}: "
            "rows without them do not fit in. Build another database with --name"
        )


def _narrowed(old: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings about columns whose values in the source no longer fit their type in the database."""
    return tuple(
        f"column {name!r} is {kind} in the database and {now[name]} in the source now: values that are no {kind} are stored as "
        "null. Build another database with --name to keep them"
        for name, kind in old.items()
        if kind not in ("string", now[name]) and (kind, now[name]) != ("float64", "int64")
    )


def _items(source: Source, spec: Spec, config: DownloadConfig, blocked: BlockList) -> Iterator[tuple[str, str]]:
    """(item id, digest of everything that is stored of it) for each row of a part of the source."""
    listed_only = isinstance(source, FetchingSource)
    for sample in read_spec(source, spec):
        row = image_row(config, 0, sample)
        blocked.blank([row])
        yield sample.item_id, _digest(row, listed_only)


def _rows_by_item(
    db: RetrievalDatabase, shards: list[Shard], config: DownloadConfig, gone: frozenset[int], listed_only: bool
) -> dict[str, list[Row]]:
    """Rows of published shards that are not gone, by item id: key, status, reason, digest."""
    found: dict[str, list[Row]] = {}
    for shard in shards:
        for row in db.read_table(db.image_table(shard.id)).to_pylist():
            if row["key"] in gone:
                continue
            entry = {
                "key": row["key"],
                "status": row["status"],
                "reason": _reason(row["error"]),
                "digest": _digest(row, listed_only),
            }
            found.setdefault(row["item_id"], []).append(entry)
    return found


def _reason(error: str | None) -> str:
    return (error or "").split(":", 1)[0]


def _digest(row: Row, listed_only: bool = False) -> str:
    """Hash of a row's item, bytes, status and metadata, without its key and an error's wording. For a list of URLs, only the
    list's values: the pictures are not fetched to see whether they changed."""
    if row["error"] == PURGED:
        return PURGED  # no other value is left
    left_out = {"key", "error", "status", IMAGE_KEY, PATCH_COORDS} | ({"sha256"} if listed_only else set())
    stored = {name: value for name, value in sorted(row.items()) if name not in left_out}
    return digest([stored, not listed_only and row["status"] == "failed" and _reason(row["error"])], 32)


def _picked_shards(
    plan: BuildPlan, rows: list[tuple[int, str, str]], specs: list[Row], first: int, most: int
) -> Iterator[Shard]:
    """Shards that read only the picked rows of the source's parts, at most `most` rows each, in the source's order."""
    for start in range(0, len(rows), most):
        group = rows[start : start + most]
        parts: dict[int, list[str]] = {}
        for number, item, _ in group:
            parts.setdefault(number, []).append(item)
        spec = picked(plan, [{"spec": specs[number], "items": items} for number, items in parts.items()])
        marks = [(item, row_digest) for _, item, row_digest in group]
        fingerprint = digest(["picked", marks, *([spec[WHERE]] if WHERE in spec else [])], 32)
        yield Shard(first + start // most, len(group), fingerprint, spec)
