"""Provenance inside pictures: writing and reading text chunks of PNG files.

The chunk `rdmpipe` holds everything as JSON (prompt, seed, settings, database version, neighbours with their rights, model,
key); Description, Software and a few plain chunks are for other programs. They hold no times, so that the same picture has the
same bytes. Reads and writes bytes only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.config import canonical_json, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Neighbour = dict[str, object]
"""`key`, `score`, and the columns of the database that the row has: caption, licence, source, url, sha256, title, ..."""

Record = dict[str, Any]
"""What made a picture: `key`, the flat request (PictureRequest.to_dict), `neighbours`, `notes`, the model, the encoder."""

CHUNK = "rdmpipe"

_PLAIN = ("prompt", "negative", "seed", "database", "key", "model", "sampler")


def encode_png(pixels: NDArray[np.uint8], record: Mapping[str, object]) -> bytes:
    """PNG of pixels (H, W, 3) with `record` in its text chunks, all before the image data."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("Description", str(record.get("prompt", "")))
    info.add_text("Software", f"rdmpipe {record.get('rdmpipe', '')}")
    for name in _PLAIN:
        info.add_itxt(name, str(record.get(name, "")))
    text = canonical_json(record)
    # Readers do not decompress a chunk of more than MAX_TEXT_CHUNK.
    info.add_itxt(CHUNK, text, zip=len(text.encode()) < PngImagePlugin.MAX_TEXT_CHUNK)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def read_record(handle: BinaryIO) -> Record | None:
    """The record of a PNG that `encode_png` made, without decoding its pixels; None for any other file."""
    from PIL import Image

    try:
        with Image.open(handle, formats=["PNG"]) as image:
            record = parse_json(image.info[CHUNK])
    except (OSError, SyntaxError, KeyError, ValueError):
        return None
    return cast("Record", record) if isinstance(record, dict) else None
