"""The training loop: one network, one loss, a state that survives a kill.

Reads and writes two files in the folder it is given: `state.pt` (weights, moving average, optimizer, step; tensors and
plain values alone, read without unpickling objects) and `curve.csv`. What a step sees is a function of (seed, step), so a
run that was killed and resumed gives the run that was not, to the last bit on the same machine and thread count; only
what came after the last save is done again. Does not know pictures, databases or workers: a loss closes over its data,
and `average` is how several workers agree on a gradient.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdm.errors import CheckpointError, RequestError

Loss = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
STATE, CURVE = "state.pt", "curve.csv"


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    warmup, decay   steps over which the rate rises from zero, and the last share of `steps` over which it falls to zero
                    again, linearly; between them it is constant, so that a run can be made longer later
    clip            largest norm of the gradient
    local_steps     several workers average their gradients at every step (1), or their weights after so many steps of
                    their own (arXiv 1805.09767), where meeting at every step costs more than the step
    ema             decay of the moving average of the weights, approached over the first steps
    precision       "fp32", or "bf16" for mixed precision on a GPU
    save_seconds    how much work a kill may cost
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    local_steps: int = 1
    ema: float = 0.999
    seed: int = 0
    precision: str = "fp32"
    save_seconds: float = 120.0
    report_steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            raise RequestError("a run wants steps >= 1, warmup >= 0, decay in 0..1 and ema in 0..1")
        if self.precision not in ("fp32", "bf16"):
            raise RequestError(f"precision is {self.precision!r}; it must be 'fp32' or 'bf16'")

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / (self.decay * self.steps)) if self.decay else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class Report:
    """Means over the `count` steps since the last report. seconds is the time they took."""

    step: int
    steps: int
    count: int
    values: Mapping[str, float]
    rate: float
    seconds: float


class Average:
    """The exponential moving average of a network's parameters (buffers are taken as they are)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        live = {name: value.detach() for name, value in network.state_dict().items()}
        floats = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floats], [live[n] for n in floats], 1 - decay)
        for name in live.keys() - set(floats):
            self.shadow[name].copy_(live[name])


def draw(seed: int, step: int) -> torch.Generator:
    """The generator of one step: all that is random in a step comes from it."""
    return torch.Generator().manual_seed((seed << 32) + step)


def fit(
    network: nn.Module,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    *,
    resume: bool = False,
    average: Callable[[Sequence[Tensor]], None] | None = None,
    writes: bool = True,
    on_report: Callable[[Report], None] | None = None,
    on_save: Callable[[int, nn.Module, Mapping[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Train `network` in place on `loss(step, generator) -> (scalar, values to report)`; the averaged weights.

    average     makes tensors equal on all workers, their mean: called with the gradients of each backward pass, or with
                the parameters after every `local_steps`
    writes      False on all workers but one
    on_save     called with step, network and averaged weights after each save
    Raises CheckpointError for a state that is not this network's, FloatingPointError for a loss that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = _optimizer(network, config)
    smooth = Average(network, config.ema)
    start = _load(folder, network, optimizer, smooth) if resume and (folder / STATE).exists() else 0
    if writes:
        _trim_curve(folder / CURVE, start)
    network.train()
    sums: dict[str, Tensor] = {}
    began = saved = time.monotonic()
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value, extra = loss(step, draw(config.seed, step))
        value.backward()  # type: ignore[no-untyped-call]
        if average is not None and config.local_steps == 1:
            average([p.grad for p in parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        if average is not None and config.local_steps > 1 and (step + 1) % config.local_steps == 0:
            average([p.data for p in parameters])
        smooth.update(network, step)
        for name, part in {"loss": value, "gradient": norm, **extra}.items():
            sums[name] = sums.get(name, 0) + part.detach()
        last = step + 1 == config.steps
        if last or (step + 1) % config.report_steps == 0:
            count = min(step % config.report_steps, step - start) + 1
            means = {name: float(total) / count for name, total in sums.items()}
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(
                    f"the loss is {means['loss']} at step {step + 1}: resume from the last save with a smaller rate"
                )
            now = time.monotonic()
            report = Report(step + 1, config.steps, count, means, config.rate(step), now - began)
            began, sums = now, {}
            if writes:
                _extend_curve(folder / CURVE, report)
            if on_report is not None:
                on_report(report)
        if writes and (last or time.monotonic() - saved > config.save_seconds):
            _save(folder, step + 1, network, optimizer, smooth)
            if on_save is not None:
                on_save(step + 1, network, smooth.shadow)
                network.train()
            saved = time.monotonic()
    return smooth.shadow


def _optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), foreach=True)


def _save(folder: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, smooth: Average) -> None:
    part = folder / f"{STATE}.part"
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": smooth.shadow,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, part)
    part.replace(folder / STATE)


def _load(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, smooth: Average) -> int:
    path = folder / STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, value in smooth.shadow.items():
                value.copy_(state["average"][name])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a state of this network: {error}; start without --resume") from error
    return int(state["step"])


def read_average(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Step and averaged weights of the last save. Raises CheckpointError."""
    path = folder / STATE
    if not path.exists():
        raise CheckpointError(f"{path} is missing: train this part first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return int(state["step"]), state["average"]


def read_curve(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]


def _write_curve(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".part")
    with part.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def _trim_curve(path: Path, start: int) -> None:
    _write_curve(path, [row for row in read_curve(path) if row["step"] <= start])


def _extend_curve(path: Path, report: Report) -> None:
    row = {"step": float(report.step), **report.values, "rate": report.rate, "seconds": report.seconds}
    _write_curve(path, [*read_curve(path), row])
