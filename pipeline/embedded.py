"""The rows of one embedding shard while it is being made, and the table they become.

Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encoders import unit_rows
from pipeline.schema import FAILED, OK, with_vectors

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass
class EmbeddedRows:
    """The columns that embedding adds or changes, by row. `status` and `error` start as the image table has them."""

    rows: int
    dim: int
    status: list[str]
    error: list[str | None]
    phash: list[str | None] = field(init=False)
    width: list[int | None] = field(init=False)
    height: list[int | None] = field(init=False)
    vectors: NDArray[np.float16] = field(init=False)
    norms: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.phash = [None] * self.rows
        self.width, self.height = [None] * self.rows, [None] * self.rows
        self.vectors = np.zeros((self.rows, self.dim), np.float16)
        self.norms = np.zeros(self.rows, np.float32)

    def fail(self, row: int, error: str) -> None:
        self.status[row], self.error[row] = FAILED, error

    def add_vectors(self, rows: list[int], made: NDArray[np.float32]) -> None:
        """Vectors as the model gave them. One that has no direction is a failed row."""
        unit, norms = unit_rows(made)
        good = np.isfinite(norms) & (norms > 0) & np.isfinite(unit).all(axis=1)
        for row, vector, norm, is_good in zip(rows, unit, norms, good, strict=True):
            if is_good:
                self.vectors[row], self.norms[row] = vector, norm
            else:
                self.fail(row, f"not_finite: the vector's norm is {norm}")

    def table(self, images: pa.Table) -> pa.Table:
        """The embedding table (schema.embedding_schema)."""
        import pyarrow as pa

        schema = with_vectors(images.schema, self.dim)
        absent = np.array([status != OK for status in self.status], dtype=bool)
        made: dict[str, Any] = {
            "status": self.status,
            "error": self.error,
            "phash": self.phash,
            "width": self.width,
            "height": self.height,
        }
        columns = [
            pa.array(made[name], schema.field(name).type) if name in made else images[name]
            for name in schema.names
            if name not in ("vector", "norm")
        ]
        # Parquet readers of Arrow refuse a fixed-size list with nulls in it: a row without a vector holds zeros.
        filled = np.where(absent[:, None], np.float16(0), self.vectors)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(filled.ravel()), self.dim)
        norms = pa.array(self.norms, mask=absent)
        return pa.table([*columns, vectors, norms], schema=schema).combine_chunks()
