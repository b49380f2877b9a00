"""The kind `ip-adapter`: Stable Diffusion 1.5 and SDXL with a prompt, and neighbours as image prompts (arXiv 2308.06721).

Draws with diffusers' own pipelines through `ip_adapter_image_embeds`: stored vectors times their norm, because the adapter's
projection is trained on vectors that are not normalised. Reads: a description and the files that it names
(generation/adapter_files.py). Writes nothing. Does not run a safety checker and adds no watermark.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import digest
from pipeline.errors import BudgetError, ModelError
from pipeline.generation.adapter_files import (
    PARTS,
    PIPELINES,
    AdapterModel,
    AdapterPlaces,
    BlockScales,
    Shapes,
    check_adapter,
    check_base,
    find_files,
    read_description,
    read_shapes,
)
from pipeline.generation.checksums import checksum, weights_of
from pipeline.generation.kinds import DESCRIPTION, Given, ModelInfo, to_arrays, too_little_memory, torch_dtype
from pipeline.generation.requests import NEIGHBOURS, ImagePrompting, PictureRequest
from pipeline.generation.sampling import Sampling, known
from pipeline.machine import prepare_torchvision

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

TOKENS = 4  # that the adapter makes of an image

SHARPNESS = 100.0  # weights by similarity are softmax(SHARPNESS * cosine): the temperature that CLIP was trained with

PROMPT_TOKENS = 77

OWN = {
    "sd15": Sampling("dpmpp_2m", 30, 7.5, 0.0, 512, 512),
    "sdxl": Sampling("dpmpp_2m", 30, 5.0, 0.0, 1024, 1024),
}

# Sampler -> diffusers' class, and what is set beside the base's own schedule.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}


# ---- what a model is


def outline(folder: Path, name: str) -> ModelInfo:
    """What the model is, from its description alone. Raises ModelError and ConfigError."""
    return _info(read_description(folder / DESCRIPTION), folder, name, "", {})


def describe(folder: Path, name: str) -> ModelInfo:
    """What the model is, after its files are found and fit each other. Raises ModelError and ConfigError."""
    model = read_description(folder / DESCRIPTION)
    places = find_files(model, folder, name)
    check_base(model, places.base, name)
    unet = json.loads((places.base / "unet" / "config.json").read_text(encoding="utf-8"))
    check_adapter(model, read_shapes(places.adapter), int(unet["cross_attention_dim"]), name)
    sums = weights_of(places.base, PARTS, ("*.safetensors", "*.json", "*.txt"))
    adapter = checksum(places.adapter)
    loras = [[checksum(path), one.weight] for path, one in zip(places.lora, model.lora, strict=True)]
    made = digest([model.kind, model.family, model.blocks, sums, adapter, loras], 64)
    files = {
        "base_revision": _revision(places.base),
        "base_sha256": digest(sums, 64),
        "adapter_revision": _revision(places.adapter),
        "adapter_sha256": adapter,
    }
    return _info(model, folder, name, made, {key: value for key, value in files.items() if value})


def _revision(path: Path) -> str:
    """The commit of a file in the Hub's cache, which keeps them in snapshots/<commit>."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def _info(model: AdapterModel, folder: Path, name: str, made: str, files: Mapping[str, str]) -> ModelInfo:
    blocks = ("all", *model.blocks)
    if model.blocks_used not in blocks:
        raise ModelError(f"model {name!r}: blocks_used is {model.blocks_used!r}; expected one of {', '.join(blocks)}")
    own = model.sampling.over(OWN[model.family])
    own.check(f"model {name!r}: [sampling] ")
    said = {"base": model.base, "adapter": model.adapter, "licence": model.licence, "terms": model.terms}
    return ModelInfo(
        name=Path(name).name,
        kind=model.kind,
        folder=str(folder.absolute()),
        hash=made,
        encoder=model.encoder,
        dim=model.dim,
        norm="raw",
        prompt="text",
        max_neighbours=model.max_neighbours,
        default_k=model.k,
        samplers=tuple(SCHEDULERS),
        sampling=own,
        side=8,
        prompting=ImagePrompting(model.image_scale, model.weighting, model.blocks_used),
        blocks=blocks,
        facts={**{key: value for key, value in said.items() if value}, **files},
    )


# ---- drawing


@dataclass(frozen=True)
class ImagePrompts:
    """The image prompts of a batch of equal counts: vectors (B, m, D), and weights (m,) or None where all count alike."""

    vectors: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    scale: float  # 0 where there are none


@dataclass(frozen=True)
class LoadedAdapter:
    """A diffusers pipeline with its adapter, in a worker."""

    model: AdapterModel
    pipe: Any  # diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline, which has no types
    schedule: Mapping[str, object]  # the base's own scheduler config

    def paint(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture whose numbers are not finite."""
        import torch

        try:
            return to_arrays(self.images(pictures, given) * 2 - 1)
        except torch.cuda.OutOfMemoryError as error:
            raise BudgetError(too_little_memory(pictures)) from error

    def images(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> torch.Tensor:
        """Pictures (B, 3, H, W) on the CPU, float32 in 0..1."""
        import torch

        made: dict[int, torch.Tensor] = {}
        for places in _groups(pictures, given):
            some = [pictures[i] for i in places]
            prompts = image_prompts(some, [given[i] for i in places], self.model.dim)
            made |= dict(zip(places, self._draw(some, prompts), strict=True))
        return torch.stack([made[i] for i in range(len(pictures))])

    def through_first_stage(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 after the autoencoder, on the CPU."""
        import torch

        vae = self.pipe.vae
        parameter = next(vae.parameters())
        with torch.inference_mode():
            latents = vae.encode(images.to(parameter.device, parameter.dtype)).latent_dist.mode()
            made: torch.Tensor = vae.decode(latents).sample
        return made.float().cpu()

    def _draw(self, pictures: Sequence[PictureRequest], prompts: ImagePrompts) -> torch.Tensor:
        import torch

        sampling = pictures[0].sampling
        height, width = sampling.size
        self.pipe.scheduler = self._scheduler(known(sampling.sampler))
        self.pipe.set_ip_adapter_scale(self._scales(pictures[0].prompting, prompts.scale))
        vectors = torch.from_numpy(prompts.vectors).to(self.pipe.device, self.pipe.dtype)
        scale = known(sampling.scale)
        if scale > 1:  # the null branch sees an image prompt of zeros, as in training
            vectors = torch.cat([torch.zeros_like(vectors), vectors])
        attention = {}
        if prompts.weights is not None:
            masks = torch.from_numpy(prompts.weights)[None, :, None, None].expand(1, -1, height // 8, width // 8)
            attention = {"cross_attention_kwargs": {"ip_adapter_masks": [masks.to(self.pipe.device)]}}
        images: torch.Tensor = self.pipe(
            prompt=["" if picture.use == NEIGHBOURS else picture.prompt for picture in pictures],
            negative_prompt=[picture.negative for picture in pictures],
            height=height, width=width, num_inference_steps=known(sampling.steps), guidance_scale=scale,
            eta=known(sampling.eta), ip_adapter_image_embeds=[vectors], output_type="pt",
            generator=[torch.Generator().manual_seed(picture.seed) for picture in pictures], **attention,
        ).images  # fmt: skip
        return images.float().cpu()

    def _scheduler(self, sampler: str) -> object:
        import diffusers

        name, options = SCHEDULERS[sampler]
        return getattr(diffusers, name).from_config(dict(self.schedule), **options)

    def _scales(self, prompting: ImagePrompting | None, scale: float) -> float | BlockScales:
        """What `set_ip_adapter_scale` takes: one number, or the chosen blocks' numbers times it."""
        if prompting is None or prompting.blocks == "all" or not scale:
            return scale
        found = _times(self.model.blocks[prompting.blocks], scale)
        assert isinstance(found, Mapping)
        return found


def _times(value: object, scale: float) -> object:
    if isinstance(value, Mapping):
        return {name: _times(one, scale) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_times(one, scale) for one in value]
    assert isinstance(value, int | float), "block scales are numbers"
    return float(value) * scale


def _groups(pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[list[int]]:
    """Places of pictures that can be drawn in one call: equal counts of image prompts; weighted ones by themselves."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, (picture, one) in enumerate(zip(pictures, given, strict=True)):
        weighting = picture.prompting.weighting if picture.prompting else "equal"
        count = len(one.vectors) + (one.prompt is not None)
        if weighting == "similarity" and count > 1:
            groups["alone", i] = [i]
        else:
            groups.setdefault(("together", min(count, 1) if weighting == "mean" else count), []).append(i)
    return list(groups.values())


def image_prompts(pictures: Sequence[PictureRequest], given: Sequence[Given], dim: int) -> ImagePrompts:
    """The image prompts of pictures that have equally many: a picture prompt first, then the neighbours, nearest first."""
    prompting = pictures[0].prompting
    assert prompting is not None, "a request to an ip-adapter model says how neighbours act"
    rows = [_vectors_of(one) for one in given]
    if not len(rows[0]):  # a text alone: the adapter is given zeros, and no weight
        return ImagePrompts(np.zeros((len(rows), 1, dim), np.float32), None, 0.0)
    if prompting.weighting == "mean":
        rows = [row.mean(axis=0, keepdims=True) for row in rows]
    weights = None
    if prompting.weighting == "similarity" and len(rows[0]) > 1:
        (one,) = given  # `_groups` draws weighted pictures one at a time
        own = [1.0] if one.prompt is not None else []  # a picture prompt's similarity with itself
        weights = similarity_weights(np.array([*own, *one.scores]))
    return ImagePrompts(np.stack(rows), weights, prompting.scale)


def _vectors_of(given: Given) -> NDArray[np.float32]:
    """(m, D): vectors as the encoder gave them."""
    parts = [given.vectors * given.norms[:, None]] if len(given.vectors) else []
    if given.prompt is not None:
        parts.insert(0, (given.prompt * np.float32(given.prompt_norm))[None])
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 0), np.float32)


def similarity_weights(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    """(m,) weights that sum to 1: softmax(SHARPNESS * cosine)."""
    raised = np.exp(SHARPNESS * (scores - scores.max()))
    weights: NDArray[np.float32] = (raised / raised.sum()).astype(np.float32)
    return weights


# ---- loading


def load(info: ModelInfo, precision: str, device: str) -> LoadedAdapter:
    """The pipeline on its device, LoRAs merged and the adapter loaded. Raises ModelError."""
    import torch

    _need("transformers", info.name)
    prepare_torchvision()
    import diffusers

    folder = Path(info.folder)
    model = read_description(folder / DESCRIPTION)
    places = find_files(model, folder, info.name)
    options: dict[str, object] = {"variant": model.variant} if model.variant else {}
    options |= {"safety_checker": None, "requires_safety_checker": False} if model.family == "sd15" else {
        "add_watermarker": False}  # fmt: skip
    try:
        with _quiet():
            pipe = getattr(diffusers, PIPELINES[model.family]).from_pretrained(
                places.base, dtype=torch_dtype(precision), use_safetensors=True, local_files_only=True, **options
            )
            _merge_loras(pipe, model, places, info.name)
            pipe.load_ip_adapter(
                adapter_state(places.adapter), subfolder="", weight_name=places.adapter.name, image_encoder_folder=None
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"model {info.name!r} cannot be loaded: {type(error).__name__}: {str(error)[:400]}") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_slicing()  # decodes a picture at a time, which is what `count_bytes` counts
    pipe.to(torch.device(device))
    return LoadedAdapter(model, pipe, dict(pipe.scheduler.config))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warnings: that no image encoder is loaded (vectors are given), and of modules that keep a type."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _need(package: str, name: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ModelError(f"model {name!r} needs the package {package}: pip install 'rdmpipe[sd]'")


def _merge_loras(pipe: Any, model: AdapterModel, places: AdapterPlaces, name: str) -> None:
    if model.lora:
        _need("peft", name)
    for path, one in zip(places.lora, model.lora, strict=True):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        pipe.fuse_lora(lora_scale=one.weight)
        pipe.unload_lora_weights()


def adapter_state(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter's tensors in the two tables that diffusers takes."""
    from safetensors.torch import load_file

    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        table, _, rest = key.partition(".")
        if table in state:
            state[table][rest] = value
    return state


# ---- memory


def count_bytes(info: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
    """Bytes that weights and activations take at most while `batch` pictures are made, counted on the meta device."""
    folder = Path(info.folder)
    model = read_description(folder / DESCRIPTION)
    places = find_files(model, folder, info.name)
    shapes = read_shapes(places.adapter)
    return count_pipeline(places.base, shapes, precision, batch, (height, width), info.max_neighbours)


def count_pipeline(base: Path, adapter: Shapes, precision: str, batch: int, size: tuple[int, int], images: int) -> int:
    """The same, of a base's configs and an adapter's shapes: no weights are needed. `size`: (height, width) in pixels."""
    import torch

    from rdm.memory import peak_bytes

    dtype = torch_dtype(precision)
    unet, vae = meta_unet(base / "unet", adapter), _meta("AutoencoderKL", base / "vae")
    upcast = precision != "fp32" and getattr(vae.config, "force_upcast", False)
    torch.nn.Module.to(unet, dtype=dtype)  # not diffusers' own, which warns of modules that these networks do not have
    torch.nn.Module.to(vae, dtype=torch.float32 if upcast else dtype)
    weights = _bytes(unet) + _bytes(vae) + sum(_text_parameters(base)) * torch.empty(0, dtype=dtype).element_size()
    latent = (2 * batch, unet.config.in_channels, size[0] // 8, size[1] // 8)
    dim = adapter["image_proj.proj.weight"][1]

    def denoise() -> None:
        empty = torch.empty
        added: dict[str, object] = {"image_embeds": [empty(2 * batch, images, dim, device="meta", dtype=dtype)]}
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            added |= {"text_embeds": empty(2 * batch, pooled, device="meta", dtype=dtype),
                      "time_ids": empty(2 * batch, 6, device="meta", dtype=dtype)}  # fmt: skip
        context = empty(2 * batch, PROMPT_TOKENS, unet.config.cross_attention_dim, device="meta", dtype=dtype)
        unet(empty(latent, device="meta", dtype=dtype), empty(1, device="meta"), context, added_cond_kwargs=added)

    def decode() -> None:
        vae.decode(torch.empty(1, *latent[1:], device="meta", dtype=next(vae.parameters()).dtype))

    return weights + max(peak_bytes(unet, denoise), peak_bytes(vae, decode))


def meta_unet(folder: Path, adapter: Shapes) -> Any:
    """A base's denoiser with an adapter of these shapes, on the meta device: diffusers' own loader checks names and shapes."""
    import torch

    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, shape in adapter.items():
        table, _, rest = key.partition(".")
        state[table][rest] = torch.empty(shape, device="meta")
    unet = _meta("UNet2DConditionModel", folder)
    with torch.device("meta"), _quiet():
        unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    return unet


def _meta(name: str, folder: Path) -> Any:
    import torch

    prepare_torchvision()
    import diffusers

    kind = getattr(diffusers, name)
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def _bytes(network: torch.nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in network.parameters())


def _text_parameters(base: Path) -> list[int]:
    """Numbers in each text encoder."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    counts = []
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if (base / part / "config.json").is_file():
            with torch.device("meta"):
                network = kind(CLIPTextConfig.from_pretrained(base / part, local_files_only=True))
            counts.append(sum(one.numel() for one in network.parameters()))
    return counts
