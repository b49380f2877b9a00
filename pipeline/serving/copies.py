"""Rows that show one picture: exact copies by checksum, and pictures with equal perceptual hashes.

Reads the columns sha256 and phash; writes nothing. Equal perceptual hashes (64 bits) mean a copy in another size or format
nearly always, but plain pictures, as of one colour, may share a hash without being copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.serving.engine import item_of
from pipeline.serving.questions import CopiesAnswer, CopiesGroup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.retrieval import Searcher
    from pipeline.serving.library import OpenDatabase

SHOWN = 24  # rows of a group that are shown


def copies_of(opened: OpenDatabase, searcher: Searcher, offset: int, most: int) -> CopiesAnswer:
    """A page of groups, the largest groups first. A view sees the rows that its filter lets through."""
    kept = opened.kept.get("copies")
    groups = kept if isinstance(kept, list) else _groups(opened, searcher)
    opened.kept["copies"] = groups
    shown = []
    for kind, ordinals in groups[offset : offset + most]:
        rows = opened.rows.take(np.asarray(ordinals[:SHOWN], np.int64))
        shown.append(CopiesGroup(kind, tuple(item_of(row, None) for row in rows)))
    return CopiesAnswer(len(groups), sum(len(ordinals) for _, ordinals in groups), tuple(shown))


def _groups(opened: OpenDatabase, searcher: Searcher) -> list[tuple[str, NDArray[np.int64]]]:
    visible = searcher.matching()
    exact = _equal(opened, "sha256", visible)
    inside = {frozenset(group.tolist()) for group in exact}
    alike = [group for group in _equal(opened, "phash", visible) if frozenset(group.tolist()) not in inside]
    found = [("exact", group) for group in exact] + [("alike", group) for group in alike]
    return sorted(found, key=lambda one: (-len(one[1]), int(one[1][0])))


def _equal(opened: OpenDatabase, name: str, visible: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    """Ordinals of rows with equal values of a column, for each value that several rows have."""
    encoded = opened.rows.column(name).combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))
    ordinals = np.arange(len(codes)) if visible is None else np.asarray(visible)
    codes = codes[ordinals]
    ordinals, codes = ordinals[codes >= 0], codes[codes >= 0]
    order = np.argsort(codes, kind="stable")
    codes, ordinals = codes[order], ordinals[order]
    edges = np.flatnonzero(np.diff(codes)) + 1
    return [np.asarray(group, np.int64) for group in np.split(ordinals, edges) if len(group) > 1]
