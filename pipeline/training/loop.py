"""What the trainings of all three parts share: pictures, device, saves and reports of one part on one worker.

Reads the pictures that the run's TOML names. Writes, on the first worker, what rdm.train writes and curve.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage import Storage
from pipeline.training.config import Part, Steps, TrainConfig
from pipeline.training.data import LabelledPictures, read_pictures, training_rows
from pipeline.training.sheets import curve_picture, sheet

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.execution import Progress
    from pipeline.training.crew import Crew
    from rdm.train import Loss, Report


@dataclass(frozen=True)
class TrainingPictures:
    """All pictures of a run, and the rows for training."""

    everything: LabelledPictures
    rows: list[int]

    @cached_property
    def chosen(self) -> LabelledPictures:
        """The pictures for training."""
        return self.everything.take(self.rows)


@dataclass(frozen=True)
class PartRun:
    """The training of one part on this worker. `steps` is the part's table [<part>.train]."""

    part: Part
    config: TrainConfig
    steps: Steps
    progress: Progress
    crew: Crew
    resume: bool

    @property
    def folder(self) -> Path:
        return self.config.folder() / self.part

    @property
    def device(self) -> torch.device:
        return self.crew.torch_device()

    def say(self, text: str) -> None:
        self.progress.say(f"{self.part}: {text}")

    def read_pictures(self) -> TrainingPictures:
        """The run's pictures. Raises SourceError or ConfigError."""
        everything = read_pictures(self.config.data, self.config.folder())
        return TrainingPictures(everything, training_rows(everything, self.config.data))

    def fit(
        self, network: nn.Module, loss: Loss, keep: Callable[[int, nn.Module], None], curves: Sequence[str]
    ) -> Path:
        """Train `network` on `loss`. Returns the folder of the finished model.

        keep    called at every save, on the first worker, with the step and a copy of the network that has the averaged
                weights; it writes the model's folder
        curves  columns of curve.csv that curve.png shows
        """
        from rdm.train import CURVE, fit

        def on_save(step: int, live: nn.Module, weights: Mapping[str, Tensor]) -> None:
            keep(step, load_average(live, weights))
            curve_picture(self.folder / CURVE, self.folder / "curve.png", curves)

        fit(
            network, loss, self.steps.loop(), self.folder, resume=self.resume, average=self.crew.average,
            writes=self.crew.first, on_save=on_save,
            on_report=say_report(self.progress, self.part, self.steps.batch) if self.crew.first else None,
        )  # fmt: skip
        return self.folder / "model"

    def write_figures(self, step: int, figures: Mapping[str, float], indent: int | None = None) -> None:
        """Write figures.json: the measurements of the last save."""
        Storage(str(self.folder)).write_text("figures.json", json.dumps({"step": step, **figures}, indent=indent))

    def write_sheet(self, step: int, pictures: Tensor, columns: int) -> None:
        """Write a sheet of pictures (N, 3, S, S) in [0, 1] into sheets/."""
        sheet(pictures, self.folder / "sheets" / f"{step:07d}.png", columns=columns)


def say_report(progress: Progress, part: str, rows: int) -> Callable[[Report], None]:
    """A callback that prints a report as one line; a step has `rows` pictures."""

    def say(report: Report) -> None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in report.values.items())
        progress.say(
            f"{part}: step {report.step}/{report.steps}, {values}, {rows * report.count / report.seconds:.0f} pictures/s",
            part=part, step=report.step, **report.values,
        )  # fmt: skip

    return say


def load_average(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `network` with the averaged weights, in eval mode, without gradients."""
    import copy

    twin = copy.deepcopy(network)
    twin.load_state_dict(dict(weights))
    return twin.eval().requires_grad_(False)
