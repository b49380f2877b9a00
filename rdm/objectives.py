"""The losses of the autoencoder and the denoiser. Tensors in, scalars out; reads and writes nothing.

Autoencoder: arXiv 2112.10752 without its discriminator. Denoiser: arXiv 2204.11824, equation (3), optionally with the
weight of a time step of arXiv 2303.09556 (min-SNR).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rdm.denoiser import cross_attentions, pool
from rdm.prediction import velocity_error
from rdm.schedule import Schedule
from rdm.untyped import FirstStage, UNet

Features = Callable[[Tensor], list[Tensor]]


def autoencoder_loss(
    autoencoder: FirstStage,
    images: Tensor,
    noise: Tensor,
    *,
    kl: float,
    features: Features | None = None,
    perceptual: float = 0.0,
    texture: float = 0.0,
    decoder_only: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts.

    The loss is the absolute plus the squared error of the reconstruction, plus `kl` times the mean KL of the latents,
    `perceptual` times the error of the features and `texture` times the error of the features' covariances.

    images (B, 3, H, W) in [-1, 1]; noise (B, C, h, w), standard normal, with the shape of the latents. `features` gives the
    activations of a frozen network; the error of each is its squared error divided by its own square. Covariances over a
    picture compare the amount of a feature and not its position (arXiv 1508.06576, equation 4, centred), so that grain is drawn
    whose position the latents do not encode. With decoder_only the encoder gets no gradient.
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
    """The squared distance divided by the square of `wanted`, averaged over the batch."""
    square = (found - wanted).square().flatten(1).sum(1)
    return (square / (wanted.square().flatten(1).sum(1) + 1e-6)).mean()


def _covariance(activations: Tensor) -> Tensor:
    """Covariances of the channels over each picture: (B, C, h, w) -> (B, C, C)."""
    flat = activations.flatten(2)
    flat = flat - flat.mean(dim=2, keepdim=True)
    return flat @ flat.mT / flat.shape[2]


def noised(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Latents (B, C, h, w) with `noise` at times t (B,): x_t."""
    kept = schedule.alphas_cumprod.to(latents.device, torch.float32)[t].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def denoising_loss(
    unet: UNet,
    latents: Tensor,
    context: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    snr_limit: float = 0.0,
    prediction: str = "epsilon",
    pooled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted mean squared error of what is predicted, and the plain one as `error`.

    latents (B, C, h, w), scaled, as from a sampler; context (B, T, D); t (B,). The error is that of the noise if the
    prediction is "epsilon", else that of v (rdm.prediction). With snr_limit > 0 the weight of a row's error of the noise is
    min(snr, limit) / snr, normalised over all times; with 0 it is 1. `pooled`: the denoiser takes the pooled context too.
    """
    extra = {"class_labels": pool(context)} if pooled else {}
    output = unet(noised(latents, noise, t, schedule), t, encoder_hidden_states=context, **extra).sample.float()
    if prediction != "epsilon":
        error = velocity_error(prediction, output, latents, noise, t, schedule)
        return error.mean(), {"error": error.mean().detach()}
    error = (output - noise).square().mean(dim=(1, 2, 3))
    if snr_limit <= 0:
        return error.mean(), {"error": error.mean().detach()}
    kept = schedule.alphas_cumprod.to(error.device, torch.float32)
    weights = (snr_limit * (1 - kept) / kept).clamp(max=1)
    weights = weights / weights.mean()
    return (error * weights[t]).mean(), {"error": error.mean().detach()}


def drop(context: Tensor, gone: Tensor) -> Tensor:
    """The context (B, T, D) with zeros, the null context of guidance, in the rows where `gone` (B,) is true."""
    return context * (~gone).to(context.dtype)[:, None, None]


def scale_context_weights(unet: UNet, dim: int) -> None:
    """Scale fresh key and value matrices so that unit vectors give entries of about unit size.

    The entries of a unit vector are of size 1 / sqrt(dim); the initialisation expects size 1.
    """
    with torch.no_grad():
        for attention in cross_attentions(unet):
            attention.to_k.weight.mul_(dim**0.5)
            attention.to_v.weight.mul_(dim**0.5)
