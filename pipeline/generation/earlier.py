"""Pictures of earlier requests in a run's folder. Reads the folder's list of pictures and results.parquet; writes nothing.

results.parquet and the gallery of a folder describe its last request. An edited prompt list continues in its folder: pictures
of changed lines stay there, but are no longer listed. A different request in the same folder would replace the table of
pictures that still exist, and is refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Set

from pipeline.errors import ConfigError
from pipeline.schema import OK, read_parquet
from pipeline.storage import Storage


def note_on_earlier(storage: Storage, files: Collection[str], databases: Set[str], named: bool) -> str:
    """A note if the folder holds pictures that are not part of this request; empty if not.

    files: the request's pictures, relative to the folder. databases: the request's databases. named: whether the user chose
    the folder (--out or --run). Raises ConfigError if the user chose the folder of another request: one with
    databases that this request does not have, or without a picture in common.
    """
    wanted = {file.removeprefix("images/") for file in files}
    there = set(storage.list("images", ".png"))
    others = len(there - wanted)
    if not others:
        return ""
    drawn_from = _listed_databases(storage)
    if named and (not there & wanted or drawn_from - databases):
        both = ",".join(sorted(drawn_from | databases))
        together = (
            f" For one table of all, name all databases: --db {shlex.quote(both)}." if drawn_from - databases else ""
        )
        raise ConfigError(
            f"{storage.url} holds {others:,} picture(s) of another request"
            + (f" (databases: {', '.join(sorted(drawn_from))})" if drawn_from else "")
            + ", and its results.parquet and gallery would list them no longer. Give this request another folder with --out or "
            f"another name with --run.{together} To use this folder again, remove it first: rm -r {shlex.quote(storage.url)}"
        )
    return (
        f"{others:,} picture(s) of an earlier request are in {storage.url}/images; they stay there, and results.parquet and "
        "the gallery list the pictures of this request only"
    )


def _listed_databases(storage: Storage) -> set[str]:
    """The databases of the finished pictures in results.parquet; empty if it is absent."""
    if not storage.exists("results.parquet"):
        return set()
    with storage.open("results.parquet") as handle:
        rows = read_parquet(handle, columns=["db", "status"]).to_pylist()
    return {row["db"] for row in rows if row["status"] == OK and row["db"]}
