"""Training of the denoiser: neighbours and latents are computed once and kept, then the loop reads tensors alone.

Reads the run's pictures, `encoder/model` (or the encoder named in [rdm]) and `autoencoder/model`. Writes the part's folder (see
pipeline/training/run.py), `cache.pt` with what was computed once, and `model/`: the RDM in diffusers' layout, fp16.

As arXiv 2204.11824 trains: a picture's neighbours are those of its own image vector among all training pictures, itself left
out; how many is drawn for each batch, so that no masks are needed; all are dropped with p_null. Neighbours are found by the
database's own exact search over the vectors as a database stores them. Text is not needed; with `p_text` some batches carry
the caption's vector as their first token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import digest
from pipeline.encoders import sha256_of_state
from pipeline.errors import ConfigError
from pipeline.storage import sha256_file
from pipeline.training.autoencoder import to_model
from pipeline.training.config import DenoiserConfig, TrainConfig
from pipeline.training.data import LabelledPictures, read_pictures, training_rows
from pipeline.training.encoder import Names, with_style
from pipeline.training.loop import load_average, say_report
from pipeline.training.sheets import curve_picture, sheet
from pipeline.training.trained import embed_pictures, embed_texts, load_encoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.execution import Progress
    from pipeline.index import SearchIndex
    from pipeline.training.crew import Crew
    from rdm import RDM

_TEXTS = 3  # captions of one picture: two that name the content, one that names the style too


@dataclass(frozen=True)
class Cache:
    """What is computed once of N training pictures.

    latents (N, C, h, w), first-stage units; vectors (N, D) unit rows of the pictures; texts (N, 3, D) of their captions;
    near (N, k) rows of the nearest others, nearest first, and near_own (N, k) of those in the picture's own style; scale:
    one over the latents' standard deviation.
    """

    latents: Tensor
    vectors: Tensor
    texts: Tensor
    near: Tensor
    near_own: Tensor
    scale: float


def nearest_others(index: SearchIndex, k: int, groups: Tensor | None = None) -> Tensor:
    """(N, k) rows of the k nearest other rows of an index of N unit vectors by exact inner product, nearest first.

    groups (N,) keeps the search within a row's own group; a group of k or fewer gives its members again and again.
    """
    import numpy as np
    import torch

    count = len(index.vectors)
    if k >= count:
        raise ConfigError(f"{k} neighbours of {count} pictures: ask for fewer, or train on more")
    found = np.empty((count, k), np.int64)
    for group in [None] if groups is None else sorted(set(groups.tolist())):
        members = None if group is None or groups is None else np.flatnonzero(groups.numpy() == group)
        rows = np.arange(count) if members is None else members
        some = min(k, len(rows) - 1)
        for part in np.array_split(rows, max(1, len(rows) // 512)):
            queries = np.asarray(index.vectors[part], np.float32)
            _, near, _ = index.top(queries, some + 1, members, exact=True)
            # A stable sort by "is itself" moves a row behind the others, whose order stays.
            order = np.argsort(near == part[:, None], axis=1, kind="stable")[:, :some]
            found[part] = np.take_along_axis(near, order, 1)[:, np.arange(k) % some]
    return torch.from_numpy(found)


def prepare(
    config: TrainConfig, pictures: LabelledPictures, folder: Path, progress: Progress, device: torch.device
) -> Cache:
    """The cache, read where it fits data and networks, else computed and kept."""
    import numpy as np
    import torch

    from pipeline.index import FILES, SearchIndex

    part = config.rdm
    assert part is not None
    run = config.folder()
    encoder_file = run / "encoder" / "model" / "open_clip_model.safetensors"
    first_stage = load_first_stage(run / "autoencoder" / "model")
    latents_by = sha256_of_state(first_stage.encoder.state_dict() | first_stage.quant_conv.state_dict())
    identity = digest([config.data, sha256_file(encoder_file), latents_by, part.neighbours, pictures.captions, _TEXTS])
    kept = folder / "cache.pt"
    if kept.exists():
        content: dict[str, Any] = torch.load(kept, weights_only=True)
        if content.pop("identity") == identity:
            return Cache(**content)
    progress.say("rdm: encoding pictures and captions, finding neighbours (once)")
    encoder, tokenizer = load_encoder(run / "encoder" / "model")
    first_stage.to(device)
    encoder.to(device)
    vectors = embed_pictures(encoder, pictures.pixels, device)
    plain = embed_texts(encoder, tokenizer, pictures.captions, device)
    drawn = embed_texts(encoder, tokenizer, [f"a picture of {caption}" for caption in pictures.captions], device)
    named = [with_style(caption, style) for caption, style in zip(pictures.captions, pictures.styles, strict=True)]
    texts = torch.stack([plain, drawn, embed_texts(encoder, tokenizer, named, device)], dim=1)
    latents = []
    with torch.inference_mode():
        for group in torch.split(pictures.pixels, 64):
            latents.append(first_stage.encode(to_model(group).to(device)).latent_dist.mean.float().cpu())
    stacked = torch.cat(latents).clone()
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / FILES["vectors"], vectors.numpy().astype(np.float16))
    index = SearchIndex(folder / FILES["vectors"])
    near = nearest_others(index, part.neighbours)
    near_own = nearest_others(index, part.neighbours, Names.of(pictures).styles)
    index.close()
    cache = Cache(stacked, vectors, texts, near, near_own, 1 / float(stacked.std()))
    same = [
        sum(pictures.styles[j] == pictures.styles[i] for j in row) / part.neighbours
        for i, row in enumerate(cache.near.tolist())
    ]  # fmt: skip
    progress.say(
        f"rdm: latents' scale {cache.scale:.4f}; {sum(same) / len(same):.3f} of the neighbours share the style"
    )
    torch.save({"identity": identity, **vars(cache)}, kept.with_suffix(".part"))
    kept.with_suffix(".part").replace(kept)
    return cache


def load_first_stage(folder: Path) -> Any:
    """The trained autoencoder, fp32, in eval mode."""
    from rdm.networks import diffusers

    return diffusers().AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)


def build_rdm(config: TrainConfig, scale: float, device: str = "cpu") -> RDM:
    """The model with a fresh denoiser and the trained first stage's shape (its weights come from its folder)."""
    from rdm import RDM
    from rdm.config import read_config

    part = config.rdm
    assert part is not None
    if part.base:
        description = {**read_config(part.base).to_dict(), "name": part.name}
    else:
        first_stage = json.loads((config.folder() / "autoencoder" / "model" / "config.json").read_text())
        arguments = {key: value for key, value in first_stage.items() if not key.startswith("_")}
        description = {"unet": part.model, "first_stage": {**arguments, "_class_name": "AutoencoderKL"}}
    description |= {
        "name": part.name,
        "scale_factor": scale,
        "encoder": part.encoder,
        "max_neighbours": part.neighbours,
        "default_k": part.default_k,
        "default_size": config.data.size,
        "default_guidance": part.default_guidance,
    }
    return RDM.from_config(description, device=device)


def draw_context(cache: Cache, part: DenoiserConfig, rows: Tensor, generator: torch.Generator) -> Tensor:
    """(B, T, D) contexts of training pictures: perhaps a caption, the k nearest others, rows dropped with p_null.

    Draws the same numbers whatever the rows, so that each of several workers gets its rows of the same batch.
    """
    import torch

    from rdm.objectives import drop

    count = part.counts[int(torch.randint(len(part.counts), (1,), generator=generator))]
    worded = float(torch.rand(1, generator=generator)) < part.p_text
    own = float(torch.rand(1, generator=generator)) < part.p_own_style
    tokens = cache.vectors[(cache.near_own if own else cache.near)[rows, :count]]
    which = torch.randint(_TEXTS, (len(rows),), generator=generator)
    gone = torch.rand(len(rows), generator=generator) < part.p_null
    if worded:
        tokens = torch.cat([cache.texts[rows, which][:, None], tokens], dim=1)
    return drop(tokens, gone)


def train_rdm(config: TrainConfig, folder: Path, progress: Progress, crew: Crew, resume: bool) -> Path:
    """Train, and save the averaged weights; see pipeline.train.train."""
    import torch

    from rdm.objectives import denoising_loss, scale_context_weights
    from rdm.train import CURVE, fit

    part = config.rdm
    assert part is not None
    device = crew.torch_device()
    everything = read_pictures(config.data, config.folder())
    rows = training_rows(everything, config.data)
    pictures = everything.take(rows)
    cache = prepare(config, pictures, folder, progress, device)
    torch.manual_seed(part.train.seed)
    model = build_rdm(config, cache.scale)
    first_stage_folder = config.folder() / "autoencoder" / "model"
    network = model.unet
    scale_context_weights(network, model.config.context_dim)
    network.to(device, memory_format=torch.channels_last)
    size = sum(value.numel() for value in network.parameters()) / 1e6
    progress.say(f"rdm: {len(pictures)} pictures, a denoiser of {size:.2f} M parameters")

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = torch.randint(len(cache.latents), (part.train.batch,), generator=generator)
        noise = torch.randn((part.train.batch, *cache.latents.shape[1:]), generator=generator)
        times = torch.randint(model.config.train_steps, (part.train.batch,), generator=generator)
        context = crew.mine(draw_context(cache, part, chosen, generator)).to(device)
        latents = (cache.scale * cache.latents[crew.mine(chosen)]).to(device, memory_format=torch.channels_last)
        return denoising_loss(
            network, latents, context, crew.mine(noise).to(device), crew.mine(times).to(device), model.schedule,
            snr_limit=part.snr_limit,
        )  # fmt: skip

    def on_save(step: int, live: nn.Module, weights: Mapping[str, Tensor]) -> None:
        twin = load_average(live, weights)
        model.first_stage = load_first_stage(first_stage_folder)  # its decoder may have gone on training
        save_rdm(model, twin, folder / "model")
        curve_picture(folder / CURVE, folder / "curve.png", ("loss", "error"))
        sample_sheet(model, twin, cache, pictures, part, folder / "sheets" / f"{step:07d}.png")

    fit(
        network, loss, part.train.loop(), folder, resume=resume, average=crew.average, writes=crew.first,
        on_report=say_report(progress, "rdm", part.train.batch) if crew.first else None, on_save=on_save,
    )  # fmt: skip
    return folder / "model"


def save_rdm(model: RDM, unet: Any, folder: Path) -> None:
    """The RDM with this denoiser, fp16, by RDM.save_pretrained."""
    import copy

    import torch

    from rdm import RDM

    half = [copy.deepcopy(net).to("cpu", torch.float16) for net in (unet, model.first_stage)]
    RDM(model.config, *half).save_pretrained(folder)


def sample_sheet(
    model: RDM, unet: Any, cache: Cache, pictures: LabelledPictures, part: DenoiserConfig, path: Path, columns: int = 10
) -> None:
    """Per style two rows: real pictures, and below them what the model draws from the neighbours of their caption.

    The neighbours are the nearest of that style by the caption's vector, as a swapped database would give them, and the
    caption's vector is the first token; two contents stay the same over all styles of a collection.
    """
    import torch

    from rdm import RDM

    drawing = RDM(model.config, unet, model.first_stage.to(next(unet.parameters()).device))
    order = list(dict.fromkeys(pictures.styles))
    shown, chosen, contexts = [], [], []
    for style in order:
        members = torch.tensor([i for i, name in enumerate(pictures.styles) if name == style])
        contents = sorted({pictures.contents[i] for i in members.tolist()})
        wanted = set(contents[:: max(1, len(contents) // columns)][:columns])
        picked = [i for i in members.tolist() if pictures.contents[i] in wanted][:columns]
        chosen.append(picked)
        words = cache.texts[picked, 0]
        near = (words @ cache.vectors[members].T).topk(min(part.default_k, len(members)), dim=1).indices
        contexts.append(torch.cat([words[:, None], cache.vectors[members[near]]], dim=1))
    context = torch.cat(contexts)
    drawn = drawing.sample(
        context, steps=25, guidance_scale=part.default_guidance, generator=torch.Generator().manual_seed(0)
    )
    made = ((drawing.decode(drawn).cpu() + 1) / 2).clamp(0, 1)
    start = 0
    for picked in chosen:
        shown += [pictures.pixels[picked].float() / 255, made[start : start + len(picked)]]
        start += len(picked)
    sheet(torch.cat(shown), path, columns=columns)
