"""The limits of a host for all processes of this machine: number of connections, and time between requests.

Reads and writes: small files in `<cache>/hosts`. A locked file is a connection; the time of another file is the time of the
last request, made or reserved. The limits do not include other machines. A process that dies frees its locks. Only
connections in use are limited: each process may also keep an idle one open for some seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import cache_dir, digest

_LOCKED_S = 0.1  # how long to wait for a connection that another process holds

_SLEEP_S = 0.25  # during a shorter wait, the connection stays held

_MOST_AHEAD_S = 600.0  # a time further in the future is ignored: the clock was set back


class HostSlots:
    """The files of all hosts. Shared by threads."""

    def __init__(self) -> None:
        self._folder = cache_dir() / "hosts"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._names: dict[str, str] = {}

    @contextlib.contextmanager
    def take(self, host: str, limit: int, pause_s: float, delay_s: float) -> Iterator[float]:
        """Hold one of the `limit` connections to a host. Yields 0, or the seconds after which to try again.

        Requests begin at least `pause_s` and `delay_s` apart; `delay_s` also counts from the end of a request.
        """
        name = self._names.setdefault(host, digest(host, 24))
        for number in range(limit):
            with (self._folder / f"{name}.{number}").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                turn = self._folder / f"{name}.turn"
                wait = _reserve(turn, max(pause_s, delay_s)) if pause_s or delay_s else 0.0
                if 0 < wait <= _SLEEP_S:
                    time.sleep(wait)
                    wait = 0.0
                try:
                    yield wait
                finally:
                    if delay_s and not wait:
                        os.utime(turn)
                return
        yield _LOCKED_S


def _reserve(turn: Path, pause_s: float) -> float:
    """Seconds until the next request is allowed. A short wait is reserved: the request after it begins `pause_s` later."""
    with turn.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        now, last = time.time(), os.fstat(held.fileno())
        is_new = last.st_size == 0
        wait = 0.0 if is_new else last.st_mtime + pause_s - now
        if wait > _MOST_AHEAD_S + pause_s:
            wait = 0.0
        if wait <= _SLEEP_S:
            if is_new:
                held.write("1")
                held.flush()
            moment = now + max(0.0, wait)
            os.utime(held.fileno(), (moment, moment))
        return max(0.0, wait)
