"""The gallery of a run: index.html, one page that shows every picture with its prompt, settings and neighbours.

Reads: a run's results (results.py) and pictures, the databases' thumbnails through a function. Writes: index.html with
small pictures inside it if they fit EMBEDDED_BYTES, else beside it in gallery/. The folder can be copied anywhere
and read offline, because the page makes no requests to other machines. All texts in it are untrusted: they are escaped here and
set as text by the script, and a content security policy allows only the page's own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.generation.results import COLUMNS, SETTINGS, Row
from pipeline.installation import asset, version
from pipeline.pages import maker_of, render_parts, title_of
from pipeline.schema import OK
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDED_BYTES = 24 << 20

PICTURE_SIDE, NEIGHBOUR_SIDE = 448, 176  # pixels; shown at about half of it, for fine screens

BATCH = 500  # results or thumbnails held as Python objects at a time

Thumbnails = Callable[[str, list[int]], Mapping[int, bytes]]

"""(database as the results name it, keys) -> encoded pictures of those keys that still have one."""

Data = dict[str, Any]
"""JSON for the page; assets/gallery.js says which keys it reads."""


def write_gallery(
    storage: Storage, results: pa.Table, thumbnails: Thumbnails, title: str, embedded_bytes: int = EMBEDDED_BYTES
) -> None:
    """Write index.html (and gallery/, if the small pictures are too many for one file) for a run's results.

    Memory: the results as Arrow, the small pictures while they are embedded, and a few words for each picture and neighbour.
    """
    small = _Small(storage, embedded_bytes)
    pictures = {
        row["file"]: small.add(storage.read_bytes(row["file"]), PICTURE_SIDE)
        for row in _first(_rows(results, "file", "status"), "file")
        if row["status"] == OK
    }
    neighbours = _Neighbours(results, thumbnails, small)
    prompts = _image_prompts(storage, results, small)
    parts = _data(results, pictures, neighbours, prompts, small)
    with storage.scratch() as scratch:
        part = scratch / "index.html"
        with part.open("w", encoding="utf-8", newline="") as out:
            out.writelines(page(title, parts))
        storage.publish(part, "index.html")


def page(title: str, data: Iterable[str]) -> Iterator[str]:
    """The HTML page around the JSON text `data`, in parts. assets/gallery.js defines the form of the JSON."""
    from markupsafe import Markup

    style = "".join(asset(name).read_text("utf-8") for name in ("design.css", "gallery.css"))
    script = asset("gallery.js").read_text("utf-8")
    return render_parts(
        "gallery.html",
        title=title,
        style=Markup(style),
        style_hash=_policy_hash(style),
        script=Markup(script),
        script_hash=_policy_hash(script),
        data=(Markup(part) for part in _inside_script(data)),
    )


def _inside_script(parts: Iterable[str]) -> Iterator[str]:
    """JSON text escaped for a script element: only < can end it; the other characters are escaped for other parsers."""
    table = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}
    return (part.translate(table) for part in parts)


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- small pictures


def shrink(data: bytes, side: int) -> bytes | None:
    """A WebP of at most side x side pixels; None if the bytes are not a picture."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side, side))
            image = ImageOps.exif_transpose(opened)
            if image.mode != "RGB":  # transparent pictures are composited on white, as for the encoder
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
    """Collects small pictures for embedding; from the first that does not fit, all are written to gallery/."""

    def __init__(self, storage: Storage, bound: int) -> None:
        self.storage, self.bound, self.total = storage, bound, 0
        self.kept: list[bytes] | None = []
        self.names: list[str] = []

    def add(self, data: bytes, side: int) -> int:
        """The picture's position in urls(), or -1 if the bytes are not a picture."""
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

    def urls(self) -> Iterator[str]:
        if self.kept is None:
            return iter(self.names)
        return (f"data:image/webp;base64,{base64.b64encode(picture).decode()}" for picture in self.kept)


# ---- the page's data


def _rows(results: pa.Table, *columns: str) -> Iterator[Row]:
    """The results, or some of their columns, row by row."""
    for batch in (results.select(columns) if columns else results).to_batches(max_chunksize=BATCH):
        yield from batch.to_pylist()


def _first(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """The first row of each non-empty value of a column."""
    seen = set()
    for row in rows:
        if row[column] and row[column] not in seen:
            seen.add(row[column])
            yield row


def _image_prompts(storage: Storage, results: pa.Table, small: _Small) -> dict[str, int]:
    """The positions of the image prompts, by sha256; those of older runs may be missing."""
    return {
        row["image"]: small.add(storage.read_bytes(f"inputs/{row['image']}"), NEIGHBOUR_SIDE)
        for row in _first(_rows(results, "image"), "image")
        if storage.exists(f"inputs/{row['image']}")
    }


class _Neighbours:
    """Every neighbour once: `places` gives the position of each (database, key) in the page's list.

    Only the positions of a neighbour and of its thumbnail are kept; `listed` reads the texts from the results again.
    """

    def __init__(self, results: pa.Table, thumbnails: Thumbnails, small: _Small) -> None:
        self.results = results
        self.places: dict[tuple[str, int], int] = {}
        self.thumbs: dict[tuple[str, int], int] = {}
        wanted: dict[str, list[int]] = {}
        for row in _rows(results, "db", "neighbour_keys"):
            for key in row["neighbour_keys"] or ():
                if (row["db"], key) not in self.places:
                    self.places[row["db"], key] = len(self.places)
                    wanted.setdefault(row["db"], []).append(key)
        for database, keys in wanted.items():
            keys.sort()
            for at in range(0, len(keys), BATCH):
                found = thumbnails(database, keys[at : at + BATCH])
                self.thumbs |= {(database, key): small.add(data, NEIGHBOUR_SIDE) for key, data in found.items()}

    def listed(self) -> Iterator[Data]:
        """The neighbours in the order of `places`, which is that of the results."""
        count = 0
        for row in _rows(self.results, "db", *(name for name in COLUMNS if name.startswith("neighbour_"))):
            for i, key in enumerate(row["neighbour_keys"] or ()):
                if self.places[row["db"], key] == count:
                    count += 1
                    yield {**_neighbour(row, i), "thumb": self.thumbs.get((row["db"], key), -1)}


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


def _data(
    results: pa.Table,
    pictures: Mapping[str, int],
    neighbours: _Neighbours,
    image_prompts: Mapping[str, int],
    small: _Small,
) -> Iterator[str]:
    """The JSON object of the page, in parts.

    Pictures in order; prompts, databases and settings once each, to which pictures refer by number.
    """
    extra = [name for name in results.column_names if name not in COLUMNS]
    prompts: dict[str, int] = {}
    databases: dict[str, int] = {}
    settings: dict[str, int] = {}
    models: set[str] = set()
    waiting = 0

    def laid() -> Iterator[Data]:
        nonlocal waiting
        for row in _rows(results):
            prompt = {
                "text": row["prompt"],
                "id": row["id"],
                "negative": row["negative"],
                "image": image_prompts.get(row["image"], -1),
                "by_image": bool(row["image"]),
                "extra": {name: str(row[name]) for name in extra if row[name] not in (None, "")},
            }
            made = {name: row[name] for name in SETTINGS if row.get(name) not in (None, "")}
            models.add(row["model"])
            waiting += row["status"] != OK
            yield {
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
                    [neighbours.places[row["db"], key], round(score, 4)]
                    for key, score in zip(row["neighbour_keys"], row["neighbour_scores"], strict=True)
                ],
            }

    yield from _list('{"pictures":', laid())  # fills what follows
    yield from _list(',"prompts":', (json.loads(text)[1] for text in prompts))
    yield from _list(',"databases":', ({"name": name} for name in databases))
    yield from _list(',"settings":', (json.loads(text) for text in settings))
    yield from _list(',"neighbours":', neighbours.listed())
    yield from _list(',"urls":', small.urls())
    about = _about(len(prompts), len([name for name in databases if name]), models, waiting)
    made = f"Made with rdmpipe {version()}. Pictures, prompts and sources are also in results.parquet."
    yield f',"about":{_json(about)},"made":{_json(made)}}}'


def _list(name: str, values: Iterable[object]) -> Iterator[str]:
    yield f"{name}["
    for i, value in enumerate(values):
        yield ("," if i else "") + _json(value)
    yield "]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _about(prompts: int, databases: int, models: Iterable[str], waiting: int) -> str:
    words = [f"{prompts} prompt{'s' if prompts != 1 else ''}"]
    if databases:
        words.append(f"{databases} database{'s' if databases != 1 else ''}")
    words.append(f"drawn with {', '.join(sorted(models))}")
    return " · ".join(words) + (f" · {waiting} not made" if waiting else "")
