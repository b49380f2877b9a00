"""The content of `rdmpipe status` and `rdmpipe list`, from files of the home only, so that any machine with access to it
can show it.

Reads versions, manifests, progress.json, failures.json, jobs' summaries and leases. Writes nothing. A database that is damaged
is listed with its problem and does not hide the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from pipeline.catalog.manifests import known_manifests, load_manifest
from pipeline.catalog.names import base_of
from pipeline.catalog.vectors import companions, main_database
from pipeline.config import Table, checked, default_home
from pipeline.database import RetrievalDatabase, VersionCounts, former_names, list_databases
from pipeline.errors import ConfigError, DamagedError, DatabaseError, ManifestError, nearest
from pipeline.execution import Failure, ProgressState
from pipeline.schema import is_name
from pipeline.sources import View
from pipeline.storage import Holder, Storage, holder_of


@dataclass(frozen=True)
class MoreVectors:
    """Vectors of another encoder, and the database that holds them. `rows` is None until its first build is finished."""

    encoder: str
    database: str
    rows: int | None


@dataclass(frozen=True)
class DatabaseStatus:
    """One database: its published version, and the progress of a build."""

    name: str
    version: str  # empty: nothing is published
    counts: VersionCounts | None
    encoder: str
    recall: Mapping[str, object]
    running: Holder | None
    progress: ProgressState | None  # of the running build, or of the last one
    failures: tuple[Failure, ...]  # shards that the last build could not finish
    base: str = ""  # of a view, which has its base's status
    problem: str = ""  # a damaged file, and the command that repairs it
    more_vectors: tuple[MoreVectors, ...] = ()  # vectors of other encoders for the same pictures

    def record(self) -> dict[str, object]:
        """The fields for JSON. An absent table is {}."""
        return _record(self)

    def _state(self) -> str:
        if self.version:
            return f"version {self.version}"
        return self.problem or ("building" if self.running else "not published yet")

    def text(self) -> str:
        name = f"{self.name}, a view of {self.base}" if self.base else self.name
        lines = [f"{name}: " + self._state()]
        if self.counts:
            c = self.counts
            lines.append(
                f"  {c['input']:,} rows = {c['ok']:,} ok + {c['filtered']:,} filtered + {c['failed']:,} failed; "
                f"{c['duplicates']:,} duplicates; encoder {self.encoder}"
            )
            lines += [f"    {reason}: {count:,}" for reason, count in c["reasons"].items()]
        for one in self.more_vectors:
            rows = "not finished" if one.rows is None else f"{one.rows:,} rows"
            lines.append(f"  also vectors of {one.encoder}: {rows}, in {one.database}")
        progress = self.progress if self.running or not self.version else None
        return "\n".join([*lines, *_work(self.running, progress, self.failures)])


@dataclass(frozen=True)
class RunStatus:
    """A run other than a build: a generation or a job."""

    kind: str  # generation | job
    name: str
    running: Holder | None
    progress: ProgressState | None  # of a generation
    failures: tuple[Failure, ...]
    last: Mapping[str, object]  # a job's newest summary, as in jobs/<job>/runs/; empty: it never ran

    def record(self) -> dict[str, object]:
        """The fields for JSON. An absent table is {}."""
        return _record(self)

    def text(self) -> str:
        lines = [f"{self.kind} {self.name}:" + ("" if self.running else " not running")]
        if self.last:
            slot, status, code, ended = (self.last.get(key) for key in ("slot", "status", "exit_code", "ended"))
            lines.append(f"  last run: slot {slot} {status}, exit code {code}, ended {ended}")
        return "\n".join([*lines, *_work(self.running, self.progress, self.failures)])


@dataclass(frozen=True)
class Listed:
    """A line of `rdmpipe list`: a published database, or a view of one."""

    name: str
    base: str  # of a view; empty for a database
    rows: int | None  # None for a view, whose rows its filter decides, and for a damaged database
    encoder: str
    version: str
    vectors_for: str = ""  # the database with the same pictures, if this one holds another encoder's vectors of them

    @property
    def belongs_to(self) -> str:
        """What the line belongs to, for the printed table."""
        return f"view of {self.base}" if self.base else f"vectors for {self.vectors_for}" if self.vectors_for else ""


def _record(status: DatabaseStatus | RunStatus) -> dict[str, object]:
    fields = {name: {} if value is None else value for name, value in asdict(status).items()}
    return {name: value for name, value in fields.items() if name != "problem" or value}


def _work(running: Holder | None, progress: ProgressState | None, failures: Sequence[Failure]) -> list[str]:
    """Who is working, the progress and remaining time of each stage, and the failed shards."""
    lines = []
    if running:
        lines.append(f"  running: {running.purpose} on {running.host}, process {running.pid}")
    for stage, state in progress["stages"].items() if progress else ():
        left = f", {state['seconds_left']:,.0f} s left" if state["seconds_left"] and running else ""
        lines.append(
            f"  {stage}: {state['done']}/{state['shards']} shards, {state['failed']} failed, "
            f"{state['rows_per_second']:,.1f} rows/s{left}"
        )
    for failure in failures[:10]:
        last = (failure.error.strip().splitlines() or ["no message"])[-1]
        lines.append(f"  failed: {failure.stage} shard {failure.shard:06d} after {failure.attempts}: {last}")
    return lines


def database_status(name: str, home: str | None = None) -> DatabaseStatus:
    """The state of one database, published or not. Raises DatabaseError if there is no such directory."""
    database = RetrievalDatabase(name, home)
    storage = database.storage
    progress = _progress(storage)
    if not database.exists() and progress is None and not storage.exists("manifest.json"):
        names = Storage(database.home).list("databases")
        raise DatabaseError(
            f"no database {name!r} in {database.home}{nearest(name, names)}; it has {', '.join(names) or 'none'}"
        )
    published = database.version() if database.exists() else None
    return DatabaseStatus(
        name=name,
        version=published.id if published else "",
        counts=published.counts if published else None,
        encoder=published.encoder.name if published else _asked_encoder(database),
        recall=published.index.recall if published else {},
        running=holder_of(storage),
        progress=progress,
        failures=_failures(storage),
        more_vectors=_more_vectors(name, home),
    )


def _more_vectors(name: str, home: str | None) -> tuple[MoreVectors, ...]:
    """The vectors of other encoders; none if one of their databases is damaged, which its own status reports."""
    try:
        found = companions(name, home)
    except DamagedError:
        return ()
    return tuple(
        MoreVectors(one.encoder, one.database.name, one.version.index.rows if one.version else None) for one in found
    )


def _asked_encoder(database: RetrievalDatabase) -> str:
    """The encoder of a build that is not published, from its manifest.json."""
    begun = database.read_json("manifest.json")
    settings = begun.get("settings") if isinstance(begun, dict) else None
    return str(settings.get("encoder", "")) if isinstance(settings, dict) else ""


def _progress(storage: Storage) -> ProgressState | None:
    """The content of progress.json; None if it is missing or damaged: the running build rewrites it every few seconds."""
    try:
        return checked(ProgressState, json.loads(storage.read_text("progress.json") or ""), "progress.json")
    except (ValueError, RecursionError, ConfigError):
        return None


def _failures(storage: Storage) -> tuple[Failure, ...]:
    """The content of failures.json; empty if it is damaged: the next run rewrites it."""
    try:
        return checked(tuple[Failure, ...], json.loads(storage.read_text("failures.json") or "[]"), "failures.json")
    except (ValueError, RecursionError, ConfigError):
        return ()


def status_of(name: str, home: str | None = None) -> DatabaseStatus | RunStatus:
    """The state of the database, generation run, job or view's base that has this name. Raises DatabaseError."""
    root = Storage(home or default_home())
    if name not in root.list("databases"):
        for kind in ("generation", "job"):
            if name in root.list(f"{kind}s"):
                return _run_status(root, kind, name)
    base = base_of(name, home)
    return database_status(name, home) if base == name else replace(database_status(base, home), name=name, base=base)


def _run_status(root: Storage, kind: str, name: str) -> RunStatus:
    storage = root.child(f"{kind}s/{name}")
    summaries = [_summary(storage, run) for run in storage.list("runs", ".json")[-5:]]
    return RunStatus(
        kind=kind,
        name=name,
        running=holder_of(storage),
        progress=_progress(storage),
        failures=_failures(storage),
        last=max(summaries, key=lambda made: str(made.get("ended", "")), default={}),
    )


def _summary(storage: Storage, run: str) -> Table:
    try:
        found = json.loads(storage.read_text(f"runs/{run}") or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def home_status(home: str | None = None) -> list[DatabaseStatus | RunStatus]:
    """All databases and jobs, and the generations that are running."""
    root = Storage(home or default_home())
    made: list[DatabaseStatus | RunStatus] = []
    for name in filter(is_name, root.list("databases")):
        try:
            made.append(database_status(name, home))
        except DamagedError as error:
            made.append(DatabaseStatus(name, "", None, "", {}, None, None, (), problem=str(error)))
    generations = [_run_status(root, "generation", name) for name in root.list("generations")]
    made += [generation for generation in generations if generation.running]
    return [*made, *(_run_status(root, "job", name) for name in root.list("jobs"))]


def listing(home: str | None = None) -> list[Listed]:
    """Published databases, and below each of them the views that manifests define on it."""
    names, rows = list_databases(home), []
    views = _views_by_base(names, home)
    for name in names:
        try:
            version = RetrievalDatabase(name, home).version()
        except DamagedError:
            rows.append(Listed(name, "", None, "", f"damaged: run `rdmpipe check {name}`"))
            continue
        encoder = version.encoder.name
        main = main_database(name, encoder, home)
        rows.append(Listed(name, "", version.index.rows, encoder, version.id, main))
        rows += [Listed(view.name, name, None, encoder, version.id) for view in views.get(name, ())]
    return rows


def _views_by_base(names: Sequence[str], home: str | None) -> dict[str, list[View]]:
    """The views of each database, also those that name it by a former name."""
    views = _views(home)
    now = {name: name for name in names}
    if any(view.base not in now for view in views):
        for name in names:
            for former in former_names(RetrievalDatabase(name, home)):
                now.setdefault(former, name)
    found: dict[str, list[View]] = {}
    for view in views:
        if view.base in now:
            found.setdefault(now[view.base], []).append(view)
    return found


def _views(home: str | None) -> list[View]:
    """The views that manifests define. `rdmpipe manifests --check FILE` reports a manifest that cannot be read."""
    found = []
    for path in known_manifests(home).values():
        try:
            made = load_manifest(str(path), home)
        except (ManifestError, ConfigError):
            continue
        if isinstance(made, View):
            found.append(made)
    return found
