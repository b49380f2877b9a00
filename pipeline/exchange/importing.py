"""`rdmpipe import`: published embeddings without pictures become a database that can be searched.

Reads: files as exchange/npz.py describes. Writes: a plan, embedding shards with receipts, an index, a version. Beside the unit
vector (float16) and norm, each row keeps the bytes of its published vector and of the arrays beside it, or its metadata row,
so that an export gives them back exactly, dtype included. The encoder is named by hand: that it made the vectors is
believed, not known; only the number of dimensions is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.building import EMBED_STAGE, EmbedConfig, save_plan
from pipeline.config import canonical_json, digest
from pipeline.database import RetrievalDatabase, ShardEntry, Version
from pipeline.encoders import UNSTATED, EncoderRecord
from pipeline.errors import DatabaseError, EncoderError, ManifestError, SourceError
from pipeline.exchange.npz import Part, form_of, read_parts
from pipeline.execution import Receipt, Shard, count_statuses
from pipeline.index import IndexConfig, IndexInput, Queries, build_index, text_queries
from pipeline.schema import FAILED, OK, SHARD_ROWS, embedding_schema, key_of
from pipeline.sources import NAME, Columns, Manifest, SourceSpec, choose_columns, kind_of
from pipeline.storage import lease

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

BYTES, ORIGINAL = (
    "published_bytes:",
    "published:",
)  # columns an export reads: raw bytes of an array's row; a metadata column


def import_embeddings(
    name: str, path: Path, encoder: str, home: str | None = None, config: IndexConfig | None = None
) -> Version:
    """Import files as a new database. Raises ManifestError (name), DatabaseError (there is one already), SourceError."""
    if not NAME.match(name):
        raise ManifestError(f"name {name!r}: use lower-case letters, digits and _, parts joined by -")
    form, config = form_of(path), config or IndexConfig()
    db = RetrievalDatabase(name, home)
    with lease(db.storage, f"import {name}"):
        if db.exists() or db.storage.exists("manifest.json"):
            raise DatabaseError(f"there is a database {name!r} already; import under another name")
        db.storage.clear_scratch()
        return _import(db, path.resolve(), form, encoder, config)


def _import(db: RetrievalDatabase, path: Path, form: str, encoder: str, config: IndexConfig) -> Version:
    manifest = Manifest(
        name=db.name,
        title=f"Embeddings published in {path.name}",
        source=SourceSpec(kind="embeddings", path=str(path), options={"form": form}),
        licence="unknown",
        terms="Embeddings that somebody else published, without pictures: their publisher's terms hold.",
        opt_out="Remove the rows from this database.",
        encoder=encoder,
    )
    record, chosen, dtype = None, None, None
    entries: list[ShardEntry] = []
    shards: list[Shard] = []
    receipts: list[Receipt] = []
    loaded: Any = None
    why = ""
    for part in read_parts(path):
        available = _available(part)
        if record is None or chosen is None:
            loaded, why = _reach(encoder, part.vectors.shape[1])
            has_text = True if loaded is None else loaded.has_text
            trained = True if loaded is None else loaded.record.trained
            record = EncoderRecord(encoder, part.vectors.shape[1], UNSTATED, "openclip", "fp32", trained, has_text)
            chosen, dtype = choose_columns(manifest.source, available, str(path)), part.vectors.dtype
            stored = embedding_schema(chosen.stored(), record.dim)
            stamp = EmbedConfig(encoder, images="drop").fingerprint(record)
            first = available
        if (part.vectors.shape[1], part.vectors.dtype) != (record.dim, dtype) or available != first:
            raise SourceError(
                f"{path}: {part.name} has {part.vectors.dtype} vectors of {part.vectors.shape[1]} dimensions and columns "
                f"{list(available)}; the first file has {dtype}, {record.dim} and {list(first)}: import them apart"
            )
        for start in range(0, len(part.vectors), SHARD_ROWS):
            stop = min(start + SHARD_ROWS, len(part.vectors))
            shard = len(shards)
            table = _table(part, start, stop, shard, manifest, chosen, stored)
            artifact = db.write_table(db.embedding_table(record, shard), table)
            counts = count_statuses(table["status"].to_pylist(), table["error"].to_pylist())
            mark = hashlib.sha256(part.vectors[start:stop].tobytes()).hexdigest()[:32]
            spec = {"file": part.name, "start": start, "stop": stop}
            shards.append(Shard(shard, stop - start, digest([spec, mark], 32), spec))
            receipt = Receipt(EMBED_STAGE, shard, stamp, shards[-1].fingerprint, artifacts=(artifact,), **counts)
            db.storage.write_text(f"{db.embedding_folder(record)}/{shards[-1].name}.json", receipt.to_json())
            receipts.append(receipt)
            entries.append(ShardEntry(shard, receipt.ok, artifact))
    if record is None or chosen is None or not shards:
        raise SourceError(f"{path}: no embeddings in it")
    columns = chosen.stored()
    plan = save_plan(db, shards, columns, "", {"limit": 0, "shards": None})
    settings = {"encoder": encoder, "precision": "fp32", "preprocess": "openclip", "images": "drop", "where": ""}
    written = {"manifest": asdict(manifest), "settings": {**settings, "plan": plan.id}}
    rows = IndexInput(record, columns, entries)
    text = Queries(why) if loaded is None else text_queries(loaded, db, rows, config)
    index = build_index(db, config, rows, text)
    failed = sum(receipt.failed for receipt in receipts)
    version = Version(
        database=db.name,
        manifest=asdict(manifest),
        encoder=record,
        columns=columns,
        shards=tuple(entries),
        index=index,
        counts={
            "input": plan.rows,
            "ok": sum(receipt.ok for receipt in receipts),
            "filtered": sum(receipt.filtered for receipt in receipts),
            "failed": failed,
            "reasons": {"bad_vector": failed} if failed else {},
            "duplicates": int(index.build["duplicates"]),
        },
        images="drop",
        plan=plan.id,
    )
    db.storage.write_text("manifest.json", canonical_json(written) + "\n")
    db.publish(version, None)
    return version


def _reach(name: str, dim: int) -> tuple[Any, str]:
    """The encoder, for text queries to measure recall with; or None and why. Raises EncoderError where it cannot fit."""
    from pipeline.encoders import load_encoder, model_config, resolve_encoder

    spec = resolve_encoder(name)
    try:
        wide = model_config(spec).embed_dim
        if wide == dim:
            return load_encoder(name), ""
    except EncoderError as error:
        return None, f"none: the encoder cannot be reached: {error}"
    raise EncoderError(
        f"the embeddings have {dim} dimensions, encoder {name!r} has {wide}; name the one that made them"
    )


def _available(part: Part) -> dict[str, str | None]:
    if part.table is not None:
        return {field.name: kind_of(field.type) for field in part.table.schema}
    kinds = {"i": "int64", "u": "int64", "f": "float64", "b": "bool", "U": "string"}
    return {name: kinds.get(a.dtype.kind) if a.ndim == 1 else "string" for name, a in part.arrays.items()}


def _plain(part: Part, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Rows as plain values; an array's row of several numbers (patch_coords) becomes text, as `0, 0, 256, 256`."""
    if part.table is not None:
        yield from part.table.slice(start, stop - start).to_pylist()
        return
    lists = {name: array[start:stop].tolist() for name, array in part.arrays.items()}
    for row in range(stop - start):
        values = {name: column[row] for name, column in lists.items()}
        yield {name: json.dumps(value)[1:-1] if isinstance(value, list) else value for name, value in values.items()}


def _table(
    part: Part, start: int, stop: int, shard: int, manifest: Manifest, columns: Columns, schema: pa.Schema
) -> pa.Table:
    import pyarrow as pa

    published = part.vectors[start:stop]
    wide = published.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    good = np.isfinite(norms) & (norms > 0) & (norms < np.finfo(np.float32).max)
    unit = np.divide(wide, norms[:, None], out=np.zeros_like(wide), where=good[:, None]).astype(np.float16)
    rows = []
    for place, values in enumerate(_plain(part, start, stop)):
        fine = bool(good[place])
        sample = columns.sample(values, f"{part.name}#{start + place}")
        rows.append(
            {
                **sample.metadata,
                "key": key_of(shard, place),
                "item_id": sample.item_id,
                "status": OK if fine else FAILED,
                "error": None if fine else "bad_vector: zero, infinite or not a number",
                "source": manifest.name,
                "url": sample.url,
                "licence": sample.licence or manifest.licence,
                "caption": sample.caption,
                "norm": float(norms[place]) if fine else None,
            }
        )
    plain = pa.schema([field for field in schema if field.name != "vector"])
    table = pa.Table.from_pylist(rows, plain)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1), pa.float16()), unit.shape[1])
    made = table.add_column(schema.get_field_index("vector"), schema.field("vector"), vectors)
    about = {}
    for name, array in {"embedding": published, **{n: a[start:stop] for n, a in part.arrays.items()}}.items():
        made = made.append_column(f"{BYTES}{name}", _raw(array))
        about[name] = {"dtype": array.dtype.str, "shape": list(array.shape[1:])}
    if part.table is not None:
        for name in part.table.column_names:
            made = made.append_column(f"{ORIGINAL}{name}", part.table[name].slice(start, stop - start))
    return made.replace_schema_metadata({"published": canonical_json({"file": part.name, "arrays": about})})


def _raw(array: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    data = np.ascontiguousarray(array).tobytes()
    return pa.array(
        [data[i : i + size] for i in range(0, len(data), size)] if size else [b""] * len(array), pa.binary(size)
    )
