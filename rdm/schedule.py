"""The noise schedule of latent diffusion, and the time steps that a sampler visits.

Numbers in float64 on the CPU; reads and writes nothing.
"""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import torch

from rdm.errors import RequestError

_RHO = 7.0


class Schedule:
    """alphas_cumprod of `train_steps` betas linspace(sqrt(start), sqrt(end))**2 (diffusers: `scaled_linear`).

    At time step t, x_t = alpha(t) x_0 + sigma(t) noise; half the log-SNR is lambda(t) = log(alpha / sigma).
    """

    def __init__(self, beta_start: float, beta_end: float, train_steps: int = 1000) -> None:
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float64) ** 2
        self.train_steps = train_steps
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self._alphas_cumprod: list[float] = self.alphas_cumprod.tolist()

    def alpha_cumprod(self, t: int) -> float:
        return self._alphas_cumprod[t]

    def alpha(self, t: int) -> float:
        return math.sqrt(self._alphas_cumprod[t])

    def sigma(self, t: int) -> float:
        return math.sqrt(1 - self._alphas_cumprod[t])

    def log_snr_half(self, t: int) -> float:
        return 0.5 * math.log(self._alphas_cumprod[t] / (1 - self._alphas_cumprod[t]))

    def check(self, steps: object) -> int:
        """The number of steps, also of a NumPy integer. Raises RequestError unless 1 <= steps <= train_steps."""
        try:
            count = operator.index(steps) if isinstance(steps, SupportsIndex) and not isinstance(steps, bool) else 0
        except TypeError:
            count = 0
        if not 1 <= count <= self.train_steps:
            raise RequestError(f"steps is {steps!r}; a whole number from 1 to {self.train_steps} was expected")
        return count

    def leading(self, steps: int) -> list[int]:
        """Time steps of DDIM and PLMS, descending; the level of t = 0 follows the last.

        They are floor(i * train_steps / steps) + 1. If `steps` divides train_steps, they equal the original's
        range(0, 1000, 1000 // steps) + 1. For other numbers the original takes another number of steps than requested, or
        reads beyond the end of its tables. For steps = train_steps the 1 is left out, and the last step changes nothing.
        """
        self.check(steps)
        offset = 1 if steps < self.train_steps else 0
        return [i * self.train_steps // steps + offset for i in reversed(range(steps))]

    def multistep(self, steps: int) -> list[int]:
        """Time steps of the multistep solvers, descending from the noisiest; the level of t = 0 follows the last.

        They are evenly spaced in (sigma / alpha)^(1/7) (Karras et al. 2022, arXiv 2206.00364, equation 5) and rounded to
        distinct whole steps. At 10 to 30 steps, the measured error is a half to a tenth of that with even spacing in t. For
        steps = train_steps the last step changes nothing, because there are only train_steps - 1 intervals.
        """
        self.check(steps)
        levels = 0.5 * torch.logit(self.alphas_cumprod)  # half the log-SNR, decreasing with t
        high, low = torch.exp(-levels[-1] / _RHO), torch.exp(-levels[0] / _RHO)
        wanted = -_RHO * torch.log(high + torch.arange(steps) / steps * (low - high))
        nearest: list[int] = (levels - wanted[:, None]).abs().argmin(dim=1).tolist()
        lowest = 1 if steps < self.train_steps else 0
        times = [self.train_steps]
        for i, t in enumerate(nearest):  # below the times before it, with room for those after it
            times.append(min(times[-1] - 1, max(t, lowest + steps - 1 - i)))
        return times[1:]
