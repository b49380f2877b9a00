"""The networks of a model's description: the denoiser and the first stage, built by diffusers or by rdm.folded.

Reads and writes no files. On the meta device nothing is allocated, so that a checkpoint's own tensors can become the
parameters and the weights are held once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

import torch

from rdm.config import RDMConfig
from rdm.errors import ConfigError
from rdm.folded import Folded
from rdm.imports import import_apart
from rdm.torchvision_ops import declare_torchvision_ops

if TYPE_CHECKING:
    from rdm.untyped import Diffusers, FirstStage, UNet

PIXELS_AT_ONCE = 1024 * 1024  # that a first stage decodes in one batch

FIRST_STAGES = ("AutoencoderKL", "VQModel", "Folded")
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


# The networks' modules, and the packages and modules that import every network, loader or quantizer of diffusers.
_NETWORKS = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.vq_model",
    "diffusers.hooks.group_offloading",  # which `to` of a network imports, and with it the compiler
)
_PLAIN = {
    "diffusers.models.transformers": (),
    "diffusers.models.unets": (),
    "diffusers.models.autoencoders": (),
    "diffusers.hooks": (),
    "diffusers.loaders": ("FromOriginalModelMixin", "PeftAdapterMixin", "UNet2DConditionLoadersMixin"),
    "diffusers.loaders.single_file_model": ("FromOriginalModelMixin",),
    "diffusers.quantizers": ("DiffusersAutoQuantizer", "DiffusersQuantizer"),
}
_UNUSED = ("accelerate", "peft", "transformers")


@cache
def diffusers() -> Diffusers:
    """diffusers with only the networks above and the schedulers, without pipelines."""
    declare_torchvision_ops()  # needed if the whole of diffusers is already imported
    return cast("Diffusers", import_apart(("diffusers", *_NETWORKS), _UNUSED, _PLAIN)[0])


# The errors of diffusers for a description that does not make a network.
_REFUSALS = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    AttributeError,
    AssertionError,
    MemoryError,
)


def build(config: RDMConfig, device: str | torch.device = "cpu") -> tuple[UNet, FirstStage]:
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
        except _REFUSALS as error:
            raise ConfigError(f"unet: diffusers' UNet2DConditionModel refuses this description: {error}") from error
        try:
            # Folded declares the same two methods as diffusers' classes.
            autoencoder = cast(
                "FirstStage", Folded(**first_stage) if kind == "Folded" else getattr(library, kind)(**first_stage)
            )
        except _REFUSALS as error:
            maker = kind if kind == "Folded" else f"diffusers' {kind}"
            raise ConfigError(f"first_stage: {maker} refuses this description: {error}") from error
    return unet.eval(), autoencoder.eval()


def at_once(pixels: int, most: int = PIXELS_AT_ONCE) -> int:
    """How many pictures of this many pixels are decoded together; at least one."""
    return max(1, most // pixels)
