"""Several queries as one: the weighted sum of their unit vectors. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def mix(vectors: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """The unit vector (D,) of n unit vectors (D,), each multiplied by its weight; a weight below 0 leads away from its vector.

    Raises ConfigError for a sum that has no direction.
    """
    total = np.zeros(len(vectors[0]), np.float64)
    for vector, weight in zip(vectors, weights, strict=True):
        total += weight * vector.astype(np.float64)
    length = float(np.linalg.norm(total))
    if not np.isfinite(length):
        raise ConfigError("a weight of the query is not finite; give a number such as 1 or -0.5")
    if length < 1e-6:
        raise ConfigError("the parts of the query cancel each other out; change a weight")
    return (total / length).astype(np.float32)
