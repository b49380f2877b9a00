"""Batches that a thread draws while the network trains on the previous one.

Reads what the drawing function reads; writes nothing. The batches are those that the loop itself would draw: a function of the
seed and the pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline.execution import ahead

if TYPE_CHECKING:
    import torch

    from pipeline.training.config import Steps

T = TypeVar("T")

_DEPTH = 2  # batches that wait


class Ahead(Generic[T]):
    """Calls `draw(pass, generator)` ahead of training. Close it after use."""

    def __init__(self, draw: Callable[[int, torch.Generator], T], steps: Steps) -> None:
        self._draw, self._steps = draw, steps
        self._batches: Generator[tuple[tuple[int, torch.Generator], T], None, None] | None = None

    def __call__(self, index: int) -> tuple[T, float]:
        """The batch of a pass, and the seconds that this call waited for it. Ask for passes in order."""
        began = time.perf_counter()
        if self._batches is None:
            # One thread: the passes of a step draw their numbers from one generator, one after another.
            self._batches = ahead(self._passes(index), lambda item: self._draw(*item), threads=1, depth=_DEPTH)
        (found, _), batch = next(self._batches)
        assert found == index, f"pass {found} was drawn, but {index} is wanted"
        return batch, time.perf_counter() - began

    def _passes(self, first: int) -> Iterator[tuple[int, torch.Generator]]:
        from rdm.train import draw

        passes = self._steps.accumulate
        for step in range(first // passes, self._steps.steps):
            generator = draw(self._steps.seed, step)
            for index in range(step * passes, (step + 1) * passes):
                yield index, generator

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()
