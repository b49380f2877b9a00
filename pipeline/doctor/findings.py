"""Finding: the result of one check of `rdmpipe doctor`. Reads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check. state: ok; note (works without it); problem (does not work). `fix`: the command to run."""

    area: str
    state: Literal["ok", "note", "problem"]
    found: str
    fix: str = ""
