"""What `rdmpipe status` and `rdmpipe list` show, from a home's files alone, so from anywhere that sees the home.

Reads: versions, plans, receipts' names, progress.json, failures.json, jobs' summaries, leases. Writes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pipeline.catalog.manifests import known_manifests, load_manifest
from pipeline.catalog.names import base_of
from pipeline.config import default_home
from pipeline.database import RetrievalDatabase, Version, list_databases
from pipeline.errors import DatabaseError, nearest
from pipeline.sources import View
from pipeline.storage import Storage, holder_of


@dataclass(frozen=True)
class DatabaseStatus:
    """One database: what is published, and how far a build is."""

    name: str
    version: str  # empty: nothing published yet
    counts: dict[str, Any]
    encoder: str
    recall: dict[str, Any]
    running: dict[str, Any]  # who holds the lease; empty: nobody
    progress: dict[str, Any]  # of the last or the running build
    failures: list[dict[str, Any]]  # shards the last build could not do
    base: str = ""  # of a view; what is said then is its base's

    def text(self) -> str:
        name = f"{self.name}, a view of {self.base}" if self.base else self.name
        lines = [f"{name}: " + (f"version {self.version}" if self.version else "not published yet")]
        if self.counts:
            c = self.counts
            lines.append(
                f"  {c['input']:,} rows = {c['ok']:,} ok + {c['filtered']:,} filtered + {c['failed']:,} failed; "
                f"{c['duplicates']:,} duplicates; encoder {self.encoder}"
            )
            lines += [f"    {reason}: {count:,}" for reason, count in c["reasons"].items()]
        progress = self.progress if self.running or not self.version else {}
        return "\n".join([*lines, *_work(self.running, progress, self.failures)])


@dataclass(frozen=True)
class RunStatus:
    """A run that makes no database: a generation, or a job."""

    kind: str  # generation | job
    name: str
    running: dict[str, Any]
    progress: dict[str, Any]  # of a generation
    failures: list[dict[str, Any]]
    last: dict[str, Any]  # a job's newest summary, as in jobs/<job>/runs/

    def text(self) -> str:
        lines = [f"{self.kind} {self.name}:" + ("" if self.running else " not running")]
        if self.last:
            lines.append(
                f"  last run: slot {self.last['slot']} {self.last['status']}, exit code {self.last['exit_code']}, "
                f"ended {self.last['ended']}"
            )
        return "\n".join([*lines, *_work(self.running, self.progress, self.failures)])


def _work(running: dict[str, Any], progress: dict[str, Any], failures: list[dict[str, Any]]) -> list[str]:
    """Who works, how far each stage is and what it still takes, and what failed."""
    lines = []
    if running:
        lines.append(f"  running: {running['purpose']} on {running['host']}, process {running['pid']}")
    for stage, state in progress.get("stages", {}).items():
        left = f", {state['seconds_left']:,.0f} s left" if state["seconds_left"] and running else ""
        lines.append(
            f"  {stage}: {state['done']}/{state['shards']} shards, {state['failed']} failed, "
            f"{state['rows_per_second']:,.1f} rows/s{left}"
        )
    for failure in failures[:10]:
        last = failure["error"].strip().splitlines()[-1]
        lines.append(f"  failed: {failure['stage']} shard {failure['shard']:06d} after {failure['attempts']}: {last}")
    return lines


def database_status(name: str, home: str | None = None) -> DatabaseStatus:
    """The state of one database, published or not. Raises DatabaseError where there is no such directory."""
    database = RetrievalDatabase(name, home)
    storage = database.storage
    begun = storage.read_text("manifest.json")
    published = database.version() if database.exists() else None
    progress = _json(storage.read_text("progress.json"), {})
    if begun is None and published is None and not progress:
        names = Storage(database.home).list("databases")
        raise DatabaseError(
            f"no database {name!r} in {database.home}{nearest(name, names)}; it has {', '.join(names) or 'none'}"
        )
    return DatabaseStatus(
        name=name,
        version=published.id if published else "",
        counts=dict(published.counts) if published else {},
        encoder=published.encoder.name if published else _json(begun, {}).get("settings", {}).get("encoder", ""),
        recall=dict(published.index.recall) if published else {},
        running=holder_of(storage),
        progress=progress,
        failures=_json(storage.read_text("failures.json"), []),
    )


def _json(text: str | None, default: Any) -> Any:
    return json.loads(text) if text and text.strip() else default


def status_of(name: str, home: str | None = None) -> DatabaseStatus | RunStatus:
    """The state of a database, a generation's run, a job or a view's base, whichever has the name. Raises DatabaseError."""
    root = Storage(home or default_home())
    if name not in root.list("databases"):
        for kind in ("generation", "job"):
            if name in root.list(f"{kind}s"):
                return _run_status(root, kind, name)
    base = base_of(name, home)
    return database_status(name, home) if base == name else replace(database_status(base, home), name=name, base=base)


def _run_status(root: Storage, kind: str, name: str) -> RunStatus:
    storage = root.child(f"{kind}s/{name}")
    runs = storage.list("runs", ".json")
    summaries = [_json(storage.read_text(f"runs/{run}"), {}) for run in runs[-5:]]
    return RunStatus(
        kind=kind,
        name=name,
        running=holder_of(storage),
        progress=_json(storage.read_text("progress.json"), {}),
        failures=_json(storage.read_text("failures.json"), []),
        last=max(summaries, key=lambda made: str(made.get("ended", "")), default={}),
    )


def home_status(home: str | None = None) -> list[DatabaseStatus | RunStatus]:
    """All databases and jobs, and the generations that are running."""
    root = Storage(home or default_home())
    made: list[DatabaseStatus | RunStatus] = [database_status(name, home) for name in root.list("databases")]
    generations = [_run_status(root, "generation", name) for name in root.list("generations")]
    made += [generation for generation in generations if generation.running]
    return [*made, *(_run_status(root, "job", name) for name in root.list("jobs"))]


def listing(home: str | None = None) -> list[dict[str, Any]]:
    """Published databases, and below each the views that manifests name on it."""
    views = [
        made
        for made in (load_manifest(str(path), home) for path in known_manifests(home).values())
        if isinstance(made, View)
    ]
    rows = []
    for name in list_databases(home):
        version = RetrievalDatabase(name, home).version()
        rows.append(_row(name, version, ""))
        rows += [_row(view.name, version, name) for view in views if view.base == name]
    return rows


def _row(name: str, version: Version, base: str) -> dict[str, Any]:
    rows = None if base else version.index.rows
    return {"name": name, "base": base, "rows": rows, "encoder": version.encoder.name, "version": version.id}
