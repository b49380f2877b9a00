"""The arithmetic of an evaluation: intervals, paired differences, ranks, kernel distance. No files, no networks.

The bootstrap resamples captions, not pictures, because the pictures of one caption (its styles and seeds) depend on each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 4000

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean over captions with its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float
    captions: int
    pictures: int

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def caption_means(captions: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The mean value of each caption's pictures."""
    sums: dict[str, list[float]] = {}
    for caption, value in zip(captions, values, strict=True):
        sums.setdefault(caption, []).append(float(value))
    return {caption: sum(found) / len(found) for caption, found in sums.items()}


def estimate(captions: Sequence[str], values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The mean over captions of their pictures' means, with the percentile bootstrap over captions."""
    means = np.array(list(caption_means(captions, values).values()))
    low, high = bootstrap(means, seed, draws)
    return Estimate(float(means.mean()), low, high, len(means), len(values))


def paired(
    one: tuple[Sequence[str], Sequence[float]], other: tuple[Sequence[str], Sequence[float]], seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:  # fmt: skip
    """one - other, paired by caption, over the captions that both have; (captions, values) each."""
    mine, theirs = caption_means(*one), caption_means(*other)
    both = [caption for caption in mine if caption in theirs]
    if not both:
        raise ValueError("a paired difference needs captions that both sides have; there is none")
    differences = np.array([mine[caption] - theirs[caption] for caption in both])
    low, high = bootstrap(differences, seed, draws)
    return Estimate(float(differences.mean()), low, high, len(both), len(one[1]) + len(other[1]))


def bootstrap(values: Floats, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean of resampled values (Efron's percentile interval)."""
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 500):
        chosen = generator.integers(len(values), size=(min(500, draws - start), len(values)))
        means[start : start + len(chosen)] = values[chosen].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def rank_of_first(scores: Floats) -> NDArray[np.int64]:
    """(n,) ranks from 1 of column 0 among the columns of scores (n, N); equal scores count against it."""
    ranks: NDArray[np.int64] = (scores[:, 1:] >= scores[:, :1]).sum(axis=1) + 1
    return ranks


def confusion(truth: Sequence[int], guesses: Sequence[int], classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts: rows are the truth, columns the guesses."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(truth, int), np.asarray(guesses, int)), 1)
    return table


def kid(one: Floats, other: Floats) -> float:
    """Kernel distance: the unbiased MMD^2 of two sets of features (m, D), (n, D) with (x.y / D + 1)^3 (arXiv 1801.01401)."""
    m, n = len(one), len(other)
    if m < 2 or n < 2:
        raise ValueError(f"a kernel distance needs two pictures a side; found {m} and {n}")
    one, other = one.astype(np.float64), other.astype(np.float64)
    within_one, within_other, between = _kernel(one, one), _kernel(other, other), _kernel(one, other)
    inner = (within_one.sum() - np.trace(within_one)) / (m * (m - 1))
    outer = (within_other.sum() - np.trace(within_other)) / (n * (n - 1))
    return float(inner + outer - 2 * between.mean())


def _kernel(one: Floats, other: Floats) -> Floats:
    made: Floats = (one @ other.T / one.shape[1] + 1) ** 3
    return made


def diversity(features: Floats) -> float:
    """Mean of 1 - cosine over all pairs of rows of features (n, D): 0 if all pictures are alike."""
    if len(features) < 2:
        raise ValueError("diversity needs two pictures")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    count = len(unit)
    total = float(np.square(unit.sum(axis=0)).sum()) - count
    return 1 - total / (count * (count - 1))


def best(scores: Mapping[K, float]) -> K:
    """The key of the highest score; of equal scores the first, so a grid should list its cheaper settings first."""
    return max(scores, key=lambda key: scores[key])
