"""A run's folder made without a model: real pictures stand in for generated ones. For the tests of the gallery."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.generation.prompts import PromptRow
from pipeline.generation.provenance import encode_png
from pipeline.generation.requests import Maker, Neighbourhood, PictureRequest, RequestedCopy
from pipeline.generation.results import MadeWith, results_table
from pipeline.generation.sampling import Sampling
from pipeline.storage import Storage

MAKER = Maker(model="0" * 64, encoder="tiny-00000000", precision="fp32")
COMMON = MadeWith("rdm-test", MAKER.model, "fp32")


def paintings(shared: Path) -> list[dict[str, str]]:
    with (shared / "data" / "paintings" / "metadata.csv").open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def make_run(
    folder: Path,
    shared: Path,
    prompts: list[str],
    databases: list[str],
    *,
    n: int = 1,
    k: int = 6,
    extra: Mapping[str, Any] | None = None,
    unfinished: int = 0,
    neighbour: Mapping[str, Any] | None = None,
    side: int = 256,
) -> tuple[Storage, pa.Table]:
    """Pictures for prompts x databases x n, the last `unfinished` of them failed; neighbours are the paintings themselves."""
    storage = Storage(str(folder))
    works = paintings(shared)
    requests, made, log = [], {}, {}
    for line, prompt in enumerate(prompts, 2):
        for db in databases:
            for copy in range(n):
                picture = PictureRequest(
                    prompt,
                    "",
                    "",
                    "both",
                    1.0,
                    7 + copy,
                    Neighbourhood(db, "v0"),
                    k,
                    Sampling("ddim", 50, 5.0, 0.0, side, side),
                )
                row = PromptRow(line, prompt, extra=extra or {})
                requests.append(RequestedCopy(row, copy, db, picture, picture.key(MAKER)))
    for i, request in enumerate(requests):
        if i >= len(requests) - unfinished:
            log[request.key] = {"error": "not finite: the model gave no numbers"}
            continue
        near = [(i * 7 + j * 5) % len(works) for j in range(k)]
        neighbours = [
            {
                "key": at,
                "score": 0.31 - 0.013 * j,
                "caption": f"{works[at]['title']} by {works[at]['artist']}",
                "licence": "Public domain",
                "source": "paintings",
                "url": "https://example.org/work",
                "sha256": "0" * 64,
                **{name: works[at][name] for name in ("title", "artist", "date", "style")},
                **(neighbour or {}),
            }
            for j, at in enumerate(near)
        ]
        record = {
            "key": request.key,
            "prompt": request.picture.prompt,
            "rdmpipe": "0.1.0",
            "neighbours": neighbours,
            "notes": [],
            "encoder": MAKER.encoder,
        }
        with Image.open(shared / "data" / "paintings" / works[near[0]]["file_name"]) as image:
            cut = min(image.size)
            left, top = (image.width - cut) // 2, (image.height - cut) // 3
            pixels = np.asarray(image.convert("RGB").crop((left, top, left + cut, top + cut)).resize((side, side)))
        storage.write_bytes(request.file, encode_png(pixels, record))
        made[request.key] = record
    return storage, results_table(requests, tuple(extra or ()), lambda request: made.get(request.key), log, COMMON)


def thumbnails(shared: Path, without: int = 3) -> Any:
    """A reader of the paintings' thumbnails; every `without`-th has none, as if its picture was dropped."""
    works = paintings(shared)

    def read(database: str, keys: list[int]) -> dict[int, bytes]:
        folder = shared / "data" / "paintings"
        return {key: (folder / works[key]["file_name"]).read_bytes() for key in keys if key % without}

    return read


def solid(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(out, "PNG")
    return out.getvalue()


def page_data(folder: Path) -> dict[str, Any]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    body = text.split('<script type="application/json" id="data">', 1)[1].split("</script>", 1)[0]
    data: dict[str, Any] = json.loads(body)
    return data
