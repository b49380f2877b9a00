"""RetrievalDatabase: every path under `<home>/databases/<name>`, its versions, and the pointer to the current one.

Reads and writes, all through `Storage` (each file whole or not at all):

    manifest.json                          frozen copy of the manifest
    plan/<id>.parquet                           the shards and what each of them reads
    images/<shard>.tar .parquet .json           pictures in img2dataset's layout, rows, receipt
    thumbnails/<shard>.tar                      256-pixel JPEGs, where the pictures were not kept
    embeddings/<encoder>/<shard>.parquet .json  rows with unit vectors, receipt
    index/<encoder>/<id>/                       keys.npy vectors.npy metadata.parquet [index.faiss]
    versions/<id>.json, current                 what a version consists of; which one is current
    versions/<id>.purged                        that a version was removed because it held purged rows
    blocked.txt                                 what was purged and is kept out (see database/blocklist.py)

Does not promise that files of versions older than the current one stay for ever (`rdmpipe gc` removes them).

How many rows a database's shards account for.

Reads: receipts, and the rows of shards in which some are gone. Writes nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config import canonical_json, default_home, digest
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConflictError, DatabaseError, nearest
from pipeline.execution import Receipt
from pipeline.schema import shard_name, shard_of
from pipeline.storage import Artifact, Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ShardEntry:
    """A finished embedding shard of a version."""

    id: int
    ok: int
    artifact: Artifact


@dataclass(frozen=True)
class IndexEntry:
    """A finished index. `files` by role: keys, vectors, metadata and, above the exact size, faiss."""

    id: str
    kind: str  # exact | faiss
    key: str  # faiss index key; "Flat" for exact
    rows: int
    files: Mapping[str, Artifact]
    params: Mapping[str, Any] = field(default_factory=dict)  # search parameters, e.g. {"nprobe": 16}
    recall: Mapping[str, Any] = field(default_factory=dict)  # by query kind: value, low, high, queries, k
    build: Mapping[str, Any] = field(default_factory=dict)  # budget and measured peak memory, bytes


@dataclass(frozen=True)
class Version:
    """Everything a reader needs, by checksum. Its id is the hash of its content, times left out."""

    database: str
    manifest: Mapping[str, Any]
    encoder: EncoderRecord
    columns: Mapping[str, str]  # the source's metadata columns by type name
    shards: tuple[ShardEntry, ...]
    index: IndexEntry
    counts: Mapping[str, Any]  # input, ok, filtered, failed, reasons, duplicates
    images: str  # keep | thumbnail | drop
    plan: str  # id of the plan
    gone: Artifact | None = None  # Parquet of keys that later refreshes or purges removed
    parent: str = ""

    @property
    def id(self) -> str:
        table = asdict(self)
        table["index"].pop("build")  # measured memory differs from run to run
        table.pop("parent")
        return digest(table, 12)

    def to_json(self) -> str:
        return canonical_json(self) + "\n"

    @staticmethod
    def from_json(text: str) -> Version:
        table = json.loads(text)
        table["encoder"] = EncoderRecord(**table["encoder"])
        table["shards"] = tuple(
            ShardEntry(entry["id"], entry["ok"], Artifact(**entry["artifact"])) for entry in table["shards"]
        )
        index = table["index"]
        index["files"] = {role: Artifact(**artifact) for role, artifact in index["files"].items()}
        table["index"] = IndexEntry(**index)
        table["gone"] = Artifact(**table["gone"]) if table["gone"] else None
        return Version(**table)


class RetrievalDatabase:
    """One database's directory. Cheap to build and picklable; holds no open file."""

    def __init__(self, name: str, home: str | None = None) -> None:
        self.name = name
        self.home = home or default_home()
        self.storage = Storage(f"{self.home.rstrip('/')}/databases/{name}")

    def __repr__(self) -> str:
        return f"RetrievalDatabase({self.name!r}, {self.home!r})"

    # ---- paths, relative to the storage's root

    def image_tar(self, shard: int) -> str:
        return f"images/{shard_name(shard)}.tar"

    def image_table(self, shard: int) -> str:
        return f"images/{shard_name(shard)}.parquet"

    def thumbnail_tar(self, shard: int) -> str:
        return f"thumbnails/{shard_name(shard)}.tar"

    def embedding_folder(self, encoder: EncoderRecord) -> str:
        return f"embeddings/{encoder.id}"

    def embedding_table(self, encoder: EncoderRecord, shard: int) -> str:
        return f"embeddings/{encoder.id}/{shard_name(shard)}.parquet"

    def embedding_receipt(self, encoder: EncoderRecord, shard: int) -> str:
        return f"embeddings/{encoder.id}/{shard_name(shard)}.json"

    def index_folder(self, encoder: EncoderRecord, index_id: str) -> str:
        return f"index/{encoder.id}/{index_id}"

    # ---- Parquet

    def write_table(self, relative: str, table: pa.Table, **options: Any) -> Artifact:
        """Write a Parquet file, whole. The same table gives the same bytes."""
        import pyarrow.parquet as pq

        options = {"compression": "zstd", "row_group_size": 10_000, **options}
        with self.storage.scratch() as scratch:
            part = scratch / "part.parquet"
            pq.write_table(table, part, **options)
            return self.storage.publish(part, relative)

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        import pyarrow.parquet as pq

        with self.storage.open(relative) as handle:
            return pq.read_table(handle, columns=columns)

    # ---- versions

    def exists(self) -> bool:
        return self.current_id() is not None

    def current_id(self) -> str | None:
        text = self.storage.read_text("current")
        return text.strip() or None if text is not None else None

    def version(self, version: str = "") -> Version:
        """A version by id (or a unique beginning of it), or the current one. Raises DatabaseError."""
        wanted = version or self.current_id()
        if wanted is None:
            unfinished = self.storage.exists("plan")
            raise DatabaseError(
                f"database {self.name!r} was started but never finished; run `{self.build_command()}` to continue"
                if unfinished
                else f"no database {self.name!r} in {self.home}; build it with `rdmpipe build-index {self.name}`"
            )
        text = self.storage.read_text(f"versions/{wanted}.json")
        if text is None:
            known = self.versions()
            begins = [known_id for known_id in known if known_id.startswith(wanted)]
            if len(begins) != 1:
                if any(name.startswith(wanted) for name in self.storage.list("versions", ".purged")):
                    raise DatabaseError(
                        f"version {wanted} of database {self.name!r} was purged: it held rows that were removed for good. "
                        f"Use {self.name}@{self.current_id()}, the current version, which is without them"
                    )
                raise DatabaseError(
                    f"database {self.name!r} has no version {wanted!r}{nearest(wanted, known)}; it has {', '.join(known)}"
                )
            text = self.storage.read_bytes(f"versions/{begins[0]}.json").decode("utf-8")
        return Version.from_json(text)

    def build_command(self) -> str:
        """The command that continues an unfinished build, with the part of the source and the filter it was begun with."""
        text = self.storage.read_text("manifest.json")
        settings = json.loads(text).get("settings", {}) if text else {}
        words = ["rdmpipe", "build-index", self.name]
        if settings.get("limit"):
            words += ["--limit", str(settings["limit"])]
        if settings.get("shards"):
            words += ["--shards", ":".join(map(str, settings["shards"]))]
        if settings.get("where"):
            words += ["--where", settings["where"]]
        return shlex.join(words)

    def versions(self) -> list[str]:
        return [name.removesuffix(".json") for name in self.storage.list("versions", ".json")]

    def publish(self, version: Version, expected: str | None) -> None:
        """Write the version file and move `current` from `expected` to it. Raises ConflictError where `current` moved."""
        self.storage.write_text(f"versions/{version.id}.json", version.to_json())
        if expected == version.id == self.current_id():
            return
        if not self.storage.swap("current", expected, version.id):
            raise ConflictError(
                f"database {self.name!r}: another build published {self.current_id()} while this one was working from "
                f"{expected}. Nothing was overwritten: run the same command again."
            )


def list_databases(home: str | None = None) -> list[str]:
    """Names of the databases in a home that have a published version."""
    root = Storage(home or default_home())
    names = root.list("databases")
    return [name for name in names if root.exists(f"databases/{name}/current")]


def rows_file(receipt: Receipt) -> Artifact:
    """The Parquet file among what a stage wrote."""
    return next(artifact for artifact in receipt.artifacts if artifact.path.endswith(".parquet"))


def totals(database: RetrievalDatabase, receipts: Iterable[Receipt], gone: Iterable[int] = ()) -> dict[str, Any]:
    """Counts over all shards: input, ok, filtered, failed and reasons; rows that are gone are in none of them."""
    receipts = list(receipts)
    counts = {"ok": 0, "filtered": 0, "failed": 0}
    reasons: dict[str, int] = {}
    for receipt in receipts:
        for name in counts:
            counts[name] += getattr(receipt, name)
        for reason, count in receipt.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    tables = {receipt.shard: rows_file(receipt).path for receipt in receipts}
    by_shard: dict[int, set[int]] = {}
    for key in gone:
        by_shard.setdefault(shard_of(int(key)), set()).add(int(key))
    for shard, keys in by_shard.items():
        for row in (
            database.read_table(tables[shard], ["key", "status", "error"]).to_pylist() if shard in tables else ()
        ):
            if row["key"] in keys:
                counts[row["status"]] -= 1
                if row["status"] != "ok":
                    reasons[(row["error"] or "unknown").split(":", 1)[0]] -= 1
    kept = {reason: count for reason, count in sorted(reasons.items()) if count}
    return {"input": sum(counts.values()), **counts, "reasons": kept}
