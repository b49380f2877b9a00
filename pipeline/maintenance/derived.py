"""Data in a home that was derived from purged pictures: it is removed if possible, else named.

Reads: prepared shards of a database (training writes prepared/<id>/, and its docstring describes the files), tables of runs,
protocols of evaluations, manifests and rows of the home's other databases. Writes: prepared shards without the purged rows.
Finds nothing outside the home: exports, folders given with --out, copies, backups, and models that were trained on a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pipeline.catalog import companions
from pipeline.config import cache_dir, parse_json
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, DatabaseError
from pipeline.execution import Receipt
from pipeline.schema import is_name
from pipeline.storage import Artifact, Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Purged:
    """The rows that were purged: their keys, the checksums of their pictures, and all versions that the database has had."""

    keys: NDArray[np.int64]
    sums: frozenset[str]
    versions: frozenset[str]


# ---- prepared shards


def purge_prepared(db: RetrievalDatabase, keys: NDArray[np.int64]) -> int:
    """Remove the rows with these keys from everything that `rdmpipe train prepare` wrote. Returns how many there were.

    A row's number among the neighbours of other rows stays; training passes over it. Killed at any point, it continues
    when it is called again. Raises DamagedError.
    """
    removed = 0
    for name in db.storage.list("prepared"):
        folder = f"prepared/{name}"
        receipts = [file for file in db.storage.list(folder, ".json") if PurePosixPath(file).stem.isdecimal()]
        left = {}
        for file in receipts:
            receipt, gone = _purge_shard(db, f"{folder}/{file}", keys)
            left[receipt.shard], removed = receipt.ok, removed + gone
        _count(db.storage, f"{folder}/prepared.json", left)
    return removed


def _purge_shard(db: RetrievalDatabase, path: str, keys: NDArray[np.int64]) -> tuple[Receipt, int]:
    """Rewrite one shard's arrays, keys last, and then its receipt."""
    receipt = db.read_receipt(path)
    names = {PurePosixPath(artifact.path).name.split(".")[1]: artifact.path for artifact in receipt.artifacts}
    if "keys" not in names:
        return receipt, 0
    own = np.array(_mapped(db, names["keys"]))
    gone = np.isin(own, keys)
    if not gone.any() and len(own) == receipt.ok:
        return receipt, 0
    kept = len(own) - int(gone.sum())
    artifacts = []
    for file in sorted(names.values(), key=lambda file: file == names["keys"]):
        values = _mapped(db, file)
        written = len(values) == kept < len(own)  # an earlier purge was killed after it wrote this file
        rows = np.arange(kept) if written else np.flatnonzero(~gone)
        artifacts.append(_write_rows(db.storage, file, values, rows))
    for artifact in receipt.artifacts:
        db.storage.forget(artifact)
    ordered = {artifact.path: artifact for artifact in artifacts}
    left_out = receipt.ok - kept
    reasons = dict(sorted({**receipt.reasons, "purged": receipt.reasons.get("purged", 0) + left_out}.items()))
    made = replace(
        receipt, ok=kept, filtered=receipt.filtered + left_out, reasons=reasons,
        artifacts=tuple(ordered[artifact.path] for artifact in receipt.artifacts),
    )  # fmt: skip
    db.storage.write_text(path, made.to_json())
    return made, left_out


def _mapped(db: RetrievalDatabase, path: str) -> NDArray[np.generic]:
    try:
        with db.storage.open(path) as handle:
            found: NDArray[np.generic] = np.load(handle, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise db.damaged(path, f"it cannot be read as an array: {error}") from error
    return found


def _write_rows(storage: Storage, path: str, values: NDArray[np.generic], rows: NDArray[np.int64]) -> Artifact:
    with storage.scratch() as scratch:
        part = scratch / "part.npy"
        np.save(part, values[rows])
        return storage.publish(part, path)


def _count(storage: Storage, path: str, left: dict[int, int]) -> None:
    """Correct the number of rows in prepared.json, and leave out shards without rows. Does nothing if it is correct."""
    text = storage.read_text(path)
    if text is None:
        return
    try:
        table = parse_json(text)
    except ValueError:
        return  # `train` reports it
    if not isinstance(table, dict):
        return
    now = {**table, "rows": sum(left.values()), "shards": [shard for shard, rows in sorted(left.items()) if rows]}
    if now != table:
        storage.write_text(path, json.dumps(now, indent=1) + "\n")


# ---- the home's other databases


def _sources(db: RetrievalDatabase) -> Iterator[tuple[RetrievalDatabase, dict[str, object]]]:
    """The home's other databases, published or unfinished, with their [source] tables."""
    for name in Storage(db.home).list("databases"):
        if name == db.name or not is_name(name):
            continue
        other = RetrievalDatabase(name, db.home)
        try:
            written = other.read_json("manifest.json")
        except DatabaseError:
            continue
        manifest = written.get("manifest") if isinstance(written, dict) else None
        source = manifest.get("source") if isinstance(manifest, dict) else None
        if isinstance(source, dict):
            yield other, source


# ---- places to report


def places_left(db: RetrievalDatabase, purged: Purged, say: Callable[[str], None]) -> Iterator[str]:
    """Places in the home and the cache that may still show a purged picture, each with the command for it."""
    if not len(purged.keys):
        return
    root = Storage(db.home)
    for run in root.list("generations"):
        if _shows(root, f"generations/{run}/results.parquet", purged):
            folder = root.full(f"generations/{run}")
            yield f"run {run} shows purged pictures as neighbours; remove it: rm -r {folder}"
    evaluations = [name for name in root.list("evaluations") if _is_of(root, f"evaluations/{name}", db.name)]
    for name in evaluations:
        yield f"evaluation {name} judged pictures of {db.name}; remove it: rm -r {root.full(f'evaluations/{name}')}"
    own = {other.database.name for other in companions(db.name, db.home)}
    for other, source in _sources(db):
        if other.name in own:
            continue
        if any(f"/evaluations/{name}/" in str(source.get("path", "")) for name in evaluations):
            yield f"database {other.name} was made for an evaluation; remove it: rm -r {other.storage.url}"
        elif purged.sums and (count := _same_pictures(other, purged.sums, say)):
            yield f"database {other.name} has {count:,} of the pictures too; purge it with the same --hash-list"
    source = _own_source(db)
    if source.get("repo") or source.get("url"):
        kept = [name for name in ("files", "hub", "unpacked", "members") if (cache_dir() / name).is_dir()]
        if kept:
            yield f"the cache may hold the source's files; remove them: rm -r {' '.join(str(cache_dir() / n) for n in kept)}"


def _own_source(db: RetrievalDatabase) -> dict[str, object]:
    try:
        written = db.read_json("manifest.json")
    except DatabaseError:
        return {}
    manifest = written.get("manifest") if isinstance(written, dict) else None
    source = manifest.get("source") if isinstance(manifest, dict) else None
    return source if isinstance(source, dict) else {}


def _shows(root: Storage, path: str, purged: Purged) -> bool:
    """Whether a run's table has a purged row among the neighbours; True if the table cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["db_version", "neighbour_keys", "neighbour_sha256"]
    try:
        if not root.exists(path):
            return False
        with root.open(path) as handle:
            table: pa.Table = pq.read_table(handle, columns=names)
    except (pa.ArrowException, OSError, ValueError, ConfigError, DatabaseError):
        return True
    if table.column_names != names:
        return True
    keys = set(purged.keys.tolist())
    for row in table.to_pylist():
        if purged.sums & set(row["neighbour_sha256"] or ()):
            return True
        if row["db_version"] in purged.versions and keys & set(row["neighbour_keys"] or ()):
            return True
    return False


def _is_of(root: Storage, folder: str, name: str) -> bool:
    """Whether an evaluation's protocol names the database."""
    return f'"{name}' in (root.read_text(f"{folder}/protocol.json") or "")


def _same_pictures(other: RetrievalDatabase, sums: frozenset[str], say: Callable[[str], None]) -> int:
    """How many rows of another database's current version have one of these checksums."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if not other.exists():
            return 0
        say(f"looking for the same pictures in {other.name}")
        wanted = pa.array(sorted(sums))
        tables = (other.read_table(entry.artifact, ["sha256"]) for entry in other.version().shards)
        return sum(pc.sum(pc.is_in(table["sha256"], wanted)).as_py() or 0 for table in tables)
    except DatabaseError:
        return 0
