"""One thread that answers the queries of many clients in batches.

When the thread is free, it takes all waiting queries: their texts are encoded in one batch, and
queries with the same filter are searched in one call, because a scan reads the rows once for all of them. Answers do not depend
on the rest of the batch, except for the last digits of scores. Reads databases and encoders; writes nothing.

A query whose encoder is still being loaded ends with `Waiting`, so that other queries do not wait for it; `search` in api.py
submits it again when the encoder is loaded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, DatabaseError, EncoderError, RdmpipeError
from pipeline.pages import maker_of, title_of
from pipeline.retrieval import mix
from pipeline.serving.library import Encoders, Library, OpenDatabase
from pipeline.serving.questions import Answer, Item, QueryPart, SearchQuestion
from pipeline.serving.uploads import Uploads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.encoders import Encoder
    from pipeline.serving.rows import Row

TOGETHER = 64  # queries of a batch

KEPT_VECTORS = 4096  # cached vectors of texts and pictures, so that the next page of a query is not encoded again


class Waiting(RdmpipeError):
    """The encoder is still being loaded."""


@dataclass
class Job:
    """One query of one database, and the future of its answer."""

    database: str
    question: SearchQuestion
    answer: Future[Answer] = field(default_factory=Future)
    began: float = field(default_factory=time.perf_counter)


class Engine:
    """The thread that searches. Close it at the end."""

    def __init__(self, library: Library, encoders: Encoders, uploads: Uploads) -> None:
        self.library, self.encoders, self.uploads = library, encoders, uploads
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._vectors: OrderedDict[tuple[str, str, str], NDArray[np.float32]] = OrderedDict()
        self.largest_batch = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")
        self._thread.start()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def submit(self, database: str, question: SearchQuestion) -> Future[Answer]:
        """The future of the answer. Its exception is an RdmpipeError that describes the fault of the query."""
        job = Job(database, question)
        self._jobs.put(job)
        return job.answer

    # ---- in the engine's thread

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, ended = [first], False
            while len(jobs) < TOGETHER and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    ended = True
                    break
                jobs.append(more)
            self.largest_batch = max(self.largest_batch, len(jobs))
            by_database: dict[str, list[Job]] = {}
            for job in jobs:
                if not job.answer.set_running_or_notify_cancel():
                    continue  # nobody waits for it any more
                by_database.setdefault(job.database, []).append(job)
            for name, group in by_database.items():
                try:
                    self._answer(name, group)
                except Exception as error:  # the thread must continue; the client receives the error
                    for job in group:
                        if not job.answer.done():
                            job.answer.set_exception(error)
            if ended:
                return

    def _answer(self, name: str, jobs: Sequence[Job]) -> None:
        """Answer the queries of one database."""
        while True:
            opened = self.library.current(name)
            with opened.searching:
                if opened.closed:  # a new version was just published
                    continue
                self._answer_open(opened, jobs)
                return

    def _answer_open(self, opened: OpenDatabase, jobs: Sequence[Job]) -> None:
        name = opened.selection.name
        self._prepare(opened, jobs)
        groups: dict[tuple[str, bool, tuple[int, ...]], list[tuple[Job, NDArray[np.float32]]]] = {}
        for job in jobs:
            try:
                vector = self._mixed(opened, job.question)
            except RdmpipeError as error:
                job.answer.set_exception(error)
                continue
            own = tuple(part.key for part in job.question.parts if part.key is not None and part.database in ("", name))
            groups.setdefault((job.question.where, job.question.distinct, own), []).append((job, vector))
        for (where, distinct, own), group in groups.items():
            try:
                self._search(opened, where, distinct, own, group)
            except RdmpipeError as error:
                for job, _ in group:
                    job.answer.set_exception(error)

    def _search(
        self,
        opened: OpenDatabase,
        where: str,
        distinct: bool,
        own: tuple[int, ...],
        group: Sequence[tuple[Job, NDArray[np.float32]]],
    ) -> None:
        """Search once for a group of queries with one filter."""
        deepest = max(job.question.offset + job.question.k for job, _ in group)
        queries = np.stack([vector for _, vector in group])
        found = opened.searcher.search(queries, deepest, where, exclude_keys=own, distinct=distinct)
        for number, (job, _) in enumerate(group):
            part = slice(job.question.offset, job.question.offset + job.question.k)
            rows = opened.rows.take(found.ordinals[number][part])
            items = tuple(
                item_of(row, float(score)) for row, score in zip(rows, found.scores[number][part], strict=True)
            )
            milliseconds = round(1e3 * (time.perf_counter() - job.began), 2)
            job.answer.set_result(
                Answer(job.database, opened.version.id, found.plan.matched, len(opened.rows), milliseconds,
                       found.plan.plan, items)
            )  # fmt: skip

    # ---- vectors

    def _prepare(self, opened: OpenDatabase, jobs: Sequence[Job]) -> None:
        """Encode what these queries need and is not cached: all texts in one batch, all pictures in another."""
        record = opened.version.encoder
        wanted: dict[tuple[str, str], None] = {}
        for job in jobs:
            for part in job.question.parts:
                for kind, value in (("text", part.text), ("picture", part.picture)):
                    if value and (record.id, kind, value) not in self._vectors:
                        wanted[kind, value] = None
        if not wanted:
            return
        encoder = self._encoder(opened)
        if encoder is None:
            return
        texts = [value for kind, value in wanted if kind == "text"]
        if texts and record.has_text:
            for text, vector in zip(texts, encoder.encode_queries(texts), strict=True):
                self._keep((record.id, "text", text), vector)
        for kind, value in wanted:
            image = self.uploads.get(value) if kind == "picture" else None
            if image is not None:
                self._keep((record.id, "picture", value), encoder.picture_vectors([image])[0][0])

    def _encoder(self, opened: OpenDatabase) -> Encoder | None:
        """The database's encoder; None while it is being loaded, or if that failed."""
        future = self.encoders.get(opened.version.encoder)
        return future.result() if future.done() and future.exception() is None else None

    def _keep(self, name: tuple[str, str, str], vector: NDArray[np.float32]) -> None:
        self._vectors[name] = vector
        while len(self._vectors) > KEPT_VECTORS:
            self._vectors.popitem(last=False)

    def _mixed(self, opened: OpenDatabase, question: SearchQuestion) -> NDArray[np.float32]:
        """The query's unit vector (D,): the weighted sum of its parts' unit vectors."""
        vectors = [self._vector(opened, part) for part in question.parts]
        return mix(vectors, [part.weight for part in question.parts])

    def _vector(self, opened: OpenDatabase, part: QueryPart) -> NDArray[np.float32]:
        record = opened.version.encoder
        if part.key is not None:
            return self._of_row(opened, part)
        if part.vector:
            given = np.asarray(part.vector, np.float32)
            if len(given) != record.dim:
                raise ConfigError(f"the vector has {len(given)} numbers; {record.name} gives {record.dim}")
            length = float(np.linalg.norm(given))
            if not np.isfinite(length) or length == 0:
                raise ConfigError("the vector is not finite, or all zeros")
            return np.asarray(given / length, np.float32)
        if part.text and not record.has_text:
            raise EncoderError(
                f"database {opened.selection.name!r} was made by {record.name}, which reads no text: search by picture"
            )
        kind, value = ("text", part.text) if part.text else ("picture", part.picture)
        known = self._vectors.get((record.id, kind, value))
        if known is not None:
            self._vectors.move_to_end((record.id, kind, value))
            return known
        if kind == "picture" and self.uploads.get(value) is None:
            raise DatabaseError("the server no longer has this picture; drop it again")
        future = self.encoders.get(record)
        if future.done() and (error := future.exception()) is not None:
            raise error
        raise Waiting(f"encoder {record.name} is being loaded")

    def _of_row(self, opened: OpenDatabase, part: QueryPart) -> NDArray[np.float32]:
        """The vector of a row. If the row is from a database with another encoder, its picture is encoded."""
        assert part.key is not None
        if part.database in ("", opened.selection.name):
            vectors, _ = opened.searcher.vectors([part.key])
            return np.asarray(vectors[0])
        with self.library.beside(part.database) as (other, searcher):
            if other.version.encoder.id == opened.version.encoder.id:
                vectors, _ = searcher.vectors([part.key])
                return np.asarray(vectors[0])
            database = other.selection.database
        name = self.uploads.add_stored(database, part.key)
        known = self._vectors.get((opened.version.encoder.id, "picture", name))
        if known is not None:
            return known
        encoder = self._encoder(opened)
        if encoder is None:
            raise Waiting(f"encoder {opened.version.encoder.name} is being loaded")
        image = self.uploads.get(name)
        assert image is not None
        vectors, _ = encoder.picture_vectors([image])
        self._keep((opened.version.encoder.id, "picture", name), vectors[0])
        return np.asarray(vectors[0])


def item_of(row: Row, score: float | None) -> Item:
    """A row for a card."""
    caption = str(row.get("caption") or "")
    title = title_of(row)
    return Item(
        key=int(str(row["key"])),
        score=None if score is None else round(score, 5),
        title=title or caption or str(row.get("item_id") or ""),
        by=maker_of(row),
        caption=caption if title and caption != title else "",
        licence=str(row.get("licence") or ""),
        source=str(row.get("source") or ""),
        url=str(row.get("url") or ""),
        width=_whole(row.get("width")),
        height=_whole(row.get("height")),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
