"""Rewrite one shard without its purged rows.

Reads: a published embedding shard, its pictures, thumbnails and receipts. Writes: pictures, image rows and thumbnails in place,
the embedding table under a new name, receipts last. A purged row keeps its position, its key, its name in the source and the
note that it was purged; all its other values are blank. The embedding table of published versions is not changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.config import digest
from pipeline.database import BlockList, RetrievalDatabase, ShardEntry, blank_rows, purged_mask
from pipeline.encoders import EncoderRecord
from pipeline.errors import DatabaseError
from pipeline.execution import Receipt, count_statuses
from pipeline.schema import IMAGE_KEY, OK, shard_name
from pipeline.storage import GNU, USTAR, Artifact, read_member, tar_members, write_tar

if TYPE_CHECKING:
    import pyarrow as pa


def rewrite_shard(db: RetrievalDatabase, encoder: EncoderRecord, entry: ShardEntry, blocked: BlockList) -> Receipt:
    """Rewrite one published shard without the rows that `blocked` covers.

    Returns its embedding receipt, which names the new files. The same block list gives the same bytes.
    """
    table = _blanked(db.read_table(entry.artifact), blocked)
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


def _blanked(table: pa.Table, blocked: BlockList) -> pa.Table:
    return blank_rows(table, blocked.mask(table))


def _update(db: RetrievalDatabase, path: str, table: pa.Table, written: dict[str, Artifact]) -> Receipt | None:
    """Rewrite the receipt at `path` with the table's counts and the new files; None if there is no receipt."""
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
    """The folder and suffix of a shard's file. A purge changes neither."""
    return str(PurePosixPath(path).parent), PurePosixPath(path).suffix


def _rewrite_tar(db: RetrievalDatabase, path: str, rows: pa.Table, form: int) -> Artifact | None:
    """Rewrite an archive without the pictures that only purged rows use; None if there is no archive."""
    if not db.storage.exists(path):
        return None
    name = IMAGE_KEY if IMAGE_KEY in rows.column_names else "key"
    needed = {row[name] for row in rows.select([name, "status"]).to_pylist() if row["status"] == OK}
    purged = set(rows["key"].to_numpy()[purged_mask(rows)].tolist()) - needed
    with db.storage.scratch() as scratch:
        part = scratch / "part.tar"
        where = f"database {db.name!r}: {path}"
        with db.storage.open(path) as handle, write_tar(part, form) as target:
            for member in tar_members(handle, where, DatabaseError):
                stem = PurePosixPath(member.name).stem
                if member.kind == "file" and not (stem.isdigit() and int(stem) in purged):
                    target.add(member.name, read_member(handle, member, where, DatabaseError))
        return db.storage.publish(part, path)
