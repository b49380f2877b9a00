"""Some rows of an index, in the forms that a search needs: ordinals, a mask, a bitmap, the values of a column."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.index.values import ValuePart


class Subset:
    """Rows of an index of `total` rows, given as a mask (total,) or as ascending ordinals; the other forms are made
    once, when needed.

    `part`: all of the rows have one of its values. Without given rows, they are all rows of the part.
    """

    def __init__(
        self, rows: NDArray[np.bool_] | NDArray[np.int64] | None, total: int, part: ValuePart | None = None
    ) -> None:
        if rows is None and part is None:
            raise ValueError("a Subset needs rows, or the values that they have")
        self.total, self.part = total, part
        self._rows = rows
        self._tally: NDArray[np.int64] | None = None
        self._any: NDArray[np.bool_] | None = None
        if rows is not None:
            self.count = int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)
        elif part is not None:
            self.count = int(part.per_list.sum())

    @property
    def whole(self) -> bool:
        """Whether the rows are all rows of the part."""
        return self._rows is None

    @functools.cached_property
    def _given(self) -> NDArray[np.bool_] | NDArray[np.int64]:
        if self._rows is None and self.part is not None:
            return self.part.ordinals()
        assert self._rows is not None
        return self._rows

    @property
    def share(self) -> float:
        return self.count / self.total

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(total,), true for the rows."""
        if self._given.dtype == np.bool_:
            return self._given.view(np.bool_)
        mask = np.zeros(self.total, np.bool_)
        mask[self._given] = True
        return mask

    @functools.cached_property
    def ordinals(self) -> NDArray[np.int64]:
        """(count,), ascending."""
        return np.flatnonzero(self._given) if self._given.dtype == np.bool_ else self._given.view(np.int64)

    @functools.cached_property
    def bitmap(self) -> NDArray[np.uint8]:
        """The mask in bits, the first row in the lowest bit."""
        return np.packbits(self.mask, bitorder="little")

    def tally(self, groups: NDArray[np.uint16], count: int) -> NDArray[np.int64]:
        """How many of the rows are in each of `count` groups, (count,). `groups` (total,) is the same in every call."""
        if self._tally is None:
            self._tally = np.bincount(groups[self.ordinals], minlength=count)
        return self._tally

    def any_of(self, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether some of the rows are in each group of ordinals, (G, n) -> (G,). `groups` is the same in every call."""
        if self._any is None:
            self._any = np.asarray(self.mask[groups].any(axis=1))
        return self._any
