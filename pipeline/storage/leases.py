"""One writer at a time: a lease in the home, held while a build works.

Reads and writes `<root>/lease`, a small JSON file that only compare-and-swap changes. The holder renews it every third of its
term. The lease prevents wasted work. It does not protect the data: publishing does, by compare-and-swap on `current`, so a
holder that lost its lease cannot publish over another writer's version.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from pipeline.errors import BusyError, RdmpipeError
from pipeline.storage.files import Storage

FILE = "lease"

TERM_S = 60.0


@dataclass(frozen=True)
class Holder:
    """The holder of a lease, as the lease file describes it."""

    holder: str  # a random name, new for every lease
    host: str
    pids: (
        str  # the process id namespace: containers can share a host name and not their process ids (Linux; else empty)
    )
    pid: int
    started: str  # the process's start time in clock ticks since boot: tells a reused pid apart (Linux; else empty)
    purpose: str
    term: float  # seconds
    beat: int = 0  # counts renewals

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _holder(text: str | None) -> Holder | None:
    """The holder that the lease file names; None for a file that is absent, empty or damaged.

    Nobody holds a damaged lease: its holder stops at the next renewal, because the file no longer names it.
    """
    try:
        table = json.loads(text or "")
        return Holder(
            holder=str(table["holder"]),
            host=str(table["host"]),
            pids=str(table.get("pids", "")),
            pid=int(table["pid"]),
            started=str(table.get("started", "")),
            purpose=str(table["purpose"]),
            term=float(table["term"]),
            beat=int(table.get("beat", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _this_process(purpose: str, term_s: float) -> Holder:
    pid = os.getpid()
    _, started = _process(pid)
    return Holder(uuid.uuid4().hex, socket.gethostname(), _process_ids(), pid, started, purpose, term_s)


def _alive_here(holder: Holder) -> bool | None:
    """Whether the holder's process is alive; None if that is unknown, for example for a process on another machine."""
    if (holder.host, holder.pids) != (socket.gethostname(), _process_ids()):
        return None
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process: /proc shows whether it is the holder
        pass
    state, started = _process(holder.pid)
    if state in ("Z", "X"):  # it has ended, and its parent has not collected its exit status
        return False
    if holder.started and not started:  # /proc hides other users' processes
        return None
    return started == holder.started


def _process_ids() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """A process's state (R, S, Z, ...) and start time, from /proc; two empty strings if that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:  # noqa: PTH123
            fields = handle.read().rsplit(")", 1)[1].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def holder_of(storage: Storage) -> Holder | None:
    """Who holds the lease; None if nobody does, or if the holder died or stopped renewing it.

    A holder on another machine counts as alive for two terms after its last renewal.
    """
    holder = _holder(storage.read_text(FILE))
    if holder is None:
        return None
    alive = _alive_here(holder)
    if alive is None:
        age = storage.age_s(FILE)
        alive = age is not None and age < 2 * holder.term
    return holder if alive else None


@contextlib.contextmanager
def lease(
    storage: Storage,
    purpose: str,
    wait_s: float = 0.0,
    term_s: float = TERM_S,
    notify: Callable[[str], None] = lambda text: None,
    believe: bool = True,
) -> Iterator[None]:
    """Hold `storage`'s lease for the length of the block.

    wait_s: how many seconds to wait for another holder. Raises BusyError if the lease is still held then. A holder on another
    machine counts as alive for one term after its last renewal, measured on this machine's clock.
    believe: False to count a holder on another machine as alive only once it renews the lease while we watch. That takes up to
    one term, whatever wait_s is.
    """
    me = _this_process(purpose, term_s)
    _acquire(storage, me, wait_s, notify, believe)
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(storage, me, stop), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        with contextlib.suppress(OSError, RdmpipeError):  # the block's own error matters more; the term frees the lease
            _replace(storage, me, "")


def _acquire(storage: Storage, me: Holder, wait_s: float, notify: Callable[[str], None], believe: bool) -> None:
    """Write `me` into the lease file as soon as nobody else holds it. Raises BusyError after `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    first: str | None = None
    seen: str | None = None
    since = time.monotonic()  # when the text now in the file was first seen
    while True:
        text = storage.read_text(FILE)
        if text != seen:
            seen, since = text, time.monotonic()
        other = _holder(text)
        if other is None or _expired(other, since, me.term):
            if storage.swap(FILE, text, me.to_json()):
                return
            continue
        if first is None:
            first = text
            if wait_s > 0 or not believe:
                notify(f"waiting for another writer of {storage.url}")
        if time.monotonic() >= deadline and (believe or text != first or _alive_here(other)):
            raise BusyError(
                f"{storage.url} is being written by process {other.pid} on {other.host} ({other.purpose}). "
                "Wait for it (--wait SECONDS), or stop it, and run the same command again."
            )
        time.sleep(min(1.0, max(0.05, deadline - time.monotonic(), 0.0 if believe else me.term / 20)))


def _expired(holder: Holder, since: float, term_s: float) -> bool:
    """Whether the holder's process has ended, or is unknown and has not renewed the lease for a term of our clock."""
    alive = _alive_here(holder)
    if alive is not None:
        return not alive
    return time.monotonic() - since > max(term_s, holder.term)


def _renew(storage: Storage, me: Holder, stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(me.term / 3):
        beat += 1
        with contextlib.suppress(
            OSError, RdmpipeError
        ):  # a store that does not answer, a full disk: the next beat tries again
            if not _replace(storage, me, replace(me, beat=beat).to_json()):
                return  # another process took over; publishing will detect that


def _replace(storage: Storage, me: Holder, following: str) -> bool:
    """Change the lease if it is still ours. It is read again, because the answer to an earlier change may have been lost."""
    now = storage.read_text(FILE)
    return now is not None and f'"{me.holder}"' in now and storage.swap(FILE, now, following)
