"""A map of a database: a sample of rows as points on a plane.

The plane is spanned by the first two principal components of the sample's vectors (centred, not scaled). It shows coarse
structure only: two axes hold a small share of the variance of several hundred dimensions, and `explained` says how much. Same
version, filter and sample size give the same map. Reads vectors and metadata; writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.pages import title_of
from pipeline.serving.questions import MapAnswer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.retrieval import Searcher
    from pipeline.serving.library import OpenDatabase

SAMPLE, MOST_SAMPLE = 2_000, 10_000


def map_of(opened: OpenDatabase, searcher: Searcher, where: str, sample: int) -> MapAnswer:
    """The map of the rows that match. Raises FilterError."""
    ordinals = searcher.matching(where)
    matched = len(searcher.keys) if ordinals is None else len(ordinals)
    chosen = sampled(ordinals, matched, min(sample, MOST_SAMPLE))
    vectors = searcher.index.vectors[chosen].astype(np.float32)
    places, explained = principal_plane(vectors)
    groups: dict[str, object] = {}
    for name in opened.facets.names():
        codes, values = opened.facets.codes(name)
        groups[name] = {"values": values, "codes": codes[chosen].tolist()}
    rows = opened.rows.take(chosen)
    return MapAnswer(
        database=opened.selection.name,
        version=opened.version.id,
        matched=matched,
        keys=tuple(np.asarray(searcher.keys)[chosen].tolist()),
        x=tuple(np.round(places[:, 0], 4).tolist()),
        y=tuple(np.round(places[:, 1], 4).tolist()),
        titles=tuple((title_of(row) or str(row.get("caption") or row.get("item_id") or ""))[:80] for row in rows),
        explained=round(explained, 4),
        groups=groups,
    )


def sampled(ordinals: NDArray[np.int64] | None, matched: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the matching ordinals, ascending; always the same ones."""
    if matched <= most:
        return np.arange(matched, dtype=np.int64) if ordinals is None else np.asarray(ordinals)
    places = np.sort(np.random.default_rng(0).choice(matched, most, replace=False))
    return np.asarray(places if ordinals is None else ordinals[places], np.int64)


def principal_plane(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Places (n, 2) on the plane of most variance, and the share of the variance that it shows.

    The middle 98 % of each axis lie between -1 and 1. The sign of an axis is such that its largest weight is positive.
    """
    if len(vectors) < 3:
        return np.zeros((len(vectors), 2)), 0.0
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])
    places = centred @ axes
    scale = np.quantile(np.abs(places), 0.98, axis=0)
    total = float(variances.sum())
    return places / np.where(scale > 0, scale, 1), float(variances[-2:].sum()) / total if total > 0 else 0.0
