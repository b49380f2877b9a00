"""All runs of the home, and their favourite pictures.

Reads: results.parquet of each run in <home>/generations, and favourites.json. Writes: favourites.json, with --allow-generate.
Runs outside the home (`--out`) are not listed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.config import default_home
from pipeline.errors import ConfigError, DatabaseError
from pipeline.schema import OK
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")

_FILE = re.compile(r"images/[A-Za-z0-9._-]{1,200}\.png")

SETTINGS = (
    "model",
    "sampler",
    "steps",
    "scale",
    "eta",
    "k",
    "where",
    "width",
    "height",
    "negative",
    "use",
    "precision",
)

FAVOURITES = "favourites.json"


@dataclass(frozen=True)
class RunPicture:
    """A finished picture of a run, with everything that `POST /api/draw` needs to draw it again."""

    run: str
    key: str
    file: str  # its URL
    prompt: str
    database: str
    seed: str  # may have more digits than JavaScript's numbers
    settings: dict[str, object]
    neighbours: tuple[int, ...]
    favourite: bool


@dataclass(frozen=True)
class RunFacts:
    """A run of the home. `updated`: seconds since 1970; 0 on an object store."""

    name: str
    pictures: int
    failed: int
    updated: float
    models: tuple[str, ...]
    databases: tuple[str, ...]


@dataclass(frozen=True)
class RunsAnswer:
    """One page of pictures, those of the newest run first, and a list of all runs."""

    runs: tuple[RunFacts, ...]
    total: int
    pictures: tuple[RunPicture, ...]


@dataclass(frozen=True)
class FavouriteQuestion:
    """A request to mark or unmark a picture of a run as a favourite."""

    run: str
    key: str
    on: bool = True


@dataclass
class Runs:
    """The home's runs. Safe to use from several threads."""

    home: str | None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[str, tuple[tuple[float, int], pa.Table]] = field(default_factory=dict)

    @property
    def _root(self) -> Storage:
        return Storage((self.home or default_home()).rstrip("/"))

    def page(self, run: str, offset: int, most: int, favourites_only: bool = False) -> RunsAnswer:
        """Pictures of all runs, or of one. Raises DatabaseError for an unknown run."""
        tables = self._tables()
        if run and run not in tables:
            raise DatabaseError(f"no run {run[:80]!r} with finished pictures in the home")
        facts = tuple(_facts(name, updated, table) for name, (updated, table) in tables.items())
        kept = self.favourites()
        pictures: list[RunPicture] = []
        total = 0
        for name, (_, table) in tables.items():
            if run and name != run:
                continue
            for row in table.to_pylist():
                if row["status"] != OK or (favourites_only and f"{name}/{row['key']}" not in kept):
                    continue
                if offset <= total < offset + most:
                    pictures.append(_picture(name, row, kept))
                total += 1
        return RunsAnswer(facts, total, tuple(pictures))

    def _tables(self) -> dict[str, tuple[float, pa.Table]]:
        """The results of each run with the time of writing, newest first."""
        import pyarrow.parquet as pq

        root = self._root
        found: dict[str, tuple[float, pa.Table]] = {}
        for name in root.list("generations"):
            place = f"generations/{name}/results.parquet"
            if not _RUN.fullmatch(name):
                continue
            try:
                stamp = _stamp(root, place)
                with self._lock:
                    known = self._read.get(name)
                if known is None or known[0] != stamp:
                    with root.open(place) as handle:
                        known = (stamp, pq.read_table(handle))
                    with self._lock:
                        self._read[name] = known
            except (OSError, ValueError):  # a run without results yet; pyarrow's errors are ValueErrors
                continue
            found[name] = (known[0][0], known[1])
        return dict(sorted(found.items(), key=lambda one: -one[1][0]))

    def picture(self, run: str, file: str) -> bytes:
        """The PNG of a picture. Raises DatabaseError."""
        if not _RUN.fullmatch(run) or not _FILE.fullmatch(file):
            raise DatabaseError(f"no picture {file[:80]!r} in run {run[:80]!r}")
        try:
            return self._root.read_bytes(f"generations/{run}/{file}")
        except FileNotFoundError:
            raise DatabaseError(f"no picture {file[:80]!r} in run {run[:80]!r}") from None

    def favourites(self) -> set[str]:
        """RUN/KEY of each favourite."""
        try:
            found = json.loads(self._root.read_text(FAVOURITES) or "[]")
        except (ValueError, RecursionError):
            return set()
        return {str(one) for one in found} if isinstance(found, list) else set()

    def mark(self, question: FavouriteQuestion) -> int:
        """Mark or unmark a picture. Returns the number of favourites. Raises ConfigError."""
        if not _RUN.fullmatch(question.run) or not re.fullmatch(r"[0-9a-f]{24}", question.key):
            raise ConfigError("expected the run and key of a picture, as GET /api/runs lists them")
        with self._lock:
            kept = self.favourites()
            (kept.add if question.on else kept.discard)(f"{question.run}/{question.key}")
            self._root.write_text(FAVOURITES, json.dumps(sorted(kept), indent=1) + "\n")
            return len(kept)


def _stamp(root: Storage, place: str) -> tuple[float, int]:
    """The time and size of a file; on an object store only the size."""
    from pathlib import Path

    if root.is_local:
        status = Path(root.full(place)).stat()
        return status.st_mtime, status.st_size
    size = root.size(place)
    if size is None:
        raise FileNotFoundError(place)
    return 0.0, size


def _facts(name: str, updated: float, table: pa.Table) -> RunFacts:
    status = table["status"].to_pylist()
    return RunFacts(
        name, sum(one == OK for one in status), sum(one != OK for one in status), updated,
        tuple(sorted(set(table["model"].to_pylist()))), tuple(sorted(filter(None, set(table["db"].to_pylist())))),
    )  # fmt: skip


def _picture(run: str, row: Mapping[str, object], kept: set[str]) -> RunPicture:
    neighbours = row["neighbour_keys"]
    return RunPicture(
        run, str(row["key"]), f"/runs/{run}/{row['file']}", str(row["prompt"]), str(row["db"]), str(row["seed"]),
        {name: row[name] for name in SETTINGS if row.get(name) not in (None, "")},
        tuple(neighbours) if isinstance(neighbours, list) else (), f"{run}/{row['key']}" in kept,
    )  # fmt: skip
