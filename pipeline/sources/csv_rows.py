"""Rows of CSV files as people write them, read strictly: no value is guessed and no row is lost.

Reads: a file with a header line; comma, semicolon or tab between cells; UTF-8 with or without a mark; a line that is not
UTF-8 is read as Windows-1252. A row with too many or too few cells, or with a quote that is not closed, is a `Row` with an
error and its line number; reading continues with the next line, so that one bad quote affects one row. Memory: one row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.errors import SourceError
from pipeline.sources.names import is_picture

_ROW_LINES = 1000  # a quoted cell with more lines counts as one whose quote was never closed

_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row: its first line in the file (the header is line 1), the byte after it, its cells, and its fault."""

    line: int
    end: int
    cells: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Header:
    """The header line: the names of the columns as they are written, the delimiter, and where the rows begin."""

    names: tuple[str, ...]
    delimiter: str
    end: int
    line: int  # the line number of the first row


def read_header(handle: BinaryIO, name: str) -> Header:
    """The header of an open file. Raises SourceError if the file is empty, is not CSV, or is text in UTF-16."""
    position = line = 0
    for raw in handle:
        position, line = position + len(raw), line + 1
        if line == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise SourceError(f"{name}: this is UTF-16 text; expected UTF-8: save it as 'CSV UTF-8'")
        text = decoded(raw)
        if not text.strip():
            continue
        if text.lstrip().lower().startswith(("<!doctype", "<html")):
            raise SourceError(f"{name}: expected a CSV file with a header line, found an HTML page; check the address")
        if "\r" in text.rstrip("\r\n") or "\0" in text:
            raise SourceError(
                f"{name}: expected a CSV file with a header line, found {text[:40]!r}: save it as 'CSV UTF-8', one row a line"
            )
        delimiter = max(",;\t", key=lambda mark: (text.count(mark), mark == ","))
        cells = _parsed([text], delimiter)
        if cells is None:
            raise SourceError(f"{name}: the header line has a quote that is not closed: {text[:80]!r}")
        return Header(tuple(cell.strip() for cell in cells), delimiter, position, line + 1)
    raise SourceError(f"{name}: an empty file; expected a CSV file with a header line")


def read_rows(handle: BinaryIO, header: Header, position: int, line: int, key: int | None = None) -> Iterator[Row]:
    """The rows from byte `position` on, which is the beginning of line `line`. Blank lines are skipped.

    `key` is the column of the address or file name. It shows where a quote was left open: a continuation line that is a whole
    row of its own begins a new row.
    """
    handle.seek(position)
    while raw := handle.readline():
        first_end = position + len(raw)
        texts, raws = [decoded(raw)], [raw]
        if not texts[0].strip():
            position, line = first_end, line + 1
            continue
        cells = _parsed(texts, header.delimiter)
        if cells is None and _is_open(texts, header.delimiter):
            while cells is None and len(texts) < _ROW_LINES and (more := handle.readline()):
                text = decoded(more)
                if _is_whole_row(text, header, key):
                    break
                texts.append(text)
                raws.append(more)
                if sum(text.count('"') for text in texts) % 2 == 0:
                    cells = _parsed(texts, header.delimiter)
                    break
        if cells is not None and len(cells) == len(header.names):
            end = position + sum(map(len, raws))
            yield Row(line, end, tuple(cells))
            position, line = end, line + len(raws)
            continue
        # A bad row ends with its first line, because the lines after it may be good rows.
        alone = _parsed(texts[:1], header.delimiter)
        if alone is None:
            error = "a quote is opened and not closed, or stands inside a quoted cell undoubled"
            alone = [cell.strip().strip('"') for cell in texts[0].rstrip("\r\n").split(header.delimiter)]
        else:
            error = (
                f"{len(alone)} cells, expected {len(header.names)}; a cell with {header.delimiter!r} in it needs quotes"
            )
        yield Row(line, first_end, tuple(alone), error)
        handle.seek(first_end)
        position, line = first_end, line + 1


def decoded(raw: bytes) -> str:
    """A line as text: UTF-8 without byte order mark, else Windows-1252, in which every byte is a character."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _parsed(texts: list[str], delimiter: str) -> list[str] | None:
    """The cells of one row; None if the lines are not exactly one row."""
    if len(texts) == 1 and '"' not in texts[0]:
        return texts[0].rstrip("\r\n").split(delimiter)
    try:
        rows = list(csv.reader(texts, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _is_open(texts: list[str], delimiter: str) -> bool:
    """Whether the lines end inside a quoted cell."""
    try:
        list(csv.reader(texts, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _is_whole_row(text: str, header: Header, key: int | None) -> bool:
    """Whether a line after an open quote is a separate row: it has all cells and names a picture."""
    if key is None:
        return False
    cells = _parsed([text], header.delimiter) or text.rstrip("\r\n").split(header.delimiter)
    if len(cells) != len(header.names):
        return False
    return bool(_ADDRESS.match(cells[key])) or is_picture(cells[key].strip())
