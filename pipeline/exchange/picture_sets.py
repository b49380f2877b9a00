"""`rdmpipe export --to datasets`, `imagefolder`, `lance` and `fiftyone`: a database with its pictures, for other tools.

    datasets      README.md (a card), data/train-*.parquet: `image` (bytes inside), the metadata columns, `embedding`. The Hub's
                  viewer and `datasets.load_dataset(FOLDER)` read it; `add_faiss_index("embedding", metric_type=0)` works on it
    imagefolder   pictures/KEY.jpg and metadata.csv with the column file_name, for `datasets.load_dataset("imagefolder", ...)`
                  and `rdmpipe build-index FOLDER`
    lance         README.md, data.lance: the columns of `datasets`, with `image` as bytes
    fiftyone      data/KEY.jpg, metadata.json, samples.json, for fiftyone.Dataset.from_dir with the type FiftyOneDataset

Reads: a version's embedding shards and stored pictures (the originals if they were kept, else thumbnails). Writes into a new
or empty folder. Rows that are not ok, gone, purged or outside a view's filter are not exported. A
row without a stored picture has a null image, and is left out of an imagefolder and of fiftyone's. Holds one shard in memory.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.database import RetrievalDatabase, Version, picture_files
from pipeline.errors import ConfigError
from pipeline.exchange.cards import card, database_facts, database_head
from pipeline.exchange.exporting import empty_folder, kept_rows
from pipeline.exchange.licences import NOT_STATED
from pipeline.images import format_of
from pipeline.installation import require
from pipeline.schema import metadata_columns

if TYPE_CHECKING:
    import pyarrow as pa

PICTURE_FORMS = ("datasets", "imagefolder", "lance", "fiftyone")

# Fields of every FiftyOne sample; a column of the same name is renamed to source_<name>.
_SAMPLE_FIELDS = ("id", "filepath", "tags", "metadata", "created_at", "last_modified_at")

# Names of Pillow's formats as file suffixes.
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}

_DTYPES = {"string": "string", "int64": "int64", "float64": "float64", "bool": "bool"}


def export_pictures(db: RetrievalDatabase, version: Version, form: str, out: Path, where: str = "") -> list[Path]:
    """Write the files for the rows that match a view's `where`; return the tables and the card, without single pictures.

    Raises ConfigError if the form is unknown or the folder is not empty.
    """
    writers = {"datasets": _datasets, "imagefolder": _image_folder, "lance": _lance, "fiftyone": _fiftyone}
    if form not in writers:
        raise ConfigError(f"--to {form!r}: expected {' or '.join(PICTURE_FORMS)}")
    if form == "lance":
        require("lance", "an export to Lance")
    empty_folder(out)
    return writers[form](db, version, out, where)


def _shards(db: RetrievalDatabase, version: Version, where: str) -> Iterator[pa.Table]:
    import pyarrow.compute as pc

    for table in kept_rows(db, version, where):
        table = table.filter(pc.equal(table["status"], "ok"))
        if table.num_rows:
            yield table


def _columns(table: pa.Table, version: Version) -> dict[str, str]:
    """The exported metadata columns of a shard, with their type names."""
    own = metadata_columns(version.columns)
    return {name: kind for name, kind in own.items() if name in table.column_names}


def _name(key: int, data: bytes) -> str:
    kind = format_of(data)
    return f"{key}.{_SUFFIXES.get(kind, kind.lower() or 'bin')}"


# ---- datasets


def _datasets(db: RetrievalDatabase, version: Version, out: Path, where: str) -> list[Path]:
    import pyarrow.parquet as pq

    (out / "data").mkdir()
    written: list[Path] = []
    licences: Counter[str] = Counter()
    rows = pictures = 0
    for number, table in enumerate(_shards(db, version, where)):
        made, with_picture = _as_dataset(db, version, table)
        path = out / "data" / f"train-{number:05d}.parquet"
        pq.write_table(made, path, row_group_size=1000)  # the viewer reads one row group for a page
        written.append(path)
        rows, pictures = rows + table.num_rows, pictures + with_picture
        licences.update(text or NOT_STATED for text in table["licence"].to_pylist())
    card = out / "README.md"
    card.write_text(_card(version, rows, pictures, licences, where), encoding="utf-8")
    return [*written, card]


def _as_dataset(db: RetrievalDatabase, version: Version, table: pa.Table) -> tuple[pa.Table, int]:
    """A shard in the format of the library `datasets`, and the number of rows with a picture."""
    import pyarrow as pa

    keys = table["key"].to_pylist()
    files = picture_files(db, keys, originals=True)
    images = [{"bytes": files[key], "path": _name(key, files[key])} if key in files else None for key in keys]
    kinds = _columns(table, version)
    dim = version.encoder.dim
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    columns: dict[str, pa.Array] = {
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        **{name: table[name] for name in kinds},
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), dim),
    }
    features = {
        "image": {"_type": "Image"},
        **{name: {"dtype": _feature(table, name, kind), "_type": "Value"} for name, kind in kinds.items()},
        "embedding": {"feature": {"dtype": "float32", "_type": "Value"}, "length": dim, "_type": "Sequence"},
    }
    made = pa.table(columns)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), len(files)


def _feature(table: pa.Table, name: str, kind: str) -> str:
    """The name of a column's type in `datasets`; width and height are stored as int32."""
    stored = str(table.schema.field(name).type)
    return stored if stored in ("int32", "float32") else _DTYPES[kind]


def _card(version: Version, rows: int, pictures: int, licences: Mapping[str, int], where: str) -> str:
    head = database_head(version, rows, [*licences], "data/*.parquet")
    lines = [
        f"# {head['pretty_name']}",
        "",
        f"{rows:,} rows of the rdmpipe database `{version.database}`, version `{version.id}`"
        + (f", where `{where}`" if where else "")
        + f"; {pictures:,} have a picture.",
        "",
        *database_facts(version, licences),
        "",
        "`embedding` holds unit vectors: the inner product of two is their cosine. `image` is the original where it was kept, "
        "else a thumbnail of at most 256 pixels.",
    ]
    return card(head, "\n".join(lines))


# ---- a folder


def _image_folder(db: RetrievalDatabase, version: Version, out: Path, where: str) -> list[Path]:
    (out / "pictures").mkdir()
    path = out / "metadata.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer: csv.DictWriter[str] | None = None
        for table in _shards(db, version, where):
            names = [name for name in _columns(table, version) if name not in ("phash", "duplicate_of")]
            if writer is None:
                writer = csv.DictWriter(handle, ["file_name", *names], restval="", extrasaction="ignore")
                writer.writeheader()
            files = picture_files(db, table["key"].to_pylist(), originals=True)
            for row in table.select(names).to_pylist():
                data = files.get(row["key"])
                if data is None:
                    continue
                name = f"pictures/{_name(row['key'], data)}"
                (out / name).write_bytes(data)
                writer.writerow({"file_name": name, **row})
    return [path]


# ---- Lance


def _lance(db: RetrievalDatabase, version: Version, out: Path, where: str) -> list[Path]:
    """One table of all rows, written shard by shard."""
    import lance
    import pyarrow as pa

    licences: Counter[str] = Counter()
    rows = pictures = 0
    path = out / "data.lance"
    for table in _shards(db, version, where):
        made, with_picture = _as_dataset(db, version, table)
        images = pa.array([one["bytes"] if one else None for one in made["image"].to_pylist()], pa.large_binary())
        made = made.set_column(0, "image", images).replace_schema_metadata(None)
        lance.write_dataset(made, str(path), mode="append" if rows else "create")
        rows, pictures = rows + table.num_rows, pictures + with_picture
        licences.update(text or NOT_STATED for text in table["licence"].to_pylist())
    text = _card(version, rows, pictures, licences, where)
    (out / "README.md").write_text(text, encoding="utf-8")
    return [path, out / "README.md"] if rows else [out / "README.md"]


# ---- FiftyOne


def _fiftyone(db: RetrievalDatabase, version: Version, out: Path, where: str) -> list[Path]:
    """A FiftyOneDataset without `version` in metadata.json, whose samples FiftyOne reads as plain JSON."""
    (out / "data").mkdir()
    path = out / "samples.json"
    with path.open("w", encoding="utf-8") as handle:
        handle.write('{"samples": [')
        for number, sample in enumerate(_samples(db, version, out, where)):
            handle.write((",\n" if number else "\n") + json.dumps(sample, ensure_ascii=False, allow_nan=False))
        handle.write("\n]}\n")
    told = version.manifest
    info = {"database": version.database, "version": version.id, "encoder": version.encoder.name, "where": where,
            "licence": str(told.get("licence") or NOT_STATED), "source": told.get("source")}  # fmt: skip
    metadata = {"name": version.database, "media_type": "image", "info": info}
    about = out / "metadata.json"
    about.write_text(json.dumps(metadata, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")
    return [about, path]


def _samples(db: RetrievalDatabase, version: Version, out: Path, where: str) -> Iterator[dict[str, object]]:
    """The samples of the rows with a picture, which is written to data/. Values that are null or not finite are left out."""
    for table in _shards(db, version, where):
        names = [name for name in _columns(table, version) if name not in ("phash", "duplicate_of")]
        files = picture_files(db, table["key"].to_pylist(), originals=True)
        vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        for row, vector in zip(table.select(names).to_pylist(), vectors.reshape(table.num_rows, -1), strict=True):
            data = files.get(row["key"])
            if data is None:
                continue
            name = f"data/{_name(row['key'], data)}"
            (out / name).write_bytes(data)
            given = {(f"source_{field}" if field in _SAMPLE_FIELDS else field): row[field] for field in names}
            kept = {
                field: value for field, value in given.items()
                if value is not None and not (isinstance(value, float) and not math.isfinite(value))
            }  # fmt: skip
            yield {"filepath": name, "tags": [], **kept, "embedding": [round(float(value), 7) for value in vector]}
