"""Loading of the original release's checkpoint: strict, with its tensors put into diffusers' networks.

Reads one CompVis/Lightning `model.ckpt`. Writes nothing. All weights of the denoiser and the first stage must be present
with the right shape. Other entries that such files are known to hold are counted in the report; an unknown entry is an
error that names it. The moving averages (EMA) are used if the file has them, as in the original's inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.compvis import DENOISER, EMA, FIRST_STAGE, ema_key, first_stage_key, unet_key
from rdm.config import RDMConfig
from rdm.errors import CheckpointError, some
from rdm.pickles import load_tensors

_SCHEDULE = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
})  # fmt: skip
_KNOWN_PREFIXES = {
    "loss.": "training loss",
    FIRST_STAGE + "loss.": "training loss",
    "cond_stage_model.": "conditioning encoder",
}
_KNOWN_TOP = ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "callbacks", "optimizer_states",
              "lr_schedulers", "loops", "hparams_name", "hyper_parameters", "hparams", "native_amp_scaling_state",
              "amp_scaling_state", "NativeMixedPrecisionPlugin", "MixedPrecisionPlugin", "MixedPrecision",
              "datamodule_hyper_parameters", "datamodule_hparams_name", "hparams_type",
              "datamodule_hparams_type", "_use_ema", "checkpoint_callback_best_model_path",
              "checkpoint_callback_best_model_score")  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """The result of loading: `weights` is "ema", "live" or "saved"; `ignored` counts the known entries that were not used."""

    source: str
    weights: str
    loaded: int
    ignored: Mapping[str, int]

    def __str__(self) -> str:
        left = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items())) or "nothing"
        return f"{self.source}: {self.loaded} tensors loaded ({self.weights} weights); left aside: {left}"


@dataclass(frozen=True)
class Entry:
    """One weight: its name and shape in the original's checkpoint and in diffusers' network."""

    original: str
    name: str
    original_shape: tuple[int, ...]
    shape: tuple[int, ...]


def denoiser_entries(unet: nn.Module, config: RDMConfig) -> list[Entry]:
    """Every weight of the denoiser under both names. The networks may be on the meta device."""
    return [
        Entry(DENOISER + unet_key(name, config.unet), name, tuple(value.shape), tuple(value.shape))
        for name, value in unet.state_dict().items()
    ]


def first_stage_entries(first_stage: nn.Module, config: RDMConfig) -> list[Entry]:
    """Every weight of the first stage under both names. The original stores the matrices of attention as 1x1 convolutions."""
    entries = []
    for name, value in first_stage.state_dict().items():
        shape = tuple(value.shape)
        projection = ".attentions." in name and len(shape) == 2
        original = FIRST_STAGE + first_stage_key(name, config.first_stage)
        entries.append(Entry(original, name, (*shape, 1, 1) if projection else shape, shape))
    return entries


def load_compvis(
    path: str | Path, config: RDMConfig, unet: nn.Module, first_stage: nn.Module, *, dtype: torch.dtype | None
) -> LoadReport:
    """Put the checkpoint's weights into networks that were built on the meta device.

    A tensor that already has `dtype` (None: any) becomes the parameter, as a view of the mapped file. Others are converted one
    by one, so that at most one copy is held. Raises CheckpointError with the names of missing, misshapen and unknown keys.
    """
    content = load_tensors(path)
    state: object = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: state_dict is a {type(state).__name__}; a dict of tensors was expected")
    if strange := [repr(key) for key in state if not isinstance(key, str)]:
        raise CheckpointError(f"{path}: {len(strange)} names of weights are not strings: {some(strange)}")
    ignored: dict[str, int] = {}
    if state is not content:
        if unknown := [str(key) for key in content if key not in _KNOWN_TOP]:
            raise CheckpointError(f"{path}: unknown entries beside state_dict: {some(unknown)}")
        if optimizers := content.get("optimizer_states"):
            ignored["optimizer state"] = len(optimizers) if isinstance(optimizers, list | tuple | dict) else 1
    denoiser = denoiser_entries(unet, config)
    autoencoder = first_stage_entries(first_stage, config)
    averaged = any(key.startswith(EMA) and key not in (EMA + "decay", EMA + "num_updates") for key in state)
    if averaged:
        ignored["live weights"] = sum(key.startswith(DENOISER) for key in state)
        wanted = [Entry(ema_key(e.original), e.name, e.original_shape, e.shape) for e in denoiser]
    else:
        wanted = denoiser
    _sort_out(path, state, config, {e.original for e in (*denoiser, *wanted, *autoencoder)}, ignored)
    _check(path, state, [*wanted, *autoencoder])
    fill(unet, {e.name: state[e.original].reshape(e.shape) for e in wanted}, dtype)
    fill(first_stage, {e.name: state[e.original].reshape(e.shape) for e in autoencoder}, dtype)
    return LoadReport(str(path), "ema" if averaged else "live", len(wanted) + len(autoencoder),
                      {kind: count for kind, count in ignored.items() if count})  # fmt: skip


def _sort_out(
    path: str | Path, state: Mapping[str, object], config: RDMConfig, known: set[str], ignored: dict[str, int]
) -> None:
    unknown = []
    for key, value in state.items():
        kind = next((kind for prefix, kind in _KNOWN_PREFIXES.items() if key.startswith(prefix)), None)
        if key in known:
            continue
        if key in _SCHEDULE:
            kind = "schedule buffers"
        elif key in (EMA + "decay", EMA + "num_updates"):
            kind = "EMA counters"
        elif key == "unconditional_guidance_vex":
            kind = "unused learned null vector"
        elif key == "scale_factor":
            kind = "scale factor"
            if isinstance(value, Tensor) and value.numel() != 1:
                raise CheckpointError(f"{path}: scale_factor has shape {tuple(value.shape)}; one number was expected")
            if isinstance(value, Tensor) and abs(float(value) - config.scale_factor) > 1e-6 * config.scale_factor:
                raise CheckpointError(
                    f"{path} was trained with scale_factor {float(value):.8g}, but the description of {config.name} has "
                    f"{config.scale_factor:.8g}: correct the description"
                )
        if kind is None:
            unknown.append(key)
        else:
            ignored[kind] = ignored.get(kind, 0) + 1
    if unknown:
        raise CheckpointError(
            f"{path} holds {len(unknown)} keys that {config.name} does not have: {some(unknown)}. "
            "The checkpoint is of another model, or the description is wrong"
        )


def _check(path: str | Path, state: Mapping[str, object], wanted: list[Entry]) -> None:
    missing = [entry.original for entry in wanted if entry.original not in state]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} of {len(wanted)} weights: {some(missing)}")
    wrong = []
    for entry in wanted:
        value = state[entry.original]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            wrong.append(f"{entry.original} is not a tensor of floats")
        elif tuple(value.shape) not in (entry.original_shape, entry.shape):
            wrong.append(f"{entry.original} has shape {tuple(value.shape)}, not {entry.original_shape}")
    if wrong:
        raise CheckpointError(f"{path} does not fit the description ({len(wrong)} weights): {some(wrong, 3)}")


def fill(network: nn.Module, state: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Make the tensors of `state` the parameters of a network on the meta device. `state` is emptied in the process."""
    converted = {}
    for name in list(state):
        value = state.pop(name)
        converted[name] = value.to(dtype or value.dtype).contiguous()
    network.load_state_dict(converted, strict=True, assign=True)
