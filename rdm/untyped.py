"""Types for values from untyped libraries: JSON objects, and the parts of diffusers' networks that rdm reads.

diffusers has no types. The classes below only declare its attributes for the type checker; they are never instantiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Untyped = Any  # a class of a library without types

JsonObject = dict[str, Any]

Arguments = Mapping[str, Any]  # a model's description, or the keyword arguments of a diffusers network


class Convolution(nn.Conv2d):
    """A convolution with a bias."""

    bias: Tensor


class ResidualBlock(nn.Module):
    conv1: Convolution
    conv2: Convolution
    conv_shortcut: Convolution | None


class Sampler2D(nn.Module):
    """A downsampler."""

    conv: Convolution


class Attention(nn.Module):
    heads: int
    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: Sequence[nn.Linear]


class TransformerBlock(nn.Module):
    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module
    attn1: Attention
    attn2: Attention
    ff: nn.Module


class Transformer(nn.Module):
    norm: nn.Module
    proj_in: nn.Linear | nn.Conv2d
    proj_out: nn.Linear | nn.Conv2d
    transformer_blocks: Sequence[TransformerBlock]


class Block(nn.Module):
    """One level of a denoiser. `attentions` exists where the level has cross-attention."""

    resnets: Sequence[ResidualBlock]
    attentions: Sequence[Transformer]
    downsamplers: Sequence[nn.Module] | None
    upsamplers: Sequence[nn.Module] | None


class UNet(nn.Module):
    """diffusers' UNet2DConditionModel. Called with (x, t, encoder_hidden_states=...) it returns an object with `sample`."""

    config: Mapping[str, Any]
    conv_in: nn.Conv2d
    time_proj: nn.Module
    time_embedding: Callable[..., Tensor]  # of (B, width) and, for distilled guidance, (B, time_cond_proj_dim)
    class_embedding: nn.Module | None
    down_blocks: Sequence[Block]
    mid_block: Block
    up_blocks: Sequence[Block]
    conv_norm_out: nn.Module
    conv_act: nn.Module
    conv_out: nn.Module
    enable_gradient_checkpointing: Callable[..., None]
    save_pretrained: Callable[..., None]


class Posterior(Protocol):
    """The normal distribution of a picture's latents, (B, C, h, w) each."""

    mean: Tensor
    std: Tensor
    var: Tensor
    logvar: Tensor


class Encoded(Protocol):
    latent_dist: Posterior  # for a KL first stage
    latents: Tensor  # for the other kinds


class Decoded(Protocol):
    sample: Tensor


class FirstStageConfig(Protocol):
    block_out_channels: Sequence[int]
    latent_channels: int
    layers_per_block: int
    norm_num_groups: int
    mid_block_add_attention: bool


class EncoderLevel(nn.Module):
    resnets: Sequence[ResidualBlock]
    downsamplers: Sequence[Sampler2D]


class Encoder(nn.Module):
    conv_in: Convolution
    down_blocks: Sequence[EncoderLevel]
    mid_block: EncoderLevel
    conv_norm_out: nn.GroupNorm
    conv_out: Convolution


class FirstStage(nn.Module):
    """diffusers' AutoencoderKL or VQModel, or another network with the same two methods."""

    config: FirstStageConfig
    encoder: Encoder
    quant_conv: Convolution
    encode: Callable[[Tensor], Encoded]
    decode: Callable[[Tensor], Decoded]
    save_pretrained: Callable[..., None]


class Diffusers(Protocol):
    """The classes of diffusers that rdm uses."""

    __version__: str
    UNet2DConditionModel: Untyped
    AutoencoderKL: Untyped
    VQModel: Untyped
    DDIMScheduler: Untyped
