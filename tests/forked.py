"""Processes of tests that start at once, because they are forked from a server that has imported the large libraries.

A fresh interpreter takes about two seconds of processor time to import torch, faiss, DuckDB and open_clip. `Forked` has what
tests use of subprocess.Popen. A test of what a process imports, or of an environment variable that a library reads when it is
imported (HF_HOME, for example), needs a real subprocess.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

PRELOADED = ("tests.preloaded",)
REPO = Path(__file__).resolve().parent.parent


def preloaded_processes() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked with tests/preloaded.py imported. One server serves the whole test process."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([*PRELOADED])
    return processes


class Forked:
    """`python -m MODULE ARGUMENTS` or `python -c CODE ARGUMENTS`, in its own session, with its output in pipes."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        module: str = "",
        code: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path = REPO,
    ) -> None:
        out, out_end = multiprocessing.Pipe(duplex=False)
        err, err_end = multiprocessing.Pipe(duplex=False)
        self._process = preloaded_processes().Process(
            target=_run,
            args=(module, code, arguments, dict(os.environ if env is None else env), str(cwd), out_end, err_end),
        )
        self._process.start()
        out_end.close()
        err_end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in (out, err))
        out.close()
        err.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the forked program", timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Its output until its end."""
        with ThreadPoolExecutor(2) as readers:
            said = tuple(readers.map(lambda stream: stream.read(), (self.stdout, self.stderr)))
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(
    module: str, code: str, arguments: tuple[str, ...], env: dict[str, str], cwd: str, out: Connection, err: Connection
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb"), encoding=encoding) for number in (1, 2))
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    if threads := env.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))
    sys.path.insert(0, str(REPO))
    sys.argv = [module or "-c", *arguments]
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
