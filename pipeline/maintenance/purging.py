"""`rdmpipe purge`: remove rows permanently, by picture (sha256), by URL or by filter, and keep them out of later builds.

Reads: the embedding shards of every version. Writes, under the database's lease: the block list, the shards that held such rows
(maintenance/rewriting.py), the index, and a new version by compare-and-swap. Then it searches for every purged row, and removes
the versions that still hold one, with all files that no remaining version needs. That includes files of an unfinished build.
Databases with other encoders' vectors of the same pictures (pipeline/catalog/vectors.py) are purged with it, and so are shards
that were prepared for training (maintenance/derived.py). The summary names other places of the home that may show a purged
picture. A purge that was killed finishes when it is run again; until then builds refuse to run. A purge does not reach exports,
backups, caches of other machines, or models that were trained on a picture.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.building import Contents, publish, shard_entries
from pipeline.catalog import Companion, companions, resolve_database
from pipeline.database import (
    BLOCKED_KINDS,
    PURGE_BEGUN,
    BlockList,
    RetrievalDatabase,
    Version,
    picture_files,
    purged_mask,
    read_block_list,
    write_block_list,
)
from pipeline.errors import ConfigError, DatabaseError, EncoderError
from pipeline.filters import conjunction, filter_mask
from pipeline.index import IndexConfig, IndexInput, Queries, text_queries
from pipeline.maintenance.derived import Purged, places_left, purge_prepared
from pipeline.maintenance.rewriting import rewrite_shard
from pipeline.maintenance.versions import remove_versions
from pipeline.retrieval import open_search
from pipeline.schema import OK, metadata_columns
from pipeline.storage import lease

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# A header line has one of these words, and no part of an address or a sum.
_HEADER = re.compile("url|address|link|image|picture|file|sha|hash|checksum", re.IGNORECASE)
_ENTRY = re.compile(r"[/:\\.]|[0-9a-fA-F]{32}")

SAME = 0.9999  # two float16 vectors with at least this score may be of the same picture


@dataclass(frozen=True)
class PurgeRequest:
    """What to purge: exactly one of hash_list, url_list and where; none of them finishes an interrupted purge."""

    name: str
    hash_list: Path | None = None
    url_list: Path | None = None
    where: str = ""
    dry_run: bool = False
    home: str | None = None
    wait_s: float = 0.0


@dataclass(frozen=True)
class PurgeSummary:
    """The result of a purge. After an interruption, it counts only the rows that the second call still found."""

    name: str
    version: str
    rows: int  # keys of all versions whose rows are removed
    in_current: int  # of them, in the index that was current
    shards: int  # rewritten shards of the current version
    versions_removed: tuple[str, ...] = ()
    files_removed: int = 0
    searched: int = 0  # purged vectors that were searched for
    found: int = 0  # of them, or of their keys or pictures, those that were found: always 0, else an error is raised
    look_alikes: tuple[int, ...] = ()  # keys of other rows with the same vector as a purged one
    prepared: int = 0  # rows that were removed from shards prepared for training
    left: tuple[str, ...] = ()  # places of the home that may still show a purged picture, each with a command
    unmatched: tuple[str, ...] = ()  # entries of the list that match no row; they are also kept out of later builds
    notes: tuple[str, ...] = ()
    companions: tuple[PurgeSummary, ...] = ()  # of databases with other encoders' vectors of these pictures

    def text(self, dry_run: bool = False) -> str:
        """The summary to print."""
        return "\n".join([self._own(dry_run), *(one.text(dry_run) for one in self.companions)])

    def _own(self, dry_run: bool) -> str:
        what = f"{self.rows:,} row(s), {self.in_current:,} of them in the current index, in {self.shards:,} shard(s)"
        if dry_run:
            return "\n".join([f"{self.name}: would purge {what}", *self._unmatched()])
        lines = [f"{self.name}: purged {what}; version {self.version}"]
        lines.append(
            f"searched for {self.searched:,} purged vectors and for every key, sum and address: {self.found} found"
        )
        if self.look_alikes:
            keys = ", ".join(map(str, self.look_alikes[:20]))
            lines.append(f"{len(self.look_alikes):,} other row(s) have the same vector and are kept: key {keys}")
        lines.append(
            f"versions removed: {', '.join(self.versions_removed) or 'none'}; {self.files_removed:,} files removed"
        )
        if self.prepared:
            lines.append(f"{self.prepared:,} row(s) removed from shards prepared for training")
        lines += [f"left: {place}" for place in self.left]
        return "\n".join([*lines, *self._unmatched()])

    def _unmatched(self) -> list[str]:
        if not self.unmatched:
            return []
        return [f"{len(self.unmatched):,} entries of the list match no row of {self.name}; check them:"] + [
            f"  {entry}" for entry in self.unmatched
        ]


class AllRowsError(DatabaseError):
    """A purge that would leave no row."""


@dataclass(frozen=True)
class Wanted:
    """The entries of a purge list, and the column of a row that they are compared with."""

    column: str  # sha256 | url
    entries: frozenset[str]

    def blocked(self) -> BlockList:
        return BlockList().with_values(self.column, self.entries)


def purge(request: PurgeRequest, say: Callable[[str], None] = lambda text: None) -> PurgeSummary:
    """Purge, or with dry_run only count. Raises ConfigError, FilterError, DatabaseError, BusyError, ConflictError."""
    if "@" in request.name:
        raise ConfigError(f"{request.name}: rows are purged from all versions; leave out the part from @ on")
    selection = resolve_database(request.name, request.home)
    db, notes = selection.database, []
    if db.name != request.name:
        notes.append(f"{request.name} is a view: rows are purged from {db.name}, its base")
    asked = [value for value in (request.hash_list, request.url_list, request.where.strip()) if value]
    if len(asked) > 1 or not (asked or db.storage.exists(PURGE_BEGUN)):
        raise ConfigError("give exactly one of --hash-list, --url-list and --where")
    wanted = Wanted("sha256", frozenset())
    if request.hash_list is not None:
        wanted = Wanted("sha256", frozenset(_read_list(request.hash_list, hashes=True)))
    if request.url_list is not None:
        wanted = Wanted("url", frozenset(_read_list(request.url_list, hashes=False)))
    columns = {k: v for k, v in metadata_columns(selection.version.columns).items() if k != "duplicate_of"}
    where = conjunction(selection.where, request.where, columns=columns) if request.where.strip() else ""
    with lease(db.storage, f"purge {db.name}", request.wait_s, notify=say):
        current = db.version()
        before = read_block_list(db.storage)
        names, unmatched = _names(db, wanted, where, list(columns))
        unmatched = frozenset(entry for entry in unmatched if not before.covers({wanted.column: entry}))
        blocked = BlockList(before.marks | wanted.blocked().marks | names.marks)
        more = companions(db.name, db.home)
        done = replace(_purge(db, current, blocked, request.dry_run, say), unmatched=tuple(sorted(unmatched)))
        others = [_purge_companion(one, blocked, request, say) for one in more if one.version is not None]
        notes += [_unfinished(one) for one in more if one.version is None]
        if not request.dry_run:
            db.storage.remove(PURGE_BEGUN)  # last: a killed purge continues with the companions
        return replace(done, notes=tuple(notes), companions=tuple(others))


def _purge(
    db: RetrievalDatabase, current: Version, blocked: BlockList, dry_run: bool, say: Callable[[str], None]
) -> PurgeSummary:
    """Purge one database, whose lease the caller holds, and leave it marked as being purged. With dry_run only count."""
    held, sums = _held(db, blocked)
    done = _counted(db, current, held)
    if dry_run:
        return done
    db.storage.clear_scratch()
    write_block_list(db.storage, blocked)
    db.storage.write_text(PURGE_BEGUN, "{}\n")
    if any(entry.artifact.path in held for entry in current.shards):
        say(f"purging {done.rows:,} rows from {done.shards:,} shards of {db.name}")
        current = _publish(db, current, blocked, held)
    done = _searched(db, current, blocked, held, replace(done, version=current.id))
    keys = _purged_keys(db, current)
    prepared = purge_prepared(db, keys)
    versions = frozenset((*db.versions(), *(name.split(".")[0] for name in db.storage.list("versions", ".purged"))))
    left = tuple(places_left(db, Purged(keys, sums, versions), say))
    doomed = [v for v in map(db.version, db.versions()) if any(entry.artifact.path in held for entry in v.shards)]
    removed, files = remove_versions(db, [version.id for version in doomed])
    return replace(done, versions_removed=removed, files_removed=files, prepared=prepared, left=left)


def _purge_companion(
    one: Companion, blocked: BlockList, request: PurgeRequest, say: Callable[[str], None]
) -> PurgeSummary:
    """Purge the same pictures from a database with another encoder's vectors of them. With dry_run only count."""
    db = one.database
    with lease(db.storage, f"purge {db.name}", request.wait_s, notify=say):
        current = db.version()
        marks = BlockList(blocked.marks | read_block_list(db.storage).marks)
        try:
            done = _purge(db, current, marks, request.dry_run, say)
        except AllRowsError:
            left = f"database {db.name} would have no row left; remove it: rm -r {db.storage.url}"
            return PurgeSummary(db.name, current.id, 0, 0, 0, left=(left,))
        if not request.dry_run:
            db.storage.remove(PURGE_BEGUN)
        return done


def _unfinished(one: Companion) -> str:
    return (
        f"{one.database.name}, vectors of {one.encoder}, is not finished and may hold these pictures: remove its folder, "
        f"{one.database.storage.url}"
    )


def _read_list(path: Path, hashes: bool) -> list[str]:
    """The entries of a purge list: one a line, or one column of a CSV file with a header line.

    A byte order mark, quotes, blank lines and lines that begin with # are allowed. Text is UTF-8, UTF-16 with its mark, or
    else Windows-1252. Raises ConfigError naming the line that is neither an entry nor a header.
    """
    what = "sha256" if hashes else "URL"
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a list: {error}") from error
    found: list[str] = []
    names: list[str] = []  # of the columns, if there is a header line
    delimiter = ","
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] == "#":
            continue
        is_header = not found and not names and _HEADER.search(line) and not _ENTRY.search(line)
        if is_header:
            delimiter = max(",;\t", key=lambda mark: (line.count(mark), mark == ","))
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
        entry = _entry(line, cells, names, hashes)
        if entry:
            found.append(entry)
        elif is_header:
            names = [cell.lower() for cell in cells]
        else:
            rule = "64 hex digits" if hashes else "an http(s) address"
            columns = f" in a row of {len(names)} cells" if len(names) > 1 else ", one a line"
            raise ConfigError(f"{path}, line {number}: {line[:80]!r} is not a {what}: expected {rule}{columns}")
    if not found:
        raise ConfigError(f"{path}: no {what} in it")
    return found


def _entry(line: str, cells: list[str], names: list[str], hashes: bool) -> str:
    """The entry in a line, empty if there is none. In a list of one column, commas belong to the address."""
    if len(names) > 1:
        if len(cells) != len(names):
            return ""
        known = ("sha256", "hash", "checksum", "sha") if hashes else ("url", "image_url", "address", "link")
        cell = cells[next((names.index(name) for name in known if name in names), 0)]
    else:
        cell = cells[0] if line.startswith('"') or hashes else line
    if not hashes:
        return cell if "://" in cell else ""
    word = cell.split(" ")[0].removeprefix("sha256:")  # sha256sum writes the file's name after the sum
    return word.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", word) else ""


def _tables(db: RetrievalDatabase, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Each embedding shard of any version, once, with some of its columns."""
    files = {entry.artifact.path: entry.artifact for name in db.versions() for entry in db.version(name).shards}
    for path, file in files.items():
        yield path, db.read_table(file, columns)


def _names(db: RetrievalDatabase, wanted: Wanted, where: str, columns: list[str]) -> tuple[BlockList, frozenset[str]]:
    """(the requested rows, by their names in the source; the list's entries that match no row).

    Blocking the names keeps the rows out even if the source later delivers other bytes for them.
    """
    found, blocked = BlockList(), wanted.blocked()
    seen: set[str] = set()
    for _, table in _tables(db, list(dict.fromkeys([*columns, "error"]))):
        matched = blocked.mask(table)
        if where:
            matched |= filter_mask(where, table.select(columns)) & ~purged_mask(table)
        found = found.with_values("item_id", (item for item in table["item_id"].filter(matched).to_pylist() if item))
        if wanted.entries:
            seen |= wanted.entries & set(table[wanted.column].to_pylist())
    return found, wanted.entries - seen


def _held(db: RetrievalDatabase, blocked: BlockList) -> tuple[dict[str, NDArray[np.int64]], frozenset[str]]:
    """The embedding shards that hold blocked rows, by path, with these rows' keys; and the checksums of their pictures."""
    found = {}
    sums: set[str] = set()
    for path, table in _tables(db, ["key", "item_id", "error", "url", "sha256"]):
        mask = blocked.mask(table)
        if mask.any():
            found[path] = table["key"].to_numpy()[mask]
            sums |= {checksum for checksum in table["sha256"].filter(mask).to_pylist() if checksum}
    return found, frozenset(sums)


def _purged_keys(db: RetrievalDatabase, current: Version) -> NDArray[np.int64]:
    """The keys of all purged rows in the shards of a version."""
    import numpy as np

    found = [np.empty(0, np.int64)]
    for entry in current.shards:
        table = db.read_table(entry.artifact, ["key", "error"])
        found.append(table["key"].to_numpy()[purged_mask(table)])
    return np.concatenate(found)


def _counted(db: RetrievalDatabase, current: Version, held: dict[str, NDArray[np.int64]]) -> PurgeSummary:
    import numpy as np

    keys = np.unique(np.concatenate([np.empty(0, np.int64), *held.values()]))
    with open_search(db, current) as searcher:
        living = int(np.isin(np.asarray(searcher.keys), keys).sum())
    if living == current.index.rows:
        raise AllRowsError(
            f"all {living:,} rows of database {db.name!r} would be purged. A database has at least one row: "
            f"remove its folder instead, {db.storage.url}"
        )
    shards = sum(1 for entry in current.shards if entry.artifact.path in held)
    return PurgeSummary(db.name, current.id, len(keys), living, shards)


def _publish(
    db: RetrievalDatabase, current: Version, blocked: BlockList, held: dict[str, NDArray[np.int64]]
) -> Version:
    """Rewrite the shards, index them, and publish."""
    receipts = []
    for entry in current.shards:
        if entry.artifact.path in held:
            receipts.append(rewrite_shard(db, current.encoder, entry, blocked))
        else:
            receipts.append(db.read_receipt(db.embedding_receipt(current.encoder, entry.id)))
    config = IndexConfig(**current.index.build["config"])
    rows = IndexInput(current.encoder, current.columns, shard_entries(receipts))
    return publish(db, Contents.of(current), receipts, config, _texts(db, rows, config), current)


def _texts(db: RetrievalDatabase, rows: IndexInput, config: IndexConfig) -> Queries:
    """Text queries for measuring recall. None if the encoder cannot be reached, because a purge must not depend on it."""
    from pipeline.encoders import load_recorded

    try:
        encoder = load_recorded(rows.encoder)
    except EncoderError as error:
        return Queries(f"none: the encoder cannot be reached: {error}")
    return text_queries(encoder, db, rows, config)


def _searched(
    db: RetrievalDatabase, current: Version, blocked: BlockList, held: dict[str, NDArray[np.int64]], done: PurgeSummary
) -> PurgeSummary:
    """Search for every purged row in the current version, by key, block list, stored picture and vector. Raises
    DatabaseError."""
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
            f"purged rows are still found in {db.name}@{current.id}: keys {sorted(found)[:10]}. This is a bug in rdmpipe: "
            "older versions were not changed; please report it"
        )
    return replace(done, searched=searched, look_alikes=tuple(sorted(alike)))
