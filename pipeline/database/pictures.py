"""The stored pictures of a database's rows, for contact sheets and galleries.

Reads thumbnails/<shard>.tar, else images/<shard>.tar, each once for all keys. Writes nothing. A row without a stored picture
is not an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.database.counts import keys_by_shard
from pipeline.errors import DamagedError
from pipeline.storage import TarMember, read_member, tar_members

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.database.layout import RetrievalDatabase

SIDE = 256  # pixels, the longer side


def picture_key(member: TarMember) -> int:
    """The key of the row whose picture a member of a shard's tar is; -1 if it is not a picture (a row's JSON or text)."""
    path = PurePosixPath(member.name)
    is_key = path.stem.isascii() and path.stem.isdigit() and len(path.stem) < 19
    return int(path.stem) if member.kind == "file" and is_key and path.suffix not in (".json", ".txt") else -1


def picture_files(database: RetrievalDatabase, keys: Iterable[int], originals: bool = False) -> dict[int, bytes]:
    """The stored picture file of each key that has one: the thumbnail (JPEG), or the original if pictures were kept.

    originals: prefer the original, and return the thumbnail if the original was not kept. Raises DamagedError.
    """
    found: dict[int, bytes] = {}
    for shard, wanted in sorted(keys_by_shard(keys).items()):
        names = (database.thumbnail_tar(shard), database.image_tar(shard))
        for name in reversed(names) if originals else names:
            try:
                handle = database.storage.open(name)
            except FileNotFoundError:
                continue
            try:
                with handle:
                    for member in tar_members(handle, name, DamagedError):
                        key = picture_key(member)
                        if key in wanted:
                            found[key] = read_member(handle, member, name, DamagedError)
                            wanted.discard(key)
                        if not wanted:
                            break
            except DamagedError as error:
                raise database.damaged(name, str(error)) from error
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
