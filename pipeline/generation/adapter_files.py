"""Files of models of the kind `ip-adapter`: the description, where base, adapter and LoRAs are, and whether they fit.

Reads: model.toml, the headers of safetensors files, folders in diffusers' format, the Hub. Writes nothing but the Hub's cache.
Never reads pickled weights and never runs code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config import from_mapping, parse_json, read_toml
from pipeline.errors import ModelError
from pipeline.generation.sampling import Sampling

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")

WITH_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")

PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors of a file by name."""

BlockScales = Mapping[str, object]
"""What diffusers' `set_ip_adapter_scale` takes: {"up": {"block_0": [0.0, 1.0, 0.0]}}; other blocks see nothing."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that is merged into the base: a safetensors file, a path or `owner/repo/file` on the Hub."""

    file: str
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterModel:
    """A description: model.toml.

    family          sd15 or sdxl: the pipeline that draws
    base            a folder in diffusers' format (relative to the description), or a Hub id
    variant         which of the base's files: "fp16" for `model.fp16.safetensors`
    adapter         a safetensors file (relative to the description), or `owner/repo/path/file` on the Hub
    encoder, dim    the encoder whose vectors the adapter takes, as `--encoder` names it, and their length
    k               neighbours when nobody says
    image_scale, weighting, blocks_used     as --image-scale, --weighting and --blocks when nobody says
    blocks          sets of attention blocks that --blocks may name, beside `all`
    """

    kind: Literal["ip-adapter"]
    family: Literal["sd15", "sdxl"]
    base: str
    adapter: str
    encoder: str
    dim: int
    base_revision: str = ""
    variant: str = ""
    adapter_revision: str = ""
    k: int = 4
    max_neighbours: int = 16
    image_scale: float = 0.6
    weighting: Literal["equal", "similarity", "mean"] = "equal"
    blocks_used: str = "all"
    blocks: Mapping[str, BlockScales] = field(default_factory=dict)
    lora: tuple[Lora, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    licence: str = ""
    terms: str = ""


@dataclass(frozen=True)
class AdapterPlaces:
    """Where a model's files are on this disk."""

    base: Path
    adapter: Path
    lora: tuple[Path, ...]


def read_description(path: Path) -> AdapterModel:
    """The description in model.toml. Raises ConfigError."""
    return from_mapping(AdapterModel, read_toml(path), f"{path.parent.name}/{path.name}")


def find_files(model: AdapterModel, folder: Path, name: str) -> AdapterPlaces:
    """The files of a model; those that are not here come from the Hub. Raises ModelError."""
    return AdapterPlaces(
        base=_base(model, folder, name),
        adapter=_file(model.adapter, model.adapter_revision, folder, name, "adapter"),
        lora=tuple(_file(one.file, "", folder, name, "lora") for one in model.lora),
    )


def _base(model: AdapterModel, folder: Path, name: str) -> Path:
    local = folder / Path(model.base).expanduser()
    if (local / "model_index.json").is_file():
        return local
    if model.base.count("/") != 1:
        raise ModelError(f"model {name!r}: base {model.base!r} is neither a folder with model_index.json nor a Hub id")
    suffix = f".{model.variant}.safetensors" if model.variant else ".safetensors"
    patterns = ["model_index.json", *(f"{part}/*.json" for part in PARTS), *(f"{part}/*.txt" for part in PARTS),
                *(f"{part}/*{suffix}" for part in WITH_WEIGHTS)]  # fmt: skip
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model.base, revision=model.base_revision or None, allow_patterns=patterns))
    except Exception as error:  # the Hub's client has a dozen kinds of errors
        raise ModelError(_unreachable(name, "base", model.base, folder, error)) from error


def _file(place: str, revision: str, folder: Path, name: str, what: str) -> Path:
    if not place.endswith(".safetensors"):
        raise ModelError(
            f"model {name!r}: {what} {place!r} is no .safetensors file; other files may hold code and are never loaded"
        )
    local = folder / Path(place).expanduser()
    if local.is_file():
        return local
    if place.count("/") < 2 or place.startswith(("/", ".", "~")):
        raise ModelError(
            f"model {name!r}: no {what} at {local}; give the path of its .safetensors file, or OWNER/REPO/FILE"
        )
    owner, repo, file = place.split("/", 2)
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{repo}", file, revision=revision or None))
    except Exception as error:
        raise ModelError(_unreachable(name, what, place, folder, error)) from error


def _unreachable(name: str, what: str, place: str, folder: Path, error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return (
        f"model {name!r}: its {what} {place} cannot be fetched from the Hub ({type(error).__name__}: {lines[0][:200]}). Put "
        f"the files on this disk, copy {folder / 'model.toml'} to <home>/models/NAME/, and write their path as `{what}`"
    )


# ---- do they fit?


def read_shapes(path: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no readable safetensors file: {error}") from error


def check_base(model: AdapterModel, base: Path, name: str) -> None:
    """Raise ModelError where the base is another pipeline than the description says, or has no safetensors."""
    try:
        index = parse_json((base / "model_index.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {base}/model_index.json cannot be read: {error}") from error
    index = index if isinstance(index, dict) else {}
    for part, kind in index.items():  # diffusers imports the library that is named here
        if isinstance(kind, list) and kind and kind[0] not in (None, "diffusers", "transformers"):
            raise ModelError(
                f"model {name!r}: {base}: {part} is of the library {str(kind[0])[:80]!r}; only diffusers and "
                "transformers are used"
            )
    found, wanted = index.get("_class_name"), PIPELINES[model.family]
    if found != wanted:
        raise ModelError(
            f"model {name!r}: base {model.base} is a {found}; family {model.family!r} draws with a {wanted}. Give a base of "
            f"that family, or one of {', '.join(PIPELINES)} as `family` with its adapter"
        )
    for part in WITH_WEIGHTS:
        if (base / part).is_dir() and not any((base / part).glob("*.safetensors")):
            raise ModelError(
                f"model {name!r}: {base / part} has no safetensors file. Pickled weights are never loaded: take a copy of the "
                "base with safetensors, or convert it with diffusers' save_pretrained(safe_serialization=True)"
            )


def check_adapter(model: AdapterModel, shapes: Shapes, context_dim: int, name: str) -> None:
    """Raise ModelError for an adapter that one vector a picture cannot drive, or that is made for another base or encoder.

    context_dim: the base's cross_attention_dim.
    """
    advice = "Use the adapter without `plus`: it takes the one vector that a database holds of each picture"
    if "image_proj.latents" in shapes:
        raise ModelError(
            f"model {name!r}: {model.adapter} is a `plus` adapter: it takes the encoder's patch embeddings (257 vectors a "
            f"picture), and a database holds one vector a picture. {advice}"
        )
    if "image_proj.proj.3.weight" in shapes:
        raise ModelError(
            f"model {name!r}: {model.adapter} is a `full-face` adapter: it takes the encoder's patch embeddings. {advice}"
        )
    if "image_proj.proj.0.weight" in shapes:
        raise ModelError(
            f"model {name!r}: {model.adapter} is a FaceID adapter: it takes a face recogniser's vectors. {advice}"
        )
    if "image_proj.proj.weight" not in shapes or "ip_adapter.1.to_k_ip.weight" not in shapes:
        raise ModelError(
            f"model {name!r}: {model.adapter} is no IP-Adapter: it lacks image_proj.proj.weight or ip_adapter.1.to_k_ip.weight"
        )
    dim, own = shapes["image_proj.proj.weight"][1], shapes["ip_adapter.1.to_k_ip.weight"][1]
    if own != context_dim:
        raise ModelError(
            f"model {name!r}: {model.adapter} is made for another base: its keys take {own} numbers, those of {model.base} "
            f"{context_dim} (768: SD 1.5, 2048: SDXL). Give the adapter of this base"
        )
    if dim != model.dim:
        raise ModelError(
            f"model {name!r}: {model.adapter} takes vectors of {dim} numbers; the description says {model.dim} (encoder "
            f"{model.encoder}). 1024 is vit-h-14, 1280 is vit-bigg-14: correct `encoder` and `dim` in model.toml"
        )
