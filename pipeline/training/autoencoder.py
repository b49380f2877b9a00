"""Training of the first stage: a KL autoencoder, on crops.

Reads the run's pictures, and the trained encoder if `perceptual` or `texture` needs its features. Writes the part's
folder (see pipeline/training/run.py) and `model/`, in diffusers' format for an AutoencoderKL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.training.config import AutoencoderConfig
from pipeline.training.trained import early_features

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.training.crew import Crew
    from pipeline.training.loop import PartRun
    from rdm.untyped import FirstStage

_SHOWN = 2000  # pictures for the principal components and the held-out sample


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pictures as the input of the first stage: float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def train_autoencoder(run: PartRun) -> Path:
    """Train, and save the averaged weights. Returns the folder of the model."""
    import torch

    from rdm.networks import diffusers
    from rdm.objectives import autoencoder_loss
    from rdm.patches import start_as_patches

    part, device = run.config.autoencoder, run.device
    assert part is not None
    pictures = run.read_pictures()
    pixels = pictures.everything.pixels[pictures.rows]
    held = sorted(set(range(len(pictures.everything))) - set(pictures.rows))
    aside = pictures.everything.pixels[held[:: max(1, len(pictures.everything) // _SHOWN)]][:256]
    run.say(f"{len(pixels)} pictures to train on")
    torch.manual_seed(part.train.seed)
    network: FirstStage = diffusers().AutoencoderKL(**part.model).to(device, memory_format=torch.channels_last)
    features = early_features(run.config, device) if part.perceptual or part.texture else None
    if part.patches:
        some = torch.linspace(0, len(pixels) - 1, min(len(pixels), _SHOWN)).long()
        start_as_patches(network, to_model(pixels[some]).to(device), noise=part.noise)

    def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        crops, noise = draw_crops(pixels, part, network, generator, run.crew)
        images = to_model(crops).to(device, memory_format=torch.channels_last)
        return autoencoder_loss(
            network, images, noise.to(device), kl=part.kl, features=features, perceptual=part.perceptual,
            texture=part.texture, decoder_only=part.patches,
        )  # fmt: skip

    def keep(step: int, twin: nn.Module) -> Mapping[str, float]:
        model = cast("FirstStage", twin)
        psnr, shown = evaluate_autoencoder(model, aside, device)
        run.say(f"step {step}, held-out pictures restored at {psnr:.2f} dB")
        run.write_sheet(step, shown, columns=16)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.save_pretrained(run.folder / "model")
        return {"psnr": psnr}

    return run.fit(network, loss, keep, ("loss", "psnr"))


def draw_crops(
    pixels: Tensor, part: AutoencoderConfig, network: FirstStage, generator: torch.Generator, crew: Crew
) -> tuple[Tensor, Tensor]:
    """This worker's crops of a batch, (b, 3, side, side) uint8, half of them mirrored, and the noise for their latents."""
    import torch

    side, batch = part.crop or pixels.shape[-1], part.train.rows
    shrink = 2 ** (len(network.config.block_out_channels) - 1)
    chosen = crew.mine(torch.randint(len(pixels), (batch,), generator=generator))
    corner = crew.mine(torch.randint(pixels.shape[-1] - side + 1, (batch, 2), generator=generator))
    mirror = crew.mine(torch.rand(batch, generator=generator)) < 0.5
    latent = (batch, network.config.latent_channels, side // shrink, side // shrink)
    noise = crew.mine(torch.randn(latent, generator=generator))
    crops = torch.stack([
        pixels[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, corner.tolist(), strict=True)
    ])  # fmt: skip
    crops[mirror] = crops[mirror].flip(-1)
    return crops, noise


def evaluate_autoencoder(network: FirstStage, pixels: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """The PSNR in dB over whole pictures (N, 3, S, S) uint8, and a sheet of the first 64 above their reconstructions."""
    import torch

    restored = []
    with torch.inference_mode():
        for group in torch.split(pixels, 64):
            images = to_model(group).to(device)
            restored.append(network.decode(network.encode(images).latent_dist.mean).sample.clamp(-1, 1).cpu())
    made = torch.cat(restored)
    square = (made - to_model(pixels)).square().mean(dim=(1, 2, 3))
    psnr = float(10 * torch.log10(4 / square.mean()))
    both = torch.stack([to_model(pixels[:64]), made[:64]])  # (2, n, 3, S, S); the sheet has rows of 16 in pairs
    pairs = [both[:, i : i + 16].flatten(0, 1) for i in range(0, both.shape[1] - both.shape[1] % 16, 16)]
    return psnr, (torch.cat(pairs) + 1) / 2 if pairs else (both.flatten(0, 1) + 1) / 2
