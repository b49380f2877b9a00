"""Picture files that are expensive to decode: refused from their header, or decoded within the limits. Also addresses."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PictureError
from pipeline.images import decode, decoding
from pipeline.sources.web.addresses import is_public
from tests.attempts import tried


def tiff(width: int, height: int, bits: int, kind: int, tile: int = 0) -> bytes:
    """The header of a deflated TIFF of one band, with almost no pixels. kind: 1 unsigned, 2 signed, 3 float."""
    packed = zlib.compress(bytes(1000))
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 8), (262, 3, 1), (277, 3, 1), (339, 3, kind),
        *([(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(packed))] if tile else
          [(273, 4, 8), (278, 4, height), (279, 4, len(packed))]),
    ]  # fmt: skip
    entries.sort()
    table = (
        struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e[:2], 1, e[2]) for e in entries) + bytes(4)
    )
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + table


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def progressive(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    out = io.BytesIO()
    Image.new("L", (side, side), 120).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("float TIFF", tiff(13_000, 13_000, 32, 3)),
        ("I32 TIFF", tiff(13_000, 13_000, 32, 2)),
        ("small TIFF in one huge tile", tiff(8, 8, 32, 3, tile=32_768)),
    ],
)
def test_a_picture_that_takes_too_many_bytes_is_refused_from_its_header(name: str, data: bytes) -> None:
    assert len(data) < 2000
    with pytest.raises(PictureError, match=r"^too_large: .* MB are used"):
        decode(data)


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(PictureError, match=r"^too_large"):
        decode(png(20_000, 20_000, 16, 0))


def test_the_bytes_of_a_mode_and_of_a_decoder_count(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 4), dtype=np.uint8)

    def saved(mode: str, form: str) -> bytes:
        out = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(out, form)
        return out.getvalue()

    def least(data: bytes) -> int:
        """The smallest limit, in bytes a pixel, with which the picture is decoded."""
        for each in range(1, 40):
            monkeypatch.setattr(decoding, "MAX_BYTES", each * 40_000)
            try:
                decode(data)
            except PictureError as error:
                assert error.reason == "too_large"
            else:
                return each
        raise AssertionError

    assert least(saved("RGB", "PNG")) < least(saved("RGBA", "PNG")) < least(saved("RGB", "WEBP"))
    assert least(saved("L", "JPEG")) < least(saved("F", "TIFF"))


def test_a_jpeg_of_very_many_scans_is_refused_and_one_of_a_few_is_not() -> None:
    assert decode(progressive(64, 30)).width == 64
    with pytest.raises(PictureError, match=r"^too_large: \d+ scans of 4000 x 4000 pixels"):
        decode(progressive(4000, 400))


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P"])
def test_strips_change_no_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(3)
    if mode == "I;16":
        image = Image.fromarray(chance.integers(0, 65_536, (60, 41), dtype=np.uint16))
    elif mode == "I":
        image = Image.fromarray(chance.integers(0, 65_536, (60, 41), dtype=np.int32))
    elif mode == "F":
        values = chance.normal(0.5, 0.5, (60, 41)).astype(np.float32)
        values[3, 3] = np.nan
        image = Image.fromarray(np.clip(values, 0.0, 1.0))
    else:
        image = Image.fromarray(chance.integers(0, 256, (60, 41, 4), dtype=np.uint8)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    whole = np.array(decoding._on_white(image))
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.array(decoding._on_white(image)), whole)
    if mode == "I;16":
        assert np.array_equal(whole[..., 0], np.rint(np.asarray(image).astype(np.float32) / 257.0))


def test_bytes_changed_by_chance_are_a_picture_or_a_picture_error() -> None:
    chance = np.random.default_rng(11)
    image = Image.fromarray(chance.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    for form, options in (
        ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}), ("WEBP", {}),
    ):  # fmt: skip
        out = io.BytesIO()
        image.save(out, form, **options)
        for _ in range(60):
            data = bytearray(out.getvalue())
            for at in chance.integers(0, len(data), 4):
                data[at] = chance.integers(0, 256)
            try:
                decode(bytes(data[: chance.integers(1, len(data) + 1)]))
            except PictureError as error:
                assert error.reason in ("not_an_image", "corrupt", "truncated", "too_large", "unsupported_samples")
    tried(300)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("3fff::1", False), ("3fff:fff:ffff::1", False), ("3ffe::1", True), ("4000::1", False), ("192.88.99.1", False),
        ("192.88.98.1", True), ("::ffff:192.88.99.1", False), ("64:ff9b::c058:6301", False), ("8.8.8.8", True),
    ],
)  # fmt: skip
def test_reserved_addresses_are_not_public(address: str, public: bool) -> None:
    assert is_public(address) is public
