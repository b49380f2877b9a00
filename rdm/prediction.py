"""The meanings of a denoiser's output, and the losses that follow from them.

x_t = alpha x_0 + sigma noise. A network may give the noise ("epsilon"), the clean latents ("sample") or
v = alpha noise - sigma x_0 ("v_prediction", arXiv 2202.00512, appendix D); the names are diffusers'. If x_t is known, each
determines the others, so samplers only need the noise, and the error of one equals that of another times a function of t.
Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rdm.schedule import Schedule


def levels(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma (B, 1, 1, 1) of times t (B,), computed in double precision, on the device of `like` (B, C, h, w)."""
    kept = schedule.alphas_cumprod[t.cpu().long()].view(-1, 1, 1, 1)
    return kept.sqrt().to(like.device, like.dtype), (1 - kept).sqrt().to(like.device, like.dtype)


def to_epsilon(kind: str, output: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The noise for an output (B, C, h, w) of this kind, where x (B, C, h, w) is noised to times t (1 or B,)."""
    if kind == "epsilon":
        return output
    alpha, sigma = levels(schedule, t, output)
    if kind == "v_prediction":
        return sigma * x + alpha * output
    return (x - alpha * output) / sigma


def velocity_error(kind: str, output: Tensor, latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """(B,) mean squared errors of v, for any kind of output.

    For an untrained network this error has about the same size at all times, whereas the error of the noise vanishes at
    the noisy end and that of the clean latents at the other. Error of v = error of the noise / alpha = error of the
    clean latents / sigma.
    """
    alpha, sigma = levels(schedule, t, output)
    if kind == "v_prediction":
        difference = output - (alpha * noise - sigma * latents)
    elif kind == "epsilon":
        difference = (output - noise) / alpha
    else:
        difference = (output - latents) / sigma
    return difference.square().mean(dim=(1, 2, 3))


def logit_normal_times(
    count: int,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    mean: float = 0.0,
    spread: float = 1.0,
    even: float = 0.2,
) -> Tensor:
    """(count,) whole times: a share `even` of them uniform, the rest with a normal logit (arXiv 2403.03206, equation 19)."""
    steps = schedule.train_steps
    bent = torch.sigmoid(mean + spread * torch.randn(count, generator=generator))
    flat = torch.rand(count, generator=generator)
    chosen = torch.where(torch.rand(count, generator=generator) < even, flat, bent)
    return (chosen * steps).long().clamp(0, steps - 1)


@torch.no_grad()
def error_by_level(
    unet: Any,
    kind: str,
    latents: Tensor,
    context: Tensor,
    schedule: Schedule,
    *,
    times: Sequence[int] = (950, 850, 700, 500, 300, 100),
    seed: int = 0,
    extra: Mapping[str, Tensor] | None = None,
) -> dict[int, float]:
    """Mean velocity error at each time, with the same noise in every call, so that held-out losses can be compared.

    `extra` holds further arguments of the denoiser, such as class_labels.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    found = {}
    for time in times:
        t = torch.full((len(latents),), time, device=latents.device)
        alpha, sigma = levels(schedule, t, latents)
        output = unet(alpha * latents + sigma * noise, t, encoder_hidden_states=context, **(extra or {})).sample
        found[time] = float(velocity_error(kind, output.float(), latents, noise, t, schedule).mean())
    return found
