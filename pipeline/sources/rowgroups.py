"""Row ranges of a Parquet file: cut at row groups, read one small batch at a time.

Writes nothing. Does not promise random access: a range that begins inside a row group reads that group from its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BATCH_ROWS = 32  # WikiArt's pictures are half a megabyte each


def cut(groups: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Half-open row ranges of at most `most` rows that cover all groups: whole groups together while they fit; a group
    larger than `most` in equal parts."""
    ranges: list[tuple[int, int]] = []
    start = position = 0
    for rows in groups:
        if position > start and position + rows - start > most:
            ranges.append((start, position))
            start = position
        if rows > most:
            parts = -(-rows // most)
            ranges += [(start + rows * i // parts, start + rows * (i + 1) // parts) for i in range(parts)]
            start = position + rows
        position += rows
    if position > start:
        ranges.append((start, position))
    return ranges


def rows_between(
    parquet: pq.ParquetFile, start: int, stop: int, columns: list[str], batch_rows: int = BATCH_ROWS
) -> Iterator[dict[str, Any]]:
    """Rows start to stop, holding one small batch at a time."""
    metadata = parquet.metadata
    groups: list[int] = []
    first = position = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if position < stop and position + rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += rows
    if not groups:
        return
    columns = list(dict.fromkeys(columns))
    position = first
    for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
        begin, end = max(start - position, 0), min(stop - position, len(batch))
        if begin < end:
            yield from batch.slice(begin, end - begin).to_pylist()
        position += len(batch)
        if position >= stop:
            return
