"""Picture files into RGB on white: hostile and odd ones too. Perceptual hash and thumbnail.

Reads: bytes. Writes nothing. A picture that cannot be decoded is a PictureError whose `reason` is one of: empty,
not_an_image, corrupt, truncated, too_large. Colour profiles are ignored, as CLIP's own training did. Does not promise the same
pixels under another libjpeg.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import PictureError
from pipeline.images.resizing import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # what Pillow itself refuses: twice the quarter gigabyte of its warning

DRAFT_SIDE = 512  # a JPEG is decoded at 1/2, 1/4 or 1/8 as long as its shorter side keeps this many pixels

THUMBNAIL_SIDE = 256

# Formats without an interpreter behind them (EPS would start Ghostscript) and with a signature to know them by.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # as far as Pillow has them

_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")

_ORIENTATION = 0x0112

# EXIF orientation -> name of the PIL.Image.Transpose that undoes it
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture: RGB on white, upright. width and height are the file's, upright; `reduced`: image is smaller."""

    image: Image
    width: int
    height: int
    reduced: bool

    @cached_property
    def pixels(self) -> NDArray[Any]:
        """The image as (H, W, 3) uint8, writable."""
        return np.array(self.image)


def decode(data: bytes, side: int = 0, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a picture file; of an animation the first frame.

    `side` allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at least that
    many pixels (0: full size). Raises PictureError.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise PictureError("empty", "zero bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        size = image.size
        if size[0] * size[1] > max_pixels:
            raise PictureError("too_large", f"{size[0]} x {size[1]} pixels; at most {max_pixels} are decoded")
        if side and hasattr(image, "draft"):
            image.draft(None, (side, side))
        reduced = image.size != size
        image.load()
        size = size if reduced else image.size  # TIFF turns itself upright in load()
        orientation = _orientation(image)
        upright = _on_white(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise PictureError("corrupt", "the file's header cannot be read") from error
        raise PictureError("not_an_image", f"begins with {data[:16]!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", str(error)) from error
    except Exception as error:  # decoders raise whatever their format's parser trips over
        text = f"{type(error).__name__}: {error}"[:200]
        cut_short = any(word in text.lower() for word in ("truncated", "unexpected end", "eoferror"))
        raise PictureError("truncated" if cut_short else "corrupt", text) from error
    if orientation in _UPRIGHT:
        upright = upright.transpose(getattr(Image.Transpose, _UPRIGHT[orientation]))
        if orientation >= 5:
            size = size[1], size[0]
    return DecodedImage(upright, size[0], size[1], reduced)


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def decoded_pixels(data: bytes, side: int = 0) -> int:
    """How many pixels `decode` with the same `side` would hold, from the header alone; 0 where that cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if side and hasattr(image, "draft"):
            image.draft(None, (side, side))
    except Exception:  # `decode` says what is wrong with it
        return 0
    return image.size[0] * image.size[1]


def upright_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) after EXIF orientation, from the header alone; None where that cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        width, height = image.size
        turned = _orientation(image) >= 5
    except Exception:  # `decode` says what is wrong with it
        return None
    return (height, width) if turned else (width, height)


def _orientation(image: Image) -> int:
    """EXIF orientation, 1 where there is none. An EXIF block that cannot be parsed says nothing about orientation."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1


def _on_white(image: Image) -> Image:
    """RGB, transparency composited on white, 16-bit and float samples scaled to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return _grey((np.asarray(image).astype(np.float32)) / 257.0)
    if image.mode == "I":  # 32-bit integers: what 16-bit greyscale PNGs were in older Pillows
        values = np.asarray(image).astype(np.float64)
        return _grey(values / 257.0 if values.max(initial=0) > 255 else values)
    if image.mode == "F":
        floats = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=1e9, neginf=-1e9)
        return _grey(floats * 255.0 if floats.max(initial=0) <= 1.0 else floats)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        layers = image.convert("RGBA")
        ground = Image.new("RGB", layers.size, (255, 255, 255))
        ground.paste(layers, mask=layers.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: NDArray[Any]) -> Image:
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


@lru_cache(maxsize=1)
def _cosines() -> NDArray[Any]:
    """The first 8 rows of the 32-point DCT-II, (8, 32), unscaled."""
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    cosines: NDArray[Any] = np.cos(np.pi * k * (2 * n + 1) / 64)
    return cosines


def perceptual_hash(pixels: NDArray[Any]) -> str:
    """64-bit perceptual hash of (H, W, 3) uint8 pixels as 16 hex digits: near-equal pictures differ in few bits.

    Resized to 32 x 32 (bilinear with antialias), luma (ITU-R 601), two-dimensional DCT-II, the 8 x 8 lowest frequencies in row
    order (most significant bit first), each 1 where it is above their median (pHash; Zauner 2010).
    """
    cosines = _cosines()
    luma = resize(pixels, 32, 32, "bilinear") @ np.array([0.299, 0.587, 0.114])
    low = cosines @ luma @ cosines.T
    return np.packbits(low.ravel() > np.median(low)).tobytes().hex()


def thumbnail(pixels: NDArray[Any], side: int = THUMBNAIL_SIDE) -> bytes:
    """(H, W, 3) uint8 pixels as a JPEG of at most `side` pixels a side, never enlarged. Same pixels, same bytes."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if max(height, width) > side:
        scale = side / max(height, width)
        pixels = resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)), "bilinear")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
