"""contact.png: a run at a glance, prompts down and databases across.

Reads: a run's results and pictures. Writes: contact.png, of at most MOST pictures; a longer run's sheet says how many it shows.
Text is drawn in Pillow's own font, which knows Latin letters: index.html is the page for all others.
"""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

from pipeline.schema import OK
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

MOST = 240  # pictures
SIDE, GAP, MARGIN, LABEL = 192, 12, 28, 34  # pixels
PAPER, INK, MUTED, EMPTY = "#f7f4ef", "#1e1b17", "#665f55", "#e9e3d8"


def write_contact_sheet(storage: Storage, results: pa.Table, title: str) -> None:
    """Write contact.png: a line of pictures for every prompt, ordered by database and copy; one wall where lines are short."""
    from PIL import Image, ImageDraw, ImageFont

    columns = ["row", "prompt", "db", "seed", "file", "status"]
    rows: list[dict[str, Any]] = results.select(columns).to_pylist()
    lines: dict[int, list[dict[str, Any]]] = {}
    for row in rows[:MOST]:
        lines.setdefault(row["row"], []).append(row)
    several = max((len(line) for line in lines.values()), default=0) > 1
    grid = list(lines.values()) if several else [rows[:MOST][i : i + 6] for i in range(0, min(len(rows), MOST), 6)]
    across = min(max((len(line) for line in grid), default=1), 8)
    grid = [line[i : i + across] for line in grid for i in range(0, len(line), across)]
    body, small = ImageFont.load_default(15), ImageFont.load_default(12)
    head = MARGIN + 44
    cell = SIDE + LABEL
    sheet = Image.new(
        "RGB", (2 * MARGIN + across * (SIDE + GAP) - GAP, head + len(grid) * (cell + GAP) + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    shown = f"{len(rows[:MOST])} of {len(rows)} pictures" if len(rows) > MOST else f"{len(rows)} pictures"
    draw.text((MARGIN, MARGIN), _fit(title, 12 * across), INK, ImageFont.load_default(22))
    draw.text((sheet.width - MARGIN, MARGIN + 8), shown, MUTED, small, anchor="ra")
    for i, line in enumerate(grid):
        for j, row in enumerate(line):
            x, y = MARGIN + j * (SIDE + GAP), head + i * (cell + GAP)
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), EMPTY)
            if row["status"] == OK:
                picture = _open(storage, row["file"])
                sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
            else:
                draw.text((x + SIDE // 2, y + SIDE // 2), row["status"], MUTED, small, anchor="mm")
            draw.text((x, y + SIDE + 4), _fit(row["prompt"], 27), INK, body)
            draw.text((x, y + SIDE + 21), _fit(f"{row['db'] or 'text alone'} · {row['seed']}", 34), MUTED, small)
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    storage.write_bytes("contact.png", out.getvalue())


def _open(storage: Storage, file: str) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(storage.read_bytes(file))) as image:
        picture = image.convert("RGB")
    scale = SIDE / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _fit(text: str, letters: int) -> str:
    return textwrap.shorten(" ".join(text.split()) or "(picture prompt)", letters, placeholder="…") or text[:letters]
