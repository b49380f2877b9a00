"""The retrieval-augmented diffusion model (RDM), with torch and diffusers only.

    from rdm import RDM
    model = RDM.from_compvis("model.ckpt", "rdm-768")      # or RDM.from_pretrained("rdm-768/")
    latents = model.sample(context, steps=50)              # context: (B, T, D) CLIP vectors
    images = model.decode(latents)                         # (B, 3, H, W) in [-1, 1]

Papers: arXiv 2204.11824 (RDM) and arXiv 2207.13038 (one model, many styles, by swapping the database).
Importing this package imports neither torch nor diffusers; the first use of `RDM` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdm.config import RDMConfig
    from rdm.model import RDM

__all__ = ["RDM", "RDMConfig"]


def __getattr__(name: str) -> object:
    if name == "RDM":
        from rdm.model import RDM

        return RDM
    if name == "RDMConfig":
        from rdm.config import RDMConfig

        return RDMConfig
    raise AttributeError(f"module 'rdm' has no attribute {name!r}")
