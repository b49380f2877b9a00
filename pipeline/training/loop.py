"""The common work of training all three parts: pictures, device, saves and reports of one part on one worker.

Reads the pictures that the run's TOML names. Writes, on the first worker, what rdm.train writes and curve.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.storage import Storage
from pipeline.training.config import Part, Steps, TrainConfig, recipe
from pipeline.training.data import LabelledPictures, read_pictures, training_rows
from pipeline.training.reporting import Reporter
from pipeline.training.sheets import curve_picture, sheet
from pipeline.training.tracking import open_trackers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.execution import Progress
    from pipeline.training.crew import Crew
    from pipeline.training.reporting import Work
    from rdm.train import Loss, Team

Keep = Callable[[int, "nn.Module"], Mapping[str, float]]

Twin = Callable[[Mapping[str, "Tensor"]], "nn.Module"]


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
        self, network: nn.Module, loss: Loss, keep: Keep, curves: Sequence[str], *, team: Team | None = None,
        twin: Twin | None = None, work: Work | None = None,
    ) -> Path:  # fmt: skip
        """Train `network` on `loss`. Returns the folder of the finished model.

        keep    called at every save, on the first worker, with the step and a copy of the network that has the averaged
                weights; writes the model's folder and sheets, and returns its measurements. With a GPU or other
                workers, it runs in a thread during training; a save that is due meanwhile saves only the state
        curves  columns of curve.csv that curve.png shows
        team    how several workers train together; by default they average their gradients after the backward pass
        twin    makes the copy from the averaged weights; by default a copy of the network itself
        work    the arithmetic of a picture, for the share of the peak rate
        """
        from rdm.train import CURVE, Team, fit

        crew = self.crew
        trackers = open_trackers(self.config.track, self.folder, recipe(self.config, self.part)) if crew.first else []
        reporter = Reporter(self.progress, self.part, self.steps.batch, trackers, work)
        aside = Aside(crew.size > 1 or self.device.type != "cpu")
        make = twin or (lambda weights: load_average(network, weights))

        def on_save(step: int, live: nn.Module, weights: Mapping[str, Tensor]) -> None:
            last = step == self.steps.steps
            if aside.busy and not last:
                return
            aside.finish()
            copy = make(weights)

            def kept() -> None:
                figures = keep(step, copy)
                self.write_figures(step, figures)
                reporter.figures(step, figures)
                curve_picture(self.folder / CURVE, self.folder / "curve.png", curves)

            aside.run(kept)

        try:
            fit(
                network, loss, self.steps.loop(), self.folder, resume=self.resume,
                team=team or Team(crew.average, writes=crew.first), on_save=on_save, on_report=reporter.report,
            )  # fmt: skip
            aside.finish()
        finally:
            aside.close()
            reporter.close()
        return self.folder / "model"

    def write_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures.json: the measurements of the last save."""
        Storage(str(self.folder)).write_text("figures.json", json.dumps({"step": step, **figures}, indent=1))

    def write_sheet(self, step: int, pictures: Tensor, columns: int) -> None:
        """Write a sheet of pictures (N, 3, S, S) in [0, 1] into sheets/."""
        sheet(pictures, self.folder / "sheets" / f"{step:07d}.png", columns=columns)


class Aside:
    """Work during training: in one thread, or at once if a thread would only take the processor from training."""

    def __init__(self, threaded: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "keep") if threaded else None
        self._running: Future[None] | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def run(self, work: Callable[[], None]) -> None:
        """Start work, after earlier work is finished."""
        if self._pool is None:
            work()
        else:
            self._running = self._pool.submit(work)

    def finish(self) -> None:
        """Wait for running work. Raises its exception."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def load_average(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `network` with the averaged weights, in eval mode, without gradients."""
    import copy

    twin = copy.deepcopy(network)
    twin.load_state_dict(dict(weights))
    return twin.eval().requires_grad_(False)
