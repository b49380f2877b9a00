"""Processes that draw the atelier's pictures, so that drawing uses all cores: Python's lock lets threads draw one at a time.

The parent writes one JSON line for each part of the pictures and reads, for each picture, a JSON line with its metadata and its
size, and the bytes of its PNG file. A child ends when its input ends, also if the parent is killed. Pictures are the same bytes
as without these processes. Reads and writes no files.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeAlias

from pipeline.errors import SourceError
from pipeline.execution import ahead
from pipeline.installation import python_path

About: TypeAlias = dict[str, str | int]  # a picture's metadata

PART = 16  # pictures that a process draws at a time

_NICE = 5  # a step below the process that embeds: a thread of the model that waits for a core stalls its other threads


@dataclass(frozen=True)
class Drawing:
    """What is drawn: the arguments of `atelier.picture` that all pictures have in common."""

    seed: int
    size: int
    style: str | None
    layout: str


class Drawers:
    """`count` processes, each started when it is first needed. Close it, or drop it, to end them."""

    def __init__(self, drawing: Drawing, count: int) -> None:
        self.drawing, self.count = drawing, count
        self._children: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self.close = weakref.finalize(self, _end, self._children)

    def draw(self, start: int, stop: int) -> Iterator[tuple[About, bytes]]:
        """(metadata, PNG file) of the pictures from `start` to before `stop`, in order. Raises SourceError."""
        parts = [(i, min(i + PART, stop)) for i in range(start, stop, PART)]
        stream = ahead(parts, self._part, threads=self.count, depth=2 * self.count)
        with contextlib.closing(stream):
            for _, drawn in stream:
                yield from drawn

    def _part(self, part: tuple[int, int]) -> list[tuple[About, bytes]]:
        child = self._idle.get() or self._start()
        try:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps([*part, asdict(self.drawing)]).encode() + b"\n")
            child.stdin.flush()
            drawn = []
            for _ in range(*part):
                size, about = json.loads(child.stdout.readline())
                data = child.stdout.read(size)
                if len(data) != size:
                    raise EOFError
                drawn.append((about, data))
        except (OSError, EOFError, ValueError) as error:
            _end([child])
            self._idle.put(None)  # the next part starts another
            raise SourceError(
                f"a process that draws pictures ended with code {child.returncode} at the pictures {part[0]} to {part[1] - 1}; "
                "run the same command again"
            ) from error
        self._idle.put(child)
        return drawn

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", "from pipeline.sources.drawing import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"},
            start_new_session=True,  # Ctrl-C ends the parent, which closes the input
        )
        self._children.append(child)
        return child


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    for child in children:
        child.kill()  # it holds nothing that could be lost
        child.wait()


def serve() -> None:
    """The child's loop: draw the parts that it is asked for until the input ends."""
    from pipeline.atelier import picture, png_bytes

    os.nice(_NICE)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # nothing else may print into the answers
        for line in sys.stdin.buffer:
            start, stop, drawing = json.loads(line)
            for index in range(start, stop):
                made = picture(index, **drawing)
                data = png_bytes(made.image)
                out.write(json.dumps([len(data), made.metadata]).encode() + b"\n")
                out.write(data)
            out.flush()
