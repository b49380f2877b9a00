"""Helpers for tests of rdm: the reference model and its tensors, and tiny models of every kind."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm import RDM
from rdm.torchvision_ops import declare_torchvision_ops

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "name": "tiny",
    "unet": {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1],
        "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16, "transformer_depth": 1, "context_dim": 12,
    },
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 2],
        "num_res_blocks": 1, "attn_resolutions": [8],
    },
    "scale_factor": 0.5, "linear_start": 0.0015, "linear_end": 0.015,
    "max_neighbours": 6, "default_k": 4, "encoder": "tiny-clip",
}  # fmt: skip


def whole_diffusers() -> Any:
    """The whole of diffusers, as other programs import it."""
    declare_torchvision_ops()
    import diffusers

    return diffusers


def tiny_config(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(TINY), **changes}


def tiny_vq_config() -> dict[str, Any]:
    config = tiny_config(n_embed=64, embed_dim=3, scale_factor=1.0, context_norm="raw")
    config["unet"] |= {"in_channels": 3, "out_channels": 3}
    config["ddconfig"] |= {"double_z": False, "z_channels": 3, "attn_resolutions": []}
    return config


def lively(model: RDM, seed: int = 0) -> RDM:
    """Set weights so that every part has an effect: fresh networks have zero biases and a codebook near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (model.unet, model.first_stage):
            for name, value in sorted(network.state_dict().items()):
                if value.dim() == 1:
                    centre = 1.0 if name.endswith("weight") else 0.0
                    value.copy_(centre + 0.1 * torch.randn(value.shape, generator=generator))
                elif "quantize" in name:
                    value.copy_(torch.randn(value.shape, generator=generator))
                else:
                    fan = value[0].numel()
                    value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
    return model


@cache
def tiny_model() -> RDM:
    return lively(RDM.from_config(tiny_config()))


def reference_model(shared: Path) -> RDM:
    return _reference_model(shared / "reference" / "rdm")


@cache
def _reference_model(folder: Path) -> RDM:
    return RDM.from_compvis(folder / "model.ckpt", folder / "config.json")


def reference_config(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "reference" / "rdm" / "config.json").read_text())


@cache
def _tensors(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]).float() for name in arrays}


def reference_tensors(shared: Path) -> dict[str, Tensor]:
    return _tensors(shared / "reference" / "rdm" / "tensors.npz")


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a fraction of the largest expected value."""
    return float((found - expected).detach().abs().max() / expected.abs().max())


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random unit vectors (..., D)."""
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
