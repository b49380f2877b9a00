"""`rdmpipe import`: make a searchable database from published embeddings without pictures.

Reads: files as exchange/npz.py describes. Writes: a plan, embedding shards with receipts, an index, a version. Each row keeps
the unit vector (float16) and its norm, and the bytes of the published vector, of the arrays beside it or of its metadata row,
so that an export gives them back exactly, including the dtype. The user names the encoder: only the number of dimensions is
checked, not that this encoder made the vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.building import EMBED_STAGE, Contents, EmbedConfig, begun, publish, save_plan, shard_entries
from pipeline.config import canonical_json, digest
from pipeline.database import RetrievalDatabase, Version, write_recorded
from pipeline.encoders import UNSTATED, EncoderRecord
from pipeline.errors import DatabaseError, EncoderError, ManifestError, SourceError
from pipeline.exchange.npz import Part, describe, form_of, left_out, read_parts
from pipeline.execution import Receipt, Shard, count_statuses
from pipeline.index import IndexConfig, IndexInput, Queries, text_queries
from pipeline.schema import FAILED, OK, SHARD_ROWS, embedding_schema, key_of
from pipeline.sources import NAME, Columns, Manifest, SourceSpec, choose_columns
from pipeline.storage import lease

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.encoders import Encoder

# Columns that an export reads: the raw bytes of an array's row; a metadata column.
BYTES, ORIGINAL = "published_bytes:", "published:"


def import_embeddings(
    name: str, path: Path, encoder: str, home: str | None = None, config: IndexConfig | None = None
) -> Version:
    """Import files as a new database. Raises ManifestError (name), DatabaseError (the database exists), SourceError."""
    if not NAME.match(name):
        raise ManifestError(f"name {name!r}: use lower-case letters, digits and _, parts joined by -")
    form, config = form_of(path), config or IndexConfig()
    db = RetrievalDatabase(name, home)
    with lease(db.storage, f"import {name}"):
        if db.exists() or not _is_interrupted_import(db):
            raise DatabaseError(f"there is a database {name!r} already; import under another name")
        db.storage.clear_scratch()
        return _import(db, path.resolve(), form, encoder, config)


def _is_interrupted_import(db: RetrievalDatabase) -> bool:
    """Whether an unpublished name can be used for an import: its folder is empty, or holds an import that did not finish."""
    found = begun(db.name, db.home)
    return found is None or found["manifest"].get("source", {}).get("kind") == "embeddings"


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
    found = describe(path)
    loaded, why = _reach(encoder, found.dim)
    has_text, trained = (True, True) if loaded is None else (loaded.has_text, loaded.record.trained)
    record = EncoderRecord(encoder, found.dim, UNSTATED, "openclip", "fp32", trained, has_text)
    chosen = choose_columns(manifest.source, found.kinds, str(path))
    shards, receipts = _store(db, read_parts(path), manifest, record, chosen)
    if not shards:
        raise SourceError(f"{path}: no embeddings in it")
    columns = chosen.stored()
    plan = save_plan(db, shards, columns, "", {"limit": 0, "shards": None}, lambda: left_out(path))
    settings = {"encoder": encoder, "precision": "fp32", "preprocess": "openclip", "images": "drop", "where": ""}
    written = {"manifest": asdict(manifest), "settings": {**settings, "plan": plan.id}}
    write_recorded(db.storage, "manifest.json", canonical_json(written) + "\n")
    text = Queries(why)
    if loaded is not None:
        text = text_queries(loaded, db, IndexInput(record, columns, shard_entries(receipts)), config)
    return publish(db, Contents(asdict(manifest), record, columns, "drop", plan.id), receipts, config, text)


def _store(
    db: RetrievalDatabase, parts: Iterator[Part], manifest: Manifest, record: EncoderRecord, columns: Columns
) -> tuple[list[Shard], list[Receipt]]:
    """Write the embedding shards of all parts, at most SHARD_ROWS rows each."""
    schema = embedding_schema(columns.stored(), record.dim)
    stamp = EmbedConfig(manifest.encoder, images="drop").fingerprint(record)
    shards: list[Shard] = []
    receipts: list[Receipt] = []
    for part in parts:
        for start in range(0, len(part.vectors), SHARD_ROWS):
            stop = min(start + SHARD_ROWS, len(part.vectors))
            number = len(shards)
            table = _table(part, start, stop, number, manifest, columns, schema)
            artifact = db.write_table(db.embedding_table(record, number), table)
            counts = count_statuses(table["status"].to_pylist(), table["error"].to_pylist())
            mark = hashlib.sha256(part.vectors[start:stop].tobytes()).hexdigest()[:32]
            spec = {"file": part.name, "start": start, "stop": stop}
            shards.append(Shard(number, stop - start, digest([spec, mark], 32), spec))
            receipt = Receipt(EMBED_STAGE, number, stamp, shards[-1].fingerprint, artifacts=(artifact,), **counts)
            db.storage.write_text(db.embedding_receipt(record, number), receipt.to_json())
            receipts.append(receipt)
    return shards, receipts


def _reach(name: str, dim: int) -> tuple[Encoder | None, str]:
    """The encoder for text queries with which recall is measured, or None and the reason. Raises EncoderError if it
    cannot fit."""
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


def _plain(part: Part, start: int, stop: int) -> Iterator[dict[str, object]]:
    """Rows as plain values; an array's row of several numbers (patch_coords) becomes text, such as `0, 0, 256, 256`."""
    if part.table is not None:
        yield from part.table.slice(start, stop - start).to_pylist()
        return
    lists = {
        name: (
            np.char.decode(cast("NDArray[np.bytes_]", array[start:stop]), "utf-8", "replace")
            if array.dtype.kind == "S"
            else array[start:stop]
        ).tolist()
        for name, array in part.arrays.items()
    }
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


def _raw(array: NDArray[np.generic]) -> pa.Array:
    import pyarrow as pa

    size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
    data = np.ascontiguousarray(array).tobytes()
    return pa.array(
        [data[i : i + size] for i in range(0, len(data), size)] if size else [b""] * len(array), pa.binary(size)
    )
