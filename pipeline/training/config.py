"""The TOML file of a training run, as frozen dataclasses. Reads that file; writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import from_mapping, read_toml
from pipeline.errors import ConfigError
from pipeline.training.data import DataConfig

if TYPE_CHECKING:
    from rdm.train import LoopConfig

Part = Literal["encoder", "autoencoder", "rdm"]

PARTS: tuple[Part, ...] = ("encoder", "autoencoder", "rdm")


@dataclass(frozen=True)
class Steps:
    """rdm.train.LoopConfig, as a table of the TOML file; see there."""

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    local_steps: int = 1
    ema: float = 0.999
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_seconds: float = 120.0
    report_steps: int = 50

    def loop(self) -> LoopConfig:
        from rdm.train import LoopConfig

        values = {name: getattr(self, name) for name in LoopConfig.__dataclass_fields__}
        return LoopConfig(**values)


@dataclass(frozen=True)
class EncoderConfig:
    """A contrastive encoder. `model` is an open_clip model config (embed_dim, vision_cfg, text_cfg).

    both, style_only    share of the captions that name content and style, and the style alone; the rest name the content
    tags                share of the content texts that are taken from the picture's tags in place of its caption
    gap                 weight of the squared distance between the mean picture vector and the mean text vector
    """

    model: Mapping[str, Any]
    train: Steps
    both: float = 0.25
    style_only: float = 0.1
    tags: float = 0.15
    gap: float = 1.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """A KL autoencoder: arguments of diffusers' AutoencoderKL, trained on crops of `crop` pixels (0: whole pictures).

    patches     make the encoder's half the principal components of the patches (rdm/patches.py) and train the decoder
                alone: latents are final from the first save on, so that the denoiser can train at the same time
    noise       the latents' spread then, of an overall deviation of 1: what the decoder learns to bear
    perceptual, texture     weights of the distance between the trained encoder's early activations, and between their
                covariances: grain in place of blur
    """

    model: Mapping[str, Any]
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

    base            a published model's name or description, whose networks and numbers are taken in place of `model`
    neighbours      most neighbours a picture is trained with; each batch draws how many from `counts`
    counts          numbers of neighbours to draw from, with equal chance
    p_own_style     share of the batches whose neighbours are sought in the picture's own style alone, as in a database that
                    was swapped in; 0 seeks among all pictures, as the paper does
    p_null          share of the pictures whose whole context is dropped, for guidance
    p_text          share of the batches whose first token is the caption's vector; 0 trains on pictures alone, as the
                    paper does
    snr_limit       min-SNR weighting of the loss; 0 weighs all times alike
    """

    name: str
    train: Steps
    model: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    encoder: str = "mini"
    neighbours: int = 20
    counts: tuple[int, ...] = tuple(range(1, 21))
    p_own_style: float = 0.0
    p_null: float = 0.1
    p_text: float = 0.0
    snr_limit: float = 0.0
    default_k: int = 8
    default_guidance: float = 2.0

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.base):
            raise ConfigError('[rdm] wants the denoiser\'s sizes: either a table [rdm.model] or base = "rdm-768"')
        if not self.counts or not 1 <= min(self.counts) <= max(self.counts) <= self.neighbours:
            raise ConfigError(f"[rdm] counts = {list(self.counts)}: they must lie in 1..{self.neighbours} (neighbours)")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: `run` is its folder. Paths are relative to the current directory."""

    run: str
    data: DataConfig
    encoder: EncoderConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    rdm: DenoiserConfig | None = None
    threads: int = 0
    device: str = "auto"

    def folder(self) -> Path:
        return Path(self.run)


def read_train_config(path: Path) -> TrainConfig:
    """The run that a TOML file describes. Raises ConfigError naming the key."""
    return from_mapping(TrainConfig, read_toml(path), path.name)
