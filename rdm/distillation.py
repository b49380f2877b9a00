"""Distillation of guidance: a student that gives the guided output of its teacher in one pass of the denoiser.

The method is stage one of arXiv 2210.03142: at random times and random guidance scales w, the student's output is trained to be
null + w * (conditional - null) of the teacher. The student has the teacher's networks and one more input, the embedding of w,
which diffusers' UNet2DConditionModel adds to the embedding of the time (`time_cond_proj_dim`, `timestep_cond`). Its first
weights are zero, so that training starts from the teacher. Reads and writes nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rdm.config import RDMConfig
from rdm.denoiser import pool
from rdm.errors import ConfigError
from rdm.objectives import noised
from rdm.schedule import Schedule
from rdm.untyped import UNet

EMBEDDING = 256  # length of a scale's embedding


def embed_guidance(config: RDMConfig, scale: Tensor) -> Tensor:
    """(B, time_cond_proj_dim) sines and cosines of guidance scales (B,).

    The formula is that of diffusers' `get_guidance_scale_embedding(scale - 1)` for latent consistency models: frequencies from
    1000 to 0.1 in equal ratios.
    """
    half = int(config.unet["time_cond_proj_dim"]) // 2
    places = torch.arange(half, dtype=torch.float32, device=scale.device)
    angles = 1000 * (scale.float()[:, None] - 1) * torch.exp(places * (-math.log(10_000) / max(half - 1, 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def describe_student(teacher: RDMConfig, low: float, high: float) -> RDMConfig:
    """The teacher's description with distilled guidance for scales from low to high.

    Raises ConfigError for a teacher with distilled guidance, or one whose default scale is not among them.
    """
    if teacher.guidance_range is not None:
        raise ConfigError(
            f"model {teacher.name!r} has distilled guidance already: distil the model that it was distilled from"
        )
    return replace(teacher, unet={**teacher.unet, "time_cond_proj_dim": EMBEDDING}, guidance_range=(low, high))


def start_student(student: UNet, teacher: UNet) -> None:
    """Give the student the teacher's weights. The weights of the guidance scale become zero."""
    weights = teacher.state_dict()
    for name, value in student.state_dict().items():
        if name not in weights:
            weights[name] = torch.zeros_like(value)
    student.load_state_dict(weights)


def distillation_loss(
    student: UNet, teacher: UNet, config: RDMConfig, latents: Tensor, context: Tensor, noise: Tensor, t: Tensor,
    scale: Tensor, schedule: Schedule,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The mean squared error of the student's output, and the share of guidance that it misses as `missed`.

    config is the student's. latents (B, C, h, w), scaled; context (B, T, D); t (B,) times; scale (B,). `missed` is the error
    divided by the squared distance between the guided output and the conditional one: 1 for a student that ignores the scale.
    """
    x = noised(latents, noise, t, schedule)
    with torch.no_grad():
        tokens = torch.cat([torch.zeros_like(context), context])
        extra = {"class_labels": pool(tokens)} if config.pooled else {}
        both = teacher(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=tokens, **extra).sample.float()
        null, conditional = both.chunk(2)
        wanted = null + scale.view(-1, 1, 1, 1) * (conditional - null)
    extra = {"class_labels": pool(context)} if config.pooled else {}
    embedded = embed_guidance(config, scale).to(x.dtype)
    made = student(x, t, encoder_hidden_states=context, timestep_cond=embedded, **extra).sample.float()
    error = (made - wanted).square().mean()
    apart = (conditional - wanted).square().mean()
    return error, {"missed": error.detach() / apart.clamp(min=1e-12)}
