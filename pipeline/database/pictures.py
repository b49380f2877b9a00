"""Small pictures of a database's rows, for contact sheets and galleries.

Reads: thumbnails/<shard>.tar, else images/<shard>.tar, each once for all keys asked of it. Writes nothing. A row whose pictures
were dropped has none: that is not an error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.schema import shard_of

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.database.layout import RetrievalDatabase

SIDE = 256  # pixels, the longer side


def picture_files(database: RetrievalDatabase, keys: Iterable[int], originals: bool = False) -> dict[int, bytes]:
    """The stored picture file of each key that has one: the thumbnail (JPEG), or the original where pictures were kept.

    `originals`: the other way round, the thumbnail only where the original was not kept.
    """
    by_shard: dict[int, set[int]] = {}
    for key in keys:
        by_shard.setdefault(shard_of(int(key)), set()).add(int(key))
    found: dict[int, bytes] = {}
    for shard, wanted in sorted(by_shard.items()):
        names = (database.thumbnail_tar(shard), database.image_tar(shard))
        for name in reversed(names) if originals else names:
            try:
                handle = database.storage.open(name)
            except FileNotFoundError:
                continue
            with handle, tarfile.open(fileobj=handle, mode="r:") as archive:
                while wanted and (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                    path = PurePosixPath(member.name)
                    if path.suffix in (".json", ".txt") or not path.stem.isdigit() or int(path.stem) not in wanted:
                        continue
                    data = archive.extractfile(member)
                    if data is not None:
                        found[int(path.stem)] = data.read()
                        wanted.discard(int(path.stem))
            if not wanted:
                break
    return found


def thumbnails(database: RetrievalDatabase, keys: Iterable[int], side: int = SIDE) -> dict[int, Image.Image]:
    """RGB pictures of at most `side` pixels on the longer side, for the keys whose picture is stored."""
    from pipeline.images import decode

    made = {}
    for key, data in picture_files(database, keys).items():
        picture = decode(data, side).image
        picture.thumbnail((side, side))
        made[key] = picture
    return made
