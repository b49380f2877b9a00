"""Metadata files of pictures, in memory: the rows of metadata.csv or metadata.jsonl by the name of the file they describe.

Reads: CSV files with a header line (pipeline/sources/csv_rows.py), and JSON lines. A column of a CSV is a number only where
every value is a number that is written back as the same text: 1971.10, 007, 1e10 and numbers of 20 digits stay text. A row that
cannot be read keeps its position and has an error; nothing is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import SourceError, nearest
from pipeline.sources.base import Value
from pipeline.sources.columns import kinds_of_values, plain
from pipeline.sources.csv_rows import decoded, read_header, read_rows
from pipeline.sources.names import same_name

NAME_COLUMNS = ("file_name", "filename", "name", "file", "path")

METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # names of a folder's metadata file; the first that exists is read

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")

_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?")

_BOOLEAN = re.compile(r"true|false", re.IGNORECASE)


@dataclass(frozen=True)
class _Read:
    """One file: its columns with their type names, its rows, and for each row its line and its fault (empty: none)."""

    kinds: dict[str, str | None]
    rows: list[dict[str, Value]]
    lines: list[int]
    errors: list[str]


class MetadataTable:
    """The rows of metadata files, found by the name of the file they describe."""

    def __init__(self, files: Sequence[tuple[Path, str]], name_column: str = "") -> None:
        """`files`: (path, the folder inside the source that its names are relative to: empty, or ending in /).

        A file of a subfolder that has no column with file names is skipped, because it may describe something else.
        """
        self.skipped = 0
        self.names: list[str] = []  # the file that each row describes, empty if the row does not say
        self.errors: list[str] = []  # why a row cannot be used, empty if it can
        self.places: list[str] = []  # `metadata.csv line 12`
        self._rows: list[dict[str, Value]] = []
        self._kinds: dict[str, str | None] = {}
        self._stored: dict[str, str | None] = {}  # the columns with the file names; part of a shard's fingerprint
        for path, below in files:
            where = f"{below}{path.name}"
            found = _read_jsonl(path, where) if path.suffix.lower() == ".jsonl" else _read_csv(path, where)
            if below and not set(NAME_COLUMNS) & set(found.kinds):
                self.skipped += 1
                continue
            column = _name_column(where, found.kinds, name_column)
            for row, line, error in zip(found.rows, found.lines, found.errors, strict=True):
                name = row.get(column)
                self.names.append(f"{below}{name}" if name not in (None, "") else "")
                self.places.append(f"{where} line {line}")
                self.errors.append(f"bad_metadata: line {line} of {where}: {error}" if error else "")
                self._rows.append(row)
            self._stored.setdefault(column, "string")
            for name, kind in found.kinds.items():
                if name != column:
                    self._kinds[name] = wider(self._kinds[name], kind) if name in self._kinds else kind
        self._by_name: dict[str, list[int]] = {}
        for number, listed in enumerate(self.names):
            if listed:
                self._by_name.setdefault(_spelling(listed), []).append(number)

    def kinds(self) -> dict[str, str | None]:
        """Type names of the columns, without the column of the file names."""
        return self._kinds

    def find(self, names: Sequence[str], hints: Sequence[str] = ()) -> int | None:
        """The row of the first of `names` that is listed. Of several rows, the first that agrees with the most `hints`.

        Hints are values from the file's path (a style, a split): they distinguish equal names.
        """
        for name in names:
            rows = self._by_name.get(_spelling(name))
            if rows and len(rows) == 1:
                return rows[0]
            if rows:
                values = [{str(value) for value in (*self._rows[row].values(), self.names[row])} for row in rows]
                agreeing = [sum(hint in row for hint in hints) for row in values]
                return rows[agreeing.index(max(agreeing))]
        return None

    def rows(self, indices: Sequence[int | None]) -> list[dict[str, Value]]:
        """The rows at `indices`, in that order, with the column of the file names; an empty dictionary for None."""
        kinds = {**self._stored, **self._kinds}
        return [
            {} if index is None else {name: _stored(self._rows[index].get(name), kind) for name, kind in kinds.items()}
            for index in indices
        ]


def _stored(value: Value, kind: str | None) -> Value:
    """A value as its column's type. Texts of a CSV are converted only now, because another file may have made it a text
    column."""
    if kind is None:
        return None
    return value_of_text(value, kind) if isinstance(value, str) else plain(value, kind)


def wider(one: str | None, other: str | None) -> str | None:
    """The type that holds the values of both without loss; text if no number type does. None: nested, or without values."""
    if one == other or other is None or one is None:
        return one if one == other else None
    return "float64" if {one, other} == {"int64", "float64"} else "string"


def _spelling(name: str) -> str:
    return same_name(str(PurePosixPath(name.replace("\\", "/"))))


def _name_column(where: str, known: Mapping[str, object], asked: str) -> str:
    wanted = [asked] if asked else [name for name in NAME_COLUMNS if name in known]
    if not wanted or wanted[0] not in known:
        raise SourceError(
            f"{where}: no column with the files' names: expected {asked or ' or '.join(NAME_COLUMNS)}"
            f"{nearest(wanted[0], known) if wanted else ''}, found {', '.join(known)}"
        )
    return wanted[0]


def _read_csv(path: Path, where: str) -> _Read:
    """A CSV file: the types of its columns by all their values, and the values as texts. Raises SourceError."""
    try:
        with path.open("rb") as handle:
            header = read_header(handle, where)
            names = _distinct(header.names)
            key = next((names.index(name) for name in NAME_COLUMNS if name in names), None)
            found = list(read_rows(handle, header, header.end, header.line, key))
    except OSError as error:
        raise SourceError(f"{where}: cannot be read: {error}") from error
    columns = {}
    for place, name in enumerate(names):
        texts = [row.cells[place] or None if place < len(row.cells) else None for row in found]
        good = [text for text, row in zip(texts, found, strict=True) if not row.error]
        columns[name] = "string" if place == key else kind_of_texts(good), texts
    rows: list[dict[str, Value]] = [
        {
            name: values[number] if not row.error or place == key else None
            for place, (name, (_, values)) in enumerate(columns.items())
        }
        for number, row in enumerate(found)
    ]
    kinds: dict[str, str | None] = {name: kind for name, (kind, _) in columns.items()}
    return _Read(kinds, rows, [row.line for row in found], [row.error for row in found])


def _distinct(written: Iterable[str]) -> list[str]:
    """Column names: an empty one is called column_<position>, a repeated one gets a number."""
    names: list[str] = []
    for position, text in enumerate(written):
        wanted = text or f"column_{position}"
        name, number = wanted, 2
        while name in names:
            name, number = f"{wanted}_{number}", number + 1
        names.append(name)
    return names


def kind_of_texts(texts: Iterable[str | None]) -> str:
    """The type of a text column: a number type only where text -> number -> text gives every value back."""
    present = [text for text in texts if text is not None]
    if not present:
        return "string"
    if all(_INTEGER.fullmatch(text) for text in present):
        return "int64"
    if all(_is_exact(text) for text in present):
        # 5 and 5.0 would become the same number, so a numeric column must use only one of the two forms.
        whole = {text.endswith(".0") for text in present if "." not in text or text.endswith(".0")}
        return "float64" if len(whole) < 2 else "string"
    return "bool" if all(_BOOLEAN.fullmatch(text) for text in present) else "string"


def _is_exact(text: str) -> bool:
    """Whether a text is how its number is written: 12.5 and 5, but not 12.50, 1e10 or +5."""
    if not _NUMBER.fullmatch(text) or not any(letter.isdigit() for letter in text):
        return False
    written = repr(float(text))
    return text == written or (text == written.removesuffix(".0") and text != "-0")


def value_of_text(text: str | None, kind: str) -> Value:
    """A text as its column's type; None if it is not of that type."""
    if text is None or kind == "string":
        return plain(text, "string")
    try:
        return text.lower() == "true" if kind == "bool" else float(text) if kind == "float64" else int(text)
    except ValueError:
        return None


def _read_jsonl(path: Path, where: str) -> _Read:
    """JSON lines: one object in each line."""
    rows: list[dict[str, Value]] = []
    lines: list[int] = []
    errors: list[str] = []
    try:
        written = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SourceError(f"{where}: cannot be read: {error}") from error
    for number, raw in enumerate(written, 1):
        if not raw.strip():
            continue
        try:
            value = json.loads(decoded(raw))
        except (ValueError, RecursionError) as error:
            value, problem = None, f"not JSON: {error}"
        else:
            problem = "" if isinstance(value, dict) else "not an object"
        rows.append(value if isinstance(value, dict) else {})
        lines.append(number)
        errors.append(problem)
    return _Read(kinds_of_values(rows), rows, lines, errors)
