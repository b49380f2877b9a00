"""The traces of a job's command in the home, for the job's page: progress, failed shards, and the rows that failed.

Reads: progress.json and failures.json of the database or generation that the command wrote, the database's shards, and the
generation's results.parquet. Writes nothing. A file that is absent or damaged shows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.errors import RdmpipeError
from pipeline.scheduling.secrets import scrub
from pipeline.scheduling.values import mapping, mappings, number, parsed, text
from pipeline.storage import Storage

MOST_ROWS = 200  # failed rows on a page


@dataclass(frozen=True)
class FailedItem:
    """A row that failed: its file, address or prompt, and the reason."""

    item: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Traces:
    """The traces. `failed` counts all failed rows, of which `rows` has the first."""

    progress: Mapping[str, object]
    shards: tuple[Mapping[str, object], ...] = ()
    rows: tuple[FailedItem, ...] = ()
    failed: int = 0
    listing: str = ""  # the command that lists all of them; empty: there is none


CLOCKS_S = 60.0  # by how much the clocks of two machines may differ


def read_traces(
    url: str,
    result: Mapping[str, object],
    command: Sequence[str],
    hidden: Mapping[str, str] | None = None,
    started: float = 0.0,
) -> Traces:
    """The traces of a command in the home at `url`. `result` is the object that it printed. `hidden` secrets are not shown.

    Progress that was last written before `started` (seconds since 1970) is of an earlier command and is left out.
    """
    home = Storage(url)
    for subject in (result.get("name"), result.get("run"), *command[1:2]):
        for kind in ("databases", "generations"):
            if isinstance(subject, str) and re.fullmatch(r"[a-z0-9][\w.-]*", subject):
                progress = mapping(parsed(home.read_text(f"{kind}/{subject}/progress.json")))
                if progress and number(progress.get("updated")) >= started - CLOCKS_S:
                    shards = tuple(mappings(parsed(home.read_text(f"{kind}/{subject}/failures.json"))))
                    count = int(number(result.get("failed")))
                    found = _failed_rows(home, subject) if kind == "databases" else _failed_pictures(home, subject)
                    rows = tuple(
                        _scrubbed(row, hidden or {}) for row in islice(_readable(found), min(count, MOST_ROWS))
                    )
                    listing = f"rdmpipe failures {subject}" if kind == "databases" else ""
                    return Traces(progress, shards, rows, count, listing)
    return Traces({})


def _scrubbed(row: FailedItem, hidden: Mapping[str, str]) -> FailedItem:
    return FailedItem(scrub(row.item, hidden), row.reason, scrub(row.detail, hidden))


def _readable(found: Iterator[FailedItem]) -> Iterator[FailedItem]:
    """The items up to the first that cannot be read, so that such an item does not change the end of a run."""
    import pyarrow as pa

    try:
        yield from found
    except (RdmpipeError, OSError, pa.ArrowException, KeyError):
        return


def _failed_rows(home: Storage, name: str) -> Iterator[FailedItem]:
    from pipeline.catalog import failed_rows
    from pipeline.database import RetrievalDatabase

    for row in failed_rows(RetrievalDatabase(name, home.url)):
        yield FailedItem(row.url or row.item, row.reason, row.detail)


def _failed_pictures(home: Storage, run: str) -> Iterator[FailedItem]:
    import pyarrow.parquet as pq

    with home.open(f"generations/{run}/results.parquet") as handle:
        rows = pq.read_table(handle, columns=["row", "prompt", "status", "error"]).to_pylist()
    for row in rows:
        if row["status"] == "failed":
            reason, _, detail = (text(row["error"]) or "unknown").partition(": ")
            yield FailedItem(f"row {row['row']}: {row['prompt']}", reason, detail)
