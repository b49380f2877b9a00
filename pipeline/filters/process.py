"""Filters in a child process, with hard limits: the address space by RLIMIT_AS, the time by SIGKILL.

DuckDB checks its own limits only between chunks of rows, and not while it plans. A filter whose form does not limit
its cost (filters/expressions.py decides) therefore runs here. The child starts with the first such filter and keeps its
table for the next one; after a filter that exceeded a limit, another child starts. The child gets no environment
variables except PATH and PYTHONPATH.

The two processes communicate over the child's standard input and output: a line of JSON, followed by an Arrow IPC stream for a
table and by the bytes of an array for a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import numpy as np

from pipeline.errors import FilterError
from pipeline.filters.sandbox import MEMORY, Column, explained, sandbox, too_large, too_slow
from pipeline.installation import python_path

if TYPE_CHECKING:
    import pyarrow as pa

START_S = 120.0  # limit for the child to import DuckDB, on a machine under load


class FilterProcess:
    """A child that evaluates queries over one table called `rows`. One query at a time; safe to share between threads."""

    def __init__(self, memory: int = MEMORY, threads: int = 0) -> None:
        self._memory, self._threads = memory, threads
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: object = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the child. The next query starts another."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._child, self._loaded = None, None

    def run(self, table: Callable[[], pa.Table], key: object, sql: str, expression: str, timeout_s: float) -> Column:
        """The query's one column, over the table as `rows`. Raises FilterError.

        key: identifies the table's content. A table with the same key as the previous one is not sent again; None:
        always send it.
        """
        with self._lock:
            try:
                if self._child is None:
                    self._child = self._start()
                if key is None or key != self._loaded:
                    self._send({"load": True}, table())
                    self._loaded = key
                self._send({"sql": sql, "alarm_s": timeout_s + 10.0})
                return self._answer(expression, timeout_s)
            except BaseException as error:
                ended = self._child.poll() if self._child is not None else None
                if isinstance(error, BrokenPipeError | EOFError):
                    self.close()
                    how = f"signal {-ended}" if ended is not None and ended < 0 else f"exit code {ended}"
                    raise too_large(expression, f"its process ended ({how})") from error
                if not isinstance(error, _Refused):
                    self.close()
                    raise
                raise error.error from None

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from pipeline.filters.process import serve; serve({self._memory}, {self._threads})",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C ends this process, which closes the child's input
        )
        assert child.stdout is not None
        if not _readable(child.stdout, START_S) or not child.stdout.readline():
            child.kill()
            child.communicate()
            raise FilterError(
                f"the process that evaluates filters did not start within {START_S:.0f} s; run the command again"
            )
        return child

    def _send(self, message: dict[str, object], table: pa.Table | None = None) -> None:
        assert self._child is not None and self._child.stdin is not None
        pipe = self._child.stdin
        pipe.write(json.dumps(message).encode() + b"\n")
        if table is not None:
            import pyarrow as pa

            with pa.ipc.new_stream(pipe, table.schema) as stream:
                stream.write_table(table)
        pipe.flush()

    def _answer(self, expression: str, timeout_s: float) -> Column:
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout
        if not _readable(pipe, timeout_s):
            self.close()
            raise _Refused(too_slow(expression, timeout_s))
        line = pipe.readline()
        if not line:
            self._child.wait()
            raise EOFError("the filter's process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise _Refused(explained(answer["error"], answer["text"], expression, timeout_s))
        dtype = np.dtype(answer["dtype"])
        data = pipe.read(answer["rows"] * dtype.itemsize)
        if len(data) != answer["rows"] * dtype.itemsize:
            raise EOFError("the filter's process ended")
        return np.frombuffer(data, dtype)


class _Refused(Exception):
    """The child answered with an error, or was stopped already."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


def _readable(pipe: IO[bytes], seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(seconds))


# ---- in the child


def serve(memory: int, threads: int) -> None:
    """The child's loop: load tables and run queries until the input ends."""
    import duckdb
    import pyarrow as pa

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB draws a progress bar on standard output
    connection = sandbox(max(memory, 8 << 30), threads)  # RLIMIT_AS is the limit; it does not count the loaded table
    connection.execute("SELECT 1").fetchnumpy()  # starts DuckDB's threads, whose stacks count as address space
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child even if the parent is gone
    answers.write(b"ready\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        if request.get("load"):
            with contextlib.suppress(OSError, ValueError):  # macOS may refuse; it does not limit address space either
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with pa.ipc.open_stream(requests) as stream:
                connection.register("incoming", stream.read_all())
            connection.execute("CREATE OR REPLACE TABLE rows AS SELECT * FROM incoming").fetchall()
            connection.unregister("incoming")
            continue
        _limit_memory(memory)
        signal.setitimer(signal.ITIMER_REAL, request["alarm_s"])
        try:
            column = np.ascontiguousarray(next(iter(connection.execute(request["sql"]).fetchnumpy().values())))
        except (duckdb.Error, MemoryError) as error:
            answers.write(json.dumps({"error": type(error).__name__, "text": str(error)[:2000]}).encode() + b"\n")
        else:
            if column.dtype.hasobject:  # the filter gives text, and is refused because of its type
                column = np.zeros(0, "S1")
            answers.write(json.dumps({"dtype": column.dtype.str, "rows": len(column)}).encode() + b"\n")
            answers.write(column.tobytes())
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.flush()


def _limit_memory(memory: int) -> None:
    """Let the address space grow by `memory` bytes from now on."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as handle:  # noqa: PTH123
        now = int(handle.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, resource.RLIM_INFINITY))
