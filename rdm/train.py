"""The training loop: one network, one loss, and a saved state from which a killed run resumes.

Reads and writes two files in the given folder: `state.pt` (weights, moving average, optimizer, step; tensors and plain
values only, read without unpickling objects) and `curve.csv`. The data of a step are a function of (seed, step). A run that
was killed and resumed therefore equals an uninterrupted run, to the last bit on the same machine with the same number of
threads; only the work after the last save is repeated. A state with non-finite values is never saved. The loop
is independent of pictures, databases and workers: a loss closes over its data, and `average` averages the gradients of workers.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from rdm.errors import CheckpointError, DivergedError, RequestError

Loss = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
Agree = Callable[[Sequence[Tensor]], None]
OnSave = Callable[[int, nn.Module, Mapping[str, Tensor]], None]
STATE, CURVE = "state.pt", "curve.csv"


class State(TypedDict):
    """The content of state.pt. `step` is the number of finished steps."""

    step: int
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, object]


@dataclass(frozen=True)
class LoopConfig:
    """The length and the speed of a training run.

    warmup, decay   the steps over which the rate rises linearly from zero, and the last share of `steps` over which it falls
                    linearly to zero. Between them it is constant, so that a run can be made longer later
    clip            the largest norm of the gradient
    accumulate      passes whose gradients make one step; each draws its own part of the batch
    local_steps     1: several workers average their gradients at every step. More: they average their weights after this
                    many local steps (arXiv 1805.09767), for clusters on which communication takes longer than a step
    ema             decay of the moving average of the weights; it rises to this value over the first steps
    precision       "fp32", or "bf16" for mixed precision
    save_seconds    time between two saves: the most work that a kill can lose
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.2
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    local_steps: int = 1
    ema: float = 0.999
    seed: int = 0
    precision: str = "fp32"
    save_seconds: float = 120.0
    report_steps: int = 50

    def __post_init__(self) -> None:
        if (
            self.steps < 1
            or self.warmup < 0
            or not 0 <= self.decay <= 1
            or not 0 <= self.ema < 1
            or self.accumulate < 1
        ):
            raise RequestError(
                f"steps = {self.steps}, warmup = {self.warmup}, decay = {self.decay}, ema = {self.ema}, accumulate = "
                f"{self.accumulate}: steps and accumulate must be at least 1, warmup at least 0, decay in 0..1, and ema at "
                "least 0 and below 1"
            )
        if self.precision not in ("fp32", "bf16"):
            raise RequestError(f"precision is {self.precision!r}; 'fp32' or 'bf16' was expected")

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / (self.decay * self.steps)) if self.decay else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class Report:
    """Means over the `count` steps since the last report, which took `seconds`."""

    step: int
    steps: int
    count: int
    values: Mapping[str, float]
    rate: float
    seconds: float


class Average:
    """The exponential moving average of a network's parameters. Buffers of whole numbers are copied."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = {name: value.detach() for name, value in network.state_dict().items()}
        floats = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in floats], [live[n] for n in floats], 1 - decay)
        for name in live.keys() - set(floats):
            self.shadow[name].copy_(live[name])


def draw(seed: int, step: int) -> torch.Generator:
    """The generator of a step: all random numbers of the step come from it."""
    return torch.Generator().manual_seed((seed << 32) + step)


def fit(
    network: nn.Module,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    *,
    resume: bool = False,
    average: Agree | None = None,
    writes: bool = True,
    on_report: Callable[[Report], None] | None = None,
    on_save: OnSave | None = None,
) -> dict[str, Tensor]:
    """Train `network` in place on `loss(index, generator) -> (scalar, values to report)`. Returns the averaged weights.

    index       counts the passes from 0; it is the step if `accumulate` is 1

    average     replaces tensors by their mean over all workers. It is called with the gradients of each step, or with the
                parameters after every `local_steps`
    writes      False on all workers but one
    on_save     called with the step, the network and the averaged weights after each save

    Raises CheckpointError for a state that does not fit the network, DivergedError for a loss or gradient that is not
    finite; the last save is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(network, config)
    smooth = Average(network, config.ema)
    start = _load(folder, network, optimizer, smooth) if resume and (folder / STATE).exists() else 0
    if writes:
        _trim_curve(folder / CURVE, start)
    network.train()
    ledger = _Ledger(config, folder, start)
    saved = time.monotonic()
    for step in range(start, config.steps):
        ledger.add(step, _step(network, loss, optimizer, config, step, average))
        smooth.update(network, step)
        last = step + 1 == config.steps
        if last or (step + 1) % config.report_steps == 0:
            report = ledger.report(step)
            if writes:
                _extend_curve(folder / CURVE, report)
            if on_report is not None:
                on_report(report)
        if writes and (last or time.monotonic() - saved > config.save_seconds):
            ledger.check()
            _save(folder, step + 1, network, optimizer, smooth)
            ledger.saved = step + 1
            if on_save is not None:
                on_save(step + 1, network, smooth.shadow)
                network.train()
            saved = time.monotonic()
    return smooth.shadow


def _step(
    network: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    step: int,
    average: Agree | None,
) -> dict[str, Tensor]:
    """One step of the optimizer. Returns the values to report: the loss, the norm of the gradient, and those of the loss
    function."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for group in optimizer.param_groups:
        group["lr"] = config.rate(step)
    optimizer.zero_grad(set_to_none=True)
    generator = draw(config.seed, step)
    values: dict[str, Tensor] = {}
    for index in range(step * config.accumulate, (step + 1) * config.accumulate):
        with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            value, extra = loss(index, generator)
        part = value if config.accumulate == 1 else value / config.accumulate
        part.backward()  # type: ignore[no-untyped-call]
        for name, found in {"loss": value, **extra}.items():
            share = found.detach() if config.accumulate == 1 else found.detach() / config.accumulate
            values[name] = values[name] + share if name in values else share
    if average is not None and config.local_steps == 1:
        average([p.grad for p in parameters if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(parameters, config.clip)
    optimizer.step()
    if average is not None and config.local_steps > 1 and (step + 1) % config.local_steps == 0:
        average([p.data for p in parameters])
    return {"loss": values.pop("loss"), "gradient": norm.detach(), **values}


@dataclass
class _Ledger:
    """The sums since the last report, and the first step whose loss or gradient was not finite.

    Both stay on the network's device until a report or a save asks, so that a GPU does not wait at every step.
    """

    config: LoopConfig
    folder: Path
    start: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    bad: Tensor | None = None  # the first bad step, counted from 1; 0 for none

    def __post_init__(self) -> None:
        self.saved = self.start

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        fine = torch.isfinite(values["loss"]) & torch.isfinite(values["gradient"])
        seen = torch.zeros((), dtype=torch.long, device=fine.device) if self.bad is None else self.bad
        self.bad = torch.where((seen == 0) & ~fine, step + 1, seen)

    def check(self) -> None:
        """Raise DivergedError if a step since the start was not finite."""
        if self.bad is None or not (bad := int(self.bad)):
            return
        kept = f"{self.folder / STATE} holds step {self.saved}" if self.saved else "nothing was saved before it"
        again = "continue with --resume and" if self.saved else "start again with"
        raise DivergedError(
            f"the loss or its gradient is not finite at step {bad} of {self.config.steps}; {kept}: {again} a smaller "
            f"learning_rate than {self.config.learning_rate:g}"
        )

    def report(self, step: int) -> Report:
        """The means since the last report. Raises DivergedError."""
        self.check()
        count = min(step % self.config.report_steps, step - self.start) + 1
        means = {name: float(total) / count for name, total in self.sums.items()}
        now = time.monotonic()
        report = Report(step + 1, self.config.steps, count, means, self.config.rate(step), now - self.began)
        self.began, self.sums = now, {}
        return report


def _optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), foreach=True)


def _save(folder: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, smooth: Average) -> None:
    part = folder / f"{STATE}.part"
    state: State = {
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
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, value in smooth.shadow.items():
                value.copy_(state["average"][name])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path} does not fit this network: {error}. It was written with another recipe: restore that recipe, or name "
            "another folder in `run`"
        ) from error
    return state["step"]


def read_average(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and the averaged weights of the last save. Raises CheckpointError if there is none."""
    path = folder / STATE
    if not path.exists():
        raise CheckpointError(f"{path} is missing: train this part first")
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state["step"], state["average"]


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve.csv: `step`, means, `rate` and `seconds` by name. An empty list if there is no file."""
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
