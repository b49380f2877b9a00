"""Pictures of results: a contact sheet in reading order, and the map of a database with its pictures at their positions.

Reads: stored thumbnails. Writes nothing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL.Image import Image

    from pipeline.database import RetrievalDatabase

PAPER, INK, EMPTY, EDGE, MUTED = "white", "#1e1b17", "#eee9e0", "#cfc7ba", "#665f55"


def result_sheet(database: RetrievalDatabase, rows: pa.Table) -> Image:
    """A contact sheet of results (columns `key`, `score` and metadata): stored thumbnails in reading order, each labelled."""
    from pipeline.database import thumbnails

    keys = rows["key"].to_pylist()
    pictures = thumbnails(database, keys)
    return draw_sheet([pictures.get(key) for key in keys], result_labels(rows))


def result_labels(rows: pa.Table) -> list[str]:
    """The label of each picture of a sheet: its score, title, artist and style, as far as they are known."""
    labels = []
    for row in rows.to_pylist():
        words = [row.get(name) for name in ("title", "caption", "artist", "style", "item_id")]
        seen = list(dict.fromkeys(str(word) for word in words if word))
        labels.append(f"{row['score']:.3f}  {', '.join(seen[:3])}")
    return labels


def draw_sheet(pictures: Sequence[Image | None], labels: Sequence[str], side: int = 192, columns: int = 0) -> Image:
    """Pictures in reading order on white, each above its label; None gives a blank tile that contains the label."""
    from PIL import Image as images
    from PIL import ImageDraw

    from pipeline.images import Lettering

    count = max(1, len(labels))
    columns = columns or min(count, max(3, round(math.sqrt(count * 1.6))))
    gap, text, line = 12, 34, 15
    lines = math.ceil(count / columns)
    sheet = images.new("RGB", (columns * (side + gap) + gap, lines * (side + text + gap) + gap), PAPER)
    draw, letters = ImageDraw.Draw(sheet), Lettering(11)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = gap + i % columns * (side + gap), gap + i // columns * (side + text + gap)
        if picture is None:
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill=EMPTY, outline=EDGE)
            for number, words in enumerate(textwrap.wrap(label, 26, max_lines=8, placeholder=" …")):
                letters.draw(draw, (x + 10, y + 10 + number * line), words, MUTED)
        else:
            small = _scaled(picture, side)
            sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
        for number, words in enumerate(textwrap.wrap(label, 34, max_lines=2, placeholder=" …")):
            letters.draw(draw, (x, y + side + 4 + number * line), words, INK)
    return sheet


def _scaled(picture: Image, side: int) -> Image:
    """The picture with its longer side of `side` pixels."""
    small = picture.copy()
    small.thumbnail((side, side))
    if max(small.size) < side:
        scale = side / max(small.size)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    return small


def draw_map(
    pictures: Sequence[Image | None], places: NDArray[np.float64], size: tuple[int, int] = (1280, 960), side: int = 44
) -> Image:
    """Pictures at their positions (n, 2) on a map, the second axis upwards; None gives an empty square.

    Positions outside -1 to 1 are drawn at the edge. Where pictures overlap, later ones cover earlier ones.
    """
    from PIL import Image as images
    from PIL import ImageDraw

    sheet = images.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for picture, (x, y) in zip(pictures, np.clip(places, -1, 1).tolist(), strict=True):
        left = round((x + 1) / 2 * (size[0] - side))
        top = round((1 - y) / 2 * (size[1] - side))
        if picture is None:
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY, outline=EDGE)
        else:
            small = _scaled(picture, side)
            sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return sheet
