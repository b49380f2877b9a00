"""Uploaded query pictures: decoded within the limits of pipeline.images, reduced, and held in memory for a while.

Reads: untrusted bytes, and stored pictures. Writes nothing: a query picture is never stored on disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from pipeline.database import picture_files
from pipeline.errors import ConfigError, DatabaseError, PictureError
from pipeline.images import DRAFT_SIDE, decode

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.database import RetrievalDatabase

LONGEST = 4096  # pixels of the longer side

MOST = 128  # pictures in memory: 512 pixels on the shorter side, about 1 MB each


class Uploads:
    """Small RGB pictures by id. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoding = threading.Lock()  # one at a time: decoding may take up to 2 GiB
        self._pictures: OrderedDict[str, Image] = OrderedDict()

    def add(self, data: bytes) -> str:
        """The id of a picture file: the beginning of its sha256. Raises ConfigError if it is not a picture or too large."""
        name = hashlib.sha256(data).hexdigest()[:32]
        if self.get(name) is not None:
            return name
        with self._decoding:
            try:
                image = decode(data, DRAFT_SIDE).image
            except PictureError as error:
                raise ConfigError(f"the file cannot be decoded as a picture: {error}") from error
            scale = min(DRAFT_SIDE / min(image.size), LONGEST / max(image.size))
            if scale < 1:
                image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        with self._lock:
            self._pictures[name] = image
            while len(self._pictures) > MOST:
                self._pictures.popitem(last=False)
        return name

    def add_stored(self, database: RetrievalDatabase, key: int) -> str:
        """The id of a row's stored picture. Raises DatabaseError if none was kept."""
        name = hashlib.sha256(f"{database.home}/{database.name}/{key}".encode()).hexdigest()[:32]
        if self.get(name) is not None:
            return name
        data = picture_files(database, [key]).get(key)
        if data is None:
            raise DatabaseError(
                f"row {key} of {database.name!r} has no stored picture, and the other database has another encoder: drop the "
                "picture's file here"
            )
        made = self.add(data)
        with self._lock:
            self._pictures[name] = self._pictures[made]
        return name

    def get(self, name: str) -> Image | None:
        """The picture; None if the id is unknown or no longer in memory."""
        with self._lock:
            found = self._pictures.get(name)
            if found is not None:
                self._pictures.move_to_end(name)
            return found
