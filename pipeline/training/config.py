"""The TOML file of a training run as frozen dataclasses. Reads that file; writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import canonical_json, from_mapping, read_toml
from pipeline.errors import ConfigError
from pipeline.training.data import CONTENT_COLUMNS, DataConfig

if TYPE_CHECKING:
    from rdm.train import LoopConfig

Part = Literal["encoder", "autoencoder", "rdm"]

PARTS: tuple[Part, ...] = ("encoder", "autoencoder", "rdm")


@dataclass(frozen=True)
class Steps:
    """The table [<part>.train]; rdm.train.LoopConfig defines all keys except `batch`.

    steps           number of steps of the optimizer
    batch           pictures in each step
    learning_rate   the highest rate of AdamW
    warmup          number of steps over which the rate rises linearly from zero
    decay           the last share of `steps`, over which the rate falls linearly to zero
    weight_decay    weight decay of AdamW, for matrices and kernels
    clip            the largest norm of the gradient
    accumulate      passes whose gradients make one step
    local_steps     1: several workers average their gradients at every step. More: they average their weights after this
                    many local steps
    ema             decay of the moving average of the weights
    seed            seed of the data and the noise
    precision       "fp32", or "bf16" for mixed precision
    save_seconds    time between two saves
    report_steps    steps between two reports
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    local_steps: int = 1
    ema: float = 0.999
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_seconds: float = 120.0
    report_steps: int = 50

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch < 1 or self.batch % self.accumulate:
            raise ConfigError(f"batch is {self.batch}; a multiple of accumulate = {self.accumulate} was expected")

    @property
    def rows(self) -> int:
        """Pictures in one pass; `accumulate` passes make a step."""
        return self.batch // self.accumulate

    def loop(self) -> LoopConfig:
        from rdm.train import LoopConfig

        values = {name: getattr(self, name) for name in LoopConfig.__dataclass_fields__}
        return LoopConfig(**values)


@dataclass(frozen=True)
class EncoderConfig:
    """A contrastive encoder. `model` is an open_clip model config (embed_dim, vision_cfg, text_cfg).

    both            share of the captions that name content and style
    style_only      share of the captions that only name the style; all others name the content
    tags            share of the content texts that are the picture's tags instead of its caption
    gap             weight of the squared distance between the mean picture vector and the mean text vector
    """

    model: Mapping[str, object]
    train: Steps
    both: float = 0.25
    style_only: float = 0.1
    tags: float = 0.15
    gap: float = 1.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """A KL autoencoder: arguments of diffusers' AutoencoderKL, trained on crops of `crop` pixels (0: whole pictures).

    patches     set the encoder to the principal components of patches (rdm/patches.py) and train only the decoder. The
                latents are then final from the first save on, so that the denoiser can train at the same time
    noise       with `patches`, the standard deviation of the noise that is added to latents of standard deviation 1
    crop        pixels a side of the crops; 0: whole pictures
    kl          weight of the KL divergence of the latents
    perceptual  weight of the distance between early activations of the trained encoder
    texture     weight of the distance between the covariances of these activations, which preserves grain
    """

    model: Mapping[str, object]
    train: Steps
    patches: bool = False
    noise: float = 0.15
    crop: int = 0
    kl: float = 1e-4
    perceptual: float = 0.0
    texture: float = 0.0


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoiser: arguments of diffusers' UNet2DConditionModel, and how it is conditioned in training.

    name            name of the model
    base            name or description of a published model, whose sizes replace `model`; or the folder of a saved
                    model, whose weights are trained further
    first_stage     folder or Hub id of a first stage or a saved model; empty: the run's own, else that of a saved `base`
    encoder         name of the encoder, if the run does not train one
    neighbours      the largest number of neighbours of a picture
    counts          numbers of neighbours; each batch draws one of them with equal chance
    p_own_style     share of the batches whose neighbours come from the picture's own style, as after a swap of the
                    database; with 0 they come from all pictures, as in the paper
    p_null          share of the pictures whose whole context is dropped, for guidance
    p_text          share of the batches whose first token is the caption's vector; with 0 there is no text, as in the paper
    checkpointing   compute activations again in the backward pass: much less memory, a third more arithmetic
    sharding        several workers: "ddp", the whole denoiser on each; "fsdp", weights, gradients and optimizer spread over all
    lora            rank of the adapters that are trained beside the frozen weights of a saved `base`; 0 trains all weights
    distil_guidance smallest and largest guidance scale, such as [1, 6]: a copy of a saved `base` is trained to give its guided
                    output in one pass (rdm/distillation.py), which nearly halves the time of a picture; empty: no distillation
    snr_limit       limit of the min-SNR weight of the loss; 0 gives all times the same weight. For a denoiser that predicts
                    noise; others are trained on the error of v
    default_k       default number of neighbours of the trained model
    default_guidance    default guidance scale of the trained model
    """

    name: str
    train: Steps
    model: Mapping[str, object] = field(default_factory=dict)
    base: str = ""
    first_stage: str = ""
    encoder: str = "mini"
    neighbours: int = 20
    counts: tuple[int, ...] = tuple(range(1, 21))
    p_own_style: float = 0.0
    p_null: float = 0.1
    p_text: float = 0.0
    snr_limit: float = 0.0
    checkpointing: bool = False
    sharding: Literal["ddp", "fsdp"] = "ddp"
    lora: int = 0
    distil_guidance: tuple[float, ...] = ()
    default_k: int = 8
    default_guidance: float = 2.0

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.base):
            raise ConfigError('[rdm] needs either a table [rdm.model] or base = "rdm-768", and not both')
        if not self.counts or not 1 <= min(self.counts) <= max(self.counts) <= self.neighbours:
            raise ConfigError(
                f"[rdm] counts is {list(self.counts)}; numbers in 1..{self.neighbours} (neighbours) were expected"
            )
        if self.lora < 0:
            raise ConfigError(f"[rdm] lora is {self.lora}; a rank such as 16, or 0 for all weights, was expected")
        if self.distil_guidance and len(self.distil_guidance) != 2:
            raise ConfigError(
                f"[rdm] distil_guidance is {list(self.distil_guidance)}; the smallest and the largest scale were expected, "
                "such as [1, 6]"
            )
        if self.distil_guidance and (self.lora or self.snr_limit or self.p_null):
            raise ConfigError(
                "[rdm] distil_guidance copies what the base does at every time and scale: set lora, snr_limit and p_null to 0"
            )
        if self.sharding == "fsdp" and (self.lora or self.train.local_steps > 1):
            raise ConfigError('[rdm] sharding = "fsdp" takes neither lora nor local_steps: remove them, or use "ddp"')


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. Paths are relative to the current directory.

    run             the run's folder
    threads         torch threads; 0: torch's default
    device          auto, cpu or cuda
    track           where reports go beside curve.csv: "tensorboard" (event files in <part>/tensorboard), "wandb", "mlflow"
    """

    run: str
    data: DataConfig
    encoder: EncoderConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    rdm: DenoiserConfig | None = None
    threads: int = 0
    device: str = "auto"
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    def folder(self) -> Path:
        return Path(self.run)


#: Keys of a recipe that the first release did not have. With these values they are left out, so that old recipes do not change.
_ADDED: Mapping[str, Mapping[str, object]] = {
    "train": {"accumulate": 1},
    "data": {"where": "", "content": list(CONTENT_COLUMNS), "prepared": ""},
    "part": {"first_stage": "", "checkpointing": False, "sharding": "ddp", "lora": 0, "distil_guidance": []},
}

#: Keys of a part that a resumed run must not change, because its weights depend on them.
_FIXED = ("model", "base", "first_stage", "encoder", "patches", "lora", "distil_guidance")


def recipe(config: TrainConfig, part: Part) -> dict[str, dict[str, object]]:
    """The recipe of a part as plain JSON: the tables [data] and [<part>]."""
    made: dict[str, dict[str, object]] = json.loads(canonical_json({"data": config.data, part: getattr(config, part)}))
    train = made[part]["train"]
    assert isinstance(train, dict)
    for table, added in ((made["data"], _ADDED["data"]), (made[part], _ADDED["part"]), (train, _ADDED["train"])):
        for key, value in added.items():
            if key in table and table[key] == value:
                del table[key]
    return made


def check_resumed(
    before: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]], part: Part
) -> None:
    """Raise ConfigError if a recipe does not fit the weights that an earlier form of it produced."""
    pairs = [(f"[{part}] {key}", before[part].get(key), now[part].get(key)) for key in _FIXED]
    pairs.append(("[data] size", before["data"].get("size"), now["data"].get("size")))
    for name, old, new in pairs:
        if old != new:
            raise ConfigError(
                f"{name} is {json.dumps(new)}, but this run was trained with {json.dumps(old)}: restore it, or name another "
                "folder in `run`"
            )


def with_base(config: TrainConfig, folder: str) -> TrainConfig:
    """The run with the weights of the model in `folder` to start from."""
    if config.rdm is None:
        raise ConfigError("the run's TOML has no table [rdm]: add it, or leave --base out")
    return replace(config, rdm=replace(config.rdm, base=folder, model={}))


def read_train_config(path: Path) -> TrainConfig:
    """The run that a TOML file describes. Raises ConfigError with the name of a wrong key."""
    return from_mapping(TrainConfig, read_toml(path), path.name)
