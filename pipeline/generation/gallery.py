"""The gallery of a run: index.html, one page that shows every picture and what it was drawn from.

Reads: a run's results (results.py) and pictures, the databases' thumbnails through a function. Writes: index.html with
small pictures inside it while they fit EMBEDDED_BYTES, else beside it in gallery/. Either way the folder can be copied anywhere
and read offline: the page asks no other machine for anything. All words in it are untrusted: they are escaped here and set as
text there, and a content policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.generation.results import COLUMNS, SETTINGS, Row
from pipeline.installation import asset, version
from pipeline.pages import maker_of, title_of
from pipeline.schema import OK
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDED_BYTES = 24 << 20

PICTURE_SIDE, NEIGHBOUR_SIDE = 448, 176  # pixels; shown at about half of it, for fine screens

Thumbnails = Callable[[str, list[int]], Mapping[int, bytes]]

"""(database as the results name it, keys) -> encoded pictures of those keys that still have one."""

Data = dict[str, Any]
"""JSON for the page; assets/gallery.js says which keys it reads."""


def write_gallery(
    storage: Storage, results: pa.Table, thumbnails: Thumbnails, title: str, embedded_bytes: int = EMBEDDED_BYTES
) -> None:
    """Write index.html (and gallery/, where the small pictures are too many for one file) for a run's results."""
    rows = results.to_pylist()
    small = _Small(storage, embedded_bytes)
    pictures = {file: small.add(storage.read_bytes(file), PICTURE_SIDE) for file in _files(rows)}
    neighbours, places = _neighbours(rows, thumbnails, small)
    extra = [name for name in results.column_names if name not in COLUMNS]
    data = _layout(rows, pictures, places, extra, _image_prompts(storage, rows, small))
    data |= {
        "neighbours": neighbours,
        "urls": small.urls(),
        "about": _about(rows, data),
        "made": f"Made with rdmpipe {version()}. Pictures, prompts and sources are also in results.parquet.",
    }
    storage.write_text("index.html", page(title, data))


def page(title: str, data: Data) -> str:
    """The HTML page around `data` (the shape is read in assets/gallery.js)."""
    assets = asset()
    style = "".join((assets / name).read_text("utf-8") for name in ("design.css", "gallery.css"))
    script = (assets / "gallery.js").read_text("utf-8")
    # Inside a script element only < can end it; the other characters are escaped for parsers that are not ours.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    parts = {
        "title": html.escape(title),
        "style": style,
        "style_hash": _policy_hash(style),
        "script": script,
        "script_hash": _policy_hash(script),
        "detail": (assets / "detail.html").read_text("utf-8"),
        "data": text,
    }
    template = (assets / "gallery.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- small pictures


def shrink(data: bytes, side: int) -> bytes | None:
    """A WebP of at most side x side pixels; None if the bytes are no picture."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side, side))
            image = ImageOps.exif_transpose(opened)
            if image.mode != "RGB":  # transparent pictures lie on white, as the encoder saw them
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image).convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.save(out, "WEBP", quality=82, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return out.getvalue()


class _Small:
    """Collects small pictures: kept for embedding while they fit, written to gallery/ from the first one that does not."""

    def __init__(self, storage: Storage, bound: int) -> None:
        self.storage, self.bound, self.total = storage, bound, 0
        self.kept: list[bytes] | None = []
        self.names: list[str] = []

    def add(self, data: bytes, side: int) -> int:
        """The picture's place among urls(), or -1 where the bytes are no picture."""
        picture = shrink(data, side)
        if picture is None:
            return -1
        self.total += len(picture)
        self.names.append(f"gallery/{hashlib.sha256(picture).hexdigest()[:16]}.webp")
        if self.kept is not None:
            self.kept.append(picture)
            if self.total > self.bound:
                for name, waiting in zip(self.names, self.kept, strict=True):
                    self.storage.write_bytes(name, waiting)
                self.kept = None
        else:
            self.storage.write_bytes(self.names[-1], picture)
        return len(self.names) - 1

    def urls(self) -> list[str]:
        if self.kept is None:
            return self.names
        return [f"data:image/webp;base64,{base64.b64encode(picture).decode()}" for picture in self.kept]


# ---- the page's data


def _files(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["file"] for row in rows if row["status"] == OK))


def _image_prompts(storage: Storage, rows: Iterable[Row], small: _Small) -> dict[str, int]:
    """The places of the pictures that took a prompt's place, by sha256; those of older runs may not be there."""
    found = {}
    for name in dict.fromkeys(row["image"] for row in rows if row["image"]):
        if storage.exists(f"inputs/{name}"):
            found[name] = small.add(storage.read_bytes(f"inputs/{name}"), NEIGHBOUR_SIDE)
    return found


def _neighbours(
    rows: list[Row], thumbnails: Thumbnails, small: _Small
) -> tuple[list[Data], dict[tuple[str, int], int]]:
    """Every neighbour once, with the place of its thumbnail; and where each (database, key) stands in that list."""
    wanted: dict[str, dict[int, Data]] = {}
    for row in rows:
        for i, key in enumerate(row["neighbour_keys"] or ()):
            if key not in wanted.setdefault(row["db"], {}):
                wanted[row["db"]][key] = _neighbour(row, i)
    listed: list[Data] = []
    places = {}
    for database, entries in wanted.items():
        found = thumbnails(database, sorted(entries))
        for key, entry in entries.items():
            places[database, key] = len(listed)
            listed.append({**entry, "thumb": small.add(found[key], NEIGHBOUR_SIDE) if key in found else -1})
    return listed, places


def _neighbour(row: Row, i: int) -> Data:
    details = json.loads(row["neighbour_details"][i] or "{}")
    return {
        "key": row["neighbour_keys"][i],
        "title": title_of(details),
        "by": maker_of(details),
        "caption": row["neighbour_captions"][i] or "",
        "licence": row["neighbour_licences"][i] or "",
        "source": row["neighbour_sources"][i] or "",
        "url": row["neighbour_urls"][i] or "",
    }


def _layout(
    rows: list[Row],
    pictures: Mapping[str, int],
    places: Mapping[tuple[str, int], int],
    extra: list[str],
    image_prompts: Mapping[str, int],
) -> Data:
    """Pictures in order; prompts, databases and settings once each, pictures pointing at them by number."""
    prompts: dict[str, int] = {}
    databases: dict[str, int] = {}
    settings: dict[str, int] = {}
    laid = []
    for row in rows:
        prompt = {
            "text": row["prompt"],
            "id": row["id"],
            "negative": row["negative"],
            "image": image_prompts.get(row["image"], -1),
            "by_image": bool(row["image"]),
            "extra": {name: str(row[name]) for name in extra if row[name] not in (None, "")},
        }
        made = {name: row[name] for name in SETTINGS if row.get(name) not in (None, "")}
        laid.append(
            {
                "prompt": prompts.setdefault(json.dumps([row["row"], prompt]), len(prompts)),
                "database": databases.setdefault(row["db"], len(databases)),
                "settings": settings.setdefault(json.dumps(made), len(settings)),
                "seed": str(row["seed"]),  # a seed may have more digits than JavaScript's numbers
                "key": row["key"],
                "file": row["file"] if row["status"] == OK else "",
                "thumb": pictures[row["file"]] if row["status"] == OK else -1,
                "width": row["width"],
                "height": row["height"],
                "status": row["status"],
                "error": row["error"] or "",
                "note": row["note"] or "",
                "neighbours": [
                    [places[row["db"], key], round(score, 4)]
                    for key, score in zip(row["neighbour_keys"], row["neighbour_scores"], strict=True)
                ],
            }
        )
    return {
        "pictures": laid,
        "prompts": [json.loads(text)[1] for text in prompts],
        "databases": [{"name": name} for name in databases],
        "settings": [json.loads(text) for text in settings],
    }


def _about(rows: list[Row], data: Data) -> str:
    prompts, databases = len(data["prompts"]), len([entry for entry in data["databases"] if entry["name"]])
    waiting = sum(row["status"] != OK for row in rows)
    words = [f"{prompts} prompt{'s' if prompts != 1 else ''}"]
    if databases:
        words.append(f"{databases} database{'s' if databases != 1 else ''}")
    words.append(f"drawn with {', '.join(sorted({row['model'] for row in rows}))}")
    return " · ".join(words) + (f" · {waiting} not made" if waiting else "")
