"""The settings of the sampler: the only place where they are declared.

A row of a prompt list, the flags and a model each give some of them; a row's value has priority, then the flag's, then the
model's. A picture's request holds all of them. Reads and writes nothing; imports no torch, so that `--help` stays fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TypeVar

from pipeline.errors import ConfigError, nearest

T = TypeVar("T")

SAMPLERS = ("ddim", "plms", "dpmpp_2m", "unipc", "euler", "euler_a")
"""Every sampler of a short name that some model takes; a model's own are in its ModelInfo."""

_SCHEDULER = re.compile(r"[A-Za-z0-9]+Scheduler(:[a-z]+)?")  # as in rdm/schedulers.py, which loads torch


def is_scheduler(sampler: str) -> bool:
    """Whether a sampler is one of diffusers' schedulers, such as `DPMSolverMultistepScheduler:karras`. RDMs take them."""
    return _SCHEDULER.fullmatch(sampler) is not None


def _number(low: float, high: float) -> dict[str, tuple[float, float]]:
    return {"bounds": (low, high)}


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler. None: not given here, so that the next in order applies (see `over`)."""

    sampler: str | None = None
    steps: int | None = field(default=None, metadata=_number(1, 1000))
    scale: float | None = field(default=None, metadata=_number(0, 1000))  # guidance; 1: none
    eta: float | None = field(default=None, metadata=_number(0, 1))  # DDIM's noise
    width: int | None = field(default=None, metadata=_number(8, 8192))  # pixels
    height: int | None = field(default=None, metadata=_number(8, 8192))

    def over(self, other: Sampling) -> Sampling:
        """These settings, with the values of `other` for those that are None."""
        return replace(other, **{name: value for name, value in asdict(self).items() if value is not None})

    def check(self, prefix: str = "--") -> None:
        """Raise ConfigError for a value that no model takes. `prefix` precedes a setting's name in the message."""
        if self.sampler is not None and self.sampler not in SAMPLERS and not is_scheduler(self.sampler):
            raise ConfigError(
                f"{prefix}sampler {self.sampler!r}: expected one of {', '.join(SAMPLERS)}{nearest(self.sampler, SAMPLERS)}"
            )
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{prefix}{name} {value}: expected a number from {low:g} to {high:g}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of a complete sampling."""
        return known(self.height), known(self.width)


BOUNDS: Mapping[str, tuple[float, float]] = {
    setting.name: setting.metadata["bounds"] for setting in fields(Sampling) if setting.metadata
}

SETTINGS = tuple(setting.name for setting in fields(Sampling))


def known(value: T | None) -> T:
    """A setting of a picture's request, in which every setting has a value."""
    assert value is not None, "a request's sampling holds all settings"
    return value
