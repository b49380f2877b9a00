"""`rdmpipe purge`: rows leave a database for good, by picture (sha256), by URL, or by filter; and are kept out.

Reads: every version's embedding shards. Writes, under the database's lease: the block list first, then the shards that held
such rows (embeddings under new names, pictures and thumbnails in place, by maintenance/purging.py), the index, a new version by
compare-and-swap. Then looks for every purged row by searching, and removes the versions that still held one, with all
files that no remaining version needs (an unfinished build's among them). Killed at any point it finishes when it is run
again; builds refuse to work until then. Does not reach into generations, exports, backups, or caches of other machines.

One shard without its purged rows: pictures, rows and thumbnails in place, embeddings under a new name, receipts last.

Reads: a published embedding shard and what lies beside it. The rows stay, in their places, with nothing left in them but
their key, their name in the source and that they were purged: what a download would write now. Gives the same bytes
whenever it is run again; the shard that the published version names is left as it is.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.catalog import resolve_database
from pipeline.config import digest
from pipeline.database import (
    BLOCKED_KINDS,
    PURGE_BEGUN,
    BlockList,
    RetrievalDatabase,
    ShardEntry,
    Version,
    VersionCounts,
    blank_rows,
    gone_keys,
    picture_files,
    purged_mask,
    read_block_list,
    totals,
    write_block_list,
)
from pipeline.encoders import EncoderRecord
from pipeline.errors import ConfigError, DatabaseError, EncoderError
from pipeline.execution import Receipt, count_statuses
from pipeline.filters import conjunction, filter_mask
from pipeline.index import IndexConfig, IndexInput, Queries, build_index, text_queries
from pipeline.maintenance.versions import remove_versions
from pipeline.retrieval import open_search
from pipeline.schema import IMAGE_KEY, OK, metadata_columns, shard_name
from pipeline.storage import Artifact, lease, read_member, tar_members

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SAME = 0.9999  # a score from which on two float16 vectors may be of the same picture


@dataclass(frozen=True)
class PurgeRequest:
    """What to purge: exactly one of the three, or none, to finish a purge that was interrupted."""

    name: str
    hash_list: Path | None = None
    url_list: Path | None = None
    where: str = ""
    dry_run: bool = False
    home: str | None = None
    wait_s: float = 0.0


@dataclass(frozen=True)
class PurgeSummary:
    """What was purged. A purge that goes on after an interruption counts what is still left in the files it finds."""

    name: str
    version: str
    rows: int  # keys of all versions whose rows are removed
    in_current: int  # of them, in the index that was current
    shards: int  # of the current version, written anew
    versions_removed: tuple[str, ...] = ()
    files_removed: int = 0
    searched: int = 0  # purged vectors that were searched for
    found: int = 0  # of them, or their keys or pictures, still there: always 0, or an error is raised
    look_alikes: tuple[int, ...] = ()  # keys of other rows with the same vector as a purged one
    notes: tuple[str, ...] = ()

    def text(self, dry_run: bool = False) -> str:
        """For people."""
        what = f"{self.rows:,} row(s), {self.in_current:,} of them in the current index, in {self.shards:,} shard(s)"
        if dry_run:
            return f"{self.name}: would purge {what}"
        lines = [f"{self.name}: purged {what}; version {self.version}"]
        lines.append(
            f"searched for {self.searched:,} purged vectors and for every key, sum and address: {self.found} found"
        )
        if self.look_alikes:
            keys = ", ".join(map(str, self.look_alikes[:20]))
            lines.append(f"{len(self.look_alikes):,} other row(s) have the same vector and stay: key {keys}")
        lines.append(
            f"versions removed: {', '.join(self.versions_removed) or 'none'}; {self.files_removed:,} files removed"
        )
        return "\n".join(lines)


def purge(request: PurgeRequest, say: Callable[[str], None] = lambda text: None) -> PurgeSummary:
    """Purge, or with dry_run only count. Raises ConfigError, FilterError, DatabaseError, BusyError, ConflictError."""
    if "@" in request.name:
        raise ConfigError(f"{request.name}: rows are purged from all versions; leave out the part from @ on")
    selection = resolve_database(request.name, request.home)
    db, notes = selection.database, []
    if db.name != request.name:
        notes.append(f"{request.name} is a view: rows are purged from {db.name}, the database it looks at")
    asked = [value for value in (request.hash_list, request.url_list, request.where.strip()) if value]
    if len(asked) > 1 or not (asked or db.storage.exists(PURGE_BEGUN)):
        raise ConfigError("give exactly one of --hash-list, --url-list and --where")
    wanted = BlockList()
    if request.hash_list is not None:
        wanted = wanted.with_values("sha256", _lines(request.hash_list, hashes=True))
    if request.url_list is not None:
        wanted = wanted.with_values("url", _lines(request.url_list, hashes=False))
    columns = {k: v for k, v in metadata_columns(selection.version.columns).items() if k != "duplicate_of"}
    where = conjunction(selection.where, request.where, columns=columns) if request.where.strip() else ""
    with lease(db.storage, f"purge {db.name}", request.wait_s, notify=say):
        current = db.version()
        before = read_block_list(db.storage)
        blocked = BlockList(before.marks | wanted.marks | _names(db, wanted, where, list(columns)).marks)
        held = _held(db, blocked)
        done = _counted(db, current, held, tuple(notes))
        if request.dry_run:
            return done
        db.storage.clear_scratch()
        write_block_list(db.storage, blocked)
        db.storage.write_text(PURGE_BEGUN, "{}\n")
        if any(entry.artifact.path in held for entry in current.shards):
            say(f"purging {done.rows:,} rows from {done.shards:,} shards")
            current = _publish(db, current, blocked, held)
        done = _searched(db, current, blocked, held, replace(done, version=current.id))
        doomed = [v for v in map(db.version, db.versions()) if any(entry.artifact.path in held for entry in v.shards)]
        removed, files = remove_versions(db, [version.id for version in doomed])
        db.storage.remove(PURGE_BEGUN)
        return replace(done, versions_removed=removed, files_removed=files)


def _lines(path: Path, hashes: bool) -> list[str]:
    """The entries of a list, one a line; empty lines and those that begin with # are passed over."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list: {error}") from error
    for number, line in enumerate(lines, 1):
        if (
            hashes
            and line
            and line[0] != "#"
            and not (len(line) == 64 and set(line.lower()) <= set("0123456789abcdef"))
        ):
            raise ConfigError(f"{path}, line {number}: {line[:80]!r} is not a sha256: 64 hex digits, one a line")
    found = [line.lower() if hashes else line for line in lines if line and line[0] != "#"]
    if not found:
        raise ConfigError(f"{path}: no {'sha256' if hashes else 'URL'} in it")
    return found


def _tables(db: RetrievalDatabase, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Each embedding shard of any version, once, with some of its columns."""
    paths = dict.fromkeys(entry.artifact.path for name in db.versions() for entry in db.version(name).shards)
    for path in paths:
        yield path, db.read_table(path, columns)


def _names(db: RetrievalDatabase, wanted: BlockList, where: str, columns: list[str]) -> BlockList:
    """The rows asked for, by their names in the source, so that they stay out whatever the source gives for them later."""
    found = BlockList()
    for _, table in _tables(db, list(dict.fromkeys([*columns, "error"]))):
        matched = wanted.mask(table)
        if where:
            matched |= filter_mask(where, table.select(columns)) & ~purged_mask(table)
        found = found.with_values("item_id", (item for item in table["item_id"].filter(matched).to_pylist() if item))
    return found


def _held(db: RetrievalDatabase, blocked: BlockList) -> dict[str, NDArray[np.int64]]:
    """The embedding shards that hold blocked rows, by path, and these rows' keys."""
    found = {}
    for path, table in _tables(db, ["key", "item_id", "error", "url", "sha256"]):
        mask = blocked.mask(table)
        if mask.any():
            found[path] = table["key"].to_numpy()[mask]
    return found


def _counted(
    db: RetrievalDatabase, current: Version, held: dict[str, NDArray[np.int64]], notes: tuple[str, ...]
) -> PurgeSummary:
    import numpy as np

    keys = np.unique(np.concatenate([np.empty(0, np.int64), *held.values()]))
    with open_search(db, current) as searcher:
        living = int(np.isin(np.asarray(searcher.keys), keys).sum())
    if living == current.index.rows:
        raise DatabaseError(
            f"all {living:,} rows of database {db.name!r} would be purged. A database has at least one row: "
            f"remove its folder instead, {db.storage.url}"
        )
    shards = sum(1 for entry in current.shards if entry.artifact.path in held)
    return PurgeSummary(db.name, current.id, len(keys), living, shards, notes=notes)


def _publish(
    db: RetrievalDatabase, current: Version, blocked: BlockList, held: dict[str, NDArray[np.int64]]
) -> Version:
    """Write the shards anew, index them, and publish."""
    shards, receipts = [], []
    for entry in current.shards:
        if entry.artifact.path in held:
            receipt = rewrite_shard(db, current.encoder, entry, blocked)
            path = next(artifact for artifact in receipt.artifacts if artifact.path.startswith("embeddings/"))
            entry = ShardEntry(entry.id, receipt.ok, path)
        else:
            receipt = db.read_receipt(db.embedding_receipt(current.encoder, entry.id))
        shards.append(entry)
        receipts.append(receipt)
    config = IndexConfig(**current.index.build["config"])
    gone = gone_keys(db, current.gone)
    rows = IndexInput(current.encoder, current.columns, shards, gone)
    index = build_index(db, config, rows, _texts(db, rows, config))
    counts: VersionCounts = {**totals(db, receipts, gone), "duplicates": int(index.build["duplicates"])}
    version = replace(current, shards=tuple(shards), index=index, counts=counts, parent=current.id)
    db.publish(version, current.id)
    return version


def _texts(db: RetrievalDatabase, rows: IndexInput, config: IndexConfig) -> Queries:
    """Text queries to measure recall with; none where the encoder cannot be reached: a purge does not wait for it."""
    from pipeline.encoders import load_recorded

    record = rows.encoder
    try:
        encoder = load_recorded(record)
    except EncoderError as error:
        return Queries(f"none: the encoder cannot be reached: {error}")
    return text_queries(encoder, db, rows, config)


def _searched(
    db: RetrievalDatabase, current: Version, blocked: BlockList, held: dict[str, NDArray[np.int64]], done: PurgeSummary
) -> PurgeSummary:
    """Look for every purged row in the current version, by key, block list, stored picture and vector. Raises DatabaseError."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    searched, alike = 0, set()
    with open_search(db, current) as searcher:
        own = np.asarray(searcher.keys)
        listed = searcher.metadata(own, list(BLOCKED_KINDS)).to_pylist()
        found = {int(key) for key, row in zip(own, listed, strict=True) if blocked.covers(row)}
        for path, keys in held.items():
            found |= set(own[np.isin(own, keys)].tolist()) | set(picture_files(db, keys))
            table = db.read_table(path, ["key", "status", "vector"])
            table = table.filter(pc.and_(pc.is_in(table["key"], pa.array(keys)), pc.equal(table["status"], OK)))
            if not table.num_rows:
                continue
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = flat.reshape(table.num_rows, -1).astype(np.float32)
            results = searcher.search(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), k=1)
            found |= set(results.keys[np.isin(results.keys, keys)].tolist())
            alike |= set(results.keys[results.scores >= SAME].tolist())
            searched += table.num_rows
    if found:
        raise DatabaseError(
            f"purged rows are still found in {db.name}@{current.id}: keys {sorted(found)[:10]}. This is an error of rdmpipe: "
            "older versions were left as they are, please report it"
        )
    return replace(done, searched=searched, look_alikes=tuple(sorted(alike)))


def rewrite_shard(db: RetrievalDatabase, encoder: EncoderRecord, entry: ShardEntry, blocked: BlockList) -> Receipt:
    """Write the shard anew. Returns its embedding receipt, which names the new files."""
    table = _blanked(db.read_table(entry.artifact.path), blocked)
    written = {}
    if db.storage.exists(db.image_table(entry.id)):
        rows = _blanked(db.read_table(db.image_table(entry.id)), blocked)
        written = {path: new for path in [db.image_tar(entry.id)] if (new := _rewrite_tar(db, path, rows, GNU))}
        written[db.image_table(entry.id)] = db.write_table(db.image_table(entry.id), rows)
        _update(db, f"images/{shard_name(entry.id)}.json", rows, written)
    thumbnails = _rewrite_tar(db, db.thumbnail_tar(entry.id), table, USTAR)
    if thumbnails:
        written[thumbnails.path] = thumbnails
    purged = table["key"].to_numpy()[purged_mask(table)].tolist()
    name = f"{db.embedding_folder(encoder)}/{shard_name(entry.id)}-p{digest(purged, 12)}.parquet"
    written[entry.artifact.path] = db.write_table(name, table)
    receipt = _update(db, db.embedding_receipt(encoder, entry.id), table, written)
    assert receipt is not None
    return receipt


GNU, USTAR = tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT


def _blanked(table: pa.Table, blocked: BlockList) -> pa.Table:
    return blank_rows(table, blocked.mask(table))


def _update(db: RetrievalDatabase, path: str, table: pa.Table, written: dict[str, Artifact]) -> Receipt | None:
    """The receipt at `path` with the table's counts and the new files in place of the old; None where there is none."""
    if not db.storage.exists(path):
        return None
    old = db.read_receipt(path)
    by_place = {_place(name): artifact for name, artifact in written.items()}
    artifacts = tuple(by_place.get(_place(artifact.path), artifact) for artifact in old.artifacts)
    counts = count_statuses(table["status"].to_pylist(), table["error"].to_pylist())
    receipt = replace(old, artifacts=artifacts, **counts)
    db.storage.write_text(path, receipt.to_json())
    return receipt


def _place(path: str) -> tuple[str, str]:
    """What a shard's file is, whatever purge it went through: its folder and kind."""
    return str(PurePosixPath(path).parent), PurePosixPath(path).suffix


def _rewrite_tar(db: RetrievalDatabase, path: str, rows: pa.Table, form: int) -> Artifact | None:
    """The archive without the pictures that no row needs any more; None where there is no archive."""
    if not db.storage.exists(path):
        return None
    name = IMAGE_KEY if IMAGE_KEY in rows.column_names else "key"
    needed = {row[name] for row in rows.select([name, "status"]).to_pylist() if row["status"] == OK}
    purged = set(rows["key"].to_numpy()[purged_mask(rows)].tolist()) - needed
    with db.storage.scratch() as scratch:
        part = scratch / "part.tar"
        with (
            db.storage.open(path) as handle,
            part.open("wb") as out,
            tarfile.open(fileobj=out, mode="w", format=form) as target,
        ):
            where = f"database {db.name!r}: {path}"
            for member in tar_members(handle, where, DatabaseError):
                stem = PurePosixPath(member.name).stem
                if member.kind != "file" or (stem.isdigit() and int(stem) in purged):
                    continue
                info = tarfile.TarInfo(member.name)
                info.size, info.mode = member.size, 0o644
                target.addfile(info, io.BytesIO(read_member(handle, member, where, DatabaseError)))
        return db.storage.publish(part, path)
