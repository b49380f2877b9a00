"""The kind `ip-adapter`: a model of diffusers with a prompt, and neighbours as image prompts (arXiv 2308.06721).

Draws with diffusers' own pipelines through `ip_adapter_image_embeds`. Most adapters take the stored vectors times their norm,
because their projection is trained on vectors that are not normalised; `plus` adapters and SD 3's take patches of the
neighbours' stored pictures. Reads: a description and the files that it names (generation/adapter_files.py). Writes nothing.
Does not run a safety checker and adds no watermark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import digest
from pipeline.errors import BudgetError, ModelError
from pipeline.generation.adapter_families import FAMILIES, Family, ImagePrompts, Pipeline, Told, call, quiet
from pipeline.generation.adapter_files import (
    AdapterModel,
    AdapterPlaces,
    BlockScales,
    Widths,
    check_adapter,
    check_base,
    find_files,
    place_of,
    read_description,
    read_shapes,
)
from pipeline.generation.adapter_memory import Adapted, count_pipeline
from pipeline.generation.checksums import checksum, weights_of
from pipeline.generation.kinds import DESCRIPTION, Given, ModelInfo, to_arrays, too_little_memory, torch_dtype
from pipeline.generation.patches import PatchTower, count_numbers, load_tower, patch_count, patch_width
from pipeline.generation.previews import current_watcher
from pipeline.generation.requests import ImagePrompting, PictureRequest
from pipeline.generation.sampling import known
from pipeline.installation import require
from pipeline.machine import import_whole

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SHARPNESS = 100.0  # weights by similarity are softmax(SHARPNESS * cosine): the temperature that CLIP was trained with


# ---- descriptions


def outline(folder: Path, name: str) -> ModelInfo:
    """The model's facts, from its description only. Raises ModelError and ConfigError."""
    return _info(read_description(folder / DESCRIPTION), folder, name, "", {})


def describe(folder: Path, name: str) -> ModelInfo:
    """The model's facts, after a check that its files exist and fit each other. Raises ModelError and ConfigError."""
    model = read_description(folder / DESCRIPTION)
    family = FAMILIES[model.family]
    require("sd", f"model {name!r}")
    places = find_files(model, folder, name)
    check_base(model, places.base, name)
    check_adapter(model, read_shapes(places.adapter), _widths(family, places, name), name)
    sums = weights_of(places.base, family.parts, ("*.safetensors", "*.json", "*.txt", "*.model"))
    adapter = checksum(places.adapter)
    loras = [[checksum(path), one.weight] for path, one in zip(places.lora, model.lora, strict=True)]
    made: list[object] = [model.kind, model.family, model.blocks, sums, adapter, loras]
    files = {
        "base_revision": _revision(places.base),
        "base_sha256": digest(sums, 64),
        "adapter_revision": _revision(places.adapter),
        "adapter_sha256": adapter,
    }
    if model.family == "flux":
        made.append(model.negative_scale)
    if places.image_encoder is not None:
        tower = weights_of(places.image_encoder, (".",), ("*.safetensors", "*.json"))
        made.append(tower)
        files |= {
            "image_encoder_revision": _revision(places.image_encoder),
            "image_encoder_sha256": digest(tower, 64),
        }
    return _info(model, folder, name, digest(made, 64), {key: value for key, value in files.items() if value})


def _widths(family: Family, places: AdapterPlaces, name: str) -> Widths:
    config = json.loads((places.base / family.denoiser / "config.json").read_text(encoding="utf-8"))
    patch = patch_width(places.image_encoder, name) if places.image_encoder else 0
    if family.denoiser == "unet":
        return Widths(int(config["cross_attention_dim"]), 0, patch)
    attention = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    return Widths(int(config["joint_attention_dim"]), attention, patch)


def _revision(path: Path) -> str:
    """The commit of a file in the Hub's cache, which stores files in snapshots/<commit>."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def _info(model: AdapterModel, folder: Path, name: str, made: str, files: Mapping[str, str]) -> ModelInfo:
    family = FAMILIES[model.family]
    blocks = ("all", *model.blocks)
    if model.blocks_used not in blocks:
        raise ModelError(f"model {name!r}: blocks_used is {model.blocks_used!r}; expected one of {', '.join(blocks)}")
    # The mean of patches has no meaning, because a patch belongs to a position in one picture.
    weightings = tuple(one for one in family.weightings if one != "mean" or not model.image_encoder)
    if model.weighting not in weightings:
        raise ModelError(f"model {name!r}: weighting is {model.weighting!r}; expected one of {', '.join(weightings)}")
    own = model.sampling.over(family.sampling)
    own.check(f"model {name!r}: [sampling] ")
    said = {
        "base": model.base,
        "adapter": model.adapter,
        "image_encoder": model.image_encoder,
        "licence": model.licence,
        "terms": model.terms,
    }
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
        samplers=tuple(family.samplers),
        sampling=own,
        side=family.side,
        prompting=ImagePrompting(model.image_scale, model.weighting, model.blocks_used),
        blocks=blocks,
        facts={**{key: value for key, value in said.items() if value}, **files},
        weightings=weightings,
        takes="pictures" if model.image_encoder else "vectors",
        gpu_precision=family.precision,
    )


# ---- drawing


@dataclass(frozen=True)
class LoadedAdapter:
    """A diffusers pipeline with its adapter, in a worker."""

    model: AdapterModel
    pipe: Pipeline
    schedule: Mapping[str, object]  # the base's own scheduler config
    tower: PatchTower | None = None  # for adapters that take patches

    @property
    def family(self) -> Family:
        return FAMILIES[self.model.family]

    def paint(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture with non-finite values."""
        import torch

        try:
            return to_arrays(self.images(pictures, given) * 2 - 1)
        except torch.cuda.OutOfMemoryError as error:
            raise BudgetError(too_little_memory(pictures)) from error

    def images(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> torch.Tensor:
        """Pictures (B, 3, H, W) on the CPU, float32 in 0..1."""
        import torch

        made: dict[int, torch.Tensor] = {}
        for places in _groups(pictures, given, self.family.batched):
            some = [pictures[i] for i in places]
            made |= dict(zip(places, self._draw(some, [given[i] for i in places]), strict=True))
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

    def _draw(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> torch.Tensor:
        prompts = self._image_prompts(pictures, given)
        self.pipe.scheduler = self._scheduler(known(pictures[0].sampling.sampler))
        self.pipe.set_ip_adapter_scale(self._scales(pictures[0].prompting, prompts.scale))
        tell = self._watched(pictures)
        return call(self.model.family, self.pipe, pictures, prompts, self.model.negative_scale, tell).float().cpu()

    def _watched(self, pictures: Sequence[PictureRequest]) -> Told | None:
        """The function that is called after each step, if there is a watcher."""
        watcher = current_watcher()
        if watcher is None:
            return None

        def tell(step: int, steps: int, images: Callable[[], torch.Tensor]) -> None:
            watcher(pictures, step, steps, lambda: to_arrays(images()))

        return tell

    def _image_prompts(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> ImagePrompts:
        """The image prompts of pictures with equal counts: a picture prompt first, then the neighbours, nearest first."""
        import torch

        prompting = pictures[0].prompting
        assert prompting is not None, "a request to an ip-adapter model says how neighbours act"
        if self.tower is None:
            rows = [torch.from_numpy(_vectors_of(one, self.model.dim)) for one in given]
            blank = torch.zeros(self.model.dim)
        else:
            blank = self.tower.blank()
            none = blank.new_zeros((0, *blank.shape))
            rows = [self.tower.patches(one.pictures) if one.pictures else none for one in given]
        scale, weights = prompting.scale, None
        if not len(rows[0]):  # only a text: the adapter gets the blank and weight 0
            rows, scale = [blank[None]] * len(rows), 0.0
        elif prompting.weighting == "mean":
            rows = [row.mean(dim=0, keepdim=True) for row in rows]
        elif prompting.weighting == "similarity" and len(rows[0]) > 1:
            (one,) = given  # `_groups` draws weighted pictures one at a time
            own = [1.0] * (one.images - len(one.records))  # a picture prompt's similarity with itself
            weights = torch.from_numpy(similarity_weights(np.array([*own, *one.scores])))
        features = torch.stack(rows).to(self.pipe.device, self.pipe.dtype)
        return ImagePrompts(features, blank.expand(features.shape[1:]).to(features), weights, scale)

    def _scheduler(self, sampler: str) -> object:
        import diffusers

        name, options = self.family.samplers[sampler]
        return getattr(diffusers, name).from_config(dict(self.schedule), **options)

    def _scales(self, prompting: ImagePrompting | None, scale: float) -> float | BlockScales | list[float]:
        """The argument of `set_ip_adapter_scale`: one number, or the chosen blocks' numbers times it."""
        if prompting is None or prompting.blocks == "all" or not scale:
            return scale
        found = _times(self.model.blocks[prompting.blocks], scale)
        assert isinstance(found, Mapping | list)
        return found


def _times(value: object, scale: float) -> object:
    if isinstance(value, Mapping):
        return {name: _times(one, scale) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_times(one, scale) for one in value]
    assert isinstance(value, int | float), "block scales are numbers"
    return float(value) * scale


def _groups(pictures: Sequence[PictureRequest], given: Sequence[Given], batched: bool) -> list[list[int]]:
    """Positions of pictures that can be drawn in one call: equal counts of image prompts; weighted ones one at a time."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, (picture, one) in enumerate(zip(pictures, given, strict=True)):
        weighting = picture.prompting.weighting if picture.prompting else "equal"
        if not batched or (weighting == "similarity" and one.images > 1):
            groups["alone", i] = [i]
        else:
            groups.setdefault(("together", min(one.images, 1) if weighting == "mean" else one.images), []).append(i)
    return list(groups.values())


def _vectors_of(given: Given, dim: int) -> NDArray[np.float32]:
    """(m, D): vectors before normalising."""
    parts = [given.vectors * given.norms[:, None]] if len(given.vectors) else []
    if given.prompt is not None:
        parts.insert(0, (given.prompt * np.float32(given.prompt_norm))[None])
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, dim), np.float32)


def similarity_weights(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    """(m,) weights that sum to 1: softmax(SHARPNESS * cosine)."""
    raised = np.exp(SHARPNESS * (scores - scores.max()))
    weights: NDArray[np.float32] = (raised / raised.sum()).astype(np.float32)
    return weights


# ---- loading


def load(info: ModelInfo, precision: str, device: str, recipe: int = 1) -> LoadedAdapter:
    """The pipeline on its device, with merged LoRAs and the adapter. Raises ModelError."""
    import torch

    require("sd", f"model {info.name!r}")
    import_whole("accelerate", "peft", "transformers", "diffusers")
    import diffusers

    folder = Path(info.folder)
    model = read_description(folder / DESCRIPTION)
    family = FAMILIES[model.family]
    places = find_files(model, folder, info.name)
    dtype, where = torch_dtype(precision), torch.device(device)
    options = {**family.options, **({"variant": model.variant} if model.variant else {})}
    tower = None
    try:
        with quiet():
            pipe = getattr(diffusers, family.pipeline).from_pretrained(
                places.base, dtype=dtype, use_safetensors=True, local_files_only=True, **options
            )
            _merge_loras(pipe, model, places)
            _load_adapter(pipe, model, places.adapter)
            if places.image_encoder is not None:
                tower = load_tower(places.image_encoder, dtype, where, info.name)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"model {info.name!r} cannot be loaded: {type(error).__name__}: {str(error)[:400]}") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_slicing()  # decode one picture at a time, as `count_bytes` assumes
    pipe.to(where)
    return LoadedAdapter(model, pipe, dict(pipe.scheduler.config), tower)


def _load_adapter(pipe: Pipeline, model: AdapterModel, path: Path) -> None:
    """Load the adapter without an image encoder: image prompts are given as vectors or patches."""
    state = adapter_state(path)
    if model.family == "flux":
        pipe.load_ip_adapter(state, weight_name=path.name, image_encoder_pretrained_model_name_or_path=None)
    elif model.family == "sd3":
        pipe.load_ip_adapter(state, weight_name=path.name, image_encoder_folder=None)
    else:
        pipe.load_ip_adapter(state, subfolder="", weight_name=path.name, image_encoder_folder=None)


def _merge_loras(pipe: Pipeline, model: AdapterModel, places: AdapterPlaces) -> None:
    for path, one in zip(places.lora, model.lora, strict=True):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        pipe.fuse_lora(lora_scale=one.weight)
        pipe.unload_lora_weights()


def adapter_state(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter's tensors in the two tables that diffusers takes."""
    from safetensors.torch import load_file

    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        table, name = place_of(key)
        if table in state:
            state[table][name] = value
    return state


# ---- memory


def count_bytes(info: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
    """Peak bytes of weights and activations while `batch` pictures are made, computed on the meta device."""
    folder = Path(info.folder)
    model = read_description(folder / DESCRIPTION)
    places = find_files(model, folder, info.name)
    shapes = read_shapes(places.adapter)
    tower = places.image_encoder
    patches = (patch_count(tower, info.name), patch_width(tower, info.name)) if tower else None
    what = Adapted(places.base, shapes, info.max_neighbours, patches)
    weights = count_numbers(tower, info.name) * torch_dtype(precision).itemsize if tower else 0
    return count_pipeline(what, precision, batch, (height, width)) + weights
