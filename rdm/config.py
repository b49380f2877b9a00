"""The description of a model: its networks' sizes, its noise schedule, and its conditioning.

Reads the shipped `configs/*.json`, a JSON file, or a dict. A description is either in our form (`unet` and `first_stage` hold
the arguments of diffusers' networks) or in the original code's form (`unet` with `model_channels`, and `ddconfig`), which
`rdm.compvis` translates. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rdm.errors import ConfigError, is_number, nearest
from rdm.fields import FIRST_STAGE_FIELDS, UNET_FIELDS, check_network

if TYPE_CHECKING:
    from rdm.untyped import Arguments, JsonObject

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # diffusers' names; see rdm/prediction.py
CONFIG_FILE = "rdm.json"  # beside unet/ and the first stage in a saved model
_SHIPPED = Path(str(resources.files("rdm"))) / "configs"


@dataclass(frozen=True)
class RDMConfig:
    """A model's description. Sizes are in pixels unless stated otherwise.

    unet, first_stage   arguments of diffusers' UNet2DConditionModel and of the class `first_stage["_class_name"]`; a unet with
                        class_embed_type "projection" adds the context's first token and mean to the time embedding
    prediction_type     what the denoiser predicts: "epsilon", "v_prediction" or "sample" (rdm/prediction.py)
    scale_factor        latents = scale_factor * first-stage latents
    beta_start, _end    betas = linspace(sqrt(start), sqrt(end), train_steps)**2, as in latent diffusion
    context_norm        "unit": context tokens are unit vectors; "raw": the CLIP encoder's vectors before normalising
    null_context        the context that means "no condition": "zeros"
    encoder             name of the CLIP encoder whose vectors the model takes
    max_neighbours      largest number of neighbours beside the prompt's token; default_k: the default number
    guidance_range      smallest and largest guidance scale of a model with distilled guidance, in one pass of the denoiser
                        (rdm/distillation.py); its unet has `time_cond_proj_dim`. None: guidance takes two passes
    """

    name: str
    unet: Arguments
    first_stage: Arguments
    scale_factor: float = 1.0
    beta_start: float = 0.0015
    beta_end: float = 0.015
    train_steps: int = 1000
    context_norm: str = "unit"
    null_context: str = "zeros"
    encoder: str = "vit-l-14"
    max_neighbours: int = 20
    default_k: int = 19
    default_size: int = 768
    default_guidance: float = 5.0
    prediction_type: str = "epsilon"
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for key, value in ((key, getattr(self, key)) for key in _NUMBERS):
            if not is_number(value) or (key in _WHOLE and value != int(value)):
                raise ConfigError(f"{key} is {value!r}; a {'whole ' if key in _WHOLE else ''}number was expected")
        if self.context_norm not in ("unit", "raw"):
            raise ConfigError(f"context_norm is {self.context_norm!r}; it must be 'unit' or 'raw'")
        if self.prediction_type not in PREDICTIONS:
            raise ConfigError(
                f"prediction_type is {self.prediction_type!r}; it must be one of {', '.join(PREDICTIONS)}"
            )
        if self.null_context != "zeros":
            raise ConfigError(f"null_context is {self.null_context!r}; only 'zeros' is known")
        if not 0 <= self.default_k <= self.max_neighbours:
            raise ConfigError(
                f"default_k is {self.default_k}; it must lie in 0..{self.max_neighbours} (max_neighbours)"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ConfigError(f"betas run from {self.beta_start} to {self.beta_end}; want 0 < start < end < 1")
        if self.scale_factor <= 0 or self.train_steps < 1:
            raise ConfigError("scale_factor must be positive and train_steps at least 1")
        for key in ("name", "encoder"):
            if not isinstance(getattr(self, key), str):
                raise ConfigError(f"{key} is {getattr(self, key)!r}; a text was expected")
        for key, most in (("train_steps", 100_000), ("max_neighbours", 10_000), ("default_size", 65_536)):
            if getattr(self, key) > most:
                raise ConfigError(f"{key} is {getattr(self, key)}; at most {most} is read")
        check_network("unet", self.unet, UNET_FIELDS)
        check_network("first_stage", self.first_stage, FIRST_STAGE_FIELDS)
        for part in ("unet", "first_stage"):
            object.__setattr__(self, part, json.loads(json.dumps(dict(getattr(self, part)))))
        missing = [key for key in _UNET_KEYS if key not in self.unet]
        wanted = _FOLDED_KEYS if self._folded else _FIRST_STAGE_KEYS
        missing += [f"first_stage.{key}" for key in wanted if key not in self.first_stage]
        if missing:
            raise ConfigError(f"the description of {self.name!r} lacks {', '.join(missing)}")
        self._check_factor()
        latents = self.first_stage.get("vq_embed_dim") or self.first_stage.get("latent_channels")
        channels = {self.unet["in_channels"], self.unet.get("out_channels", self.unet["in_channels"]), latents} - {None}
        if len(channels) > 1:
            raise ConfigError(
                f"unet takes {self.unet['in_channels']} channels and gives {self.unet.get('out_channels')}, the first stage's "
                f"latents have {latents}: all must be the same"
            )
        self._check_pooling()
        self._check_guidance()
        if self.default_size % self.image_factor:
            raise ConfigError(f"default_size is {self.default_size}; it must be a multiple of {self.image_factor}")

    def _check_factor(self) -> None:
        factor = self.first_stage.get("factor", 1)
        if self._folded and not (is_number(factor) and factor == int(factor) and 1 <= factor <= _LARGEST_FACTOR):
            raise ConfigError(
                f"first_stage: factor is {factor!r}; a whole number from 1 to {_LARGEST_FACTOR} was expected"
            )

    def _check_pooling(self) -> None:
        """Raise ConfigError for a class embedding whose kind or length does not fit `rdm.denoiser.pool`."""
        kind, given = self.unet.get("class_embed_type"), self.unet.get("projection_class_embeddings_input_dim")
        if kind is not None and (kind != "projection" or given != 2 * self.context_dim):
            raise ConfigError(
                f"unet: class_embed_type is {kind!r} of {given} numbers; 'projection' of {2 * self.context_dim} (the context's "
                "first token and its mean) or none was expected"
            )

    def _check_guidance(self) -> None:
        """Raise ConfigError for a range that does not fit the denoiser's input for the guidance scale."""
        given, length = self.guidance_range, self.unet.get("time_cond_proj_dim")
        if given is None:
            if length is not None:
                raise ConfigError(
                    f"unet: time_cond_proj_dim is {length}, the length of a guidance scale's embedding, but guidance_range is "
                    "missing: give the scales that the model was distilled for, such as [1, 6]"
                )
            return
        if not isinstance(given, list | tuple) or len(given) != 2 or not all(map(is_number, given)):
            raise ConfigError(f"guidance_range is {given!r}; two numbers were expected, such as [1, 6]")
        low, high = map(float, given)
        object.__setattr__(self, "guidance_range", (low, high))
        if not 0 <= low < high:
            raise ConfigError(f"guidance_range is {list(given)}; 0 <= smallest < largest was expected")
        if not low <= self.default_guidance <= high:
            raise ConfigError(
                f"default_guidance is {self.default_guidance}; it must lie in guidance_range, {list(given)}"
            )
        if not isinstance(length, int) or length < 2 or length % 2:
            raise ConfigError(
                f"unet: time_cond_proj_dim is {length!r}; a model with a guidance_range needs an even whole number, such as 256"
            )

    @property
    def pooled(self) -> bool:
        """Whether the denoiser takes the context's first token and mean beside the time (rdm.denoiser.pool)."""
        return self.unet.get("class_embed_type") is not None

    @property
    def _folded(self) -> bool:
        return bool(self.first_stage.get("_class_name") == "Folded")

    @property
    def context_dim(self) -> int:
        """Length of a context token."""
        return int(self.unet["cross_attention_dim"])

    @property
    def latent_channels(self) -> int:
        return int(self.unet["in_channels"])

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent, along a side."""
        if self._folded:
            return int(self.first_stage["factor"])
        return int(2 ** (len(self.first_stage["block_out_channels"]) - 1))

    @property
    def image_factor(self) -> int:
        """Pictures' sides must be multiples of this many pixels (the denoiser itself takes any latent size)."""
        return self.downsample_factor

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width for a picture of height x width pixels."""
        for side, length in (("height", height), ("width", width)):
            if length < self.image_factor or length % self.image_factor:
                below = max(length // self.image_factor, 1) * self.image_factor
                raise ConfigError(
                    f"{side} is {length} pixels; {self.name} wants a multiple of {self.image_factor}, such as {below}"
                )
        return height // self.downsample_factor, width // self.downsample_factor

    def to_dict(self) -> JsonObject:
        """All fields as a JSON object; `read_config` reads it back.

        The prediction_type "epsilon" and a guidance_range of None are left out, so that a description from before these fields
        keeps its hash.
        """
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.prediction_type == "epsilon":
            del content["prediction_type"]
        if self.guidance_range is None:
            del content["guidance_range"]
        else:
            content["guidance_range"] = list(self.guidance_range)
        return content


_WHOLE = ("train_steps", "max_neighbours", "default_k", "default_size")
_NUMBERS = (*_WHOLE, "scale_factor", "beta_start", "beta_end", "default_guidance")
_UNET_KEYS = ("in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types",
              "layers_per_block", "cross_attention_dim", "attention_head_dim")  # fmt: skip
_FOLDED_KEYS = ("factor", "latent_channels")
_LARGEST_FACTOR = 64  # largest side, in pixels, of the patch that a folded first stage makes one latent
_FIRST_STAGE_KEYS = ("_class_name", "block_out_channels", "latent_channels")


def model_names() -> list[str]:
    """Names of the models whose descriptions are shipped."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def read_config(config: str | Path | Arguments | RDMConfig) -> RDMConfig:
    """A model's description from its name, a JSON file, a dict, or itself.

    Raises ConfigError naming an unknown model (with the known ones), file, key or value.
    """
    if isinstance(config, RDMConfig):
        return config
    if isinstance(config, Mapping):
        return _from_dict(dict(config))
    if str(config) in model_names():
        path = _SHIPPED / f"{config}.json"
    else:
        path = Path(config)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(model_names())
        hint = nearest(str(config), model_names())
        raise ConfigError(f"no model and no JSON file is called {str(config)!r}{hint}; models: {known}") from None
    except (ValueError, RecursionError, OSError) as error:  # deep nesting and very long numbers too
        raise ConfigError(f"{path} is not a JSON description of a model: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; a description is a JSON object")
    return _from_dict(content)


def _from_dict(content: JsonObject) -> RDMConfig:
    if "ddconfig" in content:
        from rdm.compvis import translate_config

        content = translate_config(content)
    known = [f.name for f in dataclasses.fields(RDMConfig)]
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in a model's description{nearest(key, known)}")
    for key in ("unet", "first_stage"):
        if not isinstance(content.get(key), Mapping):
            raise ConfigError(f"a model's description wants {key!r} (an object); it has {', '.join(sorted(content))}")
    return RDMConfig(**{"name": "rdm", **content})
