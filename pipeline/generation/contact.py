"""contact.png, an overview of a run: a block of pictures for every prompt, blocks side by side.

Reads: a run's results and pictures. Writes: contact.png, with at most MOST pictures and BOUNDS pixels, as near to a screen's
proportions as its blocks allow. The sheet of a longer run is an even sample of its prompts and states how many it leaves out.
Letters that Pillow's own font lacks are drawn in a font of this machine (images/lettering.py); index.html shows all letters.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.generation.results import Row
from pipeline.images import Lettering, lettering_note
from pipeline.schema import OK
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image, ImageDraw

MOST = 120  # pictures

BOUNDS = (2400, 1700)  # pixels, width and height

SCREEN = 16 / 10  # width to height

SIDES = (192, 160, 128, 112, 96)  # of a picture, in pixels: the first that fits

LEAST = 10  # pictures of a prompt that are always shown

GAP, BETWEEN, MARGIN, HEAD, LABEL, LINE = 8, 24, 28, 48, 18, 17  # pixels

PAPER, INK, MUTED, EMPTY = "#f7f4ef", "#1e1b17", "#665f55", "#e9e3d8"

Rows = list[Row]


@dataclass(frozen=True)
class Layout:
    """Pictures of `side` pixels, `across` in a line of a block, `columns` blocks side by side, headings of `lines` lines."""

    side: int
    across: int
    columns: int
    lines: int
    block: tuple[int, int]  # pixels, with its heading
    size: tuple[int, int]  # pixels of the sheet


def write_contact_sheet(storage: Storage, results: pa.Table, title: str) -> str:
    """Write contact.png: the pictures of every sampled prompt, in the order of the results.

    Returns a note on letters that no font of this machine has; empty if there are none.
    """
    from PIL import Image, ImageDraw

    rows: Rows = results.select(["row", "prompt", "db", "copy", "seed", "file", "status"]).to_pylist()
    prompts: dict[int, Rows] = {}
    for row in rows:
        prompts.setdefault(row["row"], []).append(row)
    blocks = sample(list(prompts.values()))
    layout = lay_out(len(blocks), max(map(len, blocks), default=1))
    sheet = Image.new("RGB", layout.size, PAPER)
    draw, large, small = ImageDraw.Draw(sheet), Lettering(22), Lettering(13)
    shown = sum(map(len, blocks))
    note = (
        f"{shown:,} of {len(rows):,} pictures" if shown < len(rows) else f"{shown:,} picture{'s' if shown != 1 else ''}"
    )
    if len(blocks) < len(prompts):
        note += f", {len(blocks):,} of {len(prompts):,} prompts"
    draw.text((sheet.width - MARGIN, MARGIN + 7), note, MUTED, small.font, anchor="ra")
    room = sheet.width - 2 * MARGIN - int(small.length(note)) - BETWEEN
    large.draw(draw, (MARGIN, MARGIN), "".join(_wrapped(title, large, room, 1)), INK)
    for i, block in enumerate(blocks):
        x = MARGIN + i % layout.columns * (layout.block[0] + BETWEEN)
        y = MARGIN + HEAD + i // layout.columns * (layout.block[1] + BETWEEN)
        _draw_block(storage, sheet, draw, block, (x, y), layout)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    storage.write_bytes("contact.png", out.getvalue())
    texts = [row[name] or "" for block in blocks for row in block for name in ("prompt", "db")]
    return lettering_note("contact.png", [title, *texts])


def sample(prompts: Sequence[Rows]) -> list[Rows]:
    """At most MOST pictures: the first copies of every prompt in all databases; an even sample if there are too many
    prompts."""
    most = max(LEAST, MOST // max(1, len(prompts)))
    blocks = []
    for rows in prompts:
        by_copy = sorted(range(len(rows)), key=lambda i: rows[i]["copy"])  # stable: the first of every database, ...
        blocks.append([rows[i] for i in sorted(by_copy[:most])])
    count = min(len(blocks), max(1, MOST // max(map(len, blocks), default=1)))
    return [blocks[i * len(blocks) // count] for i in range(count)]


def lay_out(blocks: int, pictures: int) -> Layout:
    """The layout of `blocks` blocks of at most `pictures` pictures.

    It chooses the largest pictures that fit BOUNDS, and of their arrangements the one nearest to a screen's proportions
    with few empty places.
    """
    blocks, pictures = max(1, blocks), max(1, pictures)
    for side in SIDES:
        layouts = [
            _layout(side, across, columns, blocks, pictures)
            for across in range(1, pictures + 1)
            for columns in range(1, blocks + 1)
        ]
        fitting = [it for it in layouts if it.size[0] <= BOUNDS[0] and it.size[1] <= BOUNDS[1]]
        if fitting:
            return min(fitting, key=lambda layout: _cost(layout, blocks, pictures))
    raise AssertionError(f"{blocks} blocks of {pictures} pictures are more than MOST")


def _layout(side: int, across: int, columns: int, blocks: int, pictures: int) -> Layout:
    width = across * (side + GAP) - GAP
    lines = 1 if width > 480 else 2
    height = lines * LINE + 4 + math.ceil(pictures / across) * (side + LABEL + GAP) - GAP
    down = math.ceil(blocks / columns)
    size = (2 * MARGIN + columns * (width + BETWEEN) - BETWEEN, 2 * MARGIN + HEAD + down * (height + BETWEEN) - BETWEEN)
    return Layout(side, across, columns, lines, (width, height), (max(size[0], 480), size[1]))


def _cost(layout: Layout, blocks: int, pictures: int) -> float:
    """The distance from a screen's proportions (a factor of two counts 1) plus twice the share of empty places."""
    places = layout.columns * math.ceil(blocks / layout.columns) * layout.across * math.ceil(pictures / layout.across)
    return abs(math.log2(layout.size[0] / layout.size[1] / SCREEN)) + 2 * (1 - blocks * pictures / places)


def _draw_block(
    storage: Storage, sheet: Image.Image, draw: ImageDraw.ImageDraw, rows: Rows, at: tuple[int, int], layout: Layout
) -> None:
    body, small, side = Lettering(15), Lettering(13), layout.side
    for i, line in enumerate(_wrapped(rows[0]["prompt"] or "(picture prompt)", body, layout.block[0], layout.lines)):
        body.draw(draw, (at[0], at[1] + i * LINE), line, INK)
    for i, row in enumerate(rows):
        x = at[0] + i % layout.across * (side + GAP)
        y = at[1] + layout.lines * LINE + 4 + i // layout.across * (side + LABEL + GAP)
        draw.rectangle((x, y, x + side - 1, y + side - 1), EMPTY)
        if row["status"] == OK:
            picture = _open(storage, row["file"], side)
            sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        else:
            draw.text((x + side // 2, y + side // 2), row["status"], MUTED, small.font, anchor="mm")
        seed = f" · {row['seed']}"
        name = "".join(_wrapped(row["db"] or "text alone", small, side - int(small.length(seed)), 1))
        small.draw(draw, (x, y + side + 2), name + seed, MUTED)


def _open(storage: Storage, file: str, side: int) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(storage.read_bytes(file))) as image:
        picture = image.convert("RGB")
    scale = side / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _wrapped(text: str, font: Lettering, width: int, most: int) -> list[str]:
    """`text` in at most `most` lines of `width` pixels, broken between words where possible; an ellipsis replaces the rest."""
    left, lines = " ".join(text.split()), list[str]()
    while left and len(lines) < most:
        fits = next((n for n in range(min(len(left), width // 2), 0, -1) if font.length(left[:n]) <= width), 1)
        last = len(lines) == most - 1
        if fits < len(left) and last:
            fits = next((n for n in range(fits, 0, -1) if font.length(left[:n].rstrip() + "…") <= width), 1)
            lines.append(left[:fits].rstrip() + "…")
            break
        if fits < len(left):
            fits = left.rfind(" ", 0, fits + 1) if " " in left[: fits + 1].rstrip() else fits
        lines.append(left[:fits].rstrip())
        left = left[fits:].lstrip()
    return lines
