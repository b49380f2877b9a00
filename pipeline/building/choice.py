"""Which shards a build goes through: those of the published plan, the same refreshed or retried, or a plan made now.

Reads: the manifest's source, the published plan and its tombstones. Writes: a plan, tombstones, and on the first build the
manifest.json that says what the database is. Publishes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from pipeline.building.download import DownloadConfig, filter_columns
from pipeline.building.plan import BuildPlan, read_plan, write_plan
from pipeline.building.refresh import plan_refresh
from pipeline.building.request import BuildRequest, begun
from pipeline.building.retry import plan_retry
from pipeline.config import canonical_json
from pipeline.database import RetrievalDatabase, Version, gone_keys, write_gone
from pipeline.errors import BudgetError, DatabaseError
from pipeline.execution import Progress
from pipeline.filters import check_filter
from pipeline.sources import Manifest, Source, SourceOptions, open_source
from pipeline.storage import Artifact


@dataclass(frozen=True)
class Chosen:
    """A plan, and what choosing it settled."""

    plan: BuildPlan
    request: BuildRequest  # with the part of the source, and what is kept of pictures, filled in
    gone: Artifact | None = None  # the tombstones, old and new
    changes: Mapping[str, int] = field(default_factory=dict)  # of a refresh or retry: rows by what became of them


def choose_plan(
    database: RetrievalDatabase,
    manifest: Manifest,
    request: BuildRequest,
    published: Version | None,
    progress: Progress,
) -> Chosen:
    """The plan to build by. Raises DatabaseError where there is nothing to go on with, BudgetError where the disk is small."""
    if published is not None:
        plan = read_plan(database, published.plan)
        request = replace(request, source=_same_part(database, request.source, plan))
        if request.retry:
            return _retried(database, manifest, request, published, plan)
        if request.refresh:
            progress.say(f"looking for changes in {manifest.title}")
            return _refreshed(database, manifest, request, published, plan)
        return Chosen(plan, request, published.gone)
    if request.retry:
        database.version()  # says how to build it, or to go on
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
    """What the download of a plan's shards depends on."""
    return DownloadConfig(manifest, plan.columns, request.source, request.where)


def _first(database: RetrievalDatabase, manifest: Manifest, request: BuildRequest) -> Chosen:
    source = open_source(manifest, request.source)
    plan = write_plan(database, source, request.source)
    if request.where:
        check_filter(request.where, filter_columns(plan.columns))
    request = replace(request, images=request.images or ("thumbnail" if source.rereadable else "keep"))
    _check_disk(database, source, plan, request.images)
    settings = {name: getattr(request, name) for name in ("encoder", "precision", "preprocess", "images", "where")}
    written = {"manifest": asdict(manifest), "settings": {**settings, "plan": plan.id}}
    database.storage.write_text("manifest.json", canonical_json(written) + "\n")
    return Chosen(plan, request)


def _same_part(database: RetrievalDatabase, asked: SourceOptions, plan: BuildPlan) -> SourceOptions:
    """A published database stays the part of its source it was built from. Raises DatabaseError."""
    parts = {"limit": asked.limit, "shards": list(asked.shards) if asked.shards else None}
    for name, value in parts.items():
        if value and value != plan.options.get(name):
            raise DatabaseError(
                f"database {database.name!r} was built with {name} {plan.options.get(name) or 'all'}, not {value}; "
                f"leave --{name} out, or build another database with --name"
            )
    shards = plan.options.get("shards")
    return replace(asked, limit=plan.options.get("limit") or 0, shards=tuple(shards) if shards else None)


def _refreshed(
    database: RetrievalDatabase, manifest: Manifest, request: BuildRequest, version: Version, plan: BuildPlan
) -> Chosen:
    source = open_source(manifest, request.source)
    before = frozenset(gone_keys(database, version.gone))
    found = plan_refresh(database, plan, download_config(manifest, plan, request), source, before)
    gone = write_gone(database, version.gone, found.gone) if found.gone else version.gone
    changes = {"added": found.added, "changed": found.changed, "removed": found.removed}
    return Chosen(found.plan, request, gone, changes)


def _retried(
    database: RetrievalDatabase, manifest: Manifest, request: BuildRequest, version: Version, plan: BuildPlan
) -> Chosen:
    source = open_source(manifest, request.source)
    before = frozenset(gone_keys(database, version.gone))
    found = plan_retry(database, plan, version, source, before, manifest.source.shard_rows)
    gone = write_gone(database, version.gone, found.gone) if found.gone else version.gone
    return Chosen(found.plan, request, gone, {"retried": len(found.gone)})


def _check_disk(database: RetrievalDatabase, source: Source, plan: BuildPlan, images: str) -> None:
    """Refuse before work what will not fit on this machine's disk. Raises BudgetError."""
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
