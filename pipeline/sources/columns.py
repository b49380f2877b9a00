"""The role of each column of a source: item id, caption, licence, url, or a metadata column.

Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pipeline.errors import SourceError, nearest
from pipeline.schema import FROM_SOURCE, column_name
from pipeline.sources.base import Sample, Value
from pipeline.sources.manifest import SourceSpec

if TYPE_CHECKING:
    import pyarrow as pa


_EXACT_DIGITS = 15  # decimal digits that a double represents

EXACT_INTEGERS = 2**53  # integers up to this are exact as doubles


@dataclass(frozen=True)
class Column:
    source: str  # its name in the source
    stored: str  # its name in the database
    kind: str  # one of schema.TYPES


@dataclass(frozen=True)
class Columns:
    """A source's columns by role. An empty role means that no column has it."""

    own: tuple[Column, ...]
    item_id: str = ""
    caption: str = ""
    licence: str = ""
    url: str = ""

    def stored(self) -> dict[str, str]:
        """The metadata columns with their type names, as in a source's `columns()`."""
        return {column.stored: column.kind for column in self.own}

    def needed(self) -> list[str]:
        """Every column to read, by its name in the source."""
        roles = [self.item_id, self.caption, self.licence, self.url]
        return list(dict.fromkeys([name for name in roles if name] + [column.source for column in self.own]))

    def sample(
        self, row: Mapping[str, object], item_id: str, data: bytes | None = None, error: str | None = None
    ) -> Sample:
        """A sample from a row of the source. `item_id` is used if no column names the row."""
        named = text(row.get(self.item_id)) if self.item_id else None
        return Sample(
            item_id=named or item_id,
            data=None if error else data,
            error=error,
            metadata={column.stored: plain(row.get(column.source), column.kind) for column in self.own},
            caption=text(row.get(self.caption)) if self.caption else None,
            url=text(row.get(self.url)) if self.url else None,
            licence=text(row.get(self.licence)) if self.licence else None,
        )


def choose_columns(spec: SourceSpec, available: Mapping[str, str | None], where: str) -> Columns:
    """Give each available column its role. `available` maps names to type names; None if a column holds no plain values.

    If the manifest names no columns, `caption`, `licence` and `url` take the roles of their names. Names that every row
    already has (width, key, ...) become source_<name>. Raises SourceError with the nearest column.
    """
    roles = {"item_id": spec.item_id, "caption": spec.caption, "licence": spec.licence, "url": spec.source_url}
    for role, name in roles.items():
        if name:
            _require(name, available, where, role)
        elif role in FROM_SOURCE and available.get(role) == "string":
            roles[role] = role
    for name in spec.columns:
        _require(name, available, where, "columns")
        if available[name] is None:
            plain_ones = [column for column, kind in available.items() if kind is not None]
            raise SourceError(
                f"{where}: column {name!r} holds nested values or bytes and cannot be metadata; "
                f"columns with plain values: {', '.join(plain_ones) or 'none'}"
            )
    taken: set[str] = set()
    own = []
    for name in spec.columns or [name for name in available if name not in roles.values()]:
        kind = available[name]
        if kind is not None:
            own.append(Column(name, _stored_name(name, taken), kind))
    return Columns(tuple(own), **roles)


def _require(name: str, available: Mapping[str, str | None], where: str, role: str) -> None:
    if name not in available:
        raise SourceError(
            f"{where}: no column {name!r}{nearest(name, available)}, which the manifest names under {role!r}; "
            f"columns: {', '.join(available) or 'none'}"
        )


def _stored_name(name: str, taken: set[str]) -> str:
    """The name under which a column is stored: `name`, or another if it is reserved or taken, ignoring case."""
    wanted = column_name(name)
    if wanted.lower() in FROM_SOURCE:
        wanted = f"source_{name}"
    stored, number = wanted, 2
    while stored.lower() in taken:
        stored, number = f"{wanted}_{number}", number + 1
    taken.add(stored.lower())
    return stored


def plain(value: object, kind: str) -> Value:
    """`value` as the column's type; None if it does not fit, and for NaN, by which tables mark a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if kind == "string":
            return text(value)
        if isinstance(value, str):  # a column that held numbers when the database was built
            return float(value) if kind == "float64" else int(value) if kind == "int64" else None
        number = cast("float", value)  # for the type checker; other values raise below
        if kind == "int64":
            return int(number) if -(2**63) <= int(number) < 2**63 and int(number) == number else None
        if kind == "float64":
            return float(number)
        return value if isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def text(value: object) -> str | None:
    """Any plain value as valid UTF-8 text without a byte order mark; dates in ISO form; None for empty text and NaN."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        value = value.removeprefix("\ufeff")
    written = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return str(written).encode("utf-8", "replace").decode("utf-8") or None


def kind_of(type_: pa.DataType) -> str | None:
    """The type name under which a database keeps an Arrow column, or None for nested values and bytes."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if types.is_boolean(type_):
        return "bool"
    if types.is_integer(type_):
        return "int64"
    if types.is_decimal(type_):
        return "float64" if type_.precision <= _EXACT_DIGITS else "string"
    if types.is_floating(type_):
        return "float64"
    if types.is_string(type_) or types.is_large_string(type_) or types.is_null(type_):
        return "string"
    if types.is_temporal(type_):
        return "string"
    return None


def kinds_of_values(rows: Iterable[Mapping[str, object]]) -> dict[str, str | None]:
    """Type names of the columns in JSON rows, in order of appearance. Integers mixed with floats are float64, other
    mixtures text."""
    found: dict[str, str | None] = {}
    nested: set[str] = set()
    large: set[str] = set()  # columns with an integer that is not exact as a double
    for row in rows:
        for name, value in row.items():
            kind = _kind_of_value(value)
            if isinstance(value, int) and abs(value) > EXACT_INTEGERS:
                large.add(name)
            if isinstance(value, list | dict):
                nested.add(name)
            before = found.setdefault(name, kind)
            if before is None:
                found[name] = kind
            elif kind is not None and kind != before:
                found[name] = "float64" if {kind, before} == {"int64", "float64"} else "string"
    return {
        name: None if name in nested else "string" if kind is None or (kind == "float64" and name in large) else kind
        for name, kind in found.items()
    }


def _kind_of_value(value: object) -> str | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    if isinstance(value, float):
        return "float64"
    return "string" if isinstance(value, str) else None
