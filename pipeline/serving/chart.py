"""The map of a database for the page (retrieval/plane.py computes it). Reads vectors and metadata; writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.pages import title_of
from pipeline.retrieval import lay_out
from pipeline.serving.questions import MapAnswer

if TYPE_CHECKING:
    from pipeline.retrieval import Searcher
    from pipeline.serving.library import OpenDatabase


def map_of(opened: OpenDatabase, searcher: Searcher, where: str, sample: int) -> MapAnswer:
    """The map of the rows that match. Raises FilterError."""
    plane = lay_out(searcher, where, sample)
    groups: dict[str, object] = {}
    for name in opened.facets.names():
        codes, values = opened.facets.codes(name)
        groups[name] = {"values": values, "codes": codes[plane.ordinals].tolist()}
    rows = opened.rows.take(plane.ordinals)
    return MapAnswer(
        database=opened.selection.name,
        version=opened.version.id,
        matched=plane.matched,
        keys=tuple(np.asarray(searcher.keys)[plane.ordinals].tolist()),
        x=tuple(np.round(plane.places[:, 0], 4).tolist()),
        y=tuple(np.round(plane.places[:, 1], 4).tolist()),
        titles=tuple((title_of(row) or str(row.get("caption") or row.get("item_id") or ""))[:80] for row in rows),
        explained=round(plane.explained, 4),
        groups=groups,
    )
