"""open_clip model configs: read them, check them field by field, and turn them into keyword arguments.

Reads: a JSON file as open_clip writes it (`open_clip_config.json`, or only the model config). Writes nothing.

A config may come from an unknown author, and open_clip passes its fields to constructors, some of them in other libraries. Each
field must therefore be in the tables below with a value in its range; any other field is an EncoderError that names it. In
particular, no config can cause its author's code to run (`trust_remote_code`), name a file outside its folder, or need more
weights than `MOST_WEIGHTS`. Does not promise that open_clip can build every config that passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import parse_json
from pipeline.errors import EncoderError, nearest

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

MOST_WEIGHTS = 10_000_000_000  # open_clip's largest model has 2.5e9

Fields = dict[str, object]

Rule = tuple[Callable[[object], bool], str]  # whether a value is allowed, and the expected value in words


@dataclass(frozen=True)
class ModelConfig:
    """A checked config. `vision`, `text` and `multimodal` are fields of open_clip's dataclasses; text None: no text tower."""

    embed_dim: int
    vision: Fields
    text: Fields | None = None
    multimodal: Fields | None = None
    options: Fields = field(default_factory=dict)  # of the model itself: quick_gelu, init_logit_scale, ...
    custom_text: bool = False
    tokenizer: Fields = field(default_factory=dict)
    preprocess: PreprocessConfig = field(default_factory=lambda: PreprocessConfig())

    @property
    def context_length(self) -> int:
        """Tokens that the text tower takes."""
        length = (self.text or {}).get("context_length", 77)
        assert isinstance(length, int)
        return length

    @property
    def is_timm(self) -> bool:
        return bool(self.vision.get("timm_model_name"))


@dataclass(frozen=True)
class PreprocessConfig:
    """The used fields of open_clip's preprocess config. mean and std: RGB, of values in 0..1."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


def _whole(least: int, most: int) -> Rule:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        f"a whole number from {least} to {most:,}",
    )


def _number(least: float, most: float) -> Rule:
    def allowed(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    return allowed, f"a number from {least:g} to {most:g}"


def _numbers(count: int, least: int, most: int, alone: bool = False) -> Rule:
    """A list of `count` whole numbers; with `alone`, also a single number."""
    one, _ = _whole(least, most)

    def allowed(value: object) -> bool:
        if isinstance(value, list | tuple):
            return len(value) == count and all(map(one, value))
        return alone and one(value)

    return allowed, f"{count} whole numbers from {least} to {most:,}{', or one' if alone else ''}"


def _text(pattern: str, what: str) -> Rule:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, what


def _table(rules: Mapping[str, Rule]) -> Rule:
    def allowed(value: object) -> bool:
        return isinstance(value, dict) and all(key in rules and rules[key][0](item) for key, item in value.items())

    return allowed, "a table of " + ", ".join(f"{name} ({what})" for name, (_, what) in rules.items())


_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")

_WORD = _text(r"[A-Za-z0-9_]{0,40}", "a word")

_HUB_NAME = _text(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", "a name on the Hub, as OWNER/REPO")

_BLOCKS = dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), _FLAG
) | {
    "block_type": _WORD,
    "act_kwargs": _table({"approximate": _text("none|tanh", "none or tanh")}),
    "norm_kwargs": _table({"eps": _number(0.0, 1.0), "elementwise_affine": _FLAG, "bias": _FLAG}),
}

_VISION: dict[str, Rule] = {
    **_BLOCKS,
    "layers": _numbers(4, 0, 200, alone=True),
    "width": _whole(1, 16_384),
    "head_width": _whole(1, 4_096),
    "mlp_ratio": _number(0.0, 32.0),
    "patch_size": _whole(1, 1_024),
    "image_size": _numbers(2, 1, 4_096, alone=True),
    "ls_init_value": _number(-100.0, 100.0),
    "patch_dropout": _number(0.0, 1.0),
    "attentional_pool": (lambda value: isinstance(value, bool) or value in ("parallel", "cascade"), "true or false"),
    "attn_pooler_queries": _whole(1, 4_096),
    "attn_pooler_heads": _whole(1, 512),
    "no_ln_pre": _FLAG,
    "pos_embed_type": _WORD,
    "final_ln_after_pool": _FLAG,
    "pool_type": _WORD,
    "output_tokens": _FLAG,
    "timm_model_name": _text(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?", "the name of one of timm's own models"),
    "timm_model_pretrained": _FLAG,
    "timm_pool": _WORD,
    "timm_proj": _WORD,
    "timm_proj_bias": _FLAG,
    "timm_drop": _number(0.0, 1.0),
    "timm_drop_path": _number(0.0, 1.0),
}

# Allowed settings of a tokenizer. Code of its author (trust_remote_code), other classes and other folders are excluded.
_TOKENIZER: dict[str, Rule] = {
    "clean": _text("whitespace|lower|canonicalize", "whitespace, lower or canonicalize"),
    "strip_sep_token": _FLAG,
    "language": _text(r"[A-Za-z_-]{1,20}", "a language code"),
    "bpe_path": _text(r"[\w.\-/ ]{1,200}", "a file beside the config"),
}

_TEXT: dict[str, Rule] = {
    **_BLOCKS,
    "context_length": _whole(3, 65_536),
    "vocab_size": _whole(1, 4_000_000),
    "hf_tokenizer_name": _text(r"[\w./ -]{0,200}", "a name on the Hub"),
    "tokenizer_mode": _text("(clips)?", "clips"),
    "tokenizer_kwargs": _table(_TOKENIZER),
    "width": _whole(1, 16_384),
    "heads": _whole(1, 512),
    "layers": _whole(0, 200),
    "mlp_ratio": _number(0.0, 32.0),
    "ls_init_value": _number(-100.0, 100.0),
    "embed_cls": _FLAG,
    "pad_id": _whole(-1, 4_000_000),
    "eos_id": _whole(-1, 4_000_000),
    "no_causal_mask": _FLAG,
    "final_ln_after_pool": _FLAG,
    "pool_type": _WORD,
    "proj_bias": _FLAG,
    "proj_type": _WORD,
    "output_tokens": _FLAG,
    "hf_model_name": _HUB_NAME,
    "hf_model_pretrained": _FLAG,
    "hf_proj_type": _WORD,
    "hf_pooler_type": _WORD,
}

_MULTIMODAL: dict[str, Rule] = {
    **_TEXT,
    "dim_head": _whole(1, 4_096),
    "n_queries": _whole(1, 4_096),
    "attn_pooler_heads": _whole(1, 512),
}

_OPTIONS: dict[str, Rule] = {
    "quick_gelu": _FLAG,
    "init_logit_scale": _number(-100.0, 100.0),
    "init_logit_bias": _number(-1000.0, 1000.0),
    "nonscalar_logit_scale": _FLAG,
    "pad_id": _whole(-1, 4_000_000),
}

_MODEL: dict[str, Rule] = {
    **_OPTIONS,
    "embed_dim": _whole(1, 65_536),
    "custom_text": _FLAG,
    "vision_cfg": _table(_VISION),
    "text_cfg": _table(_TEXT),
    "multimodal_cfg": _table(_MULTIMODAL),
}


def read_model_config(name: str, path: Path) -> ModelConfig:
    """The config at `path`, of the encoder `name`. Raises EncoderError."""
    try:
        table = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {name!r}: no readable open_clip model config at {path}: {error}. An encoder on this disk is "
            "local:FOLDER, a folder as open_clip saves it, or local:MODEL.json:WEIGHTS"
        ) from error
    model = table.get("model_cfg", table) if isinstance(table, dict) else {}
    if not isinstance(model, dict) or not all(key in model for key in ("embed_dim", "vision_cfg")):
        raise EncoderError(
            f"encoder {name!r}: {path} is not an open_clip model config: it lacks embed_dim or vision_cfg"
        )
    preprocess = table.get("preprocess_cfg") or {} if isinstance(table, dict) else {}
    return check_model_config(name, model, preprocess, str(path))


def check_model_config(name: str, model: Mapping[str, object], preprocess: object, where: str) -> ModelConfig:
    """The config in `model` (and open_clip's preprocess config). Raises EncoderError for a field that is not allowed."""
    start = f"encoder {name!r}: {where}: "
    _check_fields(start, "", model, _MODEL)
    parts: dict[str, Fields] = {}
    for part, rules in (("vision_cfg", _VISION), ("text_cfg", _TEXT), ("multimodal_cfg", _MULTIMODAL)):
        given = model.get(part)
        if isinstance(given, dict):
            _check_fields(start, f"{part}.", given, rules)
            parts[part] = dict(given)
    if "vision_cfg" not in parts:
        raise EncoderError(f"{start}vision_cfg: expected a table, found {type(model.get('vision_cfg')).__name__}")
    weights = _weights(parts)
    if weights > MOST_WEIGHTS:
        raise EncoderError(f"{start}it describes about {weights:.0e} weights; at most {MOST_WEIGHTS:.0e} are built")
    text = parts.get("text_cfg") or None
    tokenizer = text.get("tokenizer_kwargs") if text else None
    embed_dim = model["embed_dim"]
    assert isinstance(embed_dim, int)  # by the rules
    return ModelConfig(
        embed_dim=embed_dim,
        vision=parts["vision_cfg"],
        text=text,
        multimodal=parts.get("multimodal_cfg") or None,
        options={key: value for key, value in model.items() if key in _OPTIONS},
        custom_text=bool(model.get("custom_text")),
        tokenizer=dict(tokenizer) if isinstance(tokenizer, dict) else {},
        preprocess=_preprocess(start, preprocess),
    )


def _check_fields(start: str, prefix: str, table: Mapping[str, object], rules: Mapping[str, Rule]) -> None:
    """Check fields by rules; None stands for a field's default. Nested tables have their own rules, so that errors name
    their fields."""
    for key, value in table.items():
        if key not in rules:
            raise EncoderError(
                f"{start}field {prefix + str(key)!r} is not one that is read{nearest(str(key), rules)}. Take it out of the "
                "config if the encoder does not need it"
            )
        if key == "tokenizer_kwargs" and isinstance(value, dict):
            _check_fields(start, f"{prefix}{key}.", value, _TOKENIZER)
        elif not (key.endswith("_cfg") and isinstance(value, dict)) and value is not None and not rules[key][0](value):
            raise EncoderError(f"{start}field {prefix}{key} is {str(value)[:80]!r}; expected {rules[key][1]}")


def _weights(parts: Mapping[str, Fields]) -> float:
    """The approximate number of weights of the towers: 12 width^2 for each layer, plus the vocabulary."""

    def number(fields: Fields, name: str, default: int) -> float:
        value = fields.get(name)
        if isinstance(value, list | tuple):
            return float(sum(value))
        return float(value) if isinstance(value, int | float) else float(default)

    total = 0.0
    for fields in parts.values():
        width = number(fields, "width", 768)
        total += (4 + 2 * number(fields, "mlp_ratio", 4)) * width * width * number(fields, "layers", 12)
        total += number(fields, "vocab_size", 0) * width
    return total


def _preprocess(start: str, table: object) -> PreprocessConfig:
    """Mean, standard deviation, interpolation and resize mode; open_clip's other fields are not used."""
    if not isinstance(table, Mapping):
        raise EncoderError(f"{start}preprocess_cfg: expected a table, found {type(table).__name__}")
    made: dict[str, tuple[float, float, float]] = {}
    for name, default in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)):
        given = table.get(name) or default
        values = list(given) if isinstance(given, list | tuple) else []
        if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise EncoderError(f"{start}preprocess_cfg.{name} is {str(given)[:80]!r}; expected three numbers (R, G, B)")
        made[name] = (float(values[0]), float(values[1]), float(values[2]))
    if min(made["std"]) <= 0:
        raise EncoderError(f"{start}preprocess_cfg.std is {list(made['std'])}; expected numbers above 0")
    interpolation, mode = table.get("interpolation") or "bicubic", table.get("resize_mode") or "shortest"
    return PreprocessConfig(made["mean"], made["std"], str(interpolation), str(mode))
