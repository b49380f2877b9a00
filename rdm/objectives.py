"""What is minimised: an autoencoder's reconstruction, a denoiser's error. Shapes in, scalars out; nothing is read.

Autoencoder: arXiv 2112.10752 without its discriminator. Denoiser: arXiv 2204.11824 equation (3), the timestep's weight
optionally as in arXiv 2303.09556 (min-SNR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
    texture: float = 0.0,
    decoder_only: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Absolute and squared error of the reconstruction, `kl` times the latent's mean KL, `perceptual` times features'
    error and `texture` times that of their covariances.

    images (B, 3, H, W) in [-1, 1]; noise like the latents, standard normal. `features` gives a frozen network's
    activations, each compared by squared error relative to its own square. Their covariances over the picture say how
    much there is of what, not where (arXiv 1508.06576, equation 4, centred): grain that the latents cannot place is
    still drawn. decoder_only leaves the encoder without a gradient and decodes the posterior's mean, which is what a
    sampler's end is compared with.
    """
    with torch.set_grad_enabled(not decoder_only and torch.is_grad_enabled()):
        posterior = autoencoder.encode(images).latent_dist
    restored = autoencoder.decode(posterior.mean + posterior.std * noise).sample
    difference = restored - images
    square = difference.square().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = difference.abs().mean() + square + kl * divergence
    values = {"psnr": 10 * torch.log10(4 / square.detach()), "kl": divergence.detach()}
    if features is not None:
        with torch.no_grad():
            wanted = features(images)
        found = features(restored)
        if perceptual:
            values["perceptual"] = torch.stack([_apart(a, b) for a, b in zip(found, wanted, strict=True)]).mean()
            loss = loss + perceptual * values["perceptual"]
        if texture:
            pairs = zip(map(_covariance, found), map(_covariance, wanted), strict=True)
            values["texture"] = torch.stack([_apart(a, b) for a, b in pairs]).mean()
            loss = loss + texture * values["texture"]
    return loss, values


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of the squared distance over the wanted one's square."""
    square = (found - wanted).square().flatten(1).sum(1)
    return (square / (wanted.square().flatten(1).sum(1) + 1e-6)).mean()


def _covariance(activations: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, C), of the channels over each picture."""
    flat = activations.flatten(2)
    flat = flat - flat.mean(dim=2, keepdim=True)
    return flat @ flat.mT / flat.shape[2]


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
