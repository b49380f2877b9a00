"""A map of a database: a sample of rows as points on a plane.

The plane is spanned by the first two principal components of the sample's vectors (centred, not scaled). It shows coarse
structure only: two axes hold a small share (`explained`) of the variance of several hundred dimensions. The same version,
filter and sample size give the same map. Reads vectors; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.retrieval.search import Searcher

SAMPLE, MOST_SAMPLE = 2_000, 10_000  # points of a map: the default and the maximum


@dataclass(frozen=True)
class Plane:
    """A sample of the rows that match a filter, as points.

    ordinals: the n rows. places: (n, 2), from -1 to 1 for the middle 98 % of each axis. explained: the share of the vectors'
    variance that the two axes show. matched: rows that match the filter.
    """

    ordinals: NDArray[np.int64]
    places: NDArray[np.float64]
    explained: float
    matched: int


def lay_out(searcher: Searcher, where: str = "", sample: int = SAMPLE) -> Plane:
    """The map of at most `sample` of the rows that match. Raises FilterError."""
    ordinals = searcher.matching(where)
    matched = len(searcher.keys) if ordinals is None else len(ordinals)
    chosen = sampled(ordinals, matched, min(sample, MOST_SAMPLE))
    places, explained = principal_plane(searcher.index.vectors[chosen].astype(np.float32))
    return Plane(chosen, places, explained, matched)


def sampled(ordinals: NDArray[np.int64] | None, matched: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the matching ordinals, ascending; always the same ones."""
    if matched <= most:
        return np.arange(matched, dtype=np.int64) if ordinals is None else np.asarray(ordinals)
    places = np.sort(np.random.default_rng(0).choice(matched, most, replace=False))
    return np.asarray(places if ordinals is None else ordinals[places], np.int64)


def principal_plane(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Positions (n, 2) on the plane of greatest variance, and the share of the variance that it shows.

    The middle 98 % of each axis is between -1 and 1. The sign of an axis is chosen so that its largest weight is positive.
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
