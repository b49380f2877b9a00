"""results.parquet: one row per requested picture, with its provenance.

Reads: finished PNG files, whose text chunks are the authoritative provenance (generation/provenance.py), and the
logs of shards for seconds and errors. Makes the table and writes nothing. Each neighbour in a row has its
licence, source, address and checksum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.generation.provenance import Record
from pipeline.generation.requests import RequestedCopy
from pipeline.installation import version
from pipeline.schema import OK

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.generation.stage import LogEntry

PENDING = "pending"  # status of a picture that an interrupted run did not reach

Row = dict[str, Any]
"""A row of results.parquet: COLUMNS, and the prompt list's other columns."""

COLUMNS = {
    "key": "string",
    "row": "int64",  # line of the prompt list
    "id": "string",
    "prompt": "string",
    "negative": "string",
    "image": "string",
    "db": "string",  # as the user named it; empty if no neighbours are used
    "db_version": "string",
    "where": "string",
    "copy": "int64",
    "seed": "int64",
    "file": "string",  # relative to results.parquet
    "status": "string",  # ok | failed | pending
    "error": "string",
    "note": "string",  # remarks on a finished picture: fewer neighbours than requested, a prompt cut off
    "seconds": "float64",  # of the worker, divided evenly among the pictures of a batch
    "neighbour_keys": "list<int64>",
    "neighbour_scores": "list<float64>",
    "neighbour_captions": "list<string>",
    "neighbour_licences": "list<string>",
    "neighbour_sources": "list<string>",
    "neighbour_urls": "list<string>",
    "neighbour_sha256": "list<string>",
    "neighbour_details": "list<string>",  # JSON of the database's other columns: title, artist, ...
    "k": "int64",
    "sampler": "string",
    "steps": "int64",
    "scale": "float64",
    "eta": "float64",
    "width": "int64",
    "height": "int64",
    "text_weight": "float64",
    "image_scale": "float64",
    "image_weighting": "string",
    "image_blocks": "string",
    "use": "string",
    "precision": "string",
    "model": "string",
    "model_hash": "string",
    "encoder": "string",
    "rdmpipe": "string",
}

PROMPTING = ("image_scale", "image_weighting", "image_blocks")  # only for models that take neighbours as image prompts

SETTINGS = ("k", "sampler", "steps", "scale", "eta", "text_weight", "image_scale", "image_weighting", "image_blocks",
            "use", "where", "precision", "model", "model_hash",
            "encoder", "db_version", "image", "rdmpipe")  # fmt: skip

BATCH = 500  # pictures whose records are held as Python objects at a time

_NEIGHBOUR = {"captions": "caption", "licences": "licence", "sources": "source", "urls": "url", "sha256": "sha256"}

_OWN = ("key", "score", *_NEIGHBOUR.values())


@dataclass(frozen=True)
class MadeWith:
    """The properties that all pictures of a run share."""

    model: str
    model_hash: str
    precision: str


def results_table(
    requests: Sequence[RequestedCopy],
    extra: Sequence[str],
    made: Callable[[RequestedCopy], Record | None],
    log: Mapping[str, LogEntry],
    common: MadeWith,
) -> pa.Table:
    """The table. `made` reads the provenance of a picture, None if it is not finished; `log` has seconds or error by key.

    The prompt list's other columns are last; one with the name of a column above is called row_<name>.
    Memory: the table, and the records of BATCH pictures.
    """
    import pyarrow as pa

    prompted = any(request.picture.prompting for request in requests)
    columns = {name: kind for name, kind in COLUMNS.items() if prompted or name not in PROMPTING}
    names: dict[str, str] = {}
    for name in extra:
        stored = name
        while stored in columns or stored in names.values() or (stored != name and stored in extra):
            stored = f"row_{stored}"
        names[name] = stored
    parts: dict[str, list[pa.Array]] = {name: [] for name in columns}
    for start in range(0, len(requests), BATCH):
        some = requests[start : start + BATCH]
        rows = [_row(request, made(request), log.get(request.key, {}), common) for request in some]
        for name, kind in columns.items():
            parts[name].append(pa.array([row[name] for row in rows], _type(kind)))
    arrays = {name: pa.chunked_array(parts[name], _type(kind)).combine_chunks() for name, kind in columns.items()}
    for name, stored in names.items():
        arrays[stored] = _carried([request.row.extra.get(name) for request in requests])
    return pa.table(arrays)


def _type(kind: str) -> pa.DataType:
    import pyarrow as pa

    plain = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    return pa.list_(plain[kind[5:-1]]) if kind.startswith("list<") else plain[kind]


def _carried(values: Sequence[object]) -> pa.Array:
    """A column unchanged if its values have one type, else as text (JSON for nested values)."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        array = None
    if array is not None and not pa.types.is_nested(array.type) and not pa.types.is_null(array.type):
        return array
    texts = [value if isinstance(value, str) or value is None else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def _row(request: RequestedCopy, made: Record | None, log: LogEntry, common: MadeWith) -> Row:
    picture, row = request.picture, request.row
    neighbours = made["neighbours"] if made else []
    status = OK if made else ("failed" if log.get("error") else PENDING)
    prompting = picture.prompting
    return {
        "key": request.key,
        "row": row.line,
        "id": row.id,
        "prompt": picture.prompt,
        "negative": picture.negative,
        "image": picture.image,
        "db": request.db,
        "db_version": picture.source.version if picture.source else "",
        "where": " AND ".join(picture.source.where) if picture.source else "",
        "copy": request.copy,
        "seed": picture.seed,
        "file": request.file if made else "",
        "status": status,
        "error": None if made else log.get("error"),
        "note": "; ".join(made["notes"]) if made else "",
        "seconds": log.get("seconds"),
        "neighbour_keys": [neighbour["key"] for neighbour in neighbours],
        "neighbour_scores": [neighbour["score"] for neighbour in neighbours],
        **{
            f"neighbour_{column}": [neighbour.get(name) for neighbour in neighbours]
            for column, name in _NEIGHBOUR.items()
        },
        "neighbour_details": [
            json.dumps({name: value for name, value in neighbour.items() if name not in _OWN}, ensure_ascii=False)
            for neighbour in neighbours
        ],
        "k": picture.k,
        **asdict(picture.sampling),
        "text_weight": picture.text_weight,
        "image_scale": prompting.scale if prompting else None,
        "image_weighting": prompting.weighting if prompting else None,
        "image_blocks": prompting.blocks if prompting else None,
        "use": picture.use,
        "encoder": made["encoder"] if made else "",
        "rdmpipe": made["rdmpipe"] if made else version(),
        **asdict(common),
    }
