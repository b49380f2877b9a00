"""One writer at a time: a lease in the home, held while a build works.

Reads and writes `<root>/lease`, a small JSON file changed by compare-and-swap alone. The holder renews it every third of its
term. It saves wasted work; it is not the fence: publishing is compare-and-swap on `current`, so a holder that
comes back late cannot publish over another's version whatever happens here.
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

from pipeline.errors import BusyError
from pipeline.storage.files import Storage

TERM_S = 60.0


def _alive_here(holder: dict[str, object]) -> bool | None:
    """Whether the holder's process lives, if it is one of this machine's; None where that cannot be told."""
    if (holder.get("host"), holder.get("pids")) != (socket.gethostname(), _process_ids()):
        return None
    pid = int(str(holder["pid"]))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _started(pid) == holder.get("started")


def _process_ids() -> str:
    """Which numbering of processes this is: containers can share a host name and not their process ids (Linux; else empty)."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process, in clock ticks since boot, so that a reused pid is told apart (Linux; else empty)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:  # noqa: PTH123
            return handle.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def _expired(text: str, first_seen: float, term: float) -> bool:
    """A lease is over when its process is known to be gone, or when it was not renewed for a term of *our* clock."""
    holder = json.loads(text)
    alive = _alive_here(holder)
    if alive is not None:
        return not alive
    return time.monotonic() - first_seen > max(term, float(holder["term"]))


def holder_of(storage: Storage) -> dict[str, object]:
    """Who holds the lease, as far as a look from here can tell; empty where nobody does, or nobody renews it any more."""
    text = storage.read_text("lease")
    if text is None or not text.strip():
        return {}
    holder: dict[str, object] = json.loads(text)
    alive, age = _alive_here(holder), storage.age_s("lease")
    if alive is None:
        alive = age is not None and age < 2 * float(str(holder["term"]))  # it is renewed every third of its term
    return holder if alive else {}


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

    wait_s: how long to wait for another holder. Raises BusyError if it is still held then. A holder on
    another machine is believed for a term after its last renewal, measured on this machine's clock.
    believe: False: not even that: it has to be seen renewing, for which there is a term's time whatever wait_s is.
    """
    me = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pids": _process_ids(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "purpose": purpose,
        "term": term_s,
    }
    deadline = time.monotonic() + wait_s
    seen, since, told, first_seen = "", time.monotonic(), False, ""
    while True:
        text = storage.read_text("lease")
        mine = json.dumps({**me, "beat": 0})
        if text is None or not text.strip() or _expired(text, since if text == seen else time.monotonic(), term_s):
            if storage.swap("lease", text, mine):
                break
            continue
        if text != seen:
            seen, since = text, time.monotonic()
        first_seen = first_seen or text
        if time.monotonic() >= deadline and (believe or text != first_seen or _alive_here(json.loads(text))):
            holder = json.loads(text)
            raise BusyError(
                f"{storage.url} is being written by process {holder['pid']} on {holder['host']} ({holder['purpose']}). "
                "Wait for it (--wait SECONDS), or stop it, and run the same command again."
            )
        if not told:
            notify(f"waiting for another writer of {storage.url}")
            told = True
        time.sleep(min(1.0, max(0.05, deadline - time.monotonic(), 0.0 if believe else term_s / 20)))

    stop = threading.Event()

    def replace_mine(following: str) -> bool:
        """Change the lease if it is still ours, read anew: the answer to an earlier change may have been lost on the way."""
        now = storage.read_text("lease")
        return now is not None and f'"{me["holder"]}"' in now and storage.swap("lease", now, following)

    def renew() -> None:
        beat = 0
        while not stop.wait(term_s / 3):
            beat += 1
            with contextlib.suppress(OSError):  # a store that does not answer: the next beat tries again
                if not replace_mine(json.dumps({**me, "beat": beat})):
                    return  # somebody took over; publishing will find that out

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        with contextlib.suppress(OSError):  # the block's own error matters more, and the term frees the lease
            replace_mine("")
