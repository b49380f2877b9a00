"""Encoders by name: resolve a name, check that its weights can be reached, and get its config, network and tokenizer.

    vit-l-14, vit-b-32             OpenAI's weights, with QuickGELU
    vit-h-14, siglip2-base, ...    others of SHORT_NAMES: open_clip's architecture and weights
    open_clip:<arch>/<tag>         any of open_clip's pretrained tags
    hf-hub:<owner>/<repo>[@rev]    a Hub repository in open_clip's layout
    local:<folder>                 open_clip_config.json and open_clip_model.safetensors, open_clip's own layout
    local:<model.json>:<weights>   an open_clip model config and a checkpoint
    random:<arch or model.json>[?seed=0]   random weights; every result is marked as meaningless
    <name>                         an encoder shipped with the package, in pipeline/assets/encoders/<name>

Reads: model configs (pipeline/encoders/modelconfig.py), and the Hub through pipeline/encoders/weights.py. Writes
huggingface_hub's cache. Weights that cannot be reached are an EncoderError; there is no fallback. A config without
text_cfg gives an encoder without a text tower. Code of an encoder's author is never run.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import importlib.util
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from pipeline.encoders.modelconfig import Fields, ModelConfig, check_model_config, read_model_config
from pipeline.encoders.weights import HUB_WEIGHTS, candidates, check_hub, fetch
from pipeline.errors import ConfigError, EncoderError, nearest
from pipeline.installation import asset, require

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

_MOST_MERGES = 32 << 20  # bytes; open_clip's own has 3 MB

_FORMS = "open_clip:ARCH/TAG, hf-hub:OWNER/REPO, local:FOLDER, local:MODEL.json:WEIGHTS, random:ARCH?seed=0"


@dataclass(frozen=True)
class EncoderSpec:
    """A resolved name. Which fields are set depends on the kind."""

    name: str
    kind: Literal["tag", "hub", "local", "random"]
    arch: str = ""  # open_clip architecture, for a tag or for random weights
    tag: str = ""
    repo: str = ""
    revision: str = ""
    config: Path | None = None  # model config, for a local encoder or for random weights
    weights: Path | None = None
    seed: int = 0

    @property
    def trained(self) -> bool:
        return self.kind != "random"


def resolve_encoder(name: str) -> EncoderSpec:
    """Resolve a name. Looks only at the name; `check_encoder` checks the weights. Raises EncoderError."""
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
    """The plain names: short names, and encoders that ship with the package."""
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return [*shipped, *SHORT_NAMES]


def describe_encoders() -> list[dict[str, str]]:
    """The plain names and the other forms of a name, each with a description."""
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


def check_encoder(name: str) -> None:
    """Raise EncoderError, before any work, if the encoder's weights or config cannot be reached. Downloads no weights."""
    spec = resolve_encoder(name)
    if spec.kind == "hub":
        check_hub(spec.name, spec.repo, (CONFIG_FILE,), spec.revision)
        check_hub(spec.name, spec.repo, HUB_WEIGHTS, spec.revision)
    elif spec.kind == "tag":
        repo, names = tag_files(spec)
        check_hub(spec.name, repo, names, spec.revision)
    else:
        model_config(spec)
        if spec.weights is not None:
            check_file(spec.name, spec.weights)


def weights_path(spec: EncoderSpec) -> Path | None:
    """The weights on this disk, downloaded if necessary; None: random. Raises EncoderError if they cannot be reached."""
    if spec.kind == "random":
        return None
    if spec.weights is not None:
        check_file(spec.name, spec.weights)
        return spec.weights
    repo, names = (spec.repo, HUB_WEIGHTS) if spec.kind == "hub" else tag_files(spec)
    return fetch(spec.name, repo, check_hub(spec.name, repo, names, spec.revision), spec.revision)


def check_file(name: str, path: Path) -> None:
    if not path.is_file():
        raise EncoderError(
            f"encoder {name!r}: no weights at {path}; expected {' or '.join(HUB_WEIGHTS)} in a folder, or "
            "local:MODEL.json:WEIGHTS"
        )


# The part of open_clip that publishes models imports the whole client of the Hub.
_UPLOADS = {"open_clip.push_to_hf_hub": ("push_pretrained_to_hf_hub", "push_to_hf_hub")}


@cache
def import_open_clip(whole: bool = False) -> Any:
    """open_clip, imported so that torchvision works beside a CPU-only torch.

    whole: with timm and transformers, which some architectures need and which take seconds to import.
    """
    from pipeline.machine import import_whole, import_without

    optional = ("timm", "transformers")
    if not whole:
        return import_without("open_clip", *optional, plain=_UPLOADS)
    import_whole(*optional, "open_clip")
    import open_clip

    return open_clip


def tag_settings(spec: EncoderSpec) -> Fields:
    """open_clip's settings of a pretrained tag. Raises EncoderError."""
    open_clip = import_open_clip()
    _known_arch(spec)
    settings = open_clip.get_pretrained_cfg(spec.arch, spec.tag)
    if not settings:
        tags = open_clip.list_pretrained_tags_by_model(spec.arch)
        raise EncoderError(
            f"encoder {spec.name!r}: open_clip has no weights {spec.tag!r} of {spec.arch}{nearest(spec.tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    return dict(settings)


def tag_files(spec: EncoderSpec) -> tuple[str, tuple[str, ...]]:
    """(Hub repository, file names to try) of a pretrained tag."""
    repo, _, filename = str(tag_settings(spec)["hf_hub"]).rpartition("/")
    return repo, candidates(filename)


def hub_files(name: str) -> tuple[str, tuple[str, ...]]:
    """(Hub repository, file names to try) of an encoder whose weights are on the Hub. Raises EncoderError for others."""
    spec = resolve_encoder(name)
    if spec.kind == "hub":
        return spec.repo, HUB_WEIGHTS
    if spec.kind == "tag":
        return tag_files(spec)
    raise EncoderError(f"encoder {name!r}: its weights are not on the Hub")


def _known_arch(spec: EncoderSpec) -> None:
    archs = import_open_clip().list_models()
    if spec.arch not in archs:
        raise EncoderError(
            f"encoder {spec.name!r}: open_clip has no architecture {spec.arch!r}{nearest(spec.arch, archs)}; "
            "a model config of your own is given by the path of its .json"
        )


def model_config(spec: EncoderSpec) -> ModelConfig:
    """The encoder's checked config. Reaches the Hub for the kind `hub`. Raises EncoderError."""
    if spec.kind == "hub":
        check_hub(spec.name, spec.repo, (CONFIG_FILE,), spec.revision)
        return read_model_config(spec.name, fetch(spec.name, spec.repo, CONFIG_FILE, spec.revision))
    if spec.config is not None:
        return read_model_config(spec.name, spec.config)
    _known_arch(spec)
    model = import_open_clip().get_model_config(spec.arch)
    settings = tag_settings(spec) if spec.kind == "tag" else {}
    if settings.get("quick_gelu"):  # the activation of these weights, which overrides the architecture's file
        model["quick_gelu"] = True
    return check_model_config(spec.name, model, settings, f"open_clip's {spec.arch}")


def needs_whole(config: ModelConfig) -> bool:
    """Whether open_clip builds a tower or a tokenizer of the model with timm or transformers."""
    text = config.text or {}
    return "timm_model_name" in config.vision or bool({"hf_model_name", "hf_tokenizer_name"} & set(text))


@contextlib.contextmanager
def _no_remote_code(config: ModelConfig) -> Iterator[None]:
    """Make foreign code an error: by default, transformers asks on the terminal whether to run a repository's code.

    Raises ConfigError if the model's text tower or tokenizer is one of transformers', which is optional.
    """
    if {"hf_model_name", "hf_tokenizer_name"} & set(config.text or {}):
        require("hf", "an encoder with a text tower or tokenizer from the Hub")
    if not needs_whole(config) or importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def build_network(name: str, config: ModelConfig, precision: str) -> torch.nn.Module:
    """The model with random weights. Unlike open_clip's factory, it never loads weights for a tower.

    Raises EncoderError, also if the weights do not fit into memory.
    """
    import torch

    open_clip = import_open_clip(needs_whole(config))
    settings = {
        **config.options,
        "embed_dim": config.embed_dim,
        "vision_cfg": {**config.vision, "timm_model_pretrained": False},
        "cast_dtype": open_clip.get_cast_dtype(precision),
    }
    try:
        if config.text is None:
            return _image_tower(open_clip, settings)
        settings["text_cfg"] = {**config.text, "hf_model_pretrained": False}
        if config.custom_text or "hf_model_name" in config.text:
            if config.multimodal is not None:
                settings["multimodal_cfg"] = config.multimodal
            build = open_clip.CustomTextCLIP if config.multimodal is None else open_clip.CoCa
        else:
            build = open_clip.CLIP
        with _no_remote_code(config):
            made = build(**settings)
    except (
        TypeError, ValueError, RuntimeError, AssertionError, ImportError, OSError, ArithmeticError, LookupError, MemoryError,
        AttributeError,
    ) as error:  # fmt: skip
        raise EncoderError(f"encoder {name!r}: open_clip cannot build its config: {error}") from error
    assert isinstance(made, torch.nn.Module)
    return made


def _image_tower(open_clip: Any, settings: Fields) -> torch.nn.Module:
    import torch

    tower = open_clip.model._build_vision_tower(
        settings["embed_dim"], settings["vision_cfg"], settings.get("quick_gelu", False), settings["cast_dtype"]
    )
    return torch.nn.ModuleDict({"visual": tower})


class Tokenizer(Protocol):
    """open_clip's tokenizers. Some have an `encode(text)` that gives a text's tokens, without the start and end tokens."""

    context_length: int

    def __call__(self, texts: list[str]) -> torch.Tensor: ...


def tokenizer_of(spec: EncoderSpec, config: ModelConfig) -> Tokenizer:
    """open_clip's tokenizer for the model. Raises EncoderError."""
    open_clip = import_open_clip(needs_whole(config))
    text, settings = config.text or {}, dict(config.tokenizer)
    length = config.context_length
    try:
        with _no_remote_code(config):
            if spec.kind != "hub" and spec.config is None:
                return cast("Tokenizer", open_clip.get_tokenizer(spec.arch))
            if text.get("hf_tokenizer_name"):
                settings.pop("bpe_path", None)
                source = text["hf_tokenizer_name"] if spec.config is None else str(spec.config.parent)
                made = open_clip.tokenizer.HFTokenizer(
                    source,
                    context_length=length,
                    tokenizer_mode=text.get("tokenizer_mode"),
                    trust_remote_code=False,
                    **settings,
                )
                return cast("Tokenizer", made)
            simple = {key: value for key, value in settings.items() if key == "clean"}
            if settings.get("bpe_path"):
                simple["bpe_path"] = str(_merges(spec, Path(str(settings["bpe_path"])).name))
            return _simple_tokenizer(open_clip.tokenizer, length, simple)
    except (ConfigError, EncoderError):
        raise
    except Exception as error:
        raise EncoderError(f"encoder {spec.name!r}: its tokenizer cannot be loaded: {error}") from error


def _simple_tokenizer(module: Any, context_length: int, settings: Mapping[str, object]) -> Tokenizer:
    """open_clip's own tokenizer. A copy of the one that its module makes saves reading the vocabulary again, 0.1 s."""
    ready = None if settings else getattr(module, "_tokenizer", None)
    if ready is None:
        return cast("Tokenizer", module.SimpleTokenizer(context_length=context_length, **settings))
    made = copy.copy(ready)
    made.context_length = context_length
    return cast("Tokenizer", made)


def _merges(spec: EncoderSpec, name: str) -> Path:
    """The model's own BPE merges, a gzipped text beside its config. Raises EncoderError if it unpacks to too much."""
    if spec.config is None:
        check_hub(spec.name, spec.repo, (name,), spec.revision)
        path = fetch(spec.name, spec.repo, name, spec.revision)
    else:
        path = spec.config.parent / name
    try:
        with gzip.open(path) as packed:
            size = len(packed.read(_MOST_MERGES + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise EncoderError(f"encoder {spec.name!r}: its merges {path} cannot be read: {error}") from error
    if size > _MOST_MERGES:
        raise EncoderError(f"encoder {spec.name!r}: its merges {path} unpack to more than {_MOST_MERGES:,} bytes")
    return path


def same_encoder(one: str, other: str) -> bool:
    """Whether two names mean the same weights, judged by the names only."""
    if one == other:
        return True

    try:
        return replace(resolve_encoder(one), name="") == replace(resolve_encoder(other), name="")
    except EncoderError:
        return False
