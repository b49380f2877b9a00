"""The request of a build, its reconciliation with a database that exists, and the summary of its end.

Reads: manifests, and manifest.json of a database that was begun. Writes nothing.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from pipeline import machine
from pipeline.catalog import command_that_adds, resolve_target
from pipeline.config import Table, from_mapping
from pipeline.database import RetrievalDatabase, renamed_to
from pipeline.errors import DatabaseError, ManifestError
from pipeline.execution import Backend
from pipeline.index import IndexConfig
from pipeline.sources import NAME, Manifest, SourceOptions

STAGES = ("download", "embed", "index")


@dataclass(frozen=True)
class BuildRequest:
    """The arguments of `build-index`; empty values mean the manifest's value or the default."""

    target: str
    name: str = ""
    home: str | None = None
    encoder: str = ""
    precision: str = ""  # fp32 | fp16 | bf16; empty or auto: as recorded in the database, else the faster one
    preprocess: str = ""  # openclip | compvis
    images: str = ""  # keep | thumbnail | drop
    where: str = ""
    source: SourceOptions = field(default_factory=SourceOptions)
    whole: bool = False  # the whole source, even if only a part was built before (`--limit 0`)
    new_where: str = ""  # set by `settle`: the new filter of a published database
    index: IndexConfig = field(default_factory=IndexConfig)
    backend: Backend = field(default_factory=Backend)
    batch: int = 0  # pictures a forward pass
    device: str = "auto"
    threads: int = (
        0  # torch threads of a worker on a CPU; 0: its share of the cores. The same number gives the same bytes
    )
    wait_s: float = 0.0
    stages: tuple[str, ...] = STAGES
    refresh: bool = False  # read the source again and process what is new
    retry: bool = False  # only fetch the failed URLs of the published version again


class IndexSummary(TypedDict, total=False):
    """The index of a published version, with its recorded recall; without keys if no index was built."""

    id: str
    kind: str
    key: str
    rows: int
    recall: Mapping[str, Any]


class HostCounts(TypedDict):
    """Counts of requests to one host and of their results. `set_aside`: the reason why it was set aside, or empty."""

    requests: int
    ok: int
    failed: int
    bytes: int
    slowed: int  # answers that asked for a pause
    set_aside: str


@dataclass(frozen=True)
class BuildSummary:
    """The result of a build: input = ok + filtered + failed; `reasons` counts filtered and failed rows by reason."""

    name: str
    version: str  # empty if the build stops before the index
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
    left_out: dict[str, int]  # files of the source that are not rows, by kind
    seconds: float
    hosts: dict[str, HostCounts]  # of a list of addresses, by host
    warnings: tuple[str, ...] = ()
    vectors_for: str = ""  # the database with the same pictures, if this one holds another encoder's vectors of them

    def text(self) -> str:
        """The summary to print: the present state, and what to do next."""
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
            lines += [_values_line(measured) for measured in recall.get("values", ())]
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


_HOSTS_SHOWN = 10  # in the printed summary


def _host_line(name: str, figures: HostCounts) -> str:
    slowed = f", asked to wait {figures['slowed']:,} times" if figures["slowed"] else ""
    size = figures["bytes"] / 1e6
    failed = f", {figures['failed']:,} failed" if figures["failed"] else ""
    return f"  {name}: {figures['requests']:,} requests, {figures['ok']:,} ok{failed}, {size:,.1f} MB{slowed}"


_CHANGES = {"retried": "retry", "refiltered": "filter"}  # kind of change -> its cause


def _values_line(measured: Mapping[str, Any]) -> str:
    """The recall among the rows of each value of a column that has lists for its values."""
    worst = min(measured["values"], key=measured["values"].get)
    return (
        f"  lists for {len(measured['values'])} values of {measured['column']}: recall@{measured['k']} "
        f"{measured['mean']:.3f} on average, {measured['least']:.3f} for {worst}"
    )


def _recall_words(kind: str, k: int, measured: Mapping[str, object]) -> str:
    if "value" not in measured:
        return f"{kind} recall {measured['origin']}"
    return f"{kind} recall@{k} {measured['value']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"


def settle(request: BuildRequest) -> tuple[Manifest, BuildRequest]:
    """The manifest, and the request with all empty values set: from the database's first build, else to the defaults.

    Raises DatabaseError if a published database was built with other settings, because its rows cannot be mixed with others.
    """
    before = begun(request.name or request.target, request.home)
    try:
        manifest = resolve_target(request.target, request.name, request.encoder, request.home)
        before = before or begun(manifest.name, request.home)
    except ManifestError:
        if before is None:
            raise
        manifest = from_mapping(Manifest, _dated(before["manifest"]), f"{request.target}/manifest.json")
        manifest = replace(manifest, name=request.name or request.target)
    if before is None and (now := renamed_to(manifest.name, request.home)):
        raise DatabaseError(
            f"database {manifest.name!r} was renamed to {now!r}: give that name with `--name {now}`. To build another database "
            f"under the old name, remove the name from databases/{now}/former_names"
        )
    settings = (before or {}).get("settings", {})
    if request.precision == "auto":
        request = replace(request, precision="")
    if not request.precision and not settings.get("precision"):
        # Records of older databases have no precision: it was fp32.
        auto = "fp32" if before is not None else machine.encoder_precision(machine.device(request.device))
        request = replace(request, precision=auto)
    default = {
        "encoder": manifest.encoder,
        "precision": "",
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
                    f"not mix with others. Leave --{name} out to continue with it, or {advice}"
                )
    manifest = replace(manifest, encoder=chosen["encoder"])
    return manifest, replace(request, **cast("Table", chosen))


def _begun_part(request: BuildRequest, settings: Table) -> SourceOptions:
    """The part of the source to build: the requested one, else that of the unfinished build."""
    asked = request.source
    if request.whole or asked.limit or asked.shards:
        return asked
    shards = settings.get("shards")
    return replace(asked, limit=settings.get("limit") or 0, shards=tuple(shards) if shards else None)


def _require_same_source(manifest: Manifest, before: Table, refresh: bool) -> None:
    """Raise DatabaseError if a published database was built from another source, such as another folder of the same name.

    A folder may have moved, if nothing is left at its old path. Another address of the same kind is accepted with --refresh.
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
    """The record of a database's first build, or None if there is no such database."""
    if not NAME.match(name):
        return None
    database = RetrievalDatabase(name, home)
    found = database.read_json("manifest.json")
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("manifest", "settings")):
        raise database.damaged("manifest.json", "expected the tables manifest and settings")
    return found


def as_first_built(manifest: Manifest, database: RetrievalDatabase) -> Manifest:
    """The manifest under the database's first name, which is in its fingerprints and rows: `rdmpipe rename`
    and `pull` give a database another name."""
    before = begun(database.name, database.home)
    return manifest if before is None else replace(manifest, name=str(before["manifest"]["name"]))


def manifest_of(database: RetrievalDatabase) -> Manifest:
    """The manifest that a database was built from. Raises DatabaseError if there is none."""
    before = begun(database.name, database.home)
    if before is None:
        raise DatabaseError(f"database {database.name!r} has no manifest.json; build it with `rdmpipe build-index`")
    return from_mapping(Manifest, _dated(before["manifest"]), f"{database.name}/manifest.json")


def _dated(table: Table) -> Table:
    checked = table.get("checked")
    return {**table, "checked": datetime.date.fromisoformat(checked) if checked else None}
