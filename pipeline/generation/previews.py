"""Previews of pictures during drawing, for a watcher.

Reads and writes nothing. Previews do not change pictures: a preview is decoded from the sampler's estimate of the final
latents, which the sampler does not read back. A watcher belongs to one thread: it only sees models that draw in its thread
(the backend `inline`), and no worker of a cluster.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.generation.requests import PictureRequest

# Arguments: the pictures of the batch, the step (from 1), the number of steps, and a function that decodes the batch's pixels.
Watcher = Callable[["Sequence[PictureRequest]", int, int, "Callable[[], list[NDArray[np.uint8] | None]]"], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call `watcher` after every step of every picture that is drawn in the block. It may raise to stop the drawing."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def current_watcher() -> Watcher | None:
    """The watcher of this thread."""
    return _watcher.get()


def seldom(every_s: float) -> Callable[[bool], bool]:
    """A function that says whether another preview is due: at most one in this many seconds, and always the last."""
    last = [-every_s]

    def due(is_last: bool) -> bool:
        now = time.monotonic()
        if is_last or now - last[0] >= every_s:
            last[0] = now
            return True
        return False

    return due
