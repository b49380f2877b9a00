"""`rdmpipe check --repair`: rebuild damaged files that can be rebuilt.

Reads what a check reads, and the source if shards or a plan have to be rebuilt. Writes, under the lease: `current` and
manifest.json from a version that can be read, receipts from their rows, the plan by listing the source again, lists of
checksums, and everything that a build makes. Unreadable version files are moved to damaged/. If the source has changed, the
rebuilt shard differs and a new version is published; a plan of a changed source does not replace the old one. A repair
cannot restore the block list or tombstones, because no other file holds their content.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.building import BuildRequest, begun, build, manifest_of, plan_shards, save_plan, write_plan
from pipeline.config import canonical_json
from pipeline.database import (
    RetrievalDatabase,
    Version,
    list_path,
    picture_key,
    read_list,
    receipts_list,
    record_receipts,
    record_sum,
    remove_recorded,
    write_recorded,
)
from pipeline.errors import DatabaseError, RdmpipeError
from pipeline.execution import Progress, Receipt, count_statuses
from pipeline.index import IndexConfig
from pipeline.maintenance.checking import CheckReport, check_database
from pipeline.schema import FAILED, OK
from pipeline.sources import SourceOptions, open_source
from pipeline.storage import Artifact, lease, read_member, tar_members


def repair_database(db: RetrievalDatabase, progress: Progress, device: str = "auto") -> CheckReport:
    """Check a database, and rebuild what can be rebuilt. Returns the report of a second check with the actions of the repair.

    Raises BusyError while another process writes the database, and the errors of a build, for example if the source
    cannot be reached.
    """
    found = check_database(db, progress.say)
    done: list[str] = []
    if found.damages:
        with lease(db.storage, f"check {db.name} --repair", notify=progress.say):
            again = _Repair(db, found, done).run()
        if again:
            _build_again(db, progress, device)
            done.append("the shards that were damaged, and the index over them")
        with lease(db.storage, f"check {db.name} --repair", notify=progress.say):
            _lists(db, {each.file for each in found.damages}, done)
    return replace(check_database(db, progress.say), repaired=tuple(done))


class _Repair:
    """The part of a repair that needs no build."""

    def __init__(self, db: RetrievalDatabase, found: CheckReport, done: list[str]) -> None:
        self.db, self.damages, self.done = db, {each.file for each in found.damages}, done

    def run(self) -> bool:
        """Do what needs no build. Returns whether a build is needed."""
        if "lease" in self.damages:
            self.done.append("replaced the lease")  # by acquiring it
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
        self._plan(version)
        self._receipts(version)
        return self._shards(version) | self._index(version)

    def _versions(self) -> None:
        """Move unreadable version files to damaged/."""
        for path in sorted(path for path in self.damages if path.startswith("versions/")):
            if self.db.storage.exists(path):
                self.db.storage.write_bytes(f"damaged/{PurePosixPath(path).name}", self.db.storage.read_bytes(path))
                self.done.append(f"moved {path} to damaged/")
            remove_recorded(self.db.storage, path)

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
        self.db.storage.remove(list_path("manifest.json"))
        self.db.storage.remove("manifest.json")
        write_recorded(self.db.storage, "manifest.json", canonical_json(written) + "\n")
        self.done.append(
            "wrote manifest.json from the current version (a --where given to its first build is not in it)"
        )

    def _plan(self, version: Version) -> None:
        """Rebuild the current version's plan: its header from its shards, its shards from the source's list."""
        header, table = f"plan/{version.plan}.json", f"plan/{version.plan}.parquet"
        if not self.damages & {header, table}:
            return
        settings = (begun(self.db.name, self.db.home) or {}).get("settings", {})
        part = {"limit": settings.get("limit") or 0, "shards": settings.get("shards")}
        if table not in self.damages:
            shards = list(plan_shards(self.db, version.plan))
            where = {"where": settings["filter"]} if "filter" in settings else {}
            remove_recorded(self.db.storage, header)
            save_plan(self.db, shards, version.columns, "", {**part, **where, "next_shard": self._next_shard(version)})
            self.done.append(f"wrote {header} from its shards (the next refresh looks at the whole source)")
            return
        options = SourceOptions(limit=part["limit"], shards=tuple(part["shards"]) if part["shards"] else None)
        before = {name: self.db.storage.read_bytes(name) for name in (header, table) if self.db.storage.exists(name)}
        try:
            plan = write_plan(self.db, open_source(manifest_of(self.db), options), options)
        except RdmpipeError as error:
            self.done.append(f"left {table} as it is, because the source cannot be listed: {error}")
            return
        if plan.id == version.plan:
            self.done.append(f"wrote {table} from the source's list")
            return
        for name in (f"plan/{plan.id}.json", f"plan/{plan.id}.parquet"):
            if name not in before:
                remove_recorded(self.db.storage, name)
        self.done.append(f"left {table} as it is: the source's list now makes plan {plan.id}")

    def _next_shard(self, version: Version) -> int:
        """A number above that of every existing shard."""
        names = [*self.db.storage.list(self.db.embedding_folder(version.encoder)), *self.db.storage.list("images")]
        numbers = [int(stem) for name in names if (stem := PurePosixPath(name).stem[:20].split("-")[0]).isdecimal()]
        return 1 + max([*numbers, *(entry.id for entry in version.shards)])

    def _receipts(self, version: Version) -> None:
        """Rewrite damaged receipts whose files are intact, so that no build has to make the files again."""
        config = self._config([self.db.embedding_receipt(version.encoder, entry.id) for entry in version.shards])
        images = self._config([_images_receipt(self.db, entry.id) for entry in version.shards])
        try:
            inputs = {shard.id: shard.fingerprint for shard in plan_shards(self.db, version.plan)}
        except DatabaseError:
            return
        for entry in version.shards:
            shard = entry.id
            path = self.db.embedding_receipt(version.encoder, shard)
            if path in self.damages and entry.artifact.path not in self.damages and config:
                thumbnails = self.db.thumbnail_tar(shard)
                if version.images != "thumbnail":
                    self._receipt(path, shard, config, inputs, (entry.artifact,))
                elif self.db.storage.exists(thumbnails) and self._is_tar(thumbnails):
                    self._receipt(path, shard, config, inputs, (*self._artifact_of(thumbnails), entry.artifact))
            path, table, tar = _images_receipt(self.db, shard), self.db.image_table(shard), self.db.image_tar(shard)
            if path not in self.damages or not images or not self._same_rows(table, entry.artifact):
                continue
            if version.images == "keep" and self._same_pictures(shard):
                self._receipt(path, shard, images, inputs, (*self._artifact_of(tar), *self._artifact_of(table)))
            elif version.images != "keep":  # its pictures were removed after embedding, and nothing needs it
                self.db.storage.remove(path)
                self.damages.discard(path)
                self.done.append(f"removed {path}, which nothing needs")

    def _config(self, receipts: list[str]) -> tuple[str, str] | None:
        """The stage and config that most of the receipts have. None if none can be read."""
        found: Counter[tuple[str, str]] = Counter()
        for path in receipts:
            with contextlib.suppress(DatabaseError):
                receipt = self.db.read_receipt(path)
                found[receipt.stage, receipt.config] += 1 if path in self.damages else len(receipts)
        return found.most_common(1)[0][0] if found else None

    def _artifact_of(self, path: str) -> tuple[Artifact]:
        data = self.db.storage.read_bytes(path)
        return (Artifact(path, hashlib.sha256(data).hexdigest(), len(data)),)

    def _receipt(
        self, path: str, shard: int, config: tuple[str, str], inputs: Mapping[int, str], files: tuple[Artifact, ...]
    ) -> None:
        rows = self.db.read_table(files[-1].path, ["status", "error"])
        counts = count_statuses(rows["status"].to_pylist(), rows["error"].to_pylist())
        receipt = Receipt(config[0], shard, config[1], inputs[shard], artifacts=files, **counts)
        self.db.storage.write_text(path, receipt.to_json())
        self.damages.discard(path)
        self.done.append(f"wrote {path} from its rows")

    def _same_rows(self, table: str, embedded: Artifact) -> bool:
        """Whether a table of pictures agrees with the embedded rows, whose checksum the version has."""
        if table in self.damages or embedded.path in self.damages:
            return False
        try:
            images = self.db.read_table(table)
            names = [name for name in images.column_names if name not in ("status", "error")]
            rows = self.db.read_table(embedded, [*names, "status"])
        except DatabaseError:
            return False
        # Embedding can only turn an ok row into a failed one.
        statuses = zip(images["status"].to_pylist(), rows["status"].to_pylist(), strict=False)
        same = all(before == after or (before, after) == (OK, FAILED) for before, after in statuses)
        return same and images.select(names).equals(rows.select(names))

    def _same_pictures(self, shard: int) -> bool:
        """Whether every picture in a shard's tar has the checksum in its row."""
        path = self.db.image_tar(shard)
        if not self.db.storage.exists(path):
            return False
        rows = self.db.read_table(self.db.image_table(shard), ["key", "sha256"])
        sums = dict(zip(rows["key"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
        try:
            with self.db.storage.open(path) as handle:
                return all(
                    hashlib.sha256(read_member(handle, member, path, DatabaseError)).hexdigest() == sums.get(key)
                    for member in tar_members(handle, path, DatabaseError)
                    if (key := picture_key(member)) >= 0
                )
        except DatabaseError:
            return False

    def _is_tar(self, path: str) -> bool:
        try:
            with self.db.storage.open(path) as handle:
                return sum(1 for _ in tar_members(handle, path, DatabaseError)) > 0
        except DatabaseError:
            return False

    def _shards(self, version: Version) -> bool:
        """Remove damaged shards' receipts, so that a build makes the shards again."""
        again = False
        for entry in version.shards:
            images = _images_receipt(self.db, entry.id)
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
        self.db.storage.remove(list_path(f"{folder}/entry.json"))
        return True


def _images_receipt(db: RetrievalDatabase, shard: int) -> str:
    return str(PurePosixPath(db.image_table(shard)).with_suffix(".json"))


def _lists(db: RetrievalDatabase, damaged: set[str], done: list[str]) -> None:
    """Rewrite damaged lists of checksums from files that the check found intact."""
    for name in db.versions():
        if list_path(receipts_list(name)) in damaged:
            record_receipts(db, db.version(name))
            done.append(f"wrote {list_path(receipts_list(name))}")
    for path in sorted(damaged):
        name = path.removeprefix(list_path(""))
        if path == name or name.startswith(receipts_list("")) or name in damaged or not db.storage.exists(name):
            continue
        try:
            read_list(db.storage, name)
        except ValueError:
            db.storage.remove(path)
            record_sum(db.storage, name, hashlib.sha256(db.storage.read_bytes(name)).hexdigest())
            done.append(f"wrote {path}")


def _build_again(db: RetrievalDatabase, progress: Progress, device: str) -> None:
    """Run the build of the current version again with the same settings; it makes what is missing."""
    config = IndexConfig(**db.version().index.build["config"])
    build(BuildRequest(target=db.name, home=db.home, index=config, device=device), progress)
