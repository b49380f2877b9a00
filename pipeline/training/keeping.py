"""The results of every save of a denoiser: the model's folder, its error on held-out pictures, and a sheet of samples.

Writes the given folder. Works on a copy of the denoiser, so that it can run during training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.training.cache import Cache, HeldOut
from pipeline.training.config import DenoiserConfig
from pipeline.training.data import LabelledPictures

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rdm import RDM
    from rdm.lora import Adapters
    from rdm.untyped import UNet

DRAWN = 8  # held-out pictures on a sheet
SHEET_STEPS = 25  # of the sampler, for a sheet of training on pictures


def held_out_error(
    model: RDM, unet: UNet, held: HeldOut, generator: torch.Generator, teacher: UNet | None = None
) -> dict[str, float]:
    """The mean error of the denoiser at five times, by `t=TIME`: of the noise if it predicts the noise, else of v.

    With a teacher: the share of its guidance, at the model's default scale, that the student misses.
    """
    import torch

    from rdm.distillation import distillation_loss
    from rdm.objectives import denoising_loss

    noise = torch.randn(held.latents.shape, generator=generator)
    device, steps, found = next(unet.parameters()).device, model.config.train_steps, {}
    for time in (steps * share // 100 for share in (10, 30, 50, 70, 95)):
        errors = []
        with torch.inference_mode():
            for part, known, added in zip(*(torch.split(rows, 8) for rows in (*held, noise)), strict=True):
                times = torch.full((len(part),), time, device=device)
                scaled = (model.config.scale_factor * part).to(device)
                known, added = known.to(device), added.to(device)
                if teacher is not None:
                    scale = torch.full((len(part),), model.config.default_guidance, device=device)
                    _, values = distillation_loss(
                        unet, teacher, model.config, scaled, known, added, times, scale, model.schedule
                    )
                else:
                    _, values = denoising_loss(
                        unet, scaled, known, added, times, model.schedule,
                        prediction=model.config.prediction_type, pooled=model.config.pooled,
                    )  # fmt: skip
                errors.append(float(values["error" if teacher is None else "missed"]) * len(part))
        found[f"t={time}"] = sum(errors) / len(held.latents)
    return found


def save_adapters(adapters: Adapters, name: str, base: str, folder: Path) -> None:
    """Write LoRA weights and the description that names their base, for `rdmpipe generate --model FOLDER`."""
    from rdm.lora import FILE, save_lora

    save_lora(adapters.weights(), folder)
    where = str(Path(base).resolve())
    lines = {"kind": "rdm-lora", "name": name, "base": where, "lora": FILE}
    part = folder / "model.toml.part"
    part.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()), encoding="utf-8")
    part.replace(folder / "model.toml")


def save_rdm(model: RDM, unet: UNet, folder: Path) -> None:
    """Write the RDM with this denoiser, in fp16, by RDM.save_pretrained."""
    import copy

    import torch
    from torch import nn

    from rdm import RDM

    # Module's own method: diffusers' `to` warns at every change of precision.
    half = nn.Module.to(copy.deepcopy(unet), device="cpu", dtype=torch.float16)
    first_stage = nn.Module.to(copy.deepcopy(model.first_stage), device="cpu", dtype=torch.float16)
    RDM(model.config, half, first_stage).save_pretrained(folder)


def sample_sheet(
    model: RDM, unet: UNet, cache: Cache, pictures: LabelledPictures, part: DenoiserConfig, columns: int
) -> Tensor:
    """The pictures of a sheet, (N, 3, S, S) in [0, 1]: for each style a row of real pictures and a row of samples.

    The first token of a sample is the vector of a picture's caption; the others are the nearest pictures of that style to this
    vector, as from a swapped database. The contents are the same in all styles of a collection.
    """
    import torch

    from rdm import RDM

    drawing = RDM(model.config, unet, model.first_stage.to(next(unet.parameters()).device))
    shown, chosen, contexts = [], [], []
    for style in dict.fromkeys(pictures.styles):
        members = torch.tensor([i for i, name in enumerate(pictures.styles) if name == style])
        picked = _spread(pictures, members.tolist(), columns)
        chosen.append(picked)
        words = cache.texts[picked, 0]
        near = (words @ cache.vectors[members].T).topk(min(part.default_k, len(members)), dim=1).indices
        contexts.append(torch.cat([words[:, None], cache.vectors[members[near]]], dim=1))
    drawn = drawing.sample(
        torch.cat(contexts),
        steps=SHEET_STEPS,
        guidance_scale=part.default_guidance,
        generator=torch.Generator().manual_seed(0),
    )
    made = ((drawing.decode(drawn).cpu() + 1) / 2).clamp(0, 1)
    start = 0
    for picked in chosen:
        shown += [pictures.pixels[picked].float() / 255, made[start : start + len(picked)]]
        start += len(picked)
    return torch.cat(shown)


def _spread(pictures: LabelledPictures, members: Sequence[int], most: int) -> list[int]:
    """Rows of at most `most` members, whose contents are evenly distributed over those of all members."""
    contents = sorted({pictures.contents[i] for i in members})
    wanted = set(contents[:: max(1, len(contents) // most)][:most])
    return [i for i in members if pictures.contents[i] in wanted][:most]


def held_out_sheet(model: RDM, unet: UNet, held: HeldOut, guidance: float) -> Tensor:
    """Pictures of a sheet, (2 n, 3, S, S) in [0, 1]: held-out latents decoded, above samples of their contexts."""
    import torch

    from rdm import RDM

    latents, context = held.latents[:DRAWN], held.context[:DRAWN]
    drawing = RDM(model.config, unet, model.first_stage.to(next(unet.parameters()).device))
    factor = model.config.downsample_factor
    drawn = drawing.sample(
        context, steps=12, sampler="dpmpp_2m", guidance_scale=guidance, generator=torch.Generator().manual_seed(0),
        height=latents.shape[2] * factor, width=latents.shape[3] * factor,
    )  # fmt: skip
    both = [drawing.decode(given).cpu() for given in (model.config.scale_factor * latents, drawn)]
    return ((torch.cat(both) + 1) / 2).clamp(0, 1)
