"""Parquet files that hold the pictures' bytes, on the Hub or on this machine.

[source] keys: repo and revision (Hub) or path (a folder or file here); files (globs, default all .parquet); image,
item_id, caption, licence, source_url, columns, shard_rows. options: `cache = false` reads the Hub by range and keeps nothing.
The image column is bytes, or a struct with a field `bytes` as the Hub's image type has it. Integers that the `huggingface`
schema metadata (or the data set's dataset_infos.json) calls class labels become their names.

A shard is a range of rows of one file (parquet_files.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import from_mapping
from pipeline.errors import SourceError, nearest
from pipeline.manifest import Manifest
from pipeline.sources import Sample, ShardSpec, SourceOptions
from pipeline.sources.columns import Columns, choose, kind_of
from pipeline.sources.parquet_files import ParquetFiles

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ParquetOptions:
    cache: bool = True


class ParquetSource:
    rereadable = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        own = from_mapping(ParquetOptions, self.spec.options, f"{manifest.name} [source] options")
        self.files = ParquetFiles(manifest, options, own.cache)

    def columns(self) -> dict[str, str]:
        return self._choose(*self.files.schema()).stored()

    def plan(self) -> Iterator[ShardSpec]:
        return self.files.plan()

    def read(self, spec: Mapping[str, Any]) -> Iterator[Sample]:
        for columns, name, row in self.files.rows(spec, self._choose, self.spec.image):
            data, error = _picture(row[self.spec.image])
            yield columns.sample(row, name, data, error)

    def estimate(self) -> tuple[int, int]:
        return self.files.estimate()

    def revision(self) -> str:
        return self.files.revision

    def _choose(self, schema: pa.Schema, name: str) -> Columns:
        import pyarrow as pa

        labels = self.files.labels(schema)
        if self.spec.image not in schema.names:
            raise SourceError(
                f"{name}: no image column {self.spec.image!r}{nearest(self.spec.image, schema.names)}; "
                f'columns: {", ".join(schema.names)}. Name it in the manifest: image = "..."'
            )
        kind = schema.field(self.spec.image).type
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise SourceError(
                f"{name}: image column {self.spec.image!r} holds {kind}; expected bytes or a struct with a field `bytes`"
            )
        available = {
            field.name: "string" if field.name in labels else kind_of(field.type)
            for field in schema
            if field.name != self.spec.image
        }
        return choose(self.spec, available, name)


def _picture(value: Any) -> tuple[bytes | None, str | None]:
    """The bytes in an image cell, or why there are none."""
    if isinstance(value, dict):
        if value.get("bytes") is None:
            return None, f"missing_file: {value['path']}" if value.get("path") else "empty: no bytes in the row"
        value = value["bytes"]
    return (value, None) if value is not None else (None, "empty: no bytes in the row")
