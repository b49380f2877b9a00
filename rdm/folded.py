"""A first stage without weights, which folds pixels into channels without loss.

A latent of a Folded stage is an f x f patch of pixels (torch's pixel_unshuffle). With patches this large the denoiser
should predict the clean picture, not the noise (arXiv 2511.13720). Saved as folded/config.json only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdm.errors import ConfigError


@dataclass(frozen=True)
class Latents:
    latents: Tensor


@dataclass(frozen=True)
class Sample:
    sample: Tensor


class Folded(nn.Module):
    """(B, C, H, W) <-> (B, C * factor**2, H / factor, W / factor), channels in the order (channel, row, column)."""

    def __init__(self, factor: int, in_channels: int = 3, latent_channels: int | None = None) -> None:
        super().__init__()
        folded = in_channels * factor * factor
        if factor < 1 or latent_channels not in (None, folded):
            raise ConfigError(
                f"first_stage: {in_channels} channels folded by {factor} are {folded}, not {latent_channels}"
            )
        self.factor = factor
        self.in_channels = in_channels

    def encode(self, images: Tensor) -> Latents:
        return Latents(F.pixel_unshuffle(images, self.factor))

    def decode(self, latents: Tensor) -> Sample:
        return Sample(F.pixel_shuffle(latents, self.factor))

    def save_pretrained(self, folder: str | Path, **_: object) -> None:
        """Write config.json; there are no weights. The signature is that of diffusers' networks."""
        content = {
            "_class_name": "Folded",
            "factor": self.factor,
            "in_channels": self.in_channels,
            "latent_channels": self.in_channels * self.factor**2,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def home(network: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """The device and type of a network's weights; None for a network without weights, which takes any input."""
    parameter = next(network.parameters(), None)
    return None if parameter is None else (parameter.device, parameter.dtype)
