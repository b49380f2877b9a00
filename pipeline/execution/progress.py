"""Progress of long work: a rich bar on a terminal and in a notebook, plain lines in a log, JSON lines for programs.

Writes to standard error, because standard output is for results. If it is given a storage, it also writes `progress.json` there
every few seconds; `rdmpipe status` reads that from any machine that can read the home.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO, TypedDict

from pipeline.terminal import printable, raw

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from pipeline.storage import Storage

LogFormat = Literal["text", "json"]


def in_notebook() -> bool:
    """Whether this is a notebook in which rich can draw bars, which needs ipywidgets."""
    if "IPython" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


def _draws_bars(stream: TextIO) -> bool:
    return stream.isatty() or (raw(stream) is raw(sys.stderr) and in_notebook())


class StageState(TypedDict):
    """One stage in progress.json."""

    done: int
    failed: int
    shards: int
    rows: int
    rows_per_second: float
    seconds_left: float | None


class ProgressState(TypedDict):
    """What progress.json holds."""

    updated: float  # seconds since 1970
    running_for: float  # seconds
    stages: dict[str, StageState]


class Progress:
    """Counts shards and rows per stage. A context manager; one thread at a time may call `advance`."""

    def __init__(self, log_format: LogFormat = "text", stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.log_format = log_format
        self.every_s = every_s
        self.start = time.monotonic()
        self._bars: dict[str, tuple[int, int, int]] = {}  # stage -> (done, total, rows)
        self._since: dict[
            str, tuple[float, int]
        ] = {}  # stage -> (time of the first advance with work, shards done then)
        self._spoke: dict[str, float] = {}
        self._rich: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._failed: dict[str, int] = {}
        self.notes: Counter[str] = Counter()  # the printed notes, and how often each was given
        self._storage: Storage | None = None
        self._recorded = 0.0

    def __enter__(self) -> Progress:
        if self.log_format == "text" and _draws_bars(self.stream):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._rich = RichProgress(
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console() if in_notebook() else Console(file=raw(self.stream)),
            )
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for text, count in self.notes.items():
            if count > 1:
                self.say(f"note, {count:,} times: {text}")
        if self._rich is not None:
            self._rich.stop()

    def record_in(self, storage: Storage) -> None:
        """From now on, keep `progress.json` in this storage up to date."""
        self._storage = storage
        self._record(force=True)

    def snapshot(self) -> ProgressState:
        """The present state of every stage."""
        now = time.monotonic()
        stages: dict[str, StageState] = {}
        for stage, (done, total, rows) in self._bars.items():
            began, before = self._since.get(stage, (now, done))
            rate = (done - before) / max(now - began, 1e-9)
            stages[stage] = {
                "done": done,
                "failed": self._failed.get(stage, 0),
                "shards": total,
                "rows": rows,
                "rows_per_second": round(rows / max(now - began, 1e-9), 2) if rows else 0.0,
                "seconds_left": round((total - done) / rate, 1) if rate > 0 else None,
            }
        return {"updated": round(time.time(), 1), "running_for": round(now - self.start, 1), "stages": stages}

    def _record(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._storage is not None and (force or now - self._recorded > (2.0 if self._storage.is_local else 15.0)):
            self._recorded = now
            self._storage.write_text("progress.json", json.dumps(self.snapshot()))

    def say(self, text: str, **fields: object) -> None:
        """Print one line, such as a phase or a warning. Control characters in it are escaped."""
        text = printable(text)
        if self.log_format == "json":
            record = {"t": round(time.time(), 3), "message": text, **fields}
            print(json.dumps(record, default=str), file=self.stream, flush=True)
        elif self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{time.monotonic() - self.start:7.1f} s] {text}", file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a note once. If it is given again, it is counted, and the count is printed at the end."""
        self.notes[text] += 1
        if self.notes[text] == 1:
            self.say(f"note: {text}")

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """Announce a stage of `total` shards; an earlier run finished `done` of them."""
        self._bars[stage] = (done, total, 0)
        if self._rich is not None:
            self._tasks[stage] = self._rich.add_task(stage, total=total, completed=done, note="")
        elif self.log_format == "json":
            self.say("stage", stage=stage, shards=total, done=done)
        else:
            self.say(f"{stage}: {total} shard(s){f', {done} done before' if done else ''}")

    def advance(self, stage: str, shard: int, rows: int, seconds: float, problem: str = "") -> None:
        """Count one shard as done or failed. A shard with seconds = 0 was done before: its rows do not count in the rate."""
        done, total, all_rows = self._bars.get(stage, (0, 0, 0))
        worked = rows if seconds > 0 else 0
        done, all_rows = done + 1, all_rows + worked
        self._bars[stage] = (done, total, all_rows)
        now = time.monotonic()
        if worked:
            self._since.setdefault(stage, (now - seconds, done - 1))
        if problem:
            self._failed[stage] = self._failed.get(stage, 0) + 1
        self._record(force=done == total)
        began, _ = self._since.get(stage, (now, 0))
        rate = all_rows / max(now - began, 1e-9)
        if self.log_format == "json":
            self.say(
                "shard",
                stage=stage,
                shard=shard,
                rows=rows,
                seconds=round(seconds, 3),
                done=done,
                of=total,
                error=problem,
            )
            return
        if problem:
            self.say(f"{stage}: shard {shard:06d}: {problem}")
        if self._rich is not None:
            self._rich.update(self._tasks[stage], completed=done, note=f"{rate:,.0f} rows/s")
        elif now - self._spoke.get(stage, 0.0) >= self.every_s or done == total:
            self._spoke[stage] = now
            left = self.snapshot()["stages"][stage]["seconds_left"]
            speed = f", {rate:,.1f} rows/s" if rate else ""
            self.say(f"{stage}: {done}/{total} shards{speed}" + (f", {left:,.0f} s left" if left else ""))
