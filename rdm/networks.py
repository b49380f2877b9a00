"""The networks, built by diffusers from a model's description: denoiser and first stage.

Reads and writes no files. On the meta device nothing is allocated, so that a checkpoint's own tensors can become the
parameters and the weights are held once.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rdm.config import RDMConfig
from rdm.errors import ConfigError
from rdm.folded import Folded

PIXELS_AT_ONCE = 1024 * 1024  # that a first stage decodes together

_torchvision_ops: list[torch.library.Library] = []  # a library is forgotten with its last reference

FIRST_STAGES = ("AutoencoderKL", "VQModel", "Folded")
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@cache
def diffusers() -> Any:
    """The diffusers module, importable also beside a CPU-only torch with a torchvision made for CUDA."""
    _declare_torchvision_ops()
    import diffusers

    return diffusers


def _declare_torchvision_ops() -> None:
    # diffusers imports torchvision, whose Python part asks for operators that its compiled part declares. PyPI's
    # torchvision is a CUDA build: beside a CPU-only torch its compiled part does not load and the import fails.
    # Declared but not implemented operators are enough. Where the compiled part loads, nothing is declared.
    if torch.version.cuda is not None or torch.version.hip is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for compiled in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return
        except OSError:  # the very case this is for
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _torchvision_ops.append(library)


def build(config: RDMConfig, device: str | torch.device = "cpu") -> tuple[Any, Any]:
    """Denoiser and first stage with fresh weights, in eval mode, on `device` ("meta" allocates nothing)."""
    kind = str(config.first_stage["_class_name"])
    if kind not in FIRST_STAGES:
        raise ConfigError(f"first_stage: _class_name is {kind!r}; it must be one of {', '.join(FIRST_STAGES)}")
    for block in (*config.unet["down_block_types"], *config.unet["up_block_types"]):
        if block not in _DOWN + _UP:
            raise ConfigError(f"unet: block type {block!r} is not supported; use {', '.join(_DOWN + _UP)}")
    library = diffusers()
    first_stage = {key: value for key, value in config.first_stage.items() if key != "_class_name"}
    with torch.device(device):
        try:
            unet = library.UNet2DConditionModel(**config.unet)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"unet: diffusers' UNet2DConditionModel refuses this description: {error}") from error
        try:
            autoencoder = Folded(**first_stage) if kind == "Folded" else getattr(library, kind)(**first_stage)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"first_stage: {kind} refuses this description: {error}") from error
    return unet.eval(), autoencoder.eval()


def at_once(pixels: int, most: int = PIXELS_AT_ONCE) -> int:
    """How many pictures of so many pixels are decoded together: at least one."""
    return max(1, most // pixels)
