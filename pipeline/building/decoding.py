"""The work of a decode thread on one picture file: the encoder's pixels, the perceptual hash, the thumbnail.

Reads and writes nothing. Hash and thumbnail do not depend on the encoder, so that the shards of two
encoders agree on them.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoders import Preprocess
from pipeline.errors import PictureError
from pipeline.images import DRAFT_SIDE, decode, decoded_pixels, perceptual_hash, thumbnail
from pipeline.schema import PATCH_COORDS
from pipeline.sources import Row, read_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8] | NDArray[np.float32]  # (side, side, 3), from the encoder's preprocessing

_LARGE = 50_000_000  # pixels after a JPEG's reduction; larger pictures are decoded one at a time, which bounds memory

_one_large_picture = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """Prepared pixels and facts about the picture; or, without pixels, the row's error (`reason: detail`)."""

    pixels: Pixels | None
    error: str | None = None
    phash: str = ""
    width: int = 0
    height: int = 0
    thumbnail: bytes | None = None


def decode_row(
    preprocess: Preprocess,
    with_thumbnail: bool,
    max_pixels: int,
    patches: bool,
    item: tuple[int, Row, bytes | None],
) -> Decoded:
    """(row, its columns, picture bytes or None: nothing to do) -> the decoded picture. Raises no PictureError.

    With `patches`, the pixels are of the crop in the row's patch_coords; width and height remain the whole picture's.
    """
    data = item[2]
    if data is None:
        return Decoded(None)
    try:
        if patches:
            return _decode_patch(preprocess, with_thumbnail, max_pixels, data, item[1][PATCH_COORDS])
        if decoded_pixels(data, DRAFT_SIDE) > _LARGE:
            with _one_large_picture:
                return _decode(preprocess, with_thumbnail, max_pixels, data)
        return _decode(preprocess, with_thumbnail, max_pixels, data)
    except PictureError as error:
        return Decoded(None, str(error))


def _decode_patch(
    preprocess: Preprocess, with_thumbnail: bool, max_pixels: int, data: bytes, coords: str | None
) -> Decoded:
    with _one_large_picture if decoded_pixels(data) > _LARGE else contextlib.nullcontext():
        picture = decode(data, 0, max_pixels)
        if coords is None:
            raise PictureError("corrupt", "its size could not be read when it was downloaded")
        x0, y0, x1, y1 = read_box(coords)
        if x1 > picture.width or y1 > picture.height:
            raise PictureError("corrupt", f"{picture.width} x {picture.height} pixels, where its header said otherwise")
        crop = np.ascontiguousarray(picture.pixels[y0:y1, x0:x1])
    small = thumbnail(crop) if with_thumbnail else None
    return Decoded(preprocess(crop), None, perceptual_hash(crop), picture.width, picture.height, small)


def _decode(preprocess: Preprocess, with_thumbnail: bool, max_pixels: int, data: bytes) -> Decoded:
    picture = decode(data, DRAFT_SIDE, max_pixels)
    phash = perceptual_hash(picture.pixels)
    small = thumbnail(picture.pixels) if with_thumbnail else None
    width, height = picture.width, picture.height
    if picture.reduced and (preprocess.side == 0 or min(picture.image.size) < preprocess.side):
        picture = decode(data, preprocess.side, max_pixels)
    return Decoded(preprocess(picture.pixels), None, phash, width, height, small)
