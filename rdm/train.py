"""The training loop: one network, one loss, and a saved state from which a killed run resumes.

Reads and writes in the given folder: `state.pt` (weights, moving average, optimizer, step; tensors and plain values
only, read without unpickling objects) and `curve.csv`. Workers that save together write `state/` instead (rdm/sharded.py);
any number of workers resumes from either. The data of a step are a function of (seed, step). A run that was killed and resumed
therefore equals an uninterrupted run, to the last bit on the same machine with the same number of threads; only the work after
the last save is repeated. A state with non-finite values is never saved. The loop knows nothing of pictures, databases and
processes: a loss closes over its data, and a `Team` says how several workers train one network.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from rdm.errors import CheckpointError, DivergedError, RequestError
from rdm.live import Average, Live, State

Loss = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]
Agree = Callable[[Sequence[Tensor]], None]
OnSave = Callable[[int, nn.Module, Mapping[str, Tensor]], None]
STATE, CURVE = "state.pt", "curve.csv"


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


class Store(Protocol):
    """Where the state of a run is saved."""

    def due(self, wanted: bool, reported: bool) -> bool:
        """Whether to save after this step. `wanted`: a save is due on this worker; `reported`: the step ended a report."""
        ...

    def save(self, step: int, live: Live) -> None: ...

    def whole(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights in one piece, on the worker that writes."""
        ...

    def kept(self) -> str:
        """The state from which a run can continue, as a clause; empty if nothing was saved."""
        ...

    def close(self) -> None:
        """Return when the last save is complete."""
        ...


@dataclass(frozen=True)
class Team:
    """How several workers train one network. The default is one worker.

    mean        replaces tensors by their mean over all workers
    exchange    where gradients are exchanged in the backward pass: the context of a pass, made with whether it is the last of
                its step. None: `mean` makes the mean gradient after the last pass
    store       None: `state.pt`, written by the worker that writes
    writes      whether this worker writes the curve and calls on_save; True on one worker
    """

    mean: Agree | None = None
    exchange: Callable[[bool], AbstractContextManager[object]] | None = None
    store: Store | None = None
    writes: bool = True


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
    team: Team = Team(),
    on_report: Callable[[Report], None] | None = None,
    on_save: OnSave | None = None,
) -> dict[str, Tensor]:
    """Train `network` in place on `loss(index, generator) -> (scalar, values to report)`. Returns the averaged weights.

    index       counts the passes from 0; it is the step if `accumulate` is 1
    team        how several workers train together
    on_report   called on the worker that writes
    on_save     called on the worker that writes, with the step, the network and the averaged weights after each save

    Raises CheckpointError for a state that does not fit the network, DivergedError for a loss or gradient that is not
    finite; the last save is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    live = Live(network, make_optimizer(network, config), Average(network, config.ema))
    start = load_state(folder, live) if resume else 0
    store = team.store or FileStore(folder, team.writes)
    if team.writes:
        _trim_curve(folder / CURVE, start)
    network.train()
    ledger = _Ledger(config, store, start, team.mean)
    saved = time.monotonic()
    for step in range(start, config.steps):
        ledger.add(step, _step(live, loss, config, step, team))
        live.smooth.update(network, step)
        last = step + 1 == config.steps
        reported = last or (step + 1) % config.report_steps == 0
        if reported:
            report = ledger.report(step)
            if team.writes:
                extend_curve(folder / CURVE, report)
                if on_report is not None:
                    on_report(report)
        if store.due(last or time.monotonic() - saved > config.save_seconds, reported):
            ledger.check()
            store.save(step + 1, live)
            weights = store.whole(live.smooth.shadow)
            if team.writes and on_save is not None:
                on_save(step + 1, network, weights)
                network.train()
            saved = time.monotonic()
    store.close()
    return live.smooth.shadow


def _step(live: Live, loss: Loss, config: LoopConfig, step: int, team: Team) -> dict[str, Tensor]:
    """One step of the optimizer. Returns the values to report: the loss, the norm of the gradient, and those of the loss
    function."""
    parameters = [p for p in live.network.parameters() if p.requires_grad]
    for group in live.optimizer.param_groups:
        group["lr"] = config.rate(step)
    live.optimizer.zero_grad(set_to_none=True)
    generator = draw(config.seed, step)
    values: dict[str, Tensor] = {}
    passes = range(step * config.accumulate, (step + 1) * config.accumulate)
    for index in passes:
        with team.exchange(index == passes[-1]) if team.exchange is not None else nullcontext():
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                value, extra = loss(index, generator)
            part = value if config.accumulate == 1 else value / config.accumulate
            part.backward()  # type: ignore[no-untyped-call]
        for name, found in {"loss": value, **extra}.items():
            share = found.detach() if config.accumulate == 1 else found.detach() / config.accumulate
            values[name] = values[name] + share if name in values else share
    averages = team.mean is not None and team.exchange is None
    if averages and team.mean is not None and config.local_steps == 1:
        team.mean([p.grad for p in parameters if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(parameters, config.clip).detach()
    if hasattr(norm, "full_tensor"):  # if parameters are spread over the workers
        norm = norm.full_tensor()
    live.optimizer.step()
    if averages and team.mean is not None and config.local_steps > 1 and (step + 1) % config.local_steps == 0:
        team.mean([p.data for p in parameters])
    return {"loss": values.pop("loss"), "gradient": norm, **values}


@dataclass
class _Ledger:
    """The sums since the last report, and the first step whose loss or gradient was not finite.

    Both stay on the network's device until a report or a save asks, so that a GPU does not wait at every step.
    """

    config: LoopConfig
    store: Store
    start: int
    mean: Agree | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    bad: Tensor | None = None  # the first bad step, counted from 1; 0 for none

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
        kept = self.store.kept()
        again = f"{kept}: continue with --resume and" if kept else "nothing was saved before it: start again with"
        raise DivergedError(
            f"the loss or its gradient is not finite at step {bad} of {self.config.steps}; {again} a smaller learning_rate "
            f"than {self.config.learning_rate:g}"
        )

    def report(self, step: int) -> Report:
        """The means since the last report, over all workers. Raises DivergedError."""
        self.check()
        count = min(step % self.config.report_steps, step - self.start) + 1
        if self.mean is not None:
            device = self.sums["loss"].device
            totals = torch.stack([total.detach().to(device, torch.float32) for total in self.sums.values()])
            self.mean([totals])
            self.sums = dict(zip(self.sums, totals, strict=True))
        means = {name: float(total) / count for name, total in self.sums.items()}
        now = time.monotonic()
        report = Report(step + 1, self.config.steps, count, means, self.config.rate(step), now - self.began)
        self.began, self.sums = now, {}
        return report


def make_optimizer(network: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW, with weight decay only for matrices and kernels."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    every = (*decayed, *plain)
    kernel: dict[str, bool] = {}
    if all(p.is_cuda for p in every):
        kernel = {"fused": True}  # one kernel instead of a dozen
    elif not any(hasattr(p, "full_tensor") for p in every):  # planning a list of spread tensors takes torch minutes
        kernel = {"foreach": True}
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), **kernel)


@dataclass(frozen=True)
class FileStore:
    """The state as one file, written by one worker."""

    folder: Path
    writes: bool = True

    def due(self, wanted: bool, reported: bool) -> bool:
        return wanted and self.writes

    def save(self, step: int, live: Live) -> None:
        part = self.folder / f"{STATE}.part"
        state: State = {
            "step": step,
            "network": live.network.state_dict(),
            "average": live.smooth.shadow,
            "optimizer": live.optimizer.state_dict(),
        }
        torch.save(state, part)
        part.replace(self.folder / STATE)

    def whole(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weights

    def kept(self) -> str:
        return describe_state(self.folder)

    def close(self) -> None:
        """Nothing to do: `save` returns when the file is complete."""


def has_state(folder: Path) -> bool:
    """Whether a run can be resumed from this folder."""
    from rdm.sharded import saved_states

    return (folder / STATE).exists() or bool(saved_states(folder))


def newest_state(folder: Path) -> Path | None:
    """The newest state in a folder: state.pt, or the folder of one that several workers saved."""
    from rdm.sharded import saved_states

    whole, shared = folder / STATE, saved_states(folder)
    if not shared:
        return whole if whole.exists() else None
    return whole if whole.exists() and _step_of(whole) >= _step_of(shared[-1]) else shared[-1]


def describe_state(folder: Path) -> str:
    """ "FILE holds step N" of the newest state in a folder; empty where there is none."""
    path = newest_state(folder)
    return "" if path is None else f"{path} holds step {_step_of(path)}"


def load_state(folder: Path, live: Live) -> int:
    """Load the newest state of a folder, by any number of workers. Returns its step; 0 if there is none.

    Raises CheckpointError for a state of another network.
    """
    from rdm import sharded

    path = newest_state(folder)
    if path is None:
        return 0
    try:
        if path.name != STATE:
            sharded.load(path, live)
            return _step_of(path)
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        if sharded.is_spread(live.network):
            sharded.load_whole(state, live)
        else:
            live.network.load_state_dict(state["network"])
            live.optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                for name, value in live.smooth.shadow.items():
                    value.copy_(state["average"][name])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path} does not fit this network: {error}. It was written with another recipe: restore that recipe, or name "
            "another folder in `run`"
        ) from error
    return state["step"]


def _step_of(path: Path) -> int:
    """The step of a state. The tensors of a state.pt are not read."""
    if path.name != STATE:
        return int(path.name)
    try:
        return int(torch.load(path, map_location="meta", weights_only=True, mmap=True)["step"])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}. Name another folder in `run`") from error


def read_average(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and the averaged weights of the last save. Raises CheckpointError if there is none."""
    from rdm.sharded import read_part

    path = newest_state(folder)
    if path is None:
        raise CheckpointError(f"{folder / STATE} is missing: train this part first")
    if path.name != STATE:
        return _step_of(path), read_part(path, "average")
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


def extend_curve(path: Path, report: Report) -> None:
    """Add a report to a curve.csv."""
    row = {"step": float(report.step), **report.values, "rate": report.rate, "seconds": report.seconds}
    _write_curve(path, [*read_curve(path), row])
