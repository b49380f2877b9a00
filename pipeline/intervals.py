"""Confidence intervals of proportions. Reads and writes nothing."""

from __future__ import annotations

import math

Z_95 = 1.959964  # 97.5th percentile of the normal distribution; published recall figures use these digits


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share observed in n independent trials; (0, 1) if n is 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if n == 0:
        return 0.0, 1.0
    z = Z_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    # The interval must contain the share itself: rounding could leave a share of 1 outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
