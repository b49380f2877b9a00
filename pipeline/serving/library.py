"""The open databases of the server, each at its current version, and the encoders, each loaded once.

Reads: published versions, encoders' weights. Writes: copies of metadata into a temporary folder (rows.py), removed by `close`.
A version that is published while the server runs is opened at the next request: a database's pointer is read at most once a
second.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from pipeline.catalog import Listed, Selection, listing, resolve_database
from pipeline.encoders import Encoder, EncoderRecord, load_recorded
from pipeline.errors import DatabaseError
from pipeline.retrieval import Facets, Searcher, open_search
from pipeline.serving.rows import MetadataRows

CHECK_S = 1.0  # seconds after which a database's current version is read again


class OpenDatabase:
    """A database or view at one version.

    A Searcher is not thread-safe, so there are two: one for queries, which come from the engine's thread, and one for
    all other work (filters' rows, facets, the map), so that typing does not wait for a map. Each has its own lock.
    """

    def __init__(self, selection: Selection, threads: int, rows: MetadataRows) -> None:
        self.selection = selection
        self.version = selection.version
        self._threads = threads
        self.searcher = open_search(selection.database, selection.version, selection.where, threads)
        self.searching, self.aside = threading.Lock(), threading.Lock()
        self._second: Searcher | None = None
        self.rows = rows
        self.facets = Facets(self.rows, self.searcher.columns)
        self.kept: dict[str, object] = {}  # cached results for this version, by kind: maps, copies
        self.closed = False

    @property
    def second(self) -> Searcher:
        """The Searcher for work beside queries; hold `aside` while using it."""
        if self._second is None:
            self._second = open_search(self.selection.database, self.version, self.selection.where, self._threads)
        return self._second

    def close(self) -> None:
        with self.searching, self.aside:
            self.closed = True
            self.searcher.close()
            if self._second is not None:
                self._second.close()


class Library:
    """Open databases by name. Close it at the end."""

    def __init__(self, home: str | None, threads: int = 0) -> None:
        self.home, self._threads = home, threads
        self._folder = tempfile.TemporaryDirectory(prefix="rdmpipe-browse-")
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._open: dict[str, OpenDatabase] = {}
        self._checked: dict[str, float] = {}
        self._listed: tuple[float, list[Listed]] = (-CHECK_S, [])
        self._rows: dict[str, tuple[str, MetadataRows]] = {}  # by database, with the version; views share them
        self._counts: dict[tuple[str, str, str], int] = {}
        self._copies = 0

    def close(self) -> None:
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        for one in opened:
            one.close()
        self._folder.cleanup()

    def databases(self) -> list[Listed]:
        """Published databases and views of the home."""
        now = time.monotonic()
        with self._lock:
            at, known = self._listed
        if now - at >= CHECK_S:
            known = listing(self.home)
            with self._lock:
                self._listed = (now, known)
        return known

    def count(self, selection: Selection) -> int:
        """The number of rows of a database, or of rows that match a view's filter. Raises DatabaseError."""
        if not selection.where:
            return selection.version.index.rows
        name = (selection.name, selection.version.id, selection.where)
        if name not in self._counts:
            with self.beside(selection.database.name) as (_, searcher):  # one for all views of a database
                matching = searcher.matching(selection.where)
                self._counts[name] = len(searcher.keys) if matching is None else len(matching)
        return self._counts[name]

    def current(self, name: str) -> OpenDatabase:
        """The database at its current version. Raises DatabaseError for a name that is not published."""
        now = time.monotonic()
        with self._lock:
            opened = self._open.get(name)
            if opened is not None and now - self._checked[name] < CHECK_S:
                return opened
            opening = self._opening.setdefault(name, threading.Lock())
        with opening:
            return self._renewed(name)

    def _renewed(self, name: str) -> OpenDatabase:
        with self._lock:
            opened = self._open.get(name)
            if opened is not None and time.monotonic() - self._checked[name] < CHECK_S:
                return opened  # another thread was faster
        try:
            selection = resolve_database(name, self.home)
        except DatabaseError:
            self._forget(name)
            raise
        if opened is None or (opened.version.id, opened.selection.where) != (selection.version.id, selection.where):
            made = OpenDatabase(selection, self._threads, self._metadata(selection))
            with self._lock:
                before, self._open[name] = opened, made
            opened = made
            if before is not None:
                before.close()
        with self._lock:
            self._checked[name] = time.monotonic()
        return opened

    def _metadata(self, selection: Selection) -> MetadataRows:
        """The metadata of a version, copied once for a database and its views."""
        name, version = selection.database.name, selection.version
        with self._lock:
            known, rows = self._rows.get(name, ("", None))
            if rows is not None and known == version.id:
                return rows
            self._copies += 1
            copy = Path(self._folder.name) / f"{self._copies}.arrow"
        made = MetadataRows(selection.database.local(version.index.files["metadata"]), copy)
        copy.unlink()  # it stays readable while it is mapped, and is freed with the last mapping
        with self._lock:
            self._rows[name] = (version.id, made)
        return made

    def _forget(self, name: str) -> None:
        with self._lock:
            gone = self._open.pop(name, None)
        if gone is not None:
            gone.close()

    @contextlib.contextmanager
    def beside(self, name: str) -> Iterator[tuple[OpenDatabase, Searcher]]:
        """The database and its second Searcher in the block, for work that queries should not wait for."""
        while True:
            opened = self.current(name)
            with opened.aside:
                if opened.closed:  # a new version was just published
                    continue
                yield opened, opened.second
                return


class Encoders:
    """Encoders by their record, each loaded once, in a separate thread."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._loading: dict[str, Future[Encoder]] = {}

    def get(self, record: EncoderRecord) -> Future[Encoder]:
        """The future of the encoder. Its exception is the EncoderError of loading."""
        with self._lock:
            known = self._loading.get(record.id)
            if known is None or (known.done() and known.exception() is not None):
                known = self._loading[record.id] = Future()
                threading.Thread(target=self._load, args=(record, known), daemon=True, name="load-encoder").start()
            return known

    def _load(self, record: EncoderRecord, future: Future[Encoder]) -> None:
        _settle(future, lambda: load_recorded(record, self._device))

    def state(self, record: EncoderRecord) -> str:
        """`ready`, `loading`, `failed` or `not loaded`."""
        with self._lock:
            known = self._loading.get(record.id)
        if known is None:
            return "not loaded"
        if not known.done():
            return "loading"
        return "failed" if known.exception() is not None else "ready"


def _settle(future: Future[Encoder], make: Callable[[], Encoder]) -> None:
    try:
        made = make()
    except BaseException as error:  # waiting callers must receive it
        future.set_exception(error)
    else:
        future.set_result(made)
