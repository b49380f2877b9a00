"""Keys, shard names, database names and the Parquet schemas of a retrieval database.

`key = shard * 10_000 + row` identifies a row permanently. Reads the Parquet files that it is given, and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import DatabaseError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_ROWS = 10_000  # the most rows that a shard may hold, and the factor in a key

OK, FILTERED, FAILED = "ok", "filtered", "failed"

# Column types that a manifest or a source may use, by their names in manifests and plans.
TYPES = ("string", "int64", "float64", "bool")

# Columns that every row has, from any source. A source's column of the same name becomes source_<name>.
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

# The reserved columns that a source may set itself.
FROM_SOURCE = ("url", "licence", "caption")

# Columns that a manifest's `patches` adds: the key of the picture's first row in its shard, and the crop's x0, y0, x1, y1.
IMAGE_KEY, PATCH_COORDS = "image_key", "patch_coords"


_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(-[a-z0-9_]+)*")

LONGEST_NAME = 200  # characters; a file name may have 255 bytes, and some file names append to a name


def is_name(text: str) -> bool:
    """Whether a text can be the name of a database, a view or a manifest."""
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def check_name(text: str) -> str:
    """`text`, if it can be a name. Every look-up of a database calls this, so that no name leads out of the home.

    Raises DatabaseError.
    """
    if not is_name(text):
        raise DatabaseError(
            f"{text[:60]!r} cannot be the name of a database: a name has at most {LONGEST_NAME} lower-case letters, digits and "
            "_, in parts joined by -. `rdmpipe list` shows the databases that exist"
        )
    return text


def key_of(shard: int, row: int) -> int:
    if not 0 <= row < SHARD_ROWS or shard < 0:
        raise ValueError(f"shard {shard}, row {row}: a shard has rows 0 to {SHARD_ROWS - 1}")
    return shard * SHARD_ROWS + row


def shard_of(key: int) -> int:
    return key // SHARD_ROWS


def shard_name(shard: int) -> str:
    """The shard's number with six digits or more: 000042, 1234567."""
    return f"{shard:06d}"


def column_name(name: str) -> str:
    """The name under which a source's column is stored: its own name, unless that is reserved in upper or lower case."""
    return f"source_{name}" if name.lower() in RESERVED and name not in FROM_SOURCE else name


def arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    try:
        return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[name]
    except KeyError:
        raise SourceError(f"column type {name!r} is not one of {', '.join(TYPES)}") from None


def image_schema(columns: Mapping[str, str]) -> pa.Schema:
    """The schema of images/<shard>.parquet. `columns` maps the source's own metadata columns to type names.

    `status` is ok (the picture's bytes are in the tar), filtered or failed (`error` is `reason` or `reason: detail`).
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
    """The schema of embeddings/<encoder>/<shard>.parquet: the image rows, what decoding found, and the unit vector.

    phash is the 64-bit perceptual hash as 16 hex digits. width and height are in pixels, after EXIF orientation. norm is the L2
    norm before normalising. If status is not ok, vector is all zeros and norm is null: pyarrow 25 writes a null in a
    fixed-size list to Parquet but cannot read it back.
    """
    return with_vectors(image_schema(columns), dim)


def with_vectors(images: pa.Schema, dim: int) -> pa.Schema:
    """The embedding schema for an image table's schema."""
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
    """The columns that filters and search results see, in order, each with its type name."""
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


def read_parquet(file: object, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file (a path or an open file), or these of its columns in the given order.

    pyarrow's `read_table` is not used: it imports pandas if that is installed, and reads a folder named `a=b` as a column.
    Raises pyarrow.ArrowInvalid for a column that is not there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        missing = [name for name in columns or () if name not in opened.schema_arrow.names]
        if missing:
            raise pa.ArrowInvalid(f"no column {', '.join(missing)}; there are {', '.join(opened.schema_arrow.names)}")
        table = opened.read(columns=columns)
    return table if columns is None else table.select(columns)
