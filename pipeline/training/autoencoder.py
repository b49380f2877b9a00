"""Training of the first stage: a KL autoencoder on crops, its latents' scale measured at the end.

Reads the run's pictures, and the trained encoder where `perceptual` or `texture` asks for its features. Writes the part's
folder (see pipeline/training/run.py) and `model/`, as diffusers saves an AutoencoderKL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage import Storage
from pipeline.training.config import AutoencoderConfig, TrainConfig
from pipeline.training.data import read_pictures, training_rows
from pipeline.training.loop import load_average, say_report
from pipeline.training.sheets import curve_picture, sheet

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.execution import Progress
    from pipeline.training.crew import Crew


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pictures as the first stage takes them: float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def train_autoencoder(config: TrainConfig, folder: Path, progress: Progress, crew: Crew, resume: bool) -> Path:
    """Train, and save the averaged weights; see pipeline.train.train."""
    import torch

    from rdm.networks import diffusers
    from rdm.objectives import autoencoder_loss
    from rdm.patches import start_as_patches
    from rdm.train import CURVE, fit

    part = config.autoencoder
    assert part is not None
    device = crew.torch_device()
    pictures = read_pictures(config.data, config.folder())
    rows = training_rows(pictures, config.data)
    pixels = pictures.pixels[rows]
    aside = pictures.pixels[sorted(set(range(len(pictures))) - set(rows))[:: max(1, len(pictures) // 2000)]][:256]
    progress.say(f"autoencoder: {len(pixels)} pictures to train on")
    torch.manual_seed(part.train.seed)
    network = diffusers().AutoencoderKL(**part.model).to(device, memory_format=torch.channels_last)
    features = _features(config, device) if part.perceptual or part.texture else None

    if part.patches:
        some = torch.linspace(0, len(pixels) - 1, min(len(pixels), 2000)).long()
        start_as_patches(network, to_model(pixels[some]).to(device), noise=part.noise)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        crops, noise = draw_crops(pixels, part, network, generator, crew)
        images = to_model(crops).to(device, memory_format=torch.channels_last)
        return autoencoder_loss(
            network, images, noise.to(device), kl=part.kl, features=features, perceptual=part.perceptual,
            texture=part.texture, decoder_only=part.patches,
        )  # fmt: skip

    def on_save(step: int, live: nn.Module, weights: Mapping[str, Tensor]) -> None:
        twin: Any = load_average(live, weights)
        psnr, shown = evaluate_autoencoder(twin, aside, device)
        progress.say(f"autoencoder: step {step}, held-out pictures restored at {psnr:.2f} dB")
        Storage(str(folder)).write_text("figures.json", json.dumps({"step": step, "psnr": psnr}))
        sheet(shown, folder / "sheets" / f"{step:07d}.png", columns=16)
        curve_picture(folder / CURVE, folder / "curve.png", ("loss", "psnr"))
        twin.to(memory_format=torch.contiguous_format).save_pretrained(folder / "model")

    fit(
        network, loss, part.train.loop(), folder, resume=resume, average=crew.average, writes=crew.first,
        on_report=say_report(progress, "autoencoder", part.train.batch) if crew.first else None, on_save=on_save,
    )  # fmt: skip
    return folder / "model"


def draw_crops(
    pixels: Tensor, part: AutoencoderConfig, network: Any, generator: torch.Generator, crew: Crew
) -> tuple[Tensor, Tensor]:
    """This worker's crops of a batch (b, 3, side, side) uint8, half of them mirrored, and noise for their latents."""
    import torch

    side, batch = part.crop or pixels.shape[-1], part.train.batch
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


def evaluate_autoencoder(network: Any, pixels: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """PSNR in dB over whole pictures (N, 3, S, S) uint8, and 32 of them above their reconstructions, in [0, 1]."""
    import torch

    restored = []
    with torch.inference_mode():
        for group in torch.split(pixels, 64):
            images = to_model(group).to(device)
            restored.append(network.decode(network.encode(images).latent_dist.mean).sample.clamp(-1, 1).cpu())
    made = torch.cat(restored)
    square = (made - to_model(pixels)).square().mean(dim=(1, 2, 3))
    psnr = float(10 * torch.log10(4 / square.mean()))
    both = torch.stack([to_model(pixels[:64]), made[:64]])  # (2, n, 3, S, S), rows of 16 shown in pairs
    pairs = [both[:, i : i + 16].flatten(0, 1) for i in range(0, both.shape[1] - both.shape[1] % 16, 16)]
    return psnr, (torch.cat(pairs) + 1) / 2 if pairs else (both.flatten(0, 1) + 1) / 2


def _features(config: TrainConfig, device: torch.device) -> Any:
    """Activations of the trained encoder's first stages, for the parts of the loss that want them."""
    from pipeline.training.trained import early_features

    return early_features(config, device)
