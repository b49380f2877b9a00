"""Picture files into RGB pixels on white, with bounds on memory and time; perceptual hash and thumbnail.

Reads: bytes from any source. Writes nothing. A picture that cannot be decoded is a PictureError whose `reason` is
one of: empty, not_an_image, corrupt, truncated, too_large, unsupported_samples, unsupported_format. Before it is decoded, a
picture's size is bounded in pixels (`max_pixels`), in bytes that decoding takes (`MAX_BYTES`) and, for JPEG, in scans times
pixels (`MAX_SCANNED`). Colour profiles are ignored, as in CLIP's training. Plain JPEGs are decoded by simplejpeg, all others
by Pillow. Does not promise the same pixels under another libjpeg.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PictureError
from pipeline.images.resizing import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # Pillow's own limit

MAX_BYTES = 2 << 30  # memory for decoding a picture and for its RGB pixels

MAX_SCANNED = 3_000_000_000  # scans times pixels of a JPEG; a progressive one usually has 10 scans

DRAFT_SIDE = 512  # a JPEG is decoded at 1/2, 1/4 or 1/8 as long as its shorter side keeps this many pixels

THUMBNAIL_SIDE = 256

# Formats that need no interpreter (EPS would start Ghostscript) and have a signature.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF", "JXL")
# if this Pillow has them; HEIF and JXL need a plugin (the extra `formats`)

_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")

_ORIENTATION = 0x0112

_SUBFILE = 254  # TIFF tag: bit 0 means that the picture is a reduced form of another one in the file

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags

_WHITE_IS_ZERO = 0

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # values of _SAMPLE_FORMAT

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags

# Bytes that Pillow needs for a pixel of a mode; 4 for all others.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}

# Bytes that a format's decoder needs for a pixel besides Pillow's image.
_DECODER_BYTES = {"WEBP": 12, "AVIF": 12, "JPEG2000": 16, "TIFF": 4}

_STRIP_PIXELS = 1 << 22  # conversions work on this many pixels at a time

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
    """A picture in RGB on white, upright. width, height: the file's size, upright; `reduced`: the image is smaller than that.

    `decoded` is the decoder's result, Pillow's image or (H, W, 3) uint8; `image` and `pixels` give it in either form.
    """

    decoded: Image | NDArray[np.uint8]
    width: int
    height: int
    reduced: bool

    @cached_property
    def image(self) -> Image:
        from PIL import Image

        return Image.fromarray(self.decoded) if isinstance(self.decoded, np.ndarray) else self.decoded

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as (H, W, 3) uint8, writable."""
        return self.decoded if isinstance(self.decoded, np.ndarray) else np.array(self.decoded)


def decode(data: bytes, side: int = 0, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a picture file, or the first frame of an animation.

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
        _check_cost(image, data, size)
        if image.format == "TIFF":
            _check_tiff(image)
        reduced = image.size != size
        pixels = _plain_jpeg(image, data, reduced)
        if pixels is not None:
            return DecodedImage(pixels, size[0], size[1], reduced)
        image.load()
        size = size if reduced else image.size  # Pillow turns a TIFF upright in load()
        orientation = _orientation(image)
        upright = _on_white(image)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise PictureError(
                "corrupt", "the header cannot be read, or has samples that Pillow does not read"
            ) from error
        raise PictureError("not_an_image", f"begins with {data[:16]!r}") from error
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", str(error)) from error
    except Exception as error:  # a decoder's parser may raise any error
        text = f"{type(error).__name__}: {error}"[:200]
        cut_short = any(word in text.lower() for word in ("truncated", "unexpected end", "eoferror"))
        raise PictureError("truncated" if cut_short else "corrupt", text) from error
    if orientation in _UPRIGHT:
        upright = upright.transpose(getattr(Image.Transpose, _UPRIGHT[orientation]))
        if orientation >= 5:
            size = size[1], size[0]
    return DecodedImage(upright, size[0], size[1], reduced)


def _plain_jpeg(image: Image, data: bytes, reduced: bool) -> NDArray[np.uint8] | None:
    """(H, W, 3) pixels of an upright, valid RGB JPEG, by simplejpeg: the same as Pillow's in about half the time.

    None for any other picture: Pillow decodes it, or reports the fault. `image` is Pillow's, opened and reduced.
    """
    if image.format != "JPEG" or image.mode != "RGB" or _orientation(image) != 1:
        return None
    try:
        import simplejpeg
    except ImportError:  # no wheel for this platform
        return None

    width, height = image.size
    least = {"min_width": width, "min_height": height} if reduced else {}
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True, **least)
    except ValueError:  # also for faults that Pillow tolerates
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  # registers itself
    return [name for name in _FORMATS if name in Image.OPEN]


def decoded_pixels(data: bytes, side: int = 0) -> int:
    """How many pixels `decode` with the same `side` would hold, from only the header; 0 if that cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if side and hasattr(image, "draft"):
            image.draft(None, (side, side))
    except Exception:  # `decode` reports the fault
        return 0
    return image.size[0] * image.size[1]


def format_of(data: bytes) -> str:
    """Pillow's name of the format that `decode` would read, from only the header; empty if it reads none."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=_formats()).format or ""
    except Exception:  # an unknown or damaged header
        return ""


def reads_format(name: str) -> bool:
    """Whether `decode` reads a format of this name (HEIF and JXL need a plugin)."""
    return name in _formats()


def upright_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) after EXIF orientation, from only the header; None if that cannot be read."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        # Some versions of Pillow give an oriented TIFF's size upright before it is loaded; its tags give the stored size.
        tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        width, height = int(tags.get(256, image.width)), int(tags.get(257, image.height))
        turned = _orientation(image) >= 5
    except Exception:  # `decode` reports the fault
        return None
    return (height, width) if turned else (width, height)


def _orientation(image: Image) -> int:
    """EXIF orientation; 1 if there is none or the EXIF block cannot be parsed."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1


def _check_cost(image: Image, data: bytes, size: tuple[int, int]) -> None:
    """Raise PictureError if decoding would take more bytes or more passes than allowed. size: before any reduction."""
    pixels, whole = image.size[0] * image.size[1], size[0] * size[1]
    each = _MODE_BYTES.get(image.mode, 4) + _DECODER_BYTES.get(image.format or "", 0)
    each += 3 + (0 if image.mode == "RGB" else 4)  # the array of pixels, and the RGB image if that is a separate one
    cost = pixels * each
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans * whole > MAX_SCANNED:
            raise PictureError("too_large", f"{scans} scans of {size[0]} x {size[1]} pixels")
        if scans > 1:
            cost += 6 * whole  # libjpeg keeps the coefficients of all pixels, 2 bytes each
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        sides = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
        if all(isinstance(side, int) for side in sides):
            cost += 16 * sides[0] * sides[1]
    if cost > MAX_BYTES:
        shown = f"{image.size[0]} x {image.size[1]} pixels of {image.format} {image.mode}"
        raise PictureError("too_large", f"{shown} take {cost >> 20} MB; at most {MAX_BYTES >> 20} MB are used")


def _check_tiff(image: Image) -> None:
    """Raise PictureError for a TIFF that Pillow reads but that would not give the right picture."""
    tags = getattr(image, "tag_v2", {})
    if int(tags.get(_SUBFILE, 0)) & 1:
        raise PictureError("unsupported_format", "a raw photograph: the picture that can be read is its thumbnail")
    if _SIGNED in (tags.get(_SAMPLE_FORMAT) or ()) and max(tags.get(_BITS) or (1,)) <= 8:
        raise PictureError("unsupported_samples", "signed integers of 8 bits; expected unsigned ones")


def _strips(image: Image) -> Iterator[tuple[int, int, Image]]:
    """(first row, row after the last, part of the image): converting one part at a time needs little memory."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield top, bottom, image.crop((0, top, width, bottom))


def _on_white(image: Image) -> Image:
    """RGB, transparency composited on white, 16-bit and float samples scaled to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        ground = Image.new("RGB", image.size, (255, 255, 255))
        for top, _, strip in _strips(image):
            layers = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            ground.paste(layers, (0, top), mask=layers.getchannel("A"))
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image) -> Image:
    """Grey samples of more than 8 bits as RGB, scaled as the file states (`_white`)."""
    from PIL import Image

    white, is_zero_white = _white(image)
    grey = np.empty((image.size[1], image.size[0]), np.uint8)
    for top, bottom, strip in _strips(image):
        values = np.clip(np.rint(_samples(strip) / (white / 255.0)), 0, 255).astype(np.uint8)
        grey[top:bottom] = 255 - values if is_zero_white else values
    return Image.fromarray(grey).convert("RGB")


def _white(image: Image) -> tuple[float, bool]:
    """(the sample that is white, whether zero is white instead of black) of a grey image of more than 8 bits.

    A TIFF states the bits of a sample, whether it is signed or a float, and whether zero is white (TIFF 6.0, tags 258, 339
    and 262); Pillow scales the samples of other formats to 16 bits. Raises PictureError if the file does not say which
    value is white: such a picture would come out black, white or washed out without an error.
    """
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = int((tags.get(_BITS) or (16,))[0])
    form = int((tags.get(_SAMPLE_FORMAT) or (_UNSIGNED,))[0])
    is_zero_white = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode.startswith("I;16") or (bits <= 16 and form == _UNSIGNED and image.mode != "F"):
        return float(2**bits - 1), is_zero_white
    least = most = 0.0
    for _, _, strip in _strips(image):
        samples = _samples(strip)
        least, most = min(least, float(samples.min(initial=0))), max(most, float(samples.max(initial=0)))
    if image.mode == "F" or form == _FLOAT:
        if least < -0.1 or most > 255:  # resampled pictures have values slightly below black
            raise PictureError(
                "unsupported_samples", f"floats from {least:g} to {most:g}; expected 0 to 1, or 0 to 255"
            )
        return (1.0 if most < 2.0 else 255.0), is_zero_white  # values slightly above 1 are highlights
    if form == _SIGNED and bits <= 16:
        if least < 0:
            raise PictureError(
                "unsupported_samples", f"signed integers from {least:g} to {most:g}; expected 0 and above"
            )
        return float(2 ** (bits - 1) - 1), is_zero_white
    if least < 0 or most > 65535:
        raise PictureError(
            "unsupported_samples", f"{bits}-bit integers from {least:g} to {most:g}; expected 0 to 65535"
        )
    return (255.0 if most <= 255 else 65535.0), is_zero_white


def _samples(strip: Image) -> NDArray[np.float32] | NDArray[np.float64]:
    """The samples of a strip of one band, finite. 16 bits fit float32."""
    if strip.mode.startswith("I;16"):
        return np.asarray(strip).astype(np.float32)
    return np.nan_to_num(np.asarray(strip).astype(np.float64), posinf=1e9, neginf=-1e9)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float64]:
    """The first 8 rows of the 32-point DCT-II, (8, 32), unscaled."""
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    cosines: NDArray[np.float64] = np.cos(np.pi * k * (2 * n + 1) / 64)
    return cosines


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """64-bit perceptual hash of (H, W, 3) uint8 pixels as 16 hex digits: near-equal pictures differ in few bits.

    Resized to 32 x 32 (bilinear with antialias), luma (ITU-R 601), two-dimensional DCT-II, the 8 x 8 lowest frequencies in row
    order (most significant bit first), each 1 if it is above their median (pHash; Zauner 2010).
    """
    cosines = _cosines()
    luma = resize(pixels, 32, 32, "bilinear") @ np.array([0.299, 0.587, 0.114])
    low = cosines @ luma @ cosines.T
    return np.packbits(low.ravel() > np.median(low)).tobytes().hex()


def thumbnail(pixels: NDArray[np.uint8], side: int = THUMBNAIL_SIDE) -> bytes:
    """(H, W, 3) uint8 pixels as a JPEG of at most `side` pixels a side, never enlarged. Same pixels, same bytes."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if max(height, width) > side:
        scale = side / max(height, width)
        pixels = resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)), "bilinear")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
