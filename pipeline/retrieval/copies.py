"""Rows that show the same picture: exact copies by checksum, and pictures with equal perceptual hashes.

Reads the columns sha256 and phash; writes nothing. Equal perceptual hashes (64 bits) nearly always mean a copy in another size
or format, but plain pictures, such as those of one colour, may share a hash without being copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.retrieval.facets import HasColumns


@dataclass(frozen=True)
class Copies:
    """Rows (ordinals, ascending) that show the same picture. kind: exact (byte for byte), or alike (equal perceptual
    hashes)."""

    kind: Literal["exact", "alike"]
    ordinals: NDArray[np.int64]


def find_copies(rows: HasColumns, visible: NDArray[np.int64] | None) -> list[Copies]:
    """All groups, the largest first. visible: ordinals of the rows to compare; None: all."""
    exact = [Copies("exact", group) for group in _equal(rows, "sha256", visible)]
    inside = {frozenset(group.ordinals.tolist()) for group in exact}
    alike = [
        Copies("alike", group) for group in _equal(rows, "phash", visible) if frozenset(group.tolist()) not in inside
    ]
    return sorted(exact + alike, key=lambda one: (-len(one.ordinals), int(one.ordinals[0])))


def _equal(rows: HasColumns, name: str, visible: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    """The ordinals of the rows with each value of a column that several rows have."""
    encoded = rows.column(name).combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))
    ordinals = np.arange(len(codes)) if visible is None else np.asarray(visible)
    codes = codes[ordinals]
    ordinals, codes = ordinals[codes >= 0], codes[codes >= 0]
    order = np.argsort(codes, kind="stable")
    codes, ordinals = codes[order], ordinals[order]
    edges = np.flatnonzero(np.diff(codes)) + 1
    return [np.asarray(group, np.int64) for group in np.split(ordinals, edges) if len(group) > 1]
