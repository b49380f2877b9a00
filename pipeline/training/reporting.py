"""Reports of a training run: one line each, and the trackers that the run names.

A report has the means of the loss's values over its steps, pictures a second, the share of time that the workers waited for
data, and the share of the peak rate of their devices. Writes through pipeline/training/tracking.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.execution import Progress
    from pipeline.training.tracking import Tracker
    from rdm.train import Report
    from rdm.untyped import UNet

WAIT = "wait"  # the name of the reported value: the seconds that a pass waited for its data


@dataclass(frozen=True)
class Work:
    """The arithmetic of training: operations of one picture, forward and backward, and the peak rate of all devices per second.

    Operations that `checkpointing` repeats are not counted.
    """

    flops: float
    peak: float

    def share(self, pictures: float) -> float:
        """The share of the peak rate that this many pictures a second use."""
        return self.flops * pictures / self.peak


def figures_of(report: Report, rows: int, work: Work | None = None) -> dict[str, float]:
    """The numbers of a report; a step has `rows` pictures."""
    values = dict(report.values)
    waited = values.pop(WAIT, None)
    speed = rows * report.count / report.seconds
    made = {**values, "rate": report.rate, "pictures/s": speed}
    if waited is not None:
        made["waiting"] = waited * report.count / report.seconds
    if work is not None:
        made["of peak"] = work.share(speed)
    return made


def line_of(part: str, report: Report, figures: Mapping[str, float]) -> str:
    """A report as one line for people."""
    values = [f"{name} {figures[name]:.4g}" for name in report.values if name in figures]
    values.append(f"{figures['pictures/s']:.3g} pictures/s")
    if "waiting" in figures:
        values.append(f"{figures['waiting']:.0%} of the time waiting for data")
    if "of peak" in figures:
        values.append(f"{figures['of peak']:.0%} of peak")
    return f"{part}: step {report.step}/{report.steps}, " + ", ".join(values)


def say_report(progress: Progress, part: str, rows: int) -> Callable[[Report], None]:
    """A callback that prints a report as one line; a step has `rows` pictures."""
    return Reporter(progress, part, rows).report


class Reporter:
    """Passes measurements to the progress display and the trackers of a part. Close it after use."""

    def __init__(
        self, progress: Progress, part: str, rows: int, trackers: Sequence[Tracker] = (), work: Work | None = None
    ) -> None:
        self._progress, self._part, self._rows, self._trackers = progress, part, rows, trackers
        self._work, self._started = work, False

    def report(self, report: Report) -> None:
        figures = figures_of(report, self._rows, self._work)
        self._progress.say(line_of(self._part, report, figures), part=self._part, step=report.step, **report.values)
        if not self._started:
            self._started = True
            for tracker in self._trackers:
                tracker.start(report.step - report.count + 1)
        self.figures(report.step, figures)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Report the measurements of a save."""
        for tracker in self._trackers:
            tracker.log(step, figures)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def count_work(
    unet: UNet, latent: Sequence[int], tokens: int, device: torch.device, precision: str, workers: int, passes: int = 3
) -> Work:
    """The arithmetic of a denoiser on latents (C, h, w) and contexts of this many tokens.

    passes      3: the backward pass takes twice the forward's operations; 2: weights are frozen and need no gradients

    The peak is measured with a large matrix product, which reaches some
    70 to 90 % of what a data sheet states.
    """
    return Work(passes * count_flops(unet, latent, tokens), workers * measure_peak(device, precision))


def count_flops(unet: UNet, latent: Sequence[int], tokens: int) -> float:
    """Operations of the forward pass of one picture, counted on the meta device; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rdm.networks import diffusers

    description = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    pooled = description.get("projection_class_embeddings_input_dim")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin = unet if unet.conv_in.weight.is_meta else diffusers().UNet2DConditionModel(**description)
        extra = {} if pooled is None else {"class_labels": torch.empty(1, int(pooled))}
        twin(
            torch.empty(1, *latent), torch.empty(1, dtype=torch.long),
            encoder_hidden_states=torch.empty(1, tokens, int(description["cross_attention_dim"])), **extra,
        )  # fmt: skip
    return float(counter.get_total_flops())


def measure_peak(device: torch.device, precision: str) -> float:
    """The operations per second of a large matrix product on a device, the best of three."""
    import time

    import torch

    side, kind = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.ones(side, side, device=device, dtype=kind)

    def seconds() -> float:
        began = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        return time.perf_counter() - began

    seconds()
    return 2 * side**3 / min(seconds() for _ in range(3))
