"""Choose the shards of a build: the published plan; the same plan refreshed, grown, retried or with a new filter; or a new
plan.

Reads: the manifest's source, the published plan and its tombstones. Writes: a plan, tombstones, and on the first build
manifest.json, which records the manifest and the settings. Publishes nothing.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from pipeline.building.download import DownloadConfig, filter_columns
from pipeline.building.plan import WHERE, BuildPlan, part_of, read_plan, write_plan
from pipeline.building.refresh import plan_refresh
from pipeline.building.request import BuildRequest, begun
from pipeline.building.retry import plan_filter, plan_retry
from pipeline.config import canonical_json
from pipeline.database import RetrievalDatabase, Version, gone_keys, write_gone, write_recorded
from pipeline.errors import BudgetError, DatabaseError
from pipeline.execution import Progress
from pipeline.filters import check_filter
from pipeline.sources import Manifest, Source, SourceOptions, open_source
from pipeline.storage import Artifact


@dataclass(frozen=True)
class Chosen:
    """A plan, and the settings that were decided with it."""

    plan: BuildPlan
    request: BuildRequest  # with the part of the source and `images` filled in
    gone: Artifact | None = None  # the tombstones, old and new
    changes: Mapping[str, int] = field(default_factory=dict)  # of a refresh or retry: rows by kind of change
    warnings: tuple[str, ...] = ()


def choose_plan(
    database: RetrievalDatabase,
    manifest: Manifest,
    request: BuildRequest,
    published: Version | None,
    progress: Progress,
) -> Chosen:
    """Choose the plan of a build. Raises DatabaseError (nothing to continue, or another build than before), BudgetError
    (disk)."""
    if published is not None:
        plan = read_plan(database, published.plan)
        request, grown = _same_part(database, request, plan)
        in_force = plan.options.get(WHERE, request.where)
        if request.new_where and request.new_where != in_force:
            if grown or request.refresh or request.retry:
                raise DatabaseError(
                    f"database {database.name!r}: its filter changes in a version of its own. Run `rdmpipe build-index "
                    f"{database.name} --where ...` first, and then the other change"
                )
            return _filtered(database, manifest, request, published, plan)
        if request.retry:
            return _retried(database, manifest, request, published, plan)
        if request.refresh or grown:
            progress.say(f"looking for changes in {manifest.title}")
            return _refreshed(database, manifest, request, published, plan, grown)
        return Chosen(plan, request, published.gone)
    if request.retry:
        database.version()  # says how to build it, or to continue
    if request.stages == ("index",):
        before = begun(database.name, request.home)
        if before is None:
            raise DatabaseError(
                f"database {database.name!r} has nothing to index; run `rdmpipe embed {database.name}` first"
            )
        return Chosen(read_plan(database, before["settings"]["plan"]), request)
    progress.say(f"reading the list of {manifest.title}")
    return _first(database, manifest, request)


def download_config(manifest: Manifest, plan: BuildPlan, request: BuildRequest) -> DownloadConfig:
    """The settings on which the download of a plan's shards depends."""
    return DownloadConfig(manifest, plan.columns, request.source, request.where)


def _first(database: RetrievalDatabase, manifest: Manifest, request: BuildRequest) -> Chosen:
    source = open_source(manifest, request.source)
    plan = write_plan(database, source, request.source)
    if request.where:
        check_filter(request.where, filter_columns(plan.columns))
    request = replace(request, images=request.images or ("thumbnail" if source.rereadable else "keep"))
    _check_disk(database, source, plan, request.images)
    settings = {name: getattr(request, name) for name in ("encoder", "precision", "preprocess", "images", "where")}
    written = {"manifest": asdict(manifest), "settings": {**settings, "plan": plan.id, **_recorded(request.source)}}
    write_recorded(database.storage, "manifest.json", canonical_json(written) + "\n")
    return Chosen(plan, request)


def _same_part(database: RetrievalDatabase, request: BuildRequest, plan: BuildPlan) -> tuple[BuildRequest, bool]:
    """The request with the part of the source that the database shall have, and whether that is more than it has.

    If no part is requested, it stays as it is. Raises DatabaseError for a part that would remove rows.
    """
    asked = request.source
    limit, shards = plan.options.get("limit") or 0, plan.options.get("shards")
    before = replace(asked, limit=limit, shards=tuple(shards) if shards else None)
    if request.whole:
        wanted = replace(asked, limit=0, shards=None)
    else:
        wanted = replace(asked, limit=asked.limit or limit, shards=asked.shards or before.shards)
    if (wanted.limit, wanted.shards) == (before.limit, before.shards):
        return replace(request, source=wanted), False
    fewer = bool(wanted.limit) and not (limit and wanted.limit >= limit)
    if wanted.shards:
        first, behind = before.shards or (0, sys.maxsize)
        fewer = fewer or wanted.shards[0] > first or wanted.shards[1] < behind
    if fewer:
        raise DatabaseError(
            f"database {database.name!r} was built with limit {limit or 'all'} and shards {shards or 'all'}; a smaller part "
            "would remove rows. Leave --limit and --shards out, or build another database with --name"
        )
    return replace(request, source=wanted), True


def record_part(database: RetrievalDatabase, request: BuildRequest, plan: BuildPlan) -> None:
    """Update manifest.json with the new part of the source and the new filter of the database."""
    written = begun(database.name, request.home)
    if written is None:
        return
    where = plan.options.get(WHERE)
    kept = {name: value for name, value in written["settings"].items() if name not in ("limit", "shards", "filter")}
    now = {**kept, **_recorded(request.source), **({"filter": where} if where is not None else {})}
    if now != written["settings"]:
        write_recorded(database.storage, "manifest.json", canonical_json({**written, "settings": now}) + "\n")


def _recorded(options: SourceOptions) -> dict[str, object]:
    """The part of the source for manifest.json; empty for the whole source."""
    return {name: value for name, value in part_of(options).items() if value}


def _filtered(
    database: RetrievalDatabase, manifest: Manifest, request: BuildRequest, version: Version, plan: BuildPlan
) -> Chosen:
    before = frozenset(gone_keys(database, version.gone))
    found = plan_filter(database, plan, download_config(manifest, plan, request), request.new_where, before)
    gone = write_gone(database, version.gone, found.gone) if found.gone else version.gone
    return Chosen(found.plan, request, gone, {"refiltered": len(found.gone)})


def _refreshed(
    database: RetrievalDatabase,
    manifest: Manifest,
    request: BuildRequest,
    version: Version,
    plan: BuildPlan,
    grown: bool,
) -> Chosen:
    source = open_source(manifest, request.source)
    before = frozenset(gone_keys(database, version.gone))
    found = plan_refresh(database, plan, download_config(manifest, plan, request), source, before, grown)
    gone = write_gone(database, version.gone, found.gone) if found.gone else version.gone
    changes = {"added": found.added, "changed": found.changed, "removed": found.removed}
    return Chosen(found.plan, request, gone, changes, found.warnings)


def _retried(
    database: RetrievalDatabase, manifest: Manifest, request: BuildRequest, version: Version, plan: BuildPlan
) -> Chosen:
    source = open_source(manifest, request.source)
    before = frozenset(gone_keys(database, version.gone))
    found = plan_retry(database, plan, version, source, before, manifest.source.shard_rows)
    gone = write_gone(database, version.gone, found.gone) if found.gone else version.gone
    return Chosen(found.plan, request, gone, {"retried": len(found.gone)})


def _check_disk(database: RetrievalDatabase, source: Source, plan: BuildPlan, images: str) -> None:
    """Refuse, before work starts, a build that will not fit on this machine's disk. Raises BudgetError."""
    if not database.storage.is_local:
        return
    rows, size = source.estimate()
    each = {"keep": size / max(rows, 1), "thumbnail": 12_000.0, "drop": 0.0}[images]
    waiting = min(plan.shards, 8) * size / max(plan.shards, 1)  # downloaded and not yet embedded
    need = plan.rows * (each + 4_500) + waiting  # 4,500 bytes: a 768-d float16 vector twice, and metadata
    done = len(database.storage.list("images", ".json")) / max(plan.shards, 1)
    free = shutil.disk_usage(database.storage.full("")).free
    if need * max(0.0, 1.0 - done) > free:
        raise BudgetError(
            f"building {database.name!r} needs about {need / 1e9:,.1f} GB in {database.storage.url}, where "
            f"{free / 1e9:,.1f} GB are free. Free some space, point RDMPIPE_HOME at a larger disk, use --images drop, "
            "or build a part with --limit."
        )
