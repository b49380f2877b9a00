"""`rdmpipe export`: write a database's embeddings as CompVis `.npz` or as a clip-retrieval folder.

Reads: a version's embedding shards. Writes files into a new or empty folder. An imported database gives its arrays back bit for
bit, one file for each imported file, without the rows that are gone or purged. A database that was built here gives norm
times unit vector in float32, with the precision of the stored float16, without the rows that are not ok. An
export that was interrupted leaves some of the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from pipeline.database import RetrievalDatabase, Version, gone_keys, purged_mask
from pipeline.errors import ConfigError
from pipeline.exchange.importing import BYTES, ORIGINAL
from pipeline.exchange.npz import CLIP_RETRIEVAL, NPZ
from pipeline.filters import filter_mask
from pipeline.schema import PATCH_COORDS, metadata_columns, shard_name
from pipeline.sources import read_box

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


class _Stored(TypedDict):
    """How one published array was stored; `shape` is that of one row."""

    dtype: str
    shape: list[int]


class _Published(TypedDict):
    """The facts about the imported file that a shard records."""

    file: str
    arrays: dict[str, _Stored]


def export_embeddings(db: RetrievalDatabase, version: Version, form: str, out: Path, where: str = "") -> list[Path]:
    """Write the files, of the rows that match a view's `where`; returns their paths.

    Raises ConfigError if the form is unknown or the folder is not empty.
    """
    if form not in (NPZ, CLIP_RETRIEVAL):
        raise ConfigError(f"--to {form!r}: expected {NPZ} or {CLIP_RETRIEVAL}")
    empty_folder(out)
    waiting: list[pa.Table] = []
    written: list[Path] = []
    for table in kept_rows(db, version, where):
        if waiting and (_file(table) is None or _file(table) != _file(waiting[0])):
            written += _write(out, form, len(written), waiting, version)
            waiting = []
        waiting.append(table)
    return written + _write(out, form, len(written), waiting, version)


def empty_folder(out: Path) -> None:
    """Make the folder of an export. Raises ConfigError if it exists and is not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists and is not an empty folder; name another")
    out.mkdir(parents=True, exist_ok=True)


def kept_rows(db: RetrievalDatabase, version: Version, where: str) -> Iterator[pa.Table]:
    """The rows of each shard that are not gone, not purged, and match; for a database that was built here, the ok ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    gone = pa.array(gone_keys(db, version.gone), pa.int64())
    for shard in version.shards:
        table = db.read_table(shard.artifact)
        table = table.filter(pc.invert(pc.is_in(table["key"], gone)))
        table = table.filter(pa.array(~purged_mask(table)))
        if _file(table) is None:
            table = table.filter(pc.equal(table["status"], "ok"))
        if where:
            table = table.filter(pa.array(filter_mask(where, table)))
        if table.num_rows:
            yield table


def _file(table: pa.Table) -> str | None:
    """The imported file of a shard; None for a shard that was built here."""
    return (table.schema.metadata or {}).get(b"published") and _published(table)["file"]


def _published(table: pa.Table) -> _Published:
    published: _Published = json.loads(table.schema.metadata[b"published"])
    return published


def _write(out: Path, form: str, count: int, tables: list[pa.Table], version: Version) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(tables)
    file = _file(table)
    arrays = _arrays(table) if file else _made(table, bool(version.manifest.get("patches")))
    number = shard_name(count if form == NPZ else count // 2)
    if form == NPZ:
        name = file if file and file.endswith(".npz") else f"{number}.npz"
        np.savez(out / name, **arrays)
        return [out / name]
    pair = file.split("|") if file and "|" in file else [f"img_emb_{number}.npy", f"metadata_{number}.parquet"]
    originals = [name for name in table.column_names if name.startswith(ORIGINAL)]
    if originals:
        metadata = table.select(originals).rename_columns([name.removeprefix(ORIGINAL) for name in originals])
    else:
        metadata = table.select([name for name in metadata_columns(version.columns) if name in table.column_names])
    for folder in ("img_emb", "metadata"):
        (out / folder).mkdir(exist_ok=True)
    np.save(out / "img_emb" / pair[0], arrays["embedding"], allow_pickle=False)
    pq.write_table(metadata.replace_schema_metadata(None), out / "metadata" / pair[1])
    return [out / "img_emb" / pair[0], out / "metadata" / pair[1]]


def _arrays(table: pa.Table) -> dict[str, NDArray[np.generic]]:
    """The published arrays, bit for bit."""
    made: dict[str, NDArray[np.generic]] = {}
    for name, about in _published(table)["arrays"].items():
        data = b"".join(table[f"{BYTES}{name}"].to_pylist())
        made[name] = np.frombuffer(data, np.dtype(about["dtype"])).reshape(table.num_rows, *about["shape"])
    if "|" in _published(table)["file"]:  # from a clip-retrieval folder, whose rows have no other name in an .npz
        made["img_id"] = np.array(table["item_id"].to_pylist(), dtype=np.str_)
    return made


def _made(table: pa.Table, patches: bool) -> dict[str, NDArray[np.generic]]:
    """embedding (N, D) float32, img_id (N,) text, patch_coords (N, 4) int64: x0, y0, x1, y1 of the crop in pixels of the
    upright picture, or the whole of it."""
    column = table["vector"].combine_chunks()
    unit = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    norm = table["norm"].to_numpy().astype(np.float32)
    sizes = np.stack([table[name].to_numpy() for name in ("width", "height")], 1).astype(np.int64)
    coords = np.concatenate([np.zeros_like(sizes), sizes], 1)
    if patches:
        coords = np.array([read_box(text) for text in table[PATCH_COORDS].to_pylist()], np.int64).reshape(-1, 4)
    return {
        "embedding": unit.astype(np.float32) * norm[:, None],
        "img_id": np.array(table["item_id"].to_pylist(), dtype=np.str_),
        "patch_coords": coords,
    }
