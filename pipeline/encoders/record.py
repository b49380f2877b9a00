"""EncoderRecord: which encoder made the vectors of a database. Its fields are written into version files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.config import digest

UNSTATED = "unstated"  # unknown weights: the vectors were imported, and the user named the encoder


@dataclass(frozen=True)
class EncoderRecord:
    """Which encoder made a database's vectors. Queries must come from the same encoder."""

    name: str  # what --encoder takes
    dim: int
    weights: str  # sha256 of the weights, or UNSTATED
    preprocess: str  # openclip | compvis
    precision: str = "fp32"  # fp32 | fp16 | bf16
    trained: bool = True  # False: random weights; results are meaningless
    has_text: bool = True

    @property
    def id(self) -> str:
        """Folder name: readable, and different for encoders whose vectors would differ."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[-40:].strip("-")
        return f"{slug}-{digest([self.weights, self.preprocess, self.precision], 8)}"
