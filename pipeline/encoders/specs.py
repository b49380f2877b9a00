"""Encoders by name: what a name stands for, whether its weights can be had, its config and its untrained model.

    vit-l-14, vit-b-32             OpenAI's weights, with QuickGELU
    vit-h-14, siglip2-base, ...    others of SHORT_NAMES: open_clip's architecture and weights
    open_clip:<arch>/<tag>         any of open_clip's pretrained tags
    hf-hub:<owner>/<repo>[@rev]    a Hub repository in open_clip's layout
    local:<folder>                 open_clip_config.json and open_clip_model.safetensors, open_clip's own layout
    local:<model.json>:<weights>   an open_clip model config and a checkpoint
    random:<arch or model.json>[?seed=0]   random weights; every result says that it carries no meaning
    <name>                         an encoder shipped with the package, in pipeline/assets/encoders/<name>

Reads: model configs, and through encoders/weights.py what the Hub has. Weights that cannot be reached are an EncoderError;
there is no fallback. A config without text_cfg is an encoder without a text tower. encoders/encoder.py loads and runs them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.encoders.weights import HUB_WEIGHTS, candidates, check_hub, fetch
from pipeline.errors import EncoderError, nearest
from pipeline.installation import asset

if TYPE_CHECKING:
    import torch

SHORT_NAMES = {
    "vit-l-14": ("ViT-L-14", "openai"),
    "vit-b-32": ("ViT-B-32", "openai"),
    "vit-h-14": ("ViT-H-14", "laion2b_s32b_b79k"),  # IP-Adapter's vit-h files take its vectors
    "vit-bigg-14": ("ViT-bigG-14", "laion2b_s39b_b160k"),  # ip-adapter_sdxl takes its vectors
    "siglip2-base": ("ViT-B-16-SigLIP2", "webli"),
    "siglip2-so400m": ("ViT-SO400M-14-SigLIP2", "webli"),
    "pe-core-b-16": ("PE-Core-B-16", "meta"),
    "pe-core-l-14": ("PE-Core-L-14-336", "meta"),
    "mobileclip2-s2": ("MobileCLIP2-S2", "dfndr2b"),
    "mobileclip2-b": ("MobileCLIP2-B", "dfndr2b"),
}

SHIPPED = asset("encoders")

CONFIG_FILE = "open_clip_config.json"

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_FORMS = "open_clip:ARCH/TAG, hf-hub:OWNER/REPO, local:FOLDER, local:MODEL.json:WEIGHTS, random:ARCH?seed=0"


@dataclass(frozen=True)
class EncoderSpec:
    """What a name stands for. Which fields are set depends on the kind."""

    name: str
    kind: Literal["tag", "hub", "local", "random"]
    arch: str = ""  # open_clip architecture, of a tag or of random weights
    tag: str = ""
    repo: str = ""
    revision: str = ""
    config: Path | None = None  # model config, of a local encoder or of random weights
    weights: Path | None = None
    seed: int = 0

    @property
    def trained(self) -> bool:
        return self.kind != "random"


def resolve_encoder(name: str) -> EncoderSpec:
    """What `name` stands for. Looks at the name alone; `check` looks at the weights. Raises EncoderError."""
    scheme, _, rest = name.partition(":")
    if name in SHORT_NAMES:
        arch, tag = SHORT_NAMES[name]
        return EncoderSpec(name, "tag", arch=arch, tag=tag)
    if scheme == "open_clip" and rest.count("/") == 1 and all(rest.split("/")):
        arch, tag = rest.split("/")
        return EncoderSpec(name, "tag", arch=arch, tag=tag)
    if scheme == "hf-hub" and "/" in rest:
        repo, _, revision = rest.partition("@")
        return EncoderSpec(name, "hub", repo=repo, revision=revision)
    if scheme == "local" and rest:
        config, _, weights = rest.rpartition(":")
        return _folder(name, Path(rest).expanduser()) if not config else _files(name, config, weights)
    if scheme == "random" and rest:
        arch, _, query = rest.partition("?")
        seed = query.removeprefix("seed=") if query else "0"
        if not seed.isdigit():
            raise EncoderError(f"encoder {name!r}: expected random:ARCH?seed=NUMBER")
        if arch.endswith(".json"):
            return EncoderSpec(name, "random", config=Path(arch).expanduser().absolute(), seed=int(seed))
        return EncoderSpec(name, "random", arch=arch, seed=int(seed))
    if (SHIPPED / name / CONFIG_FILE).is_file():
        return _folder(name, SHIPPED / name)
    raise EncoderError(
        f"no encoder called {name!r}{nearest(name, list_encoders())}. Known: {', '.join(list_encoders())}, {_FORMS}"
    )


def list_encoders() -> list[str]:
    """The plain names: OpenAI's by short name, and those shipped with the package."""
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return [*shipped, *SHORT_NAMES]


def describe_encoders() -> list[dict[str, str]]:
    """The plain names and the forms a name can have, each with what it stands for."""
    plain = {
        name: f"{arch} with OpenAI's weights, QuickGELU"
        if tag == "openai"
        else f"open_clip's {arch} with weights {tag}"
        for name, (arch, tag) in SHORT_NAMES.items()
    }
    forms = {
        "open_clip:ARCH/TAG": "any model and weights that open_clip knows by name",
        "hf-hub:OWNER/REPO[@REVISION]": "a model on the Hub in open_clip's format",
        "local:FOLDER": f"a folder with {CONFIG_FILE} and its weights, as open_clip saves them",
        "local:MODEL.json:WEIGHTS": "a model config and a checkpoint",
        "random:ARCH?seed=0": "untrained, for tests: its results carry no meaning (ARCH may be a model.json)",
    }
    shipped = {name: "ships with the package" for name in list_encoders() if name not in plain}
    return [{"name": name, "what": what} for name, what in {**shipped, **plain, **forms}.items()]


def _folder(name: str, folder: Path) -> EncoderSpec:
    folder = folder.absolute()
    found = [folder / file for file in HUB_WEIGHTS if (folder / file).is_file()]
    return EncoderSpec(
        name, "local", config=folder / CONFIG_FILE, weights=found[0] if found else folder / HUB_WEIGHTS[0]
    )


def _files(name: str, config: str, weights: str) -> EncoderSpec:
    config_path, weights_path = (Path(text).expanduser().absolute() for text in (config, weights))
    return EncoderSpec(name, "local", config=config_path, weights=weights_path)


def check_encoder(spec: EncoderSpec) -> None:
    """Raise EncoderError, before any work, where the encoder's weights or config cannot be had. Downloads no weights."""
    if spec.kind == "hub":
        check_hub(spec.name, spec.repo, (CONFIG_FILE,), spec.revision)
        check_hub(spec.name, spec.repo, HUB_WEIGHTS, spec.revision)
        return
    if spec.kind == "tag":
        repo, filename, _ = tag_settings(spec)
        check_hub(spec.name, repo, candidates(filename), spec.revision)
        return
    model_config(spec)
    if spec.weights is not None and not spec.weights.is_file():
        raise EncoderError(
            f"encoder {spec.name!r}: no weights at {spec.weights}; expected {' or '.join(HUB_WEIGHTS)} in a folder, or "
            "local:MODEL.json:WEIGHTS"
        )


def import_open_clip() -> Any:
    from pipeline.machine import prepare_torchvision

    prepare_torchvision()
    import open_clip

    return open_clip


def tag_settings(spec: EncoderSpec) -> tuple[str, str, dict[str, Any]]:
    """(Hub repository, file name or empty, open_clip's settings) of a pretrained tag. Raises EncoderError."""
    open_clip = import_open_clip()
    _known_arch(spec)
    settings = open_clip.get_pretrained_cfg(spec.arch, spec.tag)
    if not settings:
        tags = open_clip.list_pretrained_tags_by_model(spec.arch)
        raise EncoderError(
            f"encoder {spec.name!r}: open_clip has no weights {spec.tag!r} of {spec.arch}{nearest(spec.tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    repo, _, filename = settings["hf_hub"].rpartition("/")
    return repo, filename, settings


def _known_arch(spec: EncoderSpec) -> None:
    archs = import_open_clip().list_models()
    if spec.arch not in archs:
        raise EncoderError(
            f"encoder {spec.name!r}: open_clip has no architecture {spec.arch!r}{nearest(spec.arch, archs)}; "
            "a model config of your own is given by the path of its .json"
        )


def model_config(spec: EncoderSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model config, preprocess config) as open_clip writes them. Reaches the Hub for the kind `hub`."""
    if spec.kind == "hub":
        check_hub(spec.name, spec.repo, (CONFIG_FILE,), spec.revision)
        path = fetch(spec.name, spec.repo, CONFIG_FILE, spec.revision)
    elif spec.config is not None:
        path = spec.config
    else:
        _known_arch(spec)
        model = import_open_clip().get_model_config(spec.arch)
        settings = tag_settings(spec)[2] if spec.kind == "tag" else {}
        if settings.get("quick_gelu"):  # the weights' own activation, whatever the architecture's file says
            model["quick_gelu"] = True
        return model, settings
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {spec.name!r}: no readable open_clip model config at {path}: {error}. An encoder on this disk is "
            "local:FOLDER, a folder as open_clip saves it, or local:MODEL.json:WEIGHTS"
        ) from error
    model = table.get("model_cfg", table) if isinstance(table, dict) else {}
    if not all(key in model for key in ("embed_dim", "vision_cfg")):
        raise EncoderError(
            f"encoder {spec.name!r}: {path} is no open_clip model config: it lacks embed_dim or vision_cfg"
        )
    return model, table.get("preprocess_cfg") or {}


def build_network(spec: EncoderSpec, config: dict[str, Any], precision: str) -> torch.nn.Module:
    """The model with random weights. Never loads weights of its own for a tower, as open_clip's factory may."""
    import torch

    open_clip = import_open_clip()
    config = {**config, "vision_cfg": {**config["vision_cfg"], "timm_model_pretrained": False}}
    custom_text = config.pop("custom_text", False)
    settings = {**config, "cast_dtype": open_clip.get_cast_dtype(precision)}
    try:
        if not config.get("text_cfg"):
            return _image_tower(settings)
        settings["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
        if custom_text or "hf_model_name" in config["text_cfg"]:
            made = (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP)(**settings)
        else:
            made = open_clip.CLIP(**settings)
    except (TypeError, ValueError, RuntimeError, AssertionError, ImportError, OSError) as error:
        raise EncoderError(f"encoder {spec.name!r}: open_clip cannot build its config: {error}") from error
    assert isinstance(made, torch.nn.Module)
    return made


def _image_tower(settings: dict[str, Any]) -> torch.nn.Module:
    import torch
    from open_clip.model import _build_vision_tower

    tower = _build_vision_tower(
        settings["embed_dim"], settings["vision_cfg"], settings.get("quick_gelu", False), settings["cast_dtype"]
    )
    return torch.nn.ModuleDict({"visual": tower})


def tag_files(spec: EncoderSpec) -> tuple[str, tuple[str, ...]]:
    """(Hub repository, file names to try) of a pretrained tag."""
    repo, filename, _ = tag_settings(spec)
    return repo, candidates(filename)


def tokenizer_of(spec: EncoderSpec, config: dict[str, Any]) -> Any:
    """open_clip's tokenizer for the model. Raises EncoderError."""
    open_clip = import_open_clip()
    text = config["text_cfg"]
    settings = dict(text.get("tokenizer_kwargs") or {})
    length = int(text.get("context_length", 77))
    try:
        if spec.kind == "hub":
            return open_clip.get_tokenizer(f"hf-hub:{spec.repo}")
        if spec.config is None:
            return open_clip.get_tokenizer(spec.arch)
        if text.get("hf_tokenizer_name"):
            return open_clip.tokenizer.HFTokenizer(str(spec.config.parent), context_length=length, **settings)
        if "bpe_path" in settings:  # merges of the model's own, beside its config
            settings["bpe_path"] = str(spec.config.parent / Path(settings["bpe_path"]).name)
        return open_clip.tokenizer.SimpleTokenizer(context_length=length, **settings)
    except Exception as error:
        raise EncoderError(f"encoder {spec.name!r}: its tokenizer cannot be loaded: {error}") from error


def same_encoder(one: str, other: str) -> bool:
    """Whether two names stand for the same weights, as far as names tell."""
    if one == other:
        return True

    def meaning(name: str) -> Any:
        spec = resolve_encoder(name)
        return (spec.kind, spec.arch, spec.tag, spec.repo, spec.revision, spec.config, spec.weights, spec.seed)

    try:
        return bool(meaning(one) == meaning(other))
    except EncoderError:
        return False
