"""What `rdmpipe status` and `rdmpipe list` show, from a home's files alone, so from anywhere that sees the home.

Reads: versions, plans, receipts' names, progress.json, failures.json, leases. Writes nothing.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from pipeline.config import default_home
from pipeline.database import RetrievalDatabase, Version, list_databases
from pipeline.errors import DatabaseError, nearest
from pipeline.manifest import View, known, load
from pipeline.storage import Storage

STALE_S = 120.0  # a run that has not been heard of for so long is not called running


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

    def text(self) -> str:
        lines = [f"{self.name}: " + (f"version {self.version}" if self.version else "not published yet")]
        if self.counts:
            c = self.counts
            lines.append(
                f"  {c['input']:,} rows = {c['ok']:,} ok + {c['filtered']:,} filtered + {c['failed']:,} failed; "
                f"{c['duplicates']:,} duplicates; encoder {self.encoder}"
            )
            lines += [f"    {reason}: {count:,}" for reason, count in c["reasons"].items()]
        if self.running:
            lines.append(
                f"  running: {self.running['purpose']} on {self.running['host']}, process {self.running['pid']}"
            )
        if self.running or not self.version:
            for stage, state in self.progress.get("stages", {}).items():
                left = f", {state['seconds_left']:,.0f} s left" if state["seconds_left"] and self.running else ""
                lines.append(
                    f"  {stage}: {state['done']}/{state['shards']} shards, {state['failed']} failed, "
                    f"{state['rows_per_second']:,.1f} rows/s{left}"
                )
        for failure in self.failures[:10]:
            last = failure["error"].strip().splitlines()[-1]
            lines.append(
                f"  failed: {failure['stage']} shard {failure['shard']:06d} after {failure['attempts']}: {last}"
            )
        return "\n".join(lines)


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
    fresh = time.time() - float(progress.get("updated", 0.0)) < STALE_S
    holder = _json(storage.read_text("lease"), {})
    return DatabaseStatus(
        name=name,
        version=published.id if published else "",
        counts=dict(published.counts) if published else {},
        encoder=published.encoder.name if published else _json(begun, {}).get("settings", {}).get("encoder", ""),
        recall=dict(published.index.recall) if published else {},
        running=holder if fresh else {},
        progress=progress,
        failures=_json(storage.read_text("failures.json"), []),
    )


def _json(text: str | None, default: Any) -> Any:
    return json.loads(text) if text and text.strip() else default


def home_status(home: str | None = None) -> list[DatabaseStatus]:
    return [database_status(name, home) for name in Storage(home or default_home()).list("databases")]


def listing(home: str | None = None) -> list[dict[str, Any]]:
    """Published databases, and below each the views that manifests name on it."""
    views = [made for made in (load(str(path), home) for path in known(home).values()) if isinstance(made, View)]
    rows = []
    for name in list_databases(home):
        version = RetrievalDatabase(name, home).version()
        rows.append(_row(name, version, ""))
        rows += [_row(view.name, version, name) for view in views if view.base == name]
    return rows


def _row(name: str, version: Version, base: str) -> dict[str, Any]:
    rows = None if base else version.index.rows
    return {"name": name, "base": base, "rows": rows, "encoder": version.encoder.name, "version": version.id}
