"""A collection with one per cent of every kind of bad file: each is counted with its reason, and nothing else is lost.

Two hundred rows run with the other tests; three thousand with `make test-scale`.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest

from tests.builds import manifest_of, picture, quiet_build


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(seed: int) -> bytes:
    """A PNG of a few dozen bytes whose header says 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes([seed % 256])))


def _broken(seed: int) -> bytes:
    """A PNG with an invalid header."""
    return b"\x89PNG\r\n\x1a\n" + random.Random(seed).randbytes(200)


KINDS = {
    "nothing": (lambda seed: b"", "empty"),
    "a page": (lambda seed: b"<!DOCTYPE html><p>%d" % seed, "not_an_image"),
    "a drawing": (lambda seed: b"<?xml version='1.0'?><svg>%d</svg>" % seed, "not_an_image"),
    "noise": (lambda seed: b"\0" + random.Random(seed).randbytes(300), "not_an_image"),
    "half a PNG": (lambda seed: picture(seed)[:-400], "truncated"),
    "half a JPEG": (lambda seed: picture(seed, 96, "JPEG")[:-700], "truncated"),
    "a broken header": (_broken, "corrupt"),
    "a bomb": (_bomb, "too_large"),
}


def _count(tmp_path: Path, rows: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    each = rows // 100
    order = [kind for kind in KINDS for _ in range(each)]
    order += ["good"] * (rows - len(order))
    random.Random("poison").shuffle(order)
    for number, kind in enumerate(order):
        data = picture(number) if kind == "good" else KINDS[kind][0](number)
        (folder / f"{number:05d}.{'jpg' if 'JPEG' in kind else 'png'}").write_bytes(data)
    expected: dict[str, int] = {}
    for _, reason in KINDS.values():
        expected[reason] = expected.get(reason, 0) + each
    summary = quiet_build(manifest_of(tmp_path / "mine.toml", folder, shard_rows=max(20, rows // 20)), threads=1)
    assert summary.reasons == expected
    assert (summary.input, summary.filtered) == (rows, 0)
    assert summary.failed == each * len(KINDS)
    assert summary.ok == rows - summary.failed == summary.index["rows"]


def test_every_poisoned_row_is_counted_under_its_reason(tmp_path: Path, home: Path) -> None:
    _count(tmp_path, 200)


@pytest.mark.long
def test_every_poisoned_row_is_counted_among_thousands(tmp_path: Path, home: Path) -> None:
    _count(tmp_path, 3000)
