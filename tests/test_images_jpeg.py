"""Plain JPEGs are decoded by simplejpeg, all others by Pillow: the same pixels, and the same errors."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PictureError
from pipeline.images import decode, decoding, perceptual_hash


def jpeg(size: tuple[int, int] = (61, 47), mode: str = "RGB", **options: object) -> bytes:
    rows = np.random.default_rng(1).integers(0, 256, (7, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def outcome(data: bytes, side: int, monkeypatch: pytest.MonkeyPatch, by_pillow: bool) -> object:
    """Pixels and sizes, or the text of the error."""
    with monkeypatch.context() as patch:
        if by_pillow:
            patch.setattr(decoding, "_plain_jpeg", lambda *_: None)
        try:
            found = decode(data, side)
        except PictureError as error:
            return str(error)
    return found.pixels.tobytes(), found.pixels.shape, found.width, found.height, found.reduced


@pytest.mark.parametrize("side", [0, 20])
@pytest.mark.parametrize(
    ("data", "fast"),
    [
        (jpeg(), True),
        (jpeg((400, 300), quality=95, subsampling=0), True),
        (jpeg((401, 299), progressive=True, subsampling=2), True),
        (jpeg(keep_rgb=True), True),
        (jpeg(mode="L"), False),
        (jpeg(mode="CMYK"), False),
        (turned(), False),
        (jpeg() + b"behind the end", True),
    ],
)
def test_pixels_are_pillows(data: bytes, fast: bool, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(data, side, monkeypatch, False) == outcome(data, side, monkeypatch, True)
    found = decode(data, side)
    assert isinstance(found.decoded, np.ndarray) is fast
    assert perceptual_hash(found.pixels) == perceptual_hash(np.array(found.image))
    found.pixels[0] = 0  # they may be written to


def test_damaged_jpegs_end_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, plain, words = random.Random(5), jpeg((120, 90)), set()
    for _ in range(150):
        data = bytearray(plain[: generator.randrange(50, len(plain))] if generator.random() < 0.3 else plain)
        for _ in range(generator.randint(0, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        mine, theirs = (outcome(bytes(data), 0, monkeypatch, by_pillow) for by_pillow in (False, True))
        assert mine == theirs
        words.add(mine.split(":")[0] if isinstance(mine, str) else "decoded")
    assert {"decoded", "truncated"} <= words
