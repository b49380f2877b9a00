"""The columns by whose values an index is split, and the value of each row.

A view (`base` and `column = 'value'`) searches the rows of one value. For columns of few values, an inverted file therefore
also has lists for each value (index/values.py). Which columns those are is decided here, by rule, from the metadata: a
source's own column of texts, bools or whole numbers, with FEWEST to MOST_VALUES different values; at least COVERED of
the rows have one; on average a value has ROWS rows, because fewer are scanned exactly in the same time; no value has more than
MOST_SHARE of the rows, because a search of all rows finds those. Of several such columns the MOST_COLUMNS with the
rarest most frequent value are taken. Reads tables that it is given and metadata.parquet; writes value_codes.npy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.index.rows import FILES
from pipeline.schema import FROM_SOURCE, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FEWEST, MOST_VALUES = 2, 64

COVERED = 0.95

ROWS = 2_000

MOST_SHARE = 0.8

MOST_COLUMNS = 2

NO_VALUE = 255  # the code of a row whose value is NULL

CODES = "value_codes.npy"  # (columns, N) uint8, for the worker that builds the index

ColumnValue = str | int | bool


@dataclass(frozen=True)
class SplitColumn:
    """A column by which the index is split, and its values in order. A row's code is the place of its value."""

    name: str
    values: tuple[ColumnValue, ...]


def candidate_columns(columns: Mapping[str, str]) -> list[str]:
    """The names of a source's columns, given with their type names, whose values may be few."""
    return [name for name, kind in columns.items() if kind in ("string", "bool", "int64") and name not in FROM_SOURCE]


def split_columns(tables: Iterable[pa.Table], names: Sequence[str], most_bytes: int) -> tuple[SplitColumn, ...]:
    """The columns among `names` that the rule chooses for the rows of all tables; at most `most_bytes` of codes in all."""
    import pyarrow.compute as pc

    counted: dict[str, Counter[ColumnValue]] = {name: Counter() for name in names}
    rows = 0
    for table in tables:
        rows += table.num_rows
        for name, counts in list(counted.items()):
            for one in pc.value_counts(table[name].drop_null()).to_pylist():
                counts[one["values"]] += one["counts"]
            if len(counts) > MOST_VALUES:
                del counted[name]
    chosen = sorted(
        (max(counts.values()), name)
        for name, counts in counted.items()
        if len(counts) >= FEWEST
        and counts.total() >= COVERED * rows
        and rows >= ROWS * len(counts)
        and max(counts.values()) <= MOST_SHARE * rows
    )
    fitting = min(MOST_COLUMNS, most_bytes // max(rows, 1))
    return tuple(SplitColumn(name, tuple(sorted(counted[name]))) for _, name in chosen[:fitting])


def write_codes(folder: Path, columns: Sequence[SplitColumn]) -> None:
    """Write folder/value_codes.npy for the rows of folder/metadata.parquet."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_parquet(folder / FILES["metadata"], [column.name for column in columns])
    codes: NDArray[np.uint8] = np.empty((len(columns), table.num_rows), np.uint8)
    for row, column in zip(codes, columns, strict=True):
        array = table[column.name]
        places = pc.index_in(array, value_set=pa.array(column.values, array.type), skip_nulls=True)
        row[:] = places.fill_null(NO_VALUE).to_numpy()
    np.save(folder / CODES, codes)
