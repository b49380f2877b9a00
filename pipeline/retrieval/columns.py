"""Metadata columns as arrays, and the rows for which a simple filter is true.

Reads: metadata columns, each once, when a filter first names it. Writes nothing. Gives the same result as DuckDB:
comparisons with NULL are not true, NaN equals itself and is larger than every other number, texts are compared by UTF-8 bytes.
Memory: 1 or 2 bytes a row for texts; 4 or 8 for numbers, and from the second use on the same again plus 4 for their order; 1
for the NULLs of a column that has any.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipeline.filters import Comparison, Condition, IsNull, Junction, Negation, OneOf, Operator, Value

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Numbers = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float64] | Mask

MOST_TEXTS = 65_535  # distinct texts of a coded column; columns with more are left to DuckDB

_OPPOSITE: dict[Operator, Operator] = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class _Left(Exception):
    """The column is left to DuckDB."""


class TextColumn:
    """Texts as codes (N,): 0 is NULL, 1, 2, ... are `texts`, which are sorted, so that codes can be compared."""

    def __init__(self, codes: NDArray[np.uint8] | NDArray[np.uint16], texts: list[str]) -> None:
        self.codes, self.texts = codes, texts

    def compare(self, operator: Operator, value: Value) -> Mask:
        """Rows whose value is not NULL and for which the comparison is true."""
        low = bisect.bisect_left(self.texts, str(value)) + 1
        high = bisect.bisect_right(self.texts, str(value)) + 1
        if operator == ">=":
            return np.asarray(self.codes >= low)
        if operator == ">":
            return np.asarray(self.codes >= high)
        if operator == "=":
            return np.asarray(self.codes == low) if low < high else np.zeros(len(self.codes), bool)
        known = np.asarray(self.codes != 0)
        if operator == "<>":
            return known & (self.codes != low) if low < high else known
        return known & (self.codes < (low if operator == "<" else high))

    def null(self) -> Mask:
        return np.asarray(self.codes == 0)


class NumberColumn:
    """Numbers or bools (N,). `valid` is None if no row is NULL. From its second use on, the column is held sorted as well."""

    def __init__(self, values: Numbers, valid: Mask | None) -> None:
        self.values, self.valid = values, valid
        self._uses = 0
        self._order = np.empty(0, np.int32)
        self._sorted = values[:0]
        self._numbers = 0  # of the sorted values; NaNs follow them

    def compare(self, operator: Operator, value: Value) -> Mask:
        """Rows whose value is not NULL and for which the comparison is true."""
        found = _compare(self.values, operator, value)
        return found if self.valid is None else found & self.valid

    def null(self) -> Mask:
        return np.zeros(len(self.values), bool) if self.valid is None else ~self.valid

    def between(self, parts: list[Comparison]) -> Mask:
        """Rows for which all comparisons (none of them <>) are true. In sorted order such rows are contiguous."""
        self._uses += 1
        if self._uses == 1:
            return _and([self.compare(part.operator, part.value) for part in parts])
        if self._uses == 2:
            order = np.argsort(self.values, kind="stable")
            order = order if self.valid is None else order[self.valid[order]]
            self._order, self._sorted = (
                order.astype(np.int32 if len(self.values) < 2**31 else np.int64),
                self.values[order],
            )
            self._numbers = int(np.count_nonzero(self._sorted == self._sorted))
        start, end = 0, len(self._order)
        for part in parts:
            if part.operator in ("=", ">=", ">"):
                start = max(
                    start, int(self._sorted.searchsorted(part.value, "right" if part.operator == ">" else "left"))
                )
            if part.operator in ("=", "<=", "<"):
                end = min(end, int(self._sorted.searchsorted(part.value, "left" if part.operator == "<" else "right")))
        if end - start > len(self.values) // 2:
            found = np.ones(len(self.values), bool) if self.valid is None else self.valid.copy()
            found[self._order[:start]] = False
            found[self._order[end:]] = False
            return found
        found = np.zeros(len(self.values), bool)
        found[self._order[start : max(start, end)]] = True
        return found

    def _place(self, value: Value, after: bool) -> int:
        """The position of a value in the sorted column, before or after equal values."""
        # bisect, because searchsorted would convert the whole column to the type of the value.
        return (bisect.bisect_right if after else bisect.bisect_left)(self._sorted, value, 0, self._numbers)


class MetadataColumns:
    """The columns of one index. load(names) returns them as a table, one row per ordinal, in ordinal order."""

    def __init__(self, load: Callable[[list[str]], pa.Table]) -> None:
        self._load = load
        self._columns: dict[str, TextColumn | NumberColumn | None] = {}

    def rows_where(self, condition: Condition) -> Mask | None:
        """The rows for which the condition is true, (N,); None if it names a column that is left to DuckDB."""
        try:
            return self._rows(Junction(True, (condition,)), True)
        except _Left:
            return None

    def _rows(self, condition: Condition, truth: bool) -> Mask:
        """The rows for which the condition is true, or false. A comparison with NULL is neither."""
        if isinstance(condition, Negation):
            return self._rows(condition.part, not truth)
        if isinstance(condition, Junction):
            if condition.every == truth:
                return _and(self._all_of(condition, truth))
            return _or([self._rows(part, truth) for part in condition.parts])
        column = self._column(condition.column)
        if isinstance(condition, IsNull):
            return column.null() if truth else ~column.null()
        if isinstance(condition, OneOf):
            found = _or([column.compare("=", value) for value in condition.values])
            return found if truth else ~(found | column.null())
        return column.compare(condition.operator if truth else _OPPOSITE[condition.operator], condition.value)

    def _all_of(self, condition: Junction, truth: bool) -> list[Mask]:
        """A mask for each part, all comparisons of one column of numbers together."""
        masks: list[Mask] = []
        ranges: dict[str, list[Comparison]] = {}
        for part in _flattened(condition):
            if truth and isinstance(part, Comparison) and part.operator != "<>":
                ranges.setdefault(part.column, []).append(part)
            else:
                masks.append(self._rows(part, truth))
        for name, parts in ranges.items():
            column = self._column(name)
            if isinstance(column, NumberColumn):
                masks.append(column.between(parts))
            else:
                masks += [column.compare(part.operator, part.value) for part in parts]
        return masks

    def _column(self, name: str) -> TextColumn | NumberColumn:
        if name not in self._columns:
            self._columns[name] = _read(self._load([name])[name])
        column = self._columns[name]
        if column is None:
            raise _Left
        return column


def _and(masks: list[Mask]) -> Mask:
    """All of the masks at once, written into the first."""
    for mask in masks[1:]:
        masks[0] &= mask
    return masks[0]


def _or(masks: list[Mask]) -> Mask:
    """At least one of the masks, written into the first."""
    for mask in masks[1:]:
        masks[0] |= mask
    return masks[0]


def _flattened(condition: Junction) -> Iterator[Condition]:
    """The parts of an AND (or OR), including those of nested ANDs (or ORs)."""
    for part in condition.parts:
        if isinstance(part, Junction) and part.every == condition.every:
            yield from _flattened(part)
        else:
            yield part


def _compare(values: Numbers, operator: Operator, value: Value) -> Mask:
    assert not isinstance(value, str), "simple_form gives a column of numbers numbers"
    if operator in ("=", "<>"):
        return np.asarray(values == value if operator == "=" else values != value)
    if operator in ("<", "<="):
        return np.asarray(values < value if operator == "<" else values <= value)
    # Negated, because NaN is larger than every number here and in DuckDB.
    return ~np.asarray(values <= value if operator == ">" else values < value)


def _read(array: pa.ChunkedArray) -> TextColumn | NumberColumn | None:
    """A column as arrays; None if it is left to DuckDB."""
    import pyarrow as pa

    if pa.types.is_string(array.type):
        coded = array.combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        if len(coded.dictionary) > MOST_TEXTS:
            return None
        texts: list[str] = coded.dictionary.to_pylist()
        order = sorted(range(len(texts)), key=texts.__getitem__)
        code = np.zeros(len(texts) + 1, np.uint8 if len(texts) < 256 else np.uint16)  # the last one stays NULL's 0
        code[order] = np.arange(1, len(texts) + 1)
        return TextColumn(code[_filled(coded.indices, len(texts)).to_numpy()], [texts[place] for place in order])
    valid = None if not array.null_count else np.asarray(array.is_valid())
    if pa.types.is_boolean(array.type):
        return NumberColumn(np.asarray(_filled(array, False)), valid)
    if pa.types.is_integer(array.type):
        values = _filled(array, 0).to_numpy()
        small = len(values) and values.min() >= -(2**31) and values.max() < 2**31
        return NumberColumn(values.astype(np.int32) if small else values, valid)
    if pa.types.is_floating(array.type):
        return NumberColumn(_filled(array, 0.0).to_numpy(), valid)
    return None


def _filled(array: pa.Array | pa.ChunkedArray, value: float) -> pa.Array | pa.ChunkedArray:
    """The array with a value in place of NULL. Returns an array without NULL unchanged, because pyarrow's fill imports
    pandas."""
    return array.fill_null(value) if array.null_count else array
