"""`rdmpipe check`: whether every file of a database holds what it should, and `--repair`: making again what can be made again.

Reads every file of every version and compares it with its checksum, its receipt and the version's counts. Without repair it
writes nothing. A repair runs under the lease. It points `current` at a version that can be read, sets unreadable version files
aside in `damaged/`, removes damaged files with their receipts, and lets a build make them again, from the kept pictures or from
the source. If the source has changed since, the shard is another one and a new version is published. A repair cannot restore
the block list or tombstones: nothing else holds what they say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.config import canonical_json
from pipeline.database import RetrievalDatabase, Version, gone_keys, read_block_list
from pipeline.errors import DatabaseError, RdmpipeError
from pipeline.execution import Progress
from pipeline.schema import FAILED, FILTERED, OK
from pipeline.storage import Artifact, lease

if TYPE_CHECKING:
    pass

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Damage:
    """A file that does not hold what it should."""

    file: str  # relative to the database's folder
    problem: str
    fix: str  # how --repair fixes it, or a command


@dataclass(frozen=True)
class CheckReport:
    """What a check found. `repaired` lists what a repair did; `damages` are then those that are left."""

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


REBUILT = "--repair makes it again"
ASIDE = "--repair moves it to damaged/, and points `current` at the newest version that can be read"
BY_HAND = "nothing else holds what it said: restore it from a copy"
POINT = "--repair points it at the newest version that can be read"
ODD = "the files have their checksums, so a build wrote this: please report it"


def check_database(db: RetrievalDatabase, say: Callable[[str], None] = lambda text: None) -> CheckReport:
    """Compare all files of a database with what they should hold. Raises DatabaseError if there is no such database."""
    if not db.storage.list():
        raise DatabaseError(f"no database {db.name!r} in {db.home}; `rdmpipe list` shows those that exist")
    return _Check(db, say).run()


class _Check:
    """One check: what was read, and what was found."""

    def __init__(self, db: RetrievalDatabase, say: Callable[[str], None]) -> None:
        self.db, self.say = db, say
        self.found: dict[str, Damage] = {}
        self.done: set[str] = set()
        self.files = self.bytes = self.rows = 0

    def run(self) -> CheckReport:
        self._pointers()
        current = ""
        with contextlib.suppress(DatabaseError):
            current = self.db.current_id() or ""
        for version in self._versions():
            self.say(f"checking version {version.id}")
            self._version(version, version.id == current)
        return CheckReport(self.db.name, current, self.files, self.bytes, self.rows, tuple(self.found.values()))

    def _damaged(self, file: str, problem: str, fix: str = REBUILT) -> None:
        self.found.setdefault(file, Damage(file, problem, fix))

    # ---- small files

    def _pointers(self) -> None:
        """The files that say what the database is, apart from its versions."""
        storage = self.db.storage
        text = storage.read_text("lease")
        if text and text.strip() and not _is_table(text):
            self._damaged("lease", "it is not a lease", "--repair removes it")
        for name, kind in (
            ("progress.json", dict),
            ("failures.json", list),
            ("encoder.json", dict),
            ("manifest.json", dict),
        ):
            text = storage.read_text(name)
            if text is not None and not _is_json(text, kind):
                self._damaged(name, "it is not JSON of its kind")
        try:
            read_block_list(storage)
        except DatabaseError as error:
            self._damaged("blocked.txt", str(error), BY_HAND)
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

    def _versions(self) -> Iterator[Version]:
        for name in self.db.versions():
            try:
                yield self.db.version(name)
            except DatabaseError as error:
                self._damaged(f"versions/{name}.json", _short(error), ASIDE)

    # ---- a version's files

    def _version(self, version: Version, current: bool) -> None:
        old = f"restore it from a copy, or remove old versions with `rdmpipe gc {self.db.name} --keep 1`"
        for role, artifact in version.index.files.items():
            self._artifact(artifact, REBUILT if current else old, role)
        self._index(version)
        if version.gone is not None:
            self._artifact(version.gone, BY_HAND, "gone")
        self._plan(version)
        counts = {OK: 0, FILTERED: 0, FAILED: 0}
        gone = self._gone(version)
        for entry in version.shards:
            whole = self._artifact(entry.artifact, REBUILT, "rows")
            self._receipt(self.db.embedding_receipt(version.encoder, entry.id), entry.artifact)
            if whole:
                self._shard(version, entry.artifact, entry.ok, gone, counts)
            self._pictures(version, entry.id)
        unreadable = [file.path for file in version.files() if file.path in self.found]
        if current and not unreadable:
            for status, count in counts.items():
                expected = {
                    OK: version.counts["ok"],
                    FILTERED: version.counts["filtered"],
                    FAILED: version.counts["failed"],
                }
                if count != expected[status]:
                    problem = f"it counts {expected[status]:,} rows that are {status}; the shards hold {count:,}"
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
            elif self._sha256(artifact.path) != artifact.sha256:
                self._damaged(artifact.path, f"its checksum is not {artifact.sha256[:12]}... ({what})", fix)
        except (OSError, RdmpipeError) as error:
            self._damaged(artifact.path, f"it cannot be read: {error}", fix)
        self.files += 1
        self.bytes += artifact.bytes
        return artifact.path not in self.found

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self.db.storage.open(path) as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _index(self, version: Version) -> None:
        """The index's entry, and that its parts fit each other."""
        folder = self.db.index_folder(version.encoder, version.index.id)
        text = self.db.storage.read_text(f"{folder}/entry.json")
        if text is not None and not _is_json(text, dict):
            self._damaged(f"{folder}/entry.json", "it is not JSON")

    def _plan(self, version: Version) -> None:
        from pipeline.building import plan_shards, read_plan

        file = f"plan/{version.plan}.json"
        try:
            plan = read_plan(self.db, version.plan)
            file = f"plan/{version.plan}.parquet"
            shards = sum(1 for _ in plan_shards(self.db, version.plan))
        except DatabaseError as error:
            self._damaged(file, _short(error), f"search works without it; a refresh needs it: {BY_HAND}")
            return
        if shards != plan.shards:
            self._damaged(file, f"expected {plan.shards:,} shards, found {shards:,}", BY_HAND)

    def _gone(self, version: Version) -> frozenset[int]:
        try:
            return frozenset(gone_keys(self.db, version.gone))
        except DatabaseError:
            return frozenset()

    def _receipt(self, path: str, rows: Artifact) -> None:
        try:
            receipt = self.db.read_receipt(path)
        except DatabaseError as error:
            self._damaged(path, _short(error))
            return
        if rows not in receipt.artifacts:
            self._damaged(path, f"it does not name {rows.path} as the version does")

    def _shard(
        self, version: Version, artifact: Artifact, ok: int, gone: frozenset[int], counts: dict[str, int]
    ) -> None:
        """The rows of a shard against the version's counts."""
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
        for key, status in zip(table["key"].to_pylist(), statuses, strict=True):
            if key not in gone and status in counts:
                counts[status] += 1

    def _pictures(self, version: Version, shard: int) -> None:
        """The tars and tables of the pictures, as far as the version keeps them."""
        receipt_path = str(PurePosixPath(self.db.image_table(shard)).with_suffix(".json"))
        if self.db.storage.exists(receipt_path):
            try:
                receipt = self.db.read_receipt(receipt_path)
                known = {self.db.image_tar(shard), self.db.image_table(shard)}
                if receipt.shard != shard or not {artifact.path for artifact in receipt.artifacts} <= known:
                    self._damaged(receipt_path, "it names other files than its shard's")
                    return
                for artifact in receipt.artifacts:
                    if version.images == "keep" or artifact.path.endswith(".parquet"):
                        self._artifact(artifact, REBUILT, "pictures")
            except DatabaseError as error:
                self._damaged(receipt_path, _short(error))
        with contextlib.suppress(DatabaseError):
            embedded = self.db.read_receipt(self.db.embedding_receipt(version.encoder, shard))
            for artifact in embedded.artifacts:
                if artifact.path.startswith("thumbnails/"):
                    self._artifact(artifact, REBUILT, "thumbnails")


# ---- repairing


def repair_database(db: RetrievalDatabase, progress: Progress, device: str = "auto") -> CheckReport:
    """Check a database, and make again what can be made again. Returns a second check's report with what was done.

    Raises BusyError while another process writes the database, and what a build raises, as where the source cannot be reached.
    """
    found = check_database(db, progress.say)
    done: list[str] = []
    if found.damages:
        with lease(db.storage, f"check {db.name} --repair", notify=progress.say):
            again = _Repair(db, found, done).run()
        if again:
            _build_again(db, progress, device)
            done.append("the shards that were damaged, and the index over them")
    return replace(check_database(db, progress.say), repaired=tuple(done))


class _Repair:
    """The part of a repair that needs no build."""

    def __init__(self, db: RetrievalDatabase, found: CheckReport, done: list[str]) -> None:
        self.db, self.damages, self.done = db, {each.file for each in found.damages}, done

    def run(self) -> bool:
        """Do what needs no build. Returns whether a build has to make something again."""
        if "lease" in self.damages:
            self.done.append("replaced the lease")  # by taking it
        for name in ("progress.json", "failures.json", "encoder.json"):
            if name in self.damages:
                self.db.storage.remove(name)
                self.done.append(f"removed {name}")
        self._versions()
        version = self._current()
        if version is None:
            return False
        if "manifest.json" in self.damages:
            self._manifest(version)
        return self._shards(version) | self._index(version)

    def _versions(self) -> None:
        """Set version files aside that cannot be read."""
        for path in sorted(path for path in self.damages if path.startswith("versions/")):
            self.db.storage.write_bytes(f"damaged/{PurePosixPath(path).name}", self.db.storage.read_bytes(path))
            self.db.storage.remove(path)
            self.done.append(f"moved {path} to damaged/")

    def _current(self) -> Version | None:
        """The version that `current` names, after pointing it at one that can be read."""
        with contextlib.suppress(DatabaseError):
            return self.db.version() if self.db.exists() else self._point()
        return self._point()

    def _point(self) -> Version | None:
        storage = self.db.storage
        ages = {name: storage.age_s(f"versions/{name}.json") or 0.0 for name in self.db.versions()}
        storage.remove("current")
        if not ages:
            self.done.append(f"removed current; run `rdmpipe build-index {self.db.name}` to publish again")
            return None
        newest = min(ages, key=lambda name: ages[name])
        storage.write_text("current", newest)
        self.done.append(f"pointed current at version {newest}")
        return self.db.version()

    def _manifest(self, version: Version) -> None:
        record = version.encoder
        settings = {"encoder": str(version.manifest["encoder"]), "precision": record.precision,
                    "preprocess": record.preprocess, "images": version.images,
                    "where": str(version.manifest.get("where", "")), "plan": version.plan}  # fmt: skip
        written = {"manifest": version.manifest, "settings": settings}
        self.db.storage.write_text("manifest.json", canonical_json(written) + "\n")
        self.done.append(
            "wrote manifest.json from the current version (a --where given to its first build is not in it)"
        )

    def _shards(self, version: Version) -> bool:
        """Remove damaged shards' receipts, so that a build makes the shards again."""
        again = False
        for entry in version.shards:
            images = str(PurePosixPath(self.db.image_table(entry.id)).with_suffix(".json"))
            receipt = self.db.embedding_receipt(version.encoder, entry.id)
            pictures = [self.db.image_tar(entry.id), self.db.image_table(entry.id), images]
            rows = [entry.artifact.path, receipt, self.db.thumbnail_tar(entry.id)]
            if any(path in self.damages for path in pictures):
                self.db.storage.remove(images)
            if any(path in self.damages for path in (*pictures, *rows)):
                self.db.storage.remove(receipt)
                again = True
        return again

    def _index(self, version: Version) -> bool:
        folder = self.db.index_folder(version.encoder, version.index.id)
        if not any(path.startswith(f"{folder}/") for path in self.damages):
            return False
        for name in self.db.storage.list(folder):
            self.db.storage.remove(f"{folder}/{name}")
        return True


def _build_again(db: RetrievalDatabase, progress: Progress, device: str) -> None:
    """Run the build of the current version again: it makes what is missing, with the settings of before."""
    from pipeline.building import BuildRequest, build
    from pipeline.index import IndexConfig

    config = IndexConfig(**db.version().index.build["config"])
    build(BuildRequest(target=db.name, home=db.home, index=config, device=device), progress)


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def _is_table(text: str) -> bool:
    return _is_json(text, dict)


def _short(error: Exception) -> str:
    """The problem in a DamagedError, without its path and its advice."""
    return str(error).split(" is damaged: ", 1)[-1].split(". `rdmpipe check", 1)[0]
