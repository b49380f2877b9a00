"""A request to stop, as the code of a stage sees it when it runs in a thread: Ctrl-C reaches the main thread alone.

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
    """The run ends early. Not an Exception, so that no handler takes it for a failure of the shard."""


@contextlib.contextmanager
def stopping_by(event: threading.Event) -> Iterator[None]:
    """Work in the block stops when the event is set."""
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def is_stopped() -> bool:
    """Whether the run that this thread works for is to end."""
    event = _stop.get()
    return event is not None and event.is_set()


def raise_if_stopped() -> None:
    """Raise Stopped if the run that this thread works for is to end."""
    if is_stopped():
        raise Stopped
