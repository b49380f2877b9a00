"""The contents of a version's columns: values with counts for columns of few values, and ranges for numbers.

Reads: metadata columns, each once. Writes nothing. Memory: 2 bytes a row for each column of few values.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FEW = 60  # the most distinct values of a column that becomes a facet

MOST_TEXTS = 20_000  # the most distinct values of a column whose values are offered while a filter is typed

_NO_FACET = ("key", "item_id", "caption", "url", "sha256", "phash", "duplicate_of", "width", "height")


class HasColumns(Protocol):
    """An object that returns metadata columns: a Searcher, or a server's copy of the metadata."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column, in order of ordinals."""
        ...


@dataclass(frozen=True)
class FacetValue:
    """A value of a column: as text for people, as SQL, and the number of its rows."""

    value: str
    sql: str
    count: int


@dataclass(frozen=True)
class ColumnFacts:
    """A column for the filter box. `values` are empty for a column of many values; `low` and `high` are of numbers."""

    name: str
    type: str
    values: tuple[FacetValue, ...] = ()
    distinct: int = 0  # distinct values; 0: not counted
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Coded:
    """A column as codes (N,); the last code is NULL."""

    codes: NDArray[np.uint16]
    values: list[object]


class Facets:
    """Facets of one version. Safe to use from several threads."""

    def __init__(self, rows: HasColumns, columns: Mapping[str, str]) -> None:
        self._rows, self.columns = rows, dict(columns)
        self._lock = threading.Lock()
        self._coded: dict[str, _Coded | None] = {}
        self._ranges: dict[str, tuple[float, float] | None] = {}

    def names(self) -> list[str]:
        """The columns of few values, in the order of the columns."""
        return [
            name
            for name in self.columns
            if name not in _NO_FACET and (coded := self._column(name)) is not None and 2 <= len(coded.values) <= FEW
        ]

    def codes(self, name: str) -> tuple[NDArray[np.uint16], list[str]]:
        """A column of few values as codes (N,), with the values as texts; the last code is NULL."""
        coded = self._column(name)
        assert coded is not None, "names() lists the columns that have codes"
        return coded.codes, [*map(str, coded.values), "(none)"]

    def counts(self, ordinals: NDArray[np.int64] | None) -> list[ColumnFacts]:
        """The facets with their counts among some rows (None: all), most frequent values first."""
        made = []
        for name in self.names():
            coded = self._column(name)
            assert coded is not None
            codes = coded.codes if ordinals is None else coded.codes[ordinals]
            counted = np.bincount(codes, minlength=len(coded.values) + 1)
            values = [
                FacetValue(str(value), _condition(name, value), int(count))
                for value, count in zip(coded.values, counted, strict=False)
                if count
            ]
            if counted[-1]:
                values.append(FacetValue("(none)", f"{quoted(name)} IS NULL", int(counted[-1])))
            values.sort(key=lambda one: (-one.count, one.value))
            made.append(ColumnFacts(name, self.columns[name], tuple(values), len(coded.values)))
        return made

    def facts(self) -> list[ColumnFacts]:
        """All columns: name, type, and for numbers their range."""
        made = []
        for name, kind in self.columns.items():
            coded = self._coded.get(name)
            low, high = self._range(name) or (None, None)
            made.append(ColumnFacts(name, kind, (), len(coded.values) if coded else 0, low, high))
        return made

    def values(self, name: str, begins: str, most: int = 20) -> list[FacetValue]:
        """Values of a text column that begin with (else contain) some letters, most frequent first."""
        coded = self._column(name) if name in self.columns else None
        if coded is None:
            return []
        counted = np.bincount(coded.codes, minlength=len(coded.values) + 1)
        wanted = begins.casefold()
        found = [
            (0 if str(value).casefold().startswith(wanted) else 1, -int(counted[code]), str(value), value)
            for code, value in enumerate(coded.values)
            if wanted in str(value).casefold()
        ]
        found.sort(key=lambda one: one[:3])
        return [FacetValue(text, literal(value), -count) for _, count, text, value in found[:most]]

    def _column(self, name: str) -> _Coded | None:
        """A column as codes; None for one of many values or of fractions."""
        with self._lock:
            if name not in self._coded:
                self._coded[name] = self._read(name)
            return self._coded[name]

    def _read(self, name: str) -> _Coded | None:
        if name in _NO_FACET or self.columns[name] == "float64":
            return None
        if self.columns[name] == "string":
            encoded = self._rows.column(name).dictionary_encode()
            encoded = encoded.unify_dictionaries() if hasattr(encoded, "unify_dictionaries") else encoded
            values = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
            if len(values) > MOST_TEXTS:
                return None
            parts = [chunk.indices.fill_null(len(values)).to_numpy() for chunk in encoded.chunks]
            codes = np.concatenate(parts).astype(np.uint16) if parts else np.zeros(0, np.uint16)
            return _Coded(codes, values)
        column = self._rows.column(name)
        distinct = column.unique().drop_null()
        if len(distinct) > FEW:
            return None
        values = sorted(distinct.to_pylist())
        table = np.asarray(column.fill_null(values[0] if values else 0).to_numpy())
        codes = np.searchsorted(np.asarray(values or [0], table.dtype), table).astype(np.uint16)
        codes[np.asarray(column.is_null())] = len(values)
        return _Coded(codes, list(values))

    def _range(self, name: str) -> tuple[float, float] | None:
        if self.columns[name] not in ("int64", "float64") or name in ("key", "duplicate_of"):
            return None
        with self._lock:
            if name not in self._ranges:
                import pyarrow.compute as compute

                found = compute.min_max(self._rows.column(name)).as_py()
                self._ranges[name] = None if found["min"] is None else (float(found["min"]), float(found["max"]))
            return self._ranges[name]


def quoted(name: str) -> str:
    """A column's name, quoted for SQL."""
    return name if name.isidentifier() and name.islower() and name.isascii() else '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A value as an SQL literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def _condition(name: str, value: object) -> str:
    return f"{quoted(name)} = {literal(value)}"
