"""What a build was asked for, what that means for a database that was begun before, and how it ended.

Reads: manifests, and manifest.json of a database that was begun. Writes nothing.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from pipeline.catalog import command_that_adds, resolve_target
from pipeline.config import Table, from_mapping
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError, ManifestError
from pipeline.execution import Backend
from pipeline.index import IndexConfig
from pipeline.sources import NAME, Manifest, SourceOptions

STAGES = ("download", "embed", "index")


@dataclass(frozen=True)
class BuildRequest:
    """What `build-index` was asked for; empty values mean the manifest's own or the default."""

    target: str
    name: str = ""
    home: str | None = None
    encoder: str = ""
    precision: str = ""  # fp32 | fp16 | bf16
    preprocess: str = ""  # openclip | compvis
    images: str = ""  # keep | thumbnail | drop
    where: str = ""
    source: SourceOptions = field(default_factory=SourceOptions)
    whole: bool = False  # all of the source, whatever part was built before (`--limit 0`)
    new_where: str = ""  # filled in by `settle`: the filter that a published database is to have from now on
    index: IndexConfig = field(default_factory=IndexConfig)
    backend: Backend = field(default_factory=Backend)
    batch: int = 0  # pictures a forward pass
    device: str = "auto"
    threads: int = (
        0  # torch threads of a worker on a CPU; 0: its share of the cores. The same number gives the same bytes
    )
    wait_s: float = 0.0
    stages: tuple[str, ...] = STAGES
    refresh: bool = False  # look at the source again and do what is new
    retry: bool = False  # try the failed URLs of what is published again, and nothing else


class IndexSummary(TypedDict, total=False):
    """The index of a published version. `recall` is what the version records of it; no key where no index was built."""

    id: str
    kind: str
    key: str
    rows: int
    recall: Mapping[str, Any]


class HostCounts(TypedDict):
    """What one host was asked and what came of it. `set_aside`: why it was given up; empty if it was not."""

    requests: int
    ok: int
    failed: int
    bytes: int
    slowed: int  # answers that asked to wait
    set_aside: str


@dataclass(frozen=True)
class BuildSummary:
    """How a build ended: input = ok + filtered + failed, `reasons` counts filtered and failed rows by reason."""

    name: str
    version: str  # empty if the build was to stop before the index
    input: int
    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    duplicates: int
    encoder: str
    trained: bool
    index: IndexSummary
    shards: dict[str, dict[str, int]]  # by stage: ran and skipped
    changes: dict[str, int]  # of a refresh: rows added, changed and removed
    left_out: dict[str, int]  # files of the source that are no rows, by kind
    seconds: float
    hosts: dict[str, HostCounts]  # of a list of addresses, by host
    warnings: tuple[str, ...] = ()
    vectors_for: str = (
        ""  # the database whose pictures these are, where this one holds another encoder's vectors of them
    )

    def text(self) -> str:
        """For people: what there is now, and what to do next."""
        lines = [
            f"{self.name}: {self.input:,} rows in = {self.ok:,} ok + {self.filtered:,} filtered + {self.failed:,} failed"
        ]
        lines += [f"  {reason}: {count:,}" for reason, count in self.reasons.items()]
        if self.left_out:
            counts = ", ".join(f"{count:,} x {kind}" for kind, count in self.left_out.items())
            lines.append(f"  no rows: {counts}")
        if self.duplicates:
            lines.append(f"  {self.duplicates:,} exact duplicates marked (search --no-duplicates leaves them out)")
        if self.index:
            recall = self.index["recall"]
            words = "; ".join(_recall_words(kind, recall["k"], recall[kind]) for kind in ("text", "image"))
            lines.append(f"index {self.index['key']} over {self.index['rows']:,} rows; {words}")
        lines += [_host_line(name, figures) for name, figures in list(self.hosts.items())[:_HOSTS_SHOWN]]
        if len(self.hosts) > _HOSTS_SHOWN:
            lines.append(f"  and {len(self.hosts) - _HOSTS_SHOWN:,} other hosts")
        aside = [figures["set_aside"] for figures in self.hosts.values() if figures["set_aside"]]
        lines += [f"  set aside: {why}" for why in aside[:_HOSTS_SHOWN]]
        if aside:
            lines.append(f"  {len(aside):,} host(s) set aside; `rdmpipe retry {self.name}` asks them again")
        ran = ", ".join(
            f"{stage} {count['ran']} ran, {count['skipped']} skipped" for stage, count in self.shards.items()
        )
        lines.append(f"shards: {ran}; {self.seconds:,.1f} s; encoder {self.encoder}")
        if self.changes:
            what = next((name for word, name in _CHANGES.items() if word in self.changes), "refresh")
            found = ", ".join(f"{count:,} {change}" for change, count in self.changes.items())
            lines.append(f"{what}: {found if any(self.changes.values()) else 'nothing new'}")
        lines += [f"note: {warning}" for warning in self.warnings]
        if self.version:
            options = f"--encoder {shlex.quote(self.encoder)}" if self.vectors_for else "-k 5 --sheet sheet.png"
            lines.append(
                f'version {self.version}; try: rdmpipe search {self.vectors_for or self.name} "a harbour at dawn" {options}'
            )
        return "\n".join(lines)


_HOSTS_SHOWN = 10  # in the summary for people


def _host_line(name: str, figures: HostCounts) -> str:
    slowed = f", asked to wait {figures['slowed']:,} times" if figures["slowed"] else ""
    size = figures["bytes"] / 1e6
    failed = f", {figures['failed']:,} failed" if figures["failed"] else ""
    return f"  {name}: {figures['requests']:,} requests, {figures['ok']:,} ok{failed}, {size:,.1f} MB{slowed}"


_CHANGES = {"retried": "retry", "refiltered": "filter"}  # what a change of rows comes from


def _recall_words(kind: str, k: int, measured: Mapping[str, object]) -> str:
    if "value" not in measured:
        return f"{kind} recall {measured['origin']}"
    return f"{kind} recall@{k} {measured['value']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"


def settle(request: BuildRequest) -> tuple[Manifest, BuildRequest]:
    """The manifest, and the request with all that was left open filled in: from the database's beginning, else defaults.

    Raises DatabaseError if a published database was built otherwise: its rows cannot be mixed with others.
    """
    before = begun(request.name or request.target, request.home)
    try:
        manifest = resolve_target(request.target, request.name, request.encoder, request.home)
        before = before or begun(manifest.name, request.home)
    except ManifestError:
        if before is None:
            raise
        manifest = from_mapping(Manifest, _dated(before["manifest"]), f"{request.target}/manifest.json")
    settings = (before or {}).get("settings", {})
    default = {
        "encoder": manifest.encoder,
        "precision": "fp32",
        "preprocess": "openclip",
        "where": manifest.where,
        "images": "",
    }
    chosen = {name: getattr(request, name) or settings.get(name) or value for name, value in default.items()}
    published = RetrievalDatabase(manifest.name, request.home).exists()
    if before is not None and not published:
        request = replace(request, source=_begun_part(request, settings))
    if published:
        if before is not None:
            _require_same_source(manifest, before["manifest"]["source"], request.refresh)
        if before is not None and request.where:
            request = replace(request, new_where=request.where)
            chosen["where"] = settings["where"]
        for name, value in chosen.items():
            if name in settings and value != settings[name]:
                advice = "build another database with --name"
                if name == "encoder":
                    command = command_that_adds(RetrievalDatabase(manifest.name, request.home), value)
                    advice = f"add the vectors of {value} beside its own: {command}"
                raise DatabaseError(
                    f"database {manifest.name!r} was built with {name} {settings[name] or 'nothing'}, not {value}: its rows do "
                    f"not mix with others. Leave --{name} out to go on with it, or {advice}"
                )
    manifest = replace(manifest, encoder=chosen["encoder"])
    return manifest, replace(request, **cast("Table", chosen))


def _begun_part(request: BuildRequest, settings: Table) -> SourceOptions:
    """The part of the source to build: as asked, else as the unfinished build before asked."""
    asked = request.source
    if request.whole or asked.limit or asked.shards:
        return asked
    shards = settings.get("shards")
    return replace(asked, limit=settings.get("limit") or 0, shards=tuple(shards) if shards else None)


def _require_same_source(manifest: Manifest, before: Table, refresh: bool) -> None:
    """A published database stays that of its source: two folders may be called alike. Raises DatabaseError.

    A folder may have moved: the old place is then empty. Another address of the same kind is taken with --refresh.
    """
    now = manifest.source
    moved = now.path != before["path"] and bool(before["path"]) and not Path(before["path"]).expanduser().exists()
    same_place = Path(now.path).expanduser().resolve() == Path(before["path"]).expanduser().resolve()
    same_address = (now.repo, now.url) == (before["repo"], before["url"]) or refresh
    if now.kind != before["kind"] or not (same_place or moved) or not same_address:
        raise DatabaseError(
            f"database {manifest.name!r} was built from {_place(before)}, not from {_place(vars(now))}: give this one "
            "another name with --name"
        )


def _place(source: Mapping[str, object]) -> str:
    where = next((source[name] for name in ("path", "repo", "url") if source[name]), "")
    return f"{source['kind']} {where}".strip()


def begun(name: str, home: str | None) -> Table | None:
    """What a database's first build wrote down, or None if there is no such database."""
    if not NAME.match(name):
        return None
    database = RetrievalDatabase(name, home)
    found = database.read_json("manifest.json")
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("manifest", "settings")):
        raise database.damaged("manifest.json", "expected the tables manifest and settings")
    return found


def manifest_of(database: RetrievalDatabase) -> Manifest:
    """The manifest that a database was built from. Raises DatabaseError if there is none."""
    before = begun(database.name, database.home)
    if before is None:
        raise DatabaseError(f"database {database.name!r} has no manifest.json; build it with `rdmpipe build-index`")
    return from_mapping(Manifest, _dated(before["manifest"]), f"{database.name}/manifest.json")


def _dated(table: Table) -> Table:
    checked = table.get("checked")
    return {**table, "checked": datetime.date.fromisoformat(checked) if checked else None}
