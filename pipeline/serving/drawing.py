"""Pictures drawn from the page: one at a time, in a separate thread, each with previews; they are stored in ordinary runs.

Reads: databases and models, as `rdmpipe generate` does. Writes: runs in the home, and favourites.json. Only with
--allow-generate. Clients can name models of the home and of the package, but no folders and no files: a prompt that looks like
the path of a prompt list is a prompt.
"""

from __future__ import annotations

import base64
import io
import queue
import shlex
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.catalog import resolve_database
from pipeline.errors import ConfigError, DatabaseError, RdmpipeError
from pipeline.execution import Progress
from pipeline.filters import check_filter
from pipeline.generation import (
    GenerateConfig,
    PictureRequest,
    PromptRow,
    Sampling,
    generate,
    list_models,
    prompt_rows,
    seldom,
    watched,
)
from pipeline.schema import metadata_columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_WAITING, MOST_KEPT = 32, 200  # numbers of drawings

PREVIEW_S, PREVIEW_SIDE = 0.25, 256


@dataclass(frozen=True)
class DrawQuestion:
    """What to draw: one prompt with each of the databases, all with the same noise, so that they can be compared.

    keys: neighbours chosen by hand, from one database; empty: the k nearest that match `where`. None and empty settings
    mean the model's own.
    """

    prompt: str
    databases: tuple[str, ...]
    keys: tuple[int, ...] = ()
    where: str = ""
    k: int | None = None
    model: str = ""
    seed: int = 0
    n: int = 1
    steps: int | None = None
    scale: float | None = None
    sampler: str | None = None
    negative: str = ""

    def check(self) -> None:
        """Raises ConfigError."""
        if not self.prompt.strip() or len(self.prompt) > 2_000:
            raise ConfigError("the prompt is empty, or longer than 2,000 characters")
        if not 1 <= len(self.databases) <= 6:
            raise ConfigError(f"{len(self.databases)} databases: name 1 to 6")
        if self.keys and len(self.databases) != 1:
            raise ConfigError("neighbours that are chosen by hand must be from one database: name one")
        if not 1 <= self.n <= 8:
            raise ConfigError(f"n is {self.n}: expected a number from 1 to 8")

    @property
    def filter(self) -> str:
        """The SQL filter. Chosen rows become a filter, so that the command line can express them."""
        return f"key IN ({', '.join(map(str, self.keys))})" if self.keys else self.where

    @property
    def neighbours(self) -> int | None:
        return len(self.keys) if self.keys else self.k

    def config(self, home: str | None) -> GenerateConfig:
        """The config that `rdmpipe generate` makes from the same flags."""
        rows: str | tuple[PromptRow, ...] = self.prompt
        if self.prompt.lower().endswith((".csv", ".tsv", ".parquet", ".jsonl", ".txt")):
            rows = prompt_rows([self.prompt])
        return GenerateConfig(
            prompts=rows, db=self.databases, model=self.model, where=self.filter, k=self.neighbours, n=self.n,
            sampling=Sampling(self.sampler, self.steps, self.scale), seed=self.seed, negative=self.negative, home=home,
        )  # fmt: skip

    def command(self) -> str:
        """The command line that draws the same pictures."""
        words = ["rdmpipe", "generate", self.prompt, "--db", ",".join(self.databases)]
        flags = (("--model", self.model), ("--where", self.filter), ("-k", self.neighbours),
                 ("--n", self.n if self.n > 1 else ""), ("--seed", self.seed or ""),
                 ("--steps", self.steps), ("--scale", self.scale), ("--sampler", self.sampler),
                 ("--negative", self.negative))  # fmt: skip
        for flag, value in flags:
            if value not in (None, ""):
                words += [flag, str(value)]
        return shlex.join(words)

    def python(self) -> str:
        """The Python code that draws the same pictures."""
        given: list[tuple[str, object]] = [
            ("db", list(self.databases) if len(self.databases) > 1 else self.databases[0]), ("model", self.model),
            ("where", self.filter), ("k", self.neighbours), ("n", self.n if self.n > 1 else None), ("seed", self.seed or None),
            ("steps", self.steps), ("scale", self.scale), ("sampler", self.sampler), ("negative", self.negative),
        ]  # fmt: skip
        words = ", ".join(f"{name}={value!r}" for name, value in given if value not in (None, ""))
        return f"import rdmpipe\nrdmpipe.generate({self.prompt!r}, {words})"


@dataclass(frozen=True)
class DrawnPicture:
    """A picture of a drawing; while it is drawn, with its progress and a preview (a data: URL)."""

    database: str
    seed: int
    state: str  # waiting | drawing | done | failed
    step: int = 0
    steps: int = 0
    preview: str = ""
    key: str = ""
    file: str = ""  # the picture's URL


@dataclass(frozen=True)
class Drawing:
    """A drawing and its pictures. `command` and `python` draw the same pictures again."""

    id: str
    state: str  # waiting | drawing | done | failed | stopped
    run: str
    pictures: tuple[DrawnPicture, ...]
    command: str
    python: str
    error: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """A model that clients can use."""

    name: str
    encoder: str
    neighbours: int | None
    size: int | None
    where: str


@dataclass
class _Work:
    question: DrawQuestion
    drawing: Drawing
    stop: threading.Event = field(default_factory=threading.Event)


class _Stopped(RdmpipeError):
    """The drawing was stopped by a client."""


class Studio:
    """The thread that draws. Close it at the end."""

    def __init__(self, home: str | None, device: str, threads: int) -> None:
        self.home, self._device, self._threads = home, device, threads
        self._queue: queue.Queue[_Work | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._work: OrderedDict[str, _Work] = OrderedDict()
        self._thread = threading.Thread(target=self._run, daemon=True, name="studio")
        self._thread.start()

    def close(self) -> None:
        with self._lock:
            for work in self._work.values():
                work.stop.set()
        self._queue.put(None)
        self._thread.join()

    def models(self) -> list[ModelFacts]:
        """The models of the home and of the package."""
        rows = list_models(self.home)
        return [ModelFacts(row.name, row.encoder or "", row.neighbours, row.size, row.where) for row in rows]

    def draw(self, question: DrawQuestion) -> Drawing:
        """Queue a drawing. Raises ConfigError, and DatabaseError for an unknown database."""
        question.check()
        known = [one.name for one in self.models()]
        if question.model and question.model not in known:
            raise ConfigError(f"no model {question.model!r}; there are {', '.join(known)}")
        for name in question.databases:
            resolve_database(name, self.home)
        pictures = tuple(
            DrawnPicture(name, question.seed + copy, "waiting")
            for name in question.databases
            for copy in range(question.n)
        )
        made = Drawing(uuid.uuid4().hex, "waiting", "", pictures, question.command(), question.python())
        work = _Work(question, made)
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            raise ConfigError(f"{MOST_WAITING} drawings are already waiting; try again later") from None
        with self._lock:
            self._work[made.id] = work
            while len(self._work) > MOST_KEPT:
                self._work.popitem(last=False)
        return made

    def get(self, name: str) -> Drawing:
        """A drawing with its progress. Raises DatabaseError."""
        return self._known(name).drawing

    def stop(self, name: str) -> Drawing:
        """Stop a drawing after its present step. Pictures that are finished are kept."""
        work = self._known(name)
        work.stop.set()
        return work.drawing

    def _known(self, name: str) -> _Work:
        with self._lock:
            work = self._work.get(name)
        if work is None:
            raise DatabaseError("there is no such drawing, or the server was restarted")
        return work

    # ---- in the studio's thread

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                self._draw(work)
            except _Stopped:
                self._change(work, state="stopped")
            except RdmpipeError as error:
                self._change(work, state="stopped" if work.stop.is_set() else "failed", error=str(error))
            except Exception as error:  # the thread must continue
                self._change(work, state="failed", error=f"{type(error).__name__}: {error}")

    def _draw(self, work: _Work) -> None:
        if work.stop.is_set():
            raise _Stopped
        self._change(work, state="drawing")
        config = replace(work.question.config(self.home), device=self._device, threads=self._threads)
        with watched(self._watcher(work)):
            summary = generate(config, Progress(stream=io.StringIO()))
        rows = summary.table(["db", "seed", "key", "file", "status", "error"]).to_pylist()
        pictures = tuple(
            DrawnPicture(
                row["db"], row["seed"], "done" if row["status"] == "ok" else "failed", key=row["key"],
                file=f"/runs/{summary.run}/{row['file']}" if row["file"] else "",
            )
            for row in rows
        )  # fmt: skip
        self._change(work, state="done", run=summary.run, pictures=pictures, notes=summary.warnings)

    def _watcher(
        self, work: _Work
    ) -> Callable[[Sequence[PictureRequest], int, int, Callable[[], list[NDArray[np.uint8] | None]]], None]:
        places = self._places(work.question)
        due = seldom(PREVIEW_S)

        def watch(
            pictures: Sequence[PictureRequest],
            step: int,
            steps: int,
            pixels: Callable[[], list[NDArray[np.uint8] | None]],
        ) -> None:
            if work.stop.is_set():
                raise _Stopped("stopped from the page")
            decoded = pixels() if due(step == steps) else [None] * len(pictures)
            shown = list(work.drawing.pictures)
            for picture, image in zip(pictures, decoded, strict=True):
                place = places.get((_source_of(picture), picture.seed))
                if place is not None:
                    preview = _as_address(image) if image is not None else shown[place].preview
                    shown[place] = replace(shown[place], state="drawing", step=step, steps=steps, preview=preview)
            self._change(work, pictures=tuple(shown))

        return watch

    def _places(self, question: DrawQuestion) -> dict[tuple[tuple[str, tuple[str, ...]], int], int]:
        """The position of each requested picture, by the source of its neighbours and its seed."""
        places: dict[tuple[tuple[str, tuple[str, ...]], int], int] = {}
        for number, name in enumerate(question.databases):
            selection = resolve_database(name, self.home)
            columns = metadata_columns(selection.version.columns)
            filters = tuple(check_filter(text, columns).sql for text in (selection.where, question.filter) if text)
            for copy in range(question.n):
                places.setdefault(
                    ((selection.database.name, filters), question.seed + copy), number * question.n + copy
                )
        return places

    def _change(self, work: _Work, **changes: object) -> None:
        work.drawing = replace(work.drawing, **changes)  # type: ignore[arg-type]


def _source_of(picture: PictureRequest) -> tuple[str, tuple[str, ...]]:
    """The database and the filters of a picture's neighbours."""
    return ("", ()) if picture.source is None else (picture.source.database, picture.source.where)


def _as_address(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, 3) as a small picture in a data: URL."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if max(image.size) > PREVIEW_SIDE:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
