"""What the loops of all three parts share: the line that reports a step, and the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.execution import Progress
    from rdm.train import Report


def say_report(progress: Progress, part: str, rows: int) -> Any:
    """A callback that prints a report as one line."""

    def say(report: Report) -> None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in report.values.items())
        progress.say(
            f"{part}: step {report.step}/{report.steps}, {values}, {rows * report.count / report.seconds:.0f} pictures/s",
            part=part, step=report.step, **report.values,
        )  # fmt: skip

    return say


def load_average(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `network` with the averaged weights, in eval mode."""
    import copy

    twin = copy.deepcopy(network)
    twin.load_state_dict(dict(weights))
    return twin.eval().requires_grad_(False)
