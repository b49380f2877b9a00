"""The stored pictures of rows, for requests of single pictures in quick succession.

Reads thumbnails/<shard>.tar and images/<shard>.tar, and caches the position of each picture, so that a picture needs one
seek and one read. Writes nothing. If a tar was replaced (a purge rewrites it), it is listed again: its size, time and inode are
compared before each use. On an object store nothing is cached, because a replaced object cannot be detected without a
request.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.database import picture_files, picture_key
from pipeline.errors import DamagedError
from pipeline.images import decode, format_of, thumbnail
from pipeline.schema import shard_of
from pipeline.storage import TarMember, tar_members

if TYPE_CHECKING:
    from pipeline.database import RetrievalDatabase

SIDE = 448  # pixels of the longer side of a picture on a card; shown at about half of it, for fine screens

LARGE = 200_000  # bytes; a larger file is reduced before it is sent for a card

MOST_SHARDS = 64  # shards whose positions are cached: about 1 MB each

MOST_SMALL = 64 << 20  # bytes of cached small pictures

TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp",
         "BMP": "image/bmp", "AVIF": "image/avif"}  # fmt: skip


class StoredPictures:
    """Pictures by database and key. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: OrderedDict[str, tuple[tuple[int, int, int], dict[int, TarMember]]] = OrderedDict()
        self._small: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._small_bytes = 0
        self._making = threading.Semaphore(2)  # decoding a picture may take up to 2 GiB

    def picture(self, database: RetrievalDatabase, key: int, original: bool) -> tuple[bytes, str] | None:
        """The file's bytes and media type; None if no picture of the row is stored. Raises DamagedError, PictureError.

        original: the stored original, else the stored thumbnail. Otherwise a picture small enough for a card.
        """
        data = self._stored(database, key, original)
        if data is None:
            return None
        kind = format_of(data)
        if kind in TYPES and (original or len(data) <= LARGE):
            return data, TYPES[kind]
        return self._shrunk(database, key, data), "image/jpeg"  # browsers do not show every original, for example TIFF

    def _shrunk(self, database: RetrievalDatabase, key: int, data: bytes) -> bytes:
        name = (f"{database.home}/{database.name}", key, len(data))
        with self._lock:
            if (known := self._small.get(name)) is not None:
                self._small.move_to_end(name)
                return known
        with self._making:
            made = thumbnail(decode(data, SIDE).pixels, SIDE)
        with self._lock:
            self._small[name] = made
            self._small_bytes += len(made)
            while self._small_bytes > MOST_SMALL:
                self._small_bytes -= len(self._small.popitem(last=False)[1])
        return made

    def _stored(self, database: RetrievalDatabase, key: int, original: bool) -> bytes | None:
        if not database.storage.is_local:
            return picture_files(database, [key], originals=original).get(key)
        shard = shard_of(key)
        names = [database.thumbnail_tar(shard), database.image_tar(shard)]
        for name in reversed(names) if original else names:
            path = Path(database.storage.full(name))
            try:
                handle = path.open("rb")
            except FileNotFoundError:
                continue
            with handle:
                member = self._members(database, name, path, handle.fileno()).get(key)
                if member is not None:
                    handle.seek(member.offset)
                    return handle.read(member.size)
        return None

    def _members(self, database: RetrievalDatabase, name: str, path: Path, descriptor: int) -> dict[int, TarMember]:
        """The position of each picture in an open tar, by key."""
        status = os.fstat(descriptor)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock:
            known = self._places.get(str(path))
            if known is not None and known[0] == stamp:
                self._places.move_to_end(str(path))
                return known[1]
        try:
            with path.open("rb") as handle:
                found = {picture_key(member): member for member in tar_members(handle, name, DamagedError)}
        except DamagedError as error:
            raise database.damaged(name, str(error)) from error
        found.pop(-1, None)
        with self._lock:
            self._places[str(path)] = (stamp, found)
            while len(self._places) > MOST_SHARDS:
                self._places.popitem(last=False)
        return found
