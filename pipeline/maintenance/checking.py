"""`rdmpipe check`: compare every file of a database with its checksum and counts.

Reads every file of every version, and writes nothing. A file is compared with a checksum: of its version, of its receipt, or of
the database's lists (database/checksums.py). A file without a checksum is compared with the files from which it can be
derived: a receipt with its rows, its files and the plan; a plan with its id, which is a hash; an index's entry, the
manifest and the encoder with the version. In a database that an older rdmpipe wrote, the specs of a plan's shards, a
plan's options and a manifest's texts cannot be derived and are not compared. progress.json, failures.json, nonce and the
lease are never compared, because they describe a run and not the data. maintenance/repairing.py makes repairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath

from pipeline.building import EMBED_STAGE, begun, plan_id, plan_shards, read_plan
from pipeline.config import canonical_json
from pipeline.database import (
    IndexEntry,
    RetrievalDatabase,
    Version,
    gone_keys,
    list_path,
    read_block_list,
    read_list,
    receipt_sums,
    receipts_list,
    rows_file,
)
from pipeline.errors import DatabaseError, RdmpipeError
from pipeline.execution import Receipt, Shard, count_statuses
from pipeline.schema import FAILED, FILTERED, OK
from pipeline.storage import Artifact


@dataclass(frozen=True)
class Damage:
    """A damaged file."""

    file: str  # relative to the database's folder
    problem: str
    fix: str  # how --repair fixes it, or a command


@dataclass(frozen=True)
class CheckReport:
    """The result of a check. `repaired` lists the actions of a repair; `damages` are then those that remain."""

    name: str
    version: str  # the current one; empty if there is none
    files: int  # compared with their checksums
    bytes: int
    rows: int
    damages: tuple[Damage, ...]
    repaired: tuple[str, ...] = ()

    def text(self) -> str:
        lines = [f"repaired: {what}" for what in self.repaired]
        lines += [f"damaged: {each.file}: {each.problem}\n  {each.fix}" for each in self.damages]
        whole = (
            f"{self.files:,} files, {self.bytes:,} bytes and {self.rows:,} rows are what version {self.version} says"
        )
        lines.append(f"{self.name}: " + (whole if not self.damages else f"{len(self.damages)} damaged file(s)"))
        return "\n".join(lines)


REBUILT = "--repair rebuilds it"
ASIDE = "--repair moves it to damaged/, and points `current` at the newest version that can be read"
BY_HAND = "no other file holds its content: restore it from a copy"
POINT = "--repair points it at the newest version that can be read"
PLANNED = (
    "search works without it. --repair lists the source again, which makes the same plan if the source is the same"
)
ODD = "the files have their checksums, so a build wrote this: please report it"


def check_database(db: RetrievalDatabase, say: Callable[[str], None] = lambda text: None) -> CheckReport:
    """Compare all files of a database with their checksums and counts. Raises DatabaseError if there is no such database."""
    if not db.storage.list():
        raise DatabaseError(f"no database {db.name!r} in {db.home}; `rdmpipe list` shows those that exist")
    return _Check(db, say).run()


@dataclass
class _Known:
    """The values with which the receipts of a version are compared."""

    sums: Mapping[str, str]  # by path; empty if there is no list
    shards: Mapping[int, Shard]  # of the plan; empty if it is damaged
    stages: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # by folder: (receipt, its stage and config)


class _Check:
    """The state of one check: the files that were read, and the damages that were found."""

    def __init__(self, db: RetrievalDatabase, say: Callable[[str], None]) -> None:
        self.db, self.say = db, say
        self.found: dict[str, Damage] = {}
        self.done: set[str] = set()
        self.files = self.bytes = self.rows = 0

    def run(self) -> CheckReport:
        self._pointers()
        current: Version | None = None
        with contextlib.suppress(DatabaseError):
            current = self.db.version() if self.db.exists() else None
        for version in self._versions():
            self.say(f"checking version {version.id}")
            self._version(version, current is not None and version.id == current.id)
        if current is not None:
            self._settings(current)
        name = current.id if current else ""
        return CheckReport(self.db.name, name, self.files, self.bytes, self.rows, tuple(self.found.values()))

    def _damaged(self, file: str, problem: str, fix: str = REBUILT) -> None:
        self.found.setdefault(file, Damage(file, problem, fix))

    # ---- small files

    def _pointers(self) -> None:
        """The small files of the database that belong to no version."""
        storage = self.db.storage
        text = storage.read_text("lease")
        if text and text.strip() and not _is_json(text, dict):
            self._damaged("lease", "it is not a lease", "--repair removes it")
        for name, kind in (
            ("progress.json", dict),
            ("failures.json", list),
            ("encoder.json", dict),
            ("pulled.json", dict),
        ):
            text = storage.read_text(name)
            if text is not None and not _is_json(text, kind):
                self._damaged(name, "it is not JSON of its kind")
        try:
            begun(self.db.name, self.db.home)
        except DatabaseError as error:
            self._damaged("manifest.json", _short(error))
        try:
            read_block_list(storage)
        except DatabaseError as error:
            self._damaged("blocked.txt", str(error), BY_HAND)
        for name in ("manifest.json", "blocked.txt"):
            self._list(name)
        try:
            current = self.db.current_id()
        except DatabaseError as error:
            self._damaged("current", _short(error), POINT)
            return
        known = self.db.versions()
        if current is None and known:
            self._damaged("current", "it is missing", POINT)
        elif current is not None and current not in known:
            self._damaged("current", f"it names version {current}, which is missing", POINT)

    def _list(self, name: str) -> None:
        """Check a list of checksums with its own checksum."""
        try:
            read_list(self.db.storage, name)
        except ValueError as error:
            self._damaged(list_path(name), str(error), "--repair rewrites it")

    def _settings(self, current: Version) -> None:
        """Compare the encoder and the manifest with those of the current version."""
        storage, record = self.db.storage, current.encoder
        text = storage.read_text("encoder.json")
        if text is not None and text != canonical_json(record) + "\n":
            self._damaged("encoder.json", f"it is not the encoder of version {current.id}")
        if "manifest.json" in self.found:
            return
        written = begun(self.db.name, self.db.home)
        if written is None:
            self._damaged("manifest.json", "it is missing")
            return
        settings = {"encoder": str(current.manifest["encoder"]), "precision": record.precision,
                    "preprocess": record.preprocess, "images": current.images}  # fmt: skip
        wrong = [name for name, value in settings.items() if written["settings"].get(name, value) != value]
        if wrong or written["manifest"].get("name") != current.manifest.get("name"):
            self._damaged("manifest.json", f"it is not that of version {current.id}: {', '.join(wrong) or 'name'}")

    def _versions(self) -> Iterator[Version]:
        for name in self.db.versions():
            try:
                version = self.db.version(name)
            except DatabaseError as error:
                self._damaged(f"versions/{name}.json", _short(error), ASIDE)
                continue
            self._list(f"versions/{name}.json")
            yield version
        for file in self.db.storage.list(list_path("versions"), ".json"):
            if not self.db.storage.exists(f"versions/{file}"):
                self._damaged(f"versions/{file}", "the file is missing", BY_HAND)

    # ---- a version's files

    def _version(self, version: Version, current: bool) -> None:
        old = f"restore it from a copy, or remove old versions with `rdmpipe gc {self.db.name} --keep 1`"
        for role, artifact in version.index.files.items():
            self._artifact(artifact, REBUILT if current else old, role)
        self._index(version)
        if version.gone is not None:
            self._artifact(version.gone, BY_HAND, "gone")
        known = _Known(self._receipt_sums(version, current), self._plan(version))
        gone = self._gone(version)
        counts: Counter[str] = Counter()
        for entry in version.shards:
            if self._artifact(entry.artifact, REBUILT if current else old, "rows"):
                self._shard(version, entry.artifact, entry.ok, gone, counts)
            self._embedded(version, entry.id, entry.artifact, known)
            self._pictures(version, entry.id, known)
        self._configs(known)
        expected = {OK: version.counts["ok"], FILTERED: version.counts["filtered"], FAILED: version.counts["failed"]}
        if not any(file.path in self.found for file in version.files()):
            for status, count in expected.items():
                if counts[status] != count:
                    problem = f"it counts {count:,} rows that are {status}; the shards hold {counts[status]:,}"
                    self._damaged(f"versions/{version.id}.json", problem, ODD)

    def _artifact(self, artifact: Artifact, fix: str, what: str) -> bool:
        """Compare a file with its size and checksum. Returns whether it is whole."""
        if artifact.path in self.done:
            return artifact.path not in self.found
        self.done.add(artifact.path)
        try:
            size = self.db.storage.size(artifact.path)
            if size is None:
                self._damaged(artifact.path, f"the file is missing ({what})", fix)
            elif size != artifact.bytes:
                self._damaged(artifact.path, f"expected {artifact.bytes:,} bytes, found {size:,} ({what})", fix)
            elif self.db.storage.sha256(artifact.path) != artifact.sha256:
                self._damaged(artifact.path, f"its checksum is not {artifact.sha256[:12]}... ({what})", fix)
        except (OSError, RdmpipeError) as error:
            self._damaged(artifact.path, f"it cannot be read: {error}", fix)
        self.files += 1
        self.bytes += artifact.bytes
        return artifact.path not in self.found

    def _index(self, version: Version) -> None:
        """Compare the index's entry with the version. Measurements of the build may differ, because they may be of
        another run."""
        file = f"{self.db.index_folder(version.encoder, version.index.id)}/entry.json"
        self._list(file)
        try:
            table = self.db.read_json(file)
        except DatabaseError as error:
            self._damaged(file, _short(error))
            return
        if table is None:
            self._damaged(file, "the file is missing")
        elif not isinstance(table, dict) or _lasting(table) != _lasting(asdict(version.index)):
            self._damaged(file, f"it is not the index of version {version.id}")

    def _plan(self, version: Version) -> Mapping[int, Shard]:
        """The plan's shards by id, after comparing both of its files with its id; none if one is damaged."""
        header, table = f"plan/{version.plan}.json", f"plan/{version.plan}.parquet"
        for file in (header, table):
            self._list(file)
        shards: dict[int, Shard] = {}
        try:
            for shard in plan_shards(self.db, version.plan):
                shards[shard.id] = shard
            if plan_id(version.columns, shards.values()) != version.plan:
                self._damaged(table, "its shards do not hash to its id", PLANNED)
        except DatabaseError as error:
            self._damaged(table, _short(error), PLANNED)
        try:
            plan = read_plan(self.db, version.plan)
        except DatabaseError as error:
            self._damaged(header, _short(error), PLANNED)
            return {}
        if table in self.found:
            return {}
        rows = sum(shard.rows for shard in shards.values())
        found = (plan.id, plan.shards, plan.rows, dict(plan.columns))
        if found != (version.plan, len(shards), rows, dict(version.columns)):
            self._damaged(header, f"it is not the header of {len(shards):,} shards of {rows:,} rows", PLANNED)
        return shards

    def _gone(self, version: Version) -> frozenset[int]:
        try:
            return frozenset(gone_keys(self.db, version.gone))
        except DatabaseError:
            return frozenset()

    def _shard(self, version: Version, artifact: Artifact, ok: int, gone: frozenset[int], counts: Counter[str]) -> None:
        """Compare the rows of a shard with the version's counts."""
        try:
            table = self.db.read_table(artifact.path, ["key", "status"])
        except DatabaseError as error:
            self._damaged(artifact.path, _short(error))
            return
        statuses = table["status"].to_pylist()
        self.rows += len(statuses)
        if statuses.count(OK) != ok:
            problem = f"{artifact.path} holds {statuses.count(OK):,} ok rows, not {ok:,}"
            self._damaged(f"versions/{version.id}.json", problem, ODD)
        counts.update(status for key, status in zip(table["key"].to_pylist(), statuses, strict=True) if key not in gone)

    # ---- receipts

    def _receipt_sums(self, version: Version, current: bool) -> Mapping[str, str]:
        """The list of a version's receipts. The receipts of an older version may have been rewritten since."""
        name = receipts_list(version.id)
        try:
            sums = receipt_sums(self.db.storage, version.id)
            return sums if current else {}
        except ValueError as error:
            self._damaged(list_path(name), str(error), "--repair rewrites it")
            return {}

    def _receipt(self, path: str, known: _Known) -> Receipt | None:
        """A receipt whose checksum is the listed one; None if it is damaged."""
        try:
            receipt = self.db.read_receipt(path)
        except DatabaseError as error:
            self._damaged(path, _short(error))
            return None
        text = receipt.to_json()
        if text != self.db.storage.read_text(path):
            self._damaged(path, "it is not as a build writes it")
        elif path in known.sums and hashlib.sha256(text.encode()).hexdigest() != known.sums[path]:
            self._damaged(path, f"its checksum is not {known.sums[path][:12]}..., which the version was published with")
        return receipt if path not in self.found else None

    def _derived(self, path: str, receipt: Receipt, shard: int, table: str, known: _Known) -> None:
        """Compare a receipt's counts with its rows, and its input with the plan."""
        try:
            rows = self.db.read_table(table, ["status", "error"])
        except DatabaseError as error:
            self._damaged(table, _short(error))
            return
        counted = count_statuses(rows["status"].to_pylist(), rows["error"].to_pylist())
        counts = {"ok": receipt.ok, "filtered": receipt.filtered, "failed": receipt.failed, "reasons": receipt.reasons}
        if receipt.shard != shard or counts != counted:
            self._damaged(path, f"it counts {counts}, and the rows are {counted}")
        planned = known.shards.get(shard)
        if planned is not None and planned.fingerprint != receipt.input:
            self._damaged(path, "its input is not that of the plan's shard")
        known.stages.setdefault(str(PurePosixPath(path).parent), []).append((path, f"{receipt.stage} {receipt.config}"))

    def _embedded(self, version: Version, shard: int, rows: Artifact, known: _Known) -> None:
        """Check the receipt of a shard's vectors, and the thumbnails that it names."""
        path = self.db.embedding_receipt(version.encoder, shard)
        receipt = self._receipt(path, known)
        if receipt is None:
            return
        if rows not in receipt.artifacts or receipt.stage != EMBED_STAGE:
            self._damaged(path, f"it does not name {rows.path} as the version does")
            return
        for artifact in receipt.artifacts:
            if artifact == rows:
                continue
            if artifact.path != self.db.thumbnail_tar(shard):
                self._damaged(path, f"it names {artifact.path}, which is no file of its shard")
                continue
            self._artifact(artifact, REBUILT, "thumbnails")
        if rows.path not in self.found:
            self._derived(path, receipt, shard, rows.path, known)

    def _pictures(self, version: Version, shard: int, known: _Known) -> None:
        """Check the receipt of a shard's pictures, their table, and their tar if the version keeps it."""
        path = str(PurePosixPath(self.db.image_table(shard)).with_suffix(".json"))
        if not self.db.storage.exists(path):
            if path in known.sums and version.images == "keep":
                self._damaged(path, "the file is missing")
            return
        receipt = self._receipt(path, known)
        if receipt is None:
            return
        files = {self.db.image_tar(shard), self.db.image_table(shard)}
        if {artifact.path for artifact in receipt.artifacts} != files:
            self._damaged(path, "it names other files than its shard's")
            return
        for artifact in receipt.artifacts:
            if version.images == "keep" or artifact.path.endswith(".parquet"):
                self._artifact(artifact, REBUILT, "pictures")
        if rows_file(receipt).path not in self.found:
            self._derived(path, receipt, shard, rows_file(receipt).path, known)

    def _configs(self, known: _Known) -> None:
        """Check that all shards of a version were processed with one config in each stage. A receipt with another is
        damaged."""
        for receipts in known.stages.values():
            usual, _ = Counter(stage for _, stage in receipts).most_common(1)[0]
            for path, stage in receipts:
                if stage != usual:
                    self._damaged(
                        path, f"its stage and config are {stage[:40]!r}, and those of other shards {usual[:40]!r}"
                    )


def _lasting(entry: Mapping[str, object]) -> object:
    """An index's entry without the measurements of its build, as plain JSON."""
    known = {name: entry.get(name) for name in IndexEntry.__dataclass_fields__}
    build = known["build"]
    stays = {name: build.get(name) for name in ("config", "duplicates")} if isinstance(build, Mapping) else None
    return json.loads(canonical_json({**known, "build": stays}))


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def _short(error: Exception) -> str:
    """The problem in a DamagedError, without its path and its advice."""
    return str(error).split(" is damaged: ", 1)[-1].split(". `rdmpipe check", 1)[0]
