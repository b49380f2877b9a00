"""EncoderRecord: which encoder made the vectors of a database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import digest

if TYPE_CHECKING:
    pass

UNSTATED = "unstated"  # weights of an encoder that was named by hand, for vectors that somebody else published


@dataclass(frozen=True)
class EncoderRecord:
    """Which encoder made a database's vectors. Queries have to be made by the same one."""

    name: str  # what --encoder takes
    dim: int
    weights: str  # sha256 of the weights, or UNSTATED
    preprocess: str  # openclip | compvis
    precision: str = "fp32"  # fp32 | fp16 | bf16
    trained: bool = True  # False: random weights; results carry no meaning
    has_text: bool = True

    @property
    def id(self) -> str:
        """Folder name: readable, and different whenever the vectors would differ."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[-40:].strip("-")
        return f"{slug}-{digest([self.weights, self.preprocess, self.precision], 8)}"
