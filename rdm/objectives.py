"""What is minimised: an autoencoder's reconstruction, a denoiser's error. Shapes in, scalars out; nothing is read.

Autoencoder: arXiv 2112.10752 without its discriminator. Denoiser: arXiv 2204.11824 equation (3), the timestep's weight
optionally as in arXiv 2303.09556 (min-SNR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdm.denoiser import cross_attentions
from rdm.schedule import Schedule

Features = Callable[[Tensor], list[Tensor]]


def autoencoder_loss(
    autoencoder: Any,
    images: Tensor,
    noise: Tensor,
    *,
    kl: float,
    features: Features | None = None,
    perceptual: float = 0.0,
    decoder_only: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Absolute and squared error of the reconstruction, `kl` times the latent's mean KL, `perceptual` times features'.

    images (B, 3, H, W) in [-1, 1]; noise like the latents, standard normal. `features` gives a frozen network's
    activations, each compared by squared error relative to its own mean square. decoder_only leaves the encoder without
    a gradient and decodes the posterior's mean, which is what a sampler's end is compared with.
    """
    with torch.set_grad_enabled(not decoder_only and torch.is_grad_enabled()):
        posterior = autoencoder.encode(images).latent_dist
    restored = autoencoder.decode(posterior.mean + posterior.std * noise).sample
    difference = restored - images
    square = difference.square().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = difference.abs().mean() + square + kl * divergence
    values = {"psnr": 10 * torch.log10(4 / square.detach()), "kl": divergence.detach()}
    if features is not None and perceptual:
        with torch.no_grad():
            wanted = features(images)
        parts = [F.mse_loss(a, b) / (b.square().mean() + 1e-6) for a, b in zip(features(restored), wanted, strict=True)]
        distance = torch.stack(parts).mean()
        loss = loss + perceptual * distance
        values["perceptual"] = distance.detach()
    return loss, values


def noised(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t of latents (B, C, h, w) at times t (B,)."""
    kept = schedule.alphas_cumprod.to(latents.device, torch.float32)[t].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def denoising_loss(
    unet: Any, latents: Tensor, context: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, *, snr_limit: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the predicted noise, and the part of it where half the noise steps lie above.

    latents (B, C, h, w) as sampled (scaled); context (B, T, D); t (B,). snr_limit > 0 weighs a row by
    min(snr, limit) / snr, normalised over all times; 0 leaves every row at 1.
    """
    predicted = unet(noised(latents, noise, t, schedule), t, encoder_hidden_states=context).sample
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    if snr_limit <= 0:
        return error.mean(), {"error": error.mean().detach()}
    kept = schedule.alphas_cumprod.to(error.device, torch.float32)
    weights = (snr_limit * (1 - kept) / kept).clamp(max=1)
    weights = weights / weights.mean()
    return (error * weights[t]).mean(), {"error": error.mean().detach()}


def drop(context: Tensor, gone: Tensor) -> Tensor:
    """Context (B, T, D) with rows where `gone` (B,) is true made the null context of guidance: zeros."""
    return context * (~gone).to(context.dtype)[:, None, None]


def scale_context_weights(unet: nn.Module, dim: int) -> None:
    """Make fresh key and value matrices answer unit vectors with numbers of about unit size.

    A unit vector's entries are of size 1 / sqrt(dim), where initialisation expects 1.
    """
    with torch.no_grad():
        for attention in cross_attentions(unet):
            attention.to_k.weight.mul_(dim**0.5)
            attention.to_v.weight.mul_(dim**0.5)
