"""Pictures and archives for the tests of sources and download: real, small, some of them broken."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HTML = b"<!DOCTYPE html><html><head><title>404</title></head></html>"
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\0" * 60


def jpeg(seed: int, size: int = 16) -> bytes:
    """A small JPEG that differs from those of other seeds."""
    colour = (seed * 37 % 256, seed * 101 % 256, seed // 256 % 256)
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "JPEG")
    return out.getvalue() + seed.to_bytes(
        4, "big"
    )  # colours repeat and JPEG rounds them; a tail behind the end mark does not


def png(seed: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (seed * 53 % 256, seed % 256, 90)).save(out, "PNG")
    return out.getvalue()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def tar_of(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    """A tar with the given members, in order; a TarInfo is used unchanged."""
    with tarfile.open(path, mode) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def csv_of(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


ARTISTS = ["Unknown Artist", "boris-kustodiev", "camille-pissarro", "childe-hassam", "claude-monet"]
GENRES = ["abstract_painting", "cityscape", "genre_painting", "Unknown Genre"]
STYLES = ["Abstract_Expressionism", "Baroque", "Cubism", "Impressionism"]


def wikiart_files(folder: Path, pictures: Sequence[bytes], files: int, group_rows: int = 100) -> list[dict[str, str]]:
    """Parquet files of WikiArt's exact format: image struct, int64 class labels, names in the `huggingface` metadata.

    Returns the names of each row's labels, in order.
    """
    names = {"artist": ARTISTS, "genre": GENRES, "style": STYLES}
    features: dict[str, Any] = {"image": {"decode": True, "id": None, "_type": "Image"}}
    for column, labels in names.items():
        features[column] = {"num_classes": len(labels), "names": labels, "id": None, "_type": "ClassLabel"}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            *[(column, pa.int64()) for column in names],
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    told = []
    for number in range(files):
        rows = []
        for i in range(number, len(pictures), files):
            labels = {column: i * 7 % len(values) for column, values in names.items()}
            rows.append({"image": {"bytes": pictures[i], "path": None}, **labels})
            told.append({column: names[column][value] for column, value in labels.items()})
        path = folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group_rows)
    return told
