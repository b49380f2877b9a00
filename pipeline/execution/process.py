"""Run a command in its own process group and end it: at its time limit, on a request to stop, or when this process ends.

Reads the process's two outputs. Writes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

GRACE_S = 20.0  # between SIGTERM and SIGKILL

_PR_SET_PDEATHSIG = 1


class Ended(enum.Enum):
    BY_ITSELF = "by itself"
    TIMEOUT = "timeout"
    STOPPED = "stopped"


@dataclass(frozen=True)
class ProcessEnd:
    """How the process ended, its exit code (128 + n for signal n), and the last line it printed."""

    how: Ended
    code: int
    last_line: str


def run_process(
    command: Sequence[str],
    env: dict[str, str],
    cwd: Path | None,
    deadline: float,
    stop_asked: Callable[[], bool],
    heard: Callable[[str], None],
    grace_s: float = GRACE_S,
) -> ProcessEnd:
    """Run the command until it ends, until `deadline` (by time.monotonic()), or until `stop_asked` returns true.

    `heard` receives each line of both outputs. Ctrl-C and SIGTERM to this process end the group too. If this process is
    killed with SIGKILL, Linux kills the command, but not the command's own children.
    """
    last = [""]

    def follow(stream: IO[str], keep: bool) -> None:
        for line in stream:
            text = line.rstrip("\n")
            if keep and text:
                last[0] = text
            heard(text)

    process = subprocess.Popen(
        list(command),
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
    )
    streams = ((process.stdout, True), (process.stderr, False))
    readers = [threading.Thread(target=follow, args=pair, daemon=True) for pair in streams]
    for reader in readers:
        reader.start()
    how = Ended.BY_ITSELF
    try:
        with _sigterm_raises():
            while process.poll() is None:
                if time.monotonic() >= deadline:
                    how = Ended.TIMEOUT
                elif stop_asked():
                    how = Ended.STOPPED
                if how is not Ended.BY_ITSELF:
                    end_group(process, grace_s)
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(0.5, max(0.01, deadline - time.monotonic())))
    except BaseException:
        end_group(process, 2.0)  # the program that ends this process may not wait long
        raise
    end_group(process, 0.0)  # processes that the command left behind in its group
    for reader in readers:
        reader.join(timeout=5)
    code = process.returncode
    return ProcessEnd(how, code if code >= 0 else 128 - code, last[0])


def end_group(process: subprocess.Popen[str], grace_s: float) -> None:
    """End every process of the group: SIGTERM, then SIGKILL after `grace_s` seconds."""
    if grace_s:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise SystemExit(143) on SIGTERM while the block runs, so that `except` and `finally` clauses run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
