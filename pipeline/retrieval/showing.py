"""`rdmpipe show`: one row of a database, its picture and its neighbours. Reads a published database; writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.catalog import resolve_database
from pipeline.errors import DatabaseError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ShownRow:
    """A row: its metadata without empty columns, its picture file (None: not kept), and the rows nearest to it."""

    database: str
    version: str
    metadata: dict[str, object]
    picture: bytes | None
    neighbours: pa.Table  # `key`, `score` and the metadata columns, nearest first

    def record(self) -> dict[str, object]:
        """For JSON; without the picture's bytes."""
        return {
            "database": self.database,
            "version": self.version,
            **self.metadata,
            "has_picture": self.picture is not None,
            "neighbours": [
                {name: value for name, value in row.items() if value is not None} for row in self.neighbours.to_pylist()
            ],
        }


def show_row(name: str, key: int, k: int = 5, home: str | None = None) -> ShownRow:
    """A row of a database, view or version. Raises DatabaseError for a key that is not there."""
    import pyarrow as pa

    from pipeline.database import picture_files
    from pipeline.retrieval.search import open_search

    selection = resolve_database(name, home)
    with open_search(selection.database, selection.version, selection.where) as searcher:
        row = searcher.metadata([key]).to_pylist()[0]
        vectors, _ = searcher.vectors([key])
        found = searcher.search(vectors, k, exclude_keys=[key])
        near = searcher.metadata(found.keys[0]).add_column(1, "score", pa.array(found.scores[0], pa.float32()))
    picture = picture_files(selection.database, [key], originals=True).get(key)
    metadata = {column: value for column, value in row.items() if value is not None and value != ""}
    return ShownRow(name, selection.version.id, metadata, picture, near)


def count_rows(name: str, home: str | None = None) -> int | None:
    """The number of rows of a database, or of rows that match a view's filter; None for a damaged database."""
    from pipeline.retrieval.search import open_search

    try:
        selection = resolve_database(name, home)
        with open_search(selection.database, selection.version, selection.where, threads=1) as searcher:
            rows = searcher.matching()
            return len(searcher.keys) if rows is None else len(rows)
    except DatabaseError:
        return None
