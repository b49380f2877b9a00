"""A metadata CSV in memory, with its rows by file name.

Reads: one CSV file with a header line, UTF-8. Types are taken from the whole column, never from its beginning: a column is
a number only where every value is one and none would lose leading zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError, nearest
from pipeline.sources.columns import kind_of

if TYPE_CHECKING:
    import pyarrow as pa

NAME_COLUMNS = ("file_name", "filename", "name", "file", "path")

_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"

_NUMBER = r"^-?(0|[1-9][0-9]*)?(\.[0-9]+)?([eE][+-]?[0-9]+)?$"

_BOOLEAN = r"^(?i:true|false)$"


def read_csv(path: Path, where: str) -> pa.Table:
    """The file as a typed table. Raises SourceError where it is not a readable CSV."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        with path.open("rb") as handle:
            head = handle.read(1 << 16)
        if head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
            raise SourceError(f"{where}: expected a CSV file, found an HTML page; check the address")
        names = _table_header(path)
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=names, skip_rows=0, block_size=16 << 20),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
            ),
        ).slice(1)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, StopIteration) as error:
        raise SourceError(
            f"{where}: not a readable CSV: {error}. Expected UTF-8 text with a header line and as many values in every line."
        ) from error
    return pa.table({name: _typed(table.column(name)) for name in names})


def _table_header(path: Path) -> list[str]:
    """Column names of the first line: an empty one is called column_<position>, a repeated one gets a number."""
    import csv

    with path.open(encoding="utf-8-sig", newline="") as handle:
        first = next(csv.reader(handle))
    names: list[str] = []
    for position, written in enumerate(first):
        wanted = written.strip() or f"column_{position}"
        name, number = wanted, 2
        while name in names:
            name, number = f"{wanted}_{number}", number + 1
        names.append(name)
    return names


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A text column as int64, float64 or bool where every value fits, else as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return column
    for pattern, type_ in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64()), (_BOOLEAN, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern), skip_nulls=True).as_py():
            try:
                return column.cast(type_)
            except pa.ArrowInvalid:
                continue
    return column


class MetadataCsv:
    """The rows of a metadata CSV, found by the name of the file they describe."""

    def __init__(self, path: Path, where: str, name_column: str = "") -> None:
        self.table = read_csv(path, where)
        known = self.table.column_names
        wanted = [name_column] if name_column else [name for name in NAME_COLUMNS if name in known]
        if not wanted or wanted[0] not in known:
            raise SourceError(
                f"{where}: no column with the files' names: expected {name_column or ' or '.join(NAME_COLUMNS)}"
                f"{nearest(wanted[0], known) if wanted else ''}, found {', '.join(known)}"
            )
        self.name_column = wanted[0]
        self.names: list[str] = [
            "" if name is None else str(name) for name in self.table.column(self.name_column).to_pylist()
        ]
        self._by_name: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            self._by_name.setdefault(name, []).append(row)

    def kinds(self) -> dict[str, str | None]:
        """Type names of the columns, the one with the file names left out."""
        return {field.name: kind_of(field.type) for field in self.table.schema if field.name != self.name_column}

    def find(self, names: Sequence[str], hints: Sequence[str] = ()) -> int | None:
        """The row of the first of `names` that is listed. Of several rows, the first that agrees with most `hints`.

        Hints are values that the file's path gives (a style, a split): they tell equal names apart.
        """
        for name in names:
            rows = self._by_name.get(name)
            if rows and len(rows) == 1:
                return rows[0]
            if rows:
                values = [set(map(str, self.rows([row])[0].values())) for row in rows]
                agreeing = [sum(hint in row for hint in hints) for row in values]
                return rows[agreeing.index(max(agreeing))]
        return None

    def rows(self, indices: Sequence[int | None]) -> list[dict[str, Any]]:
        """The rows at `indices`, in that order; an empty dictionary for None."""
        import pyarrow as pa

        present = [index for index in indices if index is not None]
        taken = iter(self.table.take(pa.array(present, pa.int64())).to_pylist())
        return [{} if index is None else next(taken) for index in indices]
