"""`rdmpipe search`: from a text, a picture file or a row's key to the nearest rows, as records, Parquet or a contact sheet.

Reads: a published database and the query's picture. Writes only the requested files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog import Selection, difference, resolve_database, resolve_encoded
from pipeline.errors import ConfigError, EncoderError, PictureError
from pipeline.retrieval.result_files import FORMS, write_results
from pipeline.retrieval.sheets import result_labels, result_sheet
from pipeline.schema import metadata_columns

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL.Image import Image

    from pipeline.encoders import Encoder
    from pipeline.index import SearchPlan
    from pipeline.retrieval.search import Searcher


@dataclass(frozen=True)
class QueryRequest:
    """One search. Exactly one of text, image and key is the query."""

    database: str
    text: str = ""
    image: Path | None = None
    key: int | None = None
    k: int = 10
    where: str = ""
    no_duplicates: bool = False
    device: str = "auto"
    home: str | None = None
    sheet: Path | None = None  # files for the results; their names are checked before any work
    out: Path | None = None
    encoder: str = ""  # the encoder whose vectors are searched; empty: the database's own


@dataclass(frozen=True)
class Found:
    """Results, best first: for each a row of the metadata columns, with `score` after `key`."""

    selection: Selection
    rows: pa.Table
    plan: SearchPlan
    encode_s: float
    warnings: tuple[str, ...]

    def records(self) -> list[dict[str, object]]:
        return [dict(row) for row in self.rows.to_pylist()]

    def table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """The columns that hold a value, and their cells, for a terminal."""
        skip = {"source", "sha256", "phash", "width", "height", "url", "duplicate_of", "licence"}
        names = [name for name in self.rows.column_names if name not in skip]
        names = [name for name in names if name in ("key", "score") or self.rows[name].null_count < self.rows.num_rows]
        cells = [
            tuple(f"{row[name]:.4f}" if name == "score" else row[name] for name in names)
            for row in self.rows.to_pylist()
        ]
        return tuple(names), cells

    def explanation(self) -> str:
        plan = self.plan
        return (
            f"{plan.plan}; {plan.matched:,} of {plan.rows:,} rows match\n"
            f"encode {1e3 * self.encode_s:.1f} ms, filter {1e3 * plan.filter_s:.1f} ms, search {1e3 * plan.search_s:.1f} ms, "
            f"re-rank {1e3 * plan.rerank_s:.1f} ms"
        )

    def write(self, path: Path, title: str) -> None:
        """Write the results with all their columns as Parquet or CSV, or as a page with the pictures, by the file's suffix.

        Raises ConfigError if the file cannot be written.
        """
        with _writing(path):
            write_results(path, self.rows, self.selection.database, title)

    def write_sheet(self, path: Path) -> str:
        """Write a contact sheet of the results: pictures in reading order, each with its score, title, artist and style.

        Returns a note on letters that no font here has; empty if there are none. Raises ConfigError if the file cannot be
        written.
        """
        from pipeline.images import lettering_note

        sheet = result_sheet(self.selection.database, self.rows)
        with _writing(path):
            sheet.save(path)
        return lettering_note(path.name, result_labels(self.rows))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; give another path") from error


def run_query(request: QueryRequest) -> Found:
    """Search. Raises DatabaseError, FilterError, EncoderError or ConfigError."""
    from pipeline.retrieval.search import open_search

    asked = [
        name
        for name, value in (("a text", request.text), ("--image", request.image), ("--key", request.key))
        if value not in ("", None)
    ]
    if len(asked) != 1:
        raise ConfigError(f"give exactly one of a text, --image and --key; found {', '.join(asked) or 'none'}")
    for flag, path, suffixes, kind in (
        ("--sheet", request.sheet, (".png",), "a PNG"),
        ("--out", request.out, FORMS, "Parquet, CSV or a page"),
    ):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ConfigError(f"{flag} {path}: the file will be {kind}; end its name in {' or '.join(suffixes)}")
    selection = resolve_encoded(request.database, request.encoder, request.home)
    warnings = []
    if request.encoder and (said := difference(resolve_database(request.database, request.home), selection)):
        warnings.append(said)
    if not selection.version.encoder.trained and request.key is None:
        warnings.append("this database was made by an untrained encoder (random weights): the results carry no meaning")
    with open_search(selection.database, selection.version, selection.where) as searcher:
        searcher.matching(request.where)  # report a bad filter before loading the encoder
        start = time.monotonic()
        vector = _query_vector(request, selection, searcher)
        encode_s = time.monotonic() - start
        exclude = [request.key] if request.key is not None else []
        found = searcher.search(vector, request.k, request.where, exclude_keys=exclude, distinct=request.no_duplicates)
        rows = searcher.metadata(found.keys[0])
    import pyarrow as pa

    rows = rows.add_column(1, "score", pa.array(found.scores[0], pa.float32()))
    if not rows.num_rows:
        warnings.append(
            f"the filter matches no row; the columns are {', '.join(metadata_columns(selection.version.columns))}"
        )
    return Found(selection, rows, found.plan, encode_s, tuple(warnings))


def _query_vector(request: QueryRequest, selection: Selection, searcher: Searcher) -> NDArray[np.float32]:
    """The query as a unit vector (1, D)."""
    if request.key is not None:
        vectors, _ = searcher.vectors([request.key])
        return vectors
    from pipeline.encoders import load_recorded

    record = selection.version.encoder
    if request.text and not record.has_text:
        raise EncoderError(
            f"database {selection.database.name!r} was made by {record.name}, which has no text tower; "
            "search with --image or --key"
        )
    # Read the picture before loading the encoder, which takes longer.
    pictures = read_pictures([request.image]) if request.image is not None else []
    encoder = load_recorded(record, request.device)
    if request.text:
        return encoder.encode_queries([request.text])
    return encode_pictures(encoder, pictures)


def encode_image_files(encoder: Encoder, paths: list[Path]) -> NDArray[np.float32]:
    """Unit vectors (n, D) of n picture files. Raises ConfigError that names a file that is missing or not a picture."""
    return encode_pictures(encoder, read_pictures(paths))


def read_pictures(paths: list[Path]) -> list[Image]:
    """Picture files as RGB images. Raises ConfigError that names a file that is missing or not a picture."""
    from pipeline.images import decode

    pictures = []
    for path in paths:
        try:
            pictures.append(decode(path.read_bytes()).image)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); check the path") from error
        except PictureError as error:
            raise ConfigError(f"{path} cannot be decoded as a picture: {error}; give another file") from error
    return pictures


def encode_pictures(encoder: Encoder, pictures: list[Image]) -> NDArray[np.float32]:
    """Unit vectors (n, D) of n RGB images."""
    return encoder.picture_vectors(pictures)[0]
