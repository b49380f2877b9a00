"""Low-rank adapters (LoRA, arXiv 2106.09685) of a denoiser's attention, in the layout of diffusers.

Reads and writes `pytorch_lora_weights.safetensors`: for each projection of an attention layer, `unet.<layer>.lora_A.weight`
(rank, in) and `unet.<layer>.lora_B.weight` (out, rank). The weight in use is W + B A: diffusers' scale is 1, because it
assumes alpha = rank if a file has no alpha. Files with another scale are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.errors import CheckpointError
from rdm.untyped import UNet

FILE = "pytorch_lora_weights.safetensors"

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")

_OLD = {"lora.down": "lora_A", "lora.up": "lora_B"}  # names that diffusers wrote before it used peft


class _Pair(nn.Module):
    """The product that is added to one linear layer: B A x."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(rank, layer.in_features)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
        self.lora_A = nn.Parameter(start.to(layer.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))

    def forward(self, given: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(given, self.lora_A), self.lora_B)


class Adapters(nn.Module):
    """Adapters of every attention projection of a denoiser, which adds their results from now on. They start at zero.

    The denoiser's own parameters are frozen. Copies of this module add nothing to the denoiser.
    """

    def __init__(self, unet: UNet, rank: int, seed: int = 0) -> None:
        super().__init__()
        unet.requires_grad_(False)
        layers = attention_projections(unet)
        generator = torch.Generator().manual_seed(seed)
        self.names = tuple(layers)
        self.pairs = nn.ModuleList([_Pair(layer, rank, generator) for layer in layers.values()])
        for layer, pair in zip(layers.values(), self.pairs, strict=True):
            layer.register_forward_hook(lambda _, given, made, pair=pair: made + pair(given[0]))

    def weights(self) -> dict[str, Tensor]:
        """The matrices as a file has them, without the prefix `unet.`."""
        return {
            f"{name}.{kind}.weight": value.detach()
            for name, pair in zip(self.names, self.pairs, strict=True)
            for kind, value in pair.named_parameters()
        }


def attention_projections(unet: UNet) -> dict[str, nn.Linear]:
    """The linear projections of all attention layers, by name, in the order of the modules."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(_PROJECTIONS)
    }


def save_lora(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the matrices of `Adapters.weights` in fp16, whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    save_file(
        {f"unet.{name}": value.to("cpu", torch.float16).contiguous() for name, value in sorted(weights.items())},
        part,
        metadata={"format": "pt"},
    )
    part.replace(folder / FILE)


def read_lora(path: Path) -> dict[str, Tensor]:
    """The matrices of a file, by `<layer>.lora_A.weight` and `<layer>.lora_B.weight`. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get("lora_adapter_metadata")
            for name in list(file.keys()):
                found[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as LoRA weights: {error}") from error
    made = {}
    for name, value in found.items():
        key = name.removeprefix("unet.")
        for old, new in _OLD.items():
            key = key.replace(old, new)
        if not key.endswith((".lora_A.weight", ".lora_B.weight")) or value.dim() != 2:
            raise CheckpointError(
                f"{path}: {name} {tuple(value.shape)} is no LoRA matrix of a linear layer; lora_A.weight and lora_B.weight "
                "of the denoiser's attention were expected"
            )
        made[key] = value
    if noted is not None:
        try:
            known = json.loads(noted)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its lora_adapter_metadata is no JSON: {error}") from error
        if not isinstance(known, dict) or known.get("unet.lora_alpha", known.get("unet.r")) != known.get("unet.r"):
            raise CheckpointError(f"{path}: lora_alpha differs from the rank; only a scale of 1 is read")
    return made


def merge(unet: UNet, weights: Mapping[str, Tensor]) -> None:
    """Add B A to the weights of the denoiser, in its precision. Raises CheckpointError for matrices of another denoiser."""
    layers = dict(unet.named_modules())
    for name in sorted({key.rpartition(".lora_")[0] for key in weights}):
        layer = layers.get(name)
        down, up = weights.get(f"{name}.lora_A.weight"), weights.get(f"{name}.lora_B.weight")
        if not isinstance(layer, nn.Linear) or down is None or up is None:
            raise CheckpointError(
                f"the LoRA changes {name!r}, which is no linear layer of this denoiser, or one of two matrices is missing"
            )
        if (len(up), down.shape[1], len(down)) != (*layer.weight.shape, up.shape[1]):
            raise CheckpointError(
                f"the LoRA of {name!r} makes {len(up)} x {down.shape[1]} numbers; {tuple(layer.weight.shape)} were expected"
            )
        own = layer.weight
        added = up.to(own.device, torch.float32) @ down.to(own.device, torch.float32)
        changed = nn.Parameter((own.detach().float() + added).to(own.dtype), requires_grad=own.requires_grad)
        layer.weight = changed
