"""Finding: what `rdmpipe doctor` says of one thing. Reads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: ok; note (works without it); problem (does not work). `fix`: what to run."""

    area: str
    state: Literal["ok", "note", "problem"]
    found: str
    fix: str = ""
