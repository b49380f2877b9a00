"""One page of rows that show the same picture (retrieval/copies.py finds them). Reads metadata; writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.retrieval import find_copies
from pipeline.serving.engine import item_of
from pipeline.serving.questions import CopiesAnswer, CopiesGroup

if TYPE_CHECKING:
    from pipeline.retrieval import Searcher
    from pipeline.serving.library import OpenDatabase

SHOWN = 24  # rows of a group that are shown


def copies_of(opened: OpenDatabase, searcher: Searcher, offset: int, most: int) -> CopiesAnswer:
    """One page of groups, the largest groups first. A view only has the rows that match its filter."""
    kept = opened.kept.get("copies")
    groups = kept if isinstance(kept, list) else find_copies(opened.rows, searcher.matching())
    opened.kept["copies"] = groups
    shown = []
    for group in groups[offset : offset + most]:
        rows = opened.rows.take(group.ordinals[:SHOWN])
        shown.append(CopiesGroup(group.kind, tuple(item_of(row, None) for row in rows)))
    return CopiesAnswer(len(groups), sum(len(group.ordinals) for group in groups), tuple(shown))
