"""A request to stop, for the code of a stage that runs in a thread: Ctrl-C reaches only the main thread.

Long work calls `raise_if_stopped` now and then: between the steps of a sampler, between the rows of a source. Reads and writes
nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


class Stopped(BaseException):
    """The run ends early. Not an Exception, so that no handler treats it as a failure of the shard."""


@contextlib.contextmanager
def stopping_by(event: threading.Event) -> Iterator[None]:
    """Make the work in the block stop when the event is set."""
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def is_stopped() -> bool:
    """Whether the run that this thread works for has to end."""
    event = _stop.get()
    return event is not None and event.is_set()


def raise_if_stopped() -> None:
    """Raise Stopped if the run that this thread works for has to end."""
    if is_stopped():
        raise Stopped
