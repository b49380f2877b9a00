"""Files of models of the kind `ip-adapter`: the description, the paths of base, adapter and LoRAs, and whether they fit.

Reads: model.toml, the headers of safetensors files, folders in diffusers' format, the Hub. Writes only the Hub's cache.
Never reads pickled weights and never runs code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pipeline.config import from_mapping, parse_json, read_toml
from pipeline.errors import ConfigError, ModelError
from pipeline.generation.adapter_families import FAMILIES
from pipeline.generation.sampling import Sampling

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Tensors of a file by name."""

BlockScales: TypeAlias = Mapping[str, object] | tuple[float, ...]
"""What diffusers' `set_ip_adapter_scale` takes. U-Net: {"up": {"block_0": [0.0, 1.0, 0.0]}}, and other blocks see nothing.
Flux: one number for each layer that has an adapter."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that is merged into the base: a safetensors file, a path or `owner/repo/file` on the Hub."""

    file: str
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterModel:
    """A description: model.toml.

    family          one of FAMILIES: the pipeline that draws
    base            a folder in diffusers' format (relative to the description), or a Hub id
    variant         which of the base's files: "fp16" for `model.fp16.safetensors`
    adapter         a safetensors file (relative to the description), or `owner/repo/path/file` on the Hub
    encoder, dim    the encoder whose vectors the adapter takes, named as in `--encoder`, and their length
    image_encoder   for adapters that take a picture's patches: the vision tower that computes them from the pictures, a
                    folder in transformers' format (relative to the description), or `owner/repo[/folder]` on the Hub
    negative_scale  Flux: strength of the guidance away from a negative prompt
    k               default number of neighbours
    image_scale, weighting, blocks_used     defaults of --image-scale, --weighting and --blocks
    blocks          sets of attention blocks that --blocks may name, beside `all`
    """

    kind: Literal["ip-adapter"]
    family: Literal["sd15", "sdxl", "flux", "sd3"]
    base: str
    adapter: str
    encoder: str = ""
    dim: int = 0
    image_encoder: str = ""
    image_encoder_revision: str = ""
    negative_scale: float = 4.0
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
    image_encoder: Path | None = None


def read_description(path: Path) -> AdapterModel:
    """The description in model.toml. Raises ConfigError."""
    where = f"{path.parent.name}/{path.name}"
    model = from_mapping(AdapterModel, read_toml(path), where)
    if bool(model.encoder and model.dim) == bool(model.image_encoder):
        raise ConfigError(
            f"{where}: state what the adapter takes: `encoder` and `dim` for one vector a picture, or `image_encoder` for a "
            "picture's patches (`plus` adapters, SD 3)"
        )
    form = FAMILIES[model.family].blocks
    for name, scales in model.blocks.items():
        if form == "none" or isinstance(scales, tuple) != (form == "layers"):
            wanted = {
                "none": "no [blocks]: diffusers takes one number for all",
                "layers": "a list of numbers, one a layer",
                "tables": "tables of blocks, as { up = { block_0 = [0.0, 1.0, 0.0] } }",
            }[form]
            raise ConfigError(f"{where} [blocks] {name}: family {model.family!r} takes {wanted}")
    return model


def find_files(model: AdapterModel, folder: Path, name: str) -> AdapterPlaces:
    """The files of a model; missing ones are fetched from the Hub. Raises ModelError."""
    return AdapterPlaces(
        base=_base(model, folder, name),
        adapter=_file(model.adapter, model.adapter_revision, folder, name, "adapter"),
        lora=tuple(_file(one.file, "", folder, name, "lora") for one in model.lora),
        image_encoder=_image_encoder(model, folder, name) if model.image_encoder else None,
    )


def _image_encoder(model: AdapterModel, folder: Path, name: str) -> Path:
    place = model.image_encoder
    local = folder / Path(place).expanduser()
    if not (local / "config.json").is_file():
        if place.count("/") < 1 or place.startswith(("/", ".", "~")):
            raise ModelError(
                f"model {name!r}: no image_encoder at {local}; give a folder with config.json and model.safetensors, or "
                "OWNER/REPO/FOLDER"
            )
        owner, repo, *inner = place.split("/")
        inside = "/".join(inner)
        files = [
            f"{inside}/{one}".lstrip("/") for one in ("config.json", "preprocessor_config.json", "model*.safetensors")
        ]
        try:
            from huggingface_hub import snapshot_download

            whole = snapshot_download(
                f"{owner}/{repo}", revision=model.image_encoder_revision or None, allow_patterns=files
            )
        except Exception as error:
            raise ModelError(_unreachable(name, "image_encoder", place, folder, error)) from error
        local = Path(whole) / inside
    if not any(local.glob("*.safetensors")):
        raise ModelError(f"model {name!r}: {local} has no safetensors file. Pickled weights are never loaded")
    return local


def _base(model: AdapterModel, folder: Path, name: str) -> Path:
    local = folder / Path(model.base).expanduser()
    if (local / "model_index.json").is_file():
        return local
    if model.base.count("/") != 1:
        raise ModelError(f"model {name!r}: base {model.base!r} is neither a folder with model_index.json nor a Hub id")
    family = FAMILIES[model.family]
    suffix = f".{model.variant}.safetensors" if model.variant else ".safetensors"
    patterns = ["model_index.json", *(f"{part}/*{end}" for part in family.parts for end in (".json", ".txt", ".model")),
                *(f"{part}/*{suffix}" for part in family.with_weights)]  # fmt: skip
    others = None if model.variant else ["*.fp16.safetensors", "*.non_ema.safetensors"]
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                model.base, revision=model.base_revision or None, allow_patterns=patterns, ignore_patterns=others
            )
        )
    except Exception as error:  # the Hub's client raises a dozen kinds of errors
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


# ---- checks that the files fit


def read_shapes(path: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no readable safetensors file: {error}") from error


def check_base(model: AdapterModel, base: Path, name: str) -> None:
    """Raise ModelError if the base is not the pipeline of the description's family, or has no safetensors."""
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
    family = FAMILIES[model.family]
    found, wanted = index.get("_class_name"), family.pipeline
    if found != wanted:
        raise ModelError(
            f"model {name!r}: base {model.base} is a {found}; family {model.family!r} draws with a {wanted}. Give a base of "
            f"that family, or one of {', '.join(FAMILIES)} as `family` with its adapter"
        )
    for part in family.with_weights:
        if (base / part).is_dir() and not any((base / part).glob("*.safetensors")):
            raise ModelError(
                f"model {name!r}: {base / part} has no safetensors file. Pickled weights are never loaded: take a copy of the "
                "base with safetensors, or convert it with diffusers' save_pretrained(safe_serialization=True)"
            )


def place_of(key: str) -> tuple[str, str]:
    """(table, name) of a tensor as diffusers' loaders take them; XLabs' adapters for Flux use other names."""
    table, _, name = key.partition(".")
    if table == "double_blocks":
        name = name.replace("processor.ip_adapter_double_stream_", "")
        return "ip_adapter", name.replace("k_proj", "to_k_ip").replace("v_proj", "to_v_ip")
    return ("image_proj" if table == "ip_adapter_proj_model" else table), name


@dataclass(frozen=True)
class Widths:
    """Widths that an adapter must match: of the base's text tokens, of its attention, of the vision tower's patches."""

    context: int
    attention: int = 0
    patch: int = 0


def check_adapter(model: AdapterModel, shapes: Shapes, widths: Widths, name: str) -> None:
    """Raise ModelError for an adapter that is made for another base or encoder, or that needs what databases do not hold."""
    found = {place_of(key): shape for key, shape in shapes.items()}
    says = f"model {name!r}: {model.adapter}"
    _check_kind(model, found, says)
    resampler = ("image_proj", "latents") in found
    first = ("ip_adapter", "1.to_k_ip.weight" if FAMILIES[model.family].denoiser == "unet" else "0.to_k_ip.weight")
    projection = ("image_proj", "proj_in.weight" if resampler else "proj.weight")
    if first not in found or projection not in found:
        raise ModelError(
            f"{says} is no IP-Adapter of family {model.family!r}: it lacks {'.'.join(projection)} or {'.'.join(first)}"
        )
    keys, expected = found[first][1], widths.attention if model.family == "sd3" else widths.context
    if keys != expected:
        raise ModelError(
            f"{says} is made for another base: its keys take {keys} numbers, those of {model.base} {expected} (768: SD 1.5, "
            "2048: SDXL, 4096: Flux, 2432: SD 3.5). Give the adapter of this base"
        )
    taken = found[projection][1]
    if model.image_encoder and not resampler:
        raise ModelError(
            f"{says} takes one vector of {taken} numbers a picture: write `encoder` and `dim` in model.toml in place of "
            "`image_encoder`"
        )
    if resampler and taken != widths.patch:
        raise ModelError(
            f"{says} takes patches of {taken} numbers; those of {model.image_encoder} have {widths.patch}. Give the vision "
            "tower that the adapter was trained with as `image_encoder`"
        )
    if not resampler and taken != model.dim:
        raise ModelError(
            f"{says} takes vectors of {taken} numbers; the description says {model.dim} (encoder {model.encoder}). 768 is "
            "vit-l-14, 1024 is vit-h-14, 1280 is vit-bigg-14: correct `encoder` and `dim` in model.toml"
        )


def _check_kind(model: AdapterModel, found: Mapping[tuple[str, str], tuple[int, ...]], says: str) -> None:
    """Raise ModelError for an adapter that takes neither stored vectors nor patches of stored pictures."""
    full = ("image_proj", "proj.3.weight") in found
    if ("image_proj", "perceiver_resampler.proj_in.weight") in found or (
        ("image_proj", "proj.0.weight") in found and not full
    ):
        raise ModelError(
            f"{says} is a FaceID adapter: it takes a face recogniser's vectors, and a database holds none. Use an adapter "
            "without FaceID"
        )
    if full:
        raise ModelError(
            f"{says} is a `full-face` adapter: it is trained on patches of cut-out faces, and a database keeps whole pictures. "
            "Use another adapter of the same base"
        )
    if ("image_proj", "latents") in found and not model.image_encoder:
        raise ModelError(
            f"{says} is a `plus` adapter: it takes the encoder's patch embeddings (257 vectors a picture), and a database "
            "holds one vector a picture. In model.toml, name the vision tower that makes them of the neighbours' pictures, as "
            'image_encoder = "h94/IP-Adapter/models/image_encoder" in place of `encoder` and `dim`; or use the adapter without '
            "`plus`, which takes the stored vectors"
        )
