"""Keys, shard names and the Parquet schemas of a retrieval database.

`key = shard * 10_000 + row` names a row for ever. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_ROWS = 10_000  # most rows a shard may hold: the factor in a key

OK, FILTERED, FAILED = "ok", "filtered", "failed"

# Column types a manifest or a source may use, by the names that manifests and plans write down.
TYPES = ("string", "int64", "float64", "bool")

# Columns that every row carries whatever its source. A source's column of the same name becomes source_<name>.
RESERVED = (
    "key",
    "item_id",
    "status",
    "error",
    "source",
    "url",
    "licence",
    "caption",
    "sha256",
    "phash",
    "width",
    "height",
    "vector",
    "norm",
    "duplicate_of",
    "score",
)

# Of these a source may fill in itself, under their own names.
FROM_SOURCE = ("url", "licence", "caption")

# Columns that a manifest's `patches` adds: the key of the picture's first row in its shard; `x0, y0, x1, y1` of the crop.
IMAGE_KEY, PATCH_COORDS = "image_key", "patch_coords"


def key_of(shard: int, row: int) -> int:
    if not 0 <= row < SHARD_ROWS or shard < 0:
        raise ValueError(f"shard {shard}, row {row}: a shard has rows 0 to {SHARD_ROWS - 1}")
    return shard * SHARD_ROWS + row


def shard_of(key: int) -> int:
    return key // SHARD_ROWS


def shard_name(shard: int) -> str:
    """Six digits or more: 000042, 1234567."""
    return f"{shard:06d}"


def column_name(name: str) -> str:
    """The column a source's column is stored under: its own name unless that, capitals aside (SQL's rule), is reserved."""
    return f"source_{name}" if name.lower() in RESERVED and name not in FROM_SOURCE else name


def arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    try:
        return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[name]
    except KeyError:
        raise SourceError(f"column type {name!r} is not one of {', '.join(TYPES)}") from None


def image_schema(columns: Mapping[str, str]) -> pa.Schema:
    """Rows of images/<shard>.parquet. `columns` are the source's own metadata columns by type name.

    `status` is ok (bytes are in the tar), filtered or failed (`error` is `reason` or `reason: detail`).
    """
    import pyarrow as pa

    own = [(name, arrow_type(kind)) for name, kind in columns.items() if name not in FROM_SOURCE]
    fixed = [
        ("key", pa.int64()),
        ("item_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("licence", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
    ]
    return pa.schema(fixed + own)


def embedding_schema(columns: Mapping[str, str], dim: int) -> pa.Schema:
    """Rows of embeddings/<encoder>/<shard>.parquet: the image rows, what decoding found, and the unit vector.

    phash is the 64-bit perceptual hash as 16 hex digits; width and height are pixels after EXIF orientation;
    where status is not ok, vector is all zeros and norm is null (a null in a fixed-size list is written to Parquet by pyarrow
    25 and cannot be read back). norm is the L2 norm before normalising.
    """
    return with_vectors(image_schema(columns), dim)


def with_vectors(images: pa.Schema, dim: int) -> pa.Schema:
    """The embedding schema that belongs to an image table's own schema."""
    import pyarrow as pa

    return pa.schema(
        [
            *images,
            ("phash", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("vector", pa.list_(pa.float16(), dim)),
            ("norm", pa.float32()),
        ]
    )


def metadata_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Columns a filter and a search result see, by type name, in order."""
    own = {name: kind for name, kind in columns.items() if name not in FROM_SOURCE}
    return {
        "key": "int64",
        "item_id": "string",
        "caption": "string",
        "source": "string",
        "url": "string",
        "licence": "string",
        "sha256": "string",
        "phash": "string",
        "width": "int64",
        "height": "int64",
        "duplicate_of": "int64",
        **own,
    }
