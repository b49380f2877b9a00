"""One shard without its purged rows: pictures, rows and thumbnails in place, embeddings under a new name, receipts last.

Reads: a published embedding shard and what lies beside it. The rows stay, in their places, with nothing left in them but
their key, their name in the source and that they were purged: what a download would write now. Gives the same bytes
whenever it is run again; the shard that the published version names is left as it is.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.blocklist import BlockList, blank_rows, purged_mask
from pipeline.config import digest
from pipeline.database import EncoderRecord, RetrievalDatabase, ShardEntry
from pipeline.schema import IMAGE_KEY, OK, shard_name
from pipeline.stage import Receipt, count_statuses
from pipeline.storage import Artifact

if TYPE_CHECKING:
    import pyarrow as pa


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
    text = db.storage.read_text(path)
    if text is None:
        return None
    old = Receipt.from_json(text)
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
            tarfile.open(fileobj=handle, mode="r:") as source,
            part.open("wb") as out,
            tarfile.open(fileobj=out, mode="w", format=form) as target,
        ):
            while (member := source.next()) is not None:
                source.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                data = source.extractfile(member)
                if data is None or int(PurePosixPath(member.name).stem) in purged:
                    continue
                info = tarfile.TarInfo(member.name)
                info.size, info.mode = member.size, member.mode
                target.addfile(info, io.BytesIO(data.read()))
        return db.storage.publish(part, path)
