"""Requests and answers of the API as frozen dataclasses, from which the OpenAPI document is made. Reads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.retrieval import ColumnFacts, FacetValue

MOST_PARTS, MOST_TEXT = 16, 2_000
MOST_RESULTS, DEEPEST = 500, 10_000


@dataclass(frozen=True)
class QueryPart:
    """One part of a query; exactly one of text, picture, key and vector is given.

    text: words. picture: an id from POST /api/pictures. key: a row of `database` (empty: of the database that is
    searched). vector: as many numbers as the encoder has dimensions. weight: relative weight; results move away from a
    negative part.
    """

    text: str = ""
    picture: str = ""
    key: int | None = None
    database: str = ""
    vector: tuple[float, ...] = ()
    weight: float = 1.0

    def check(self) -> None:
        """Raises ConfigError."""
        given = [name for name in ("text", "picture", "vector") if getattr(self, name)]
        given += ["key"] if self.key is not None else []
        if len(given) != 1:
            raise ConfigError(
                f"a part of a query is exactly one of text, picture, key and vector; found {', '.join(given) or 'none'}"
            )
        if len(self.text) > MOST_TEXT:
            raise ConfigError(f"the text has {len(self.text):,} characters; at most {MOST_TEXT:,} are read")
        if not -100 <= self.weight <= 100:
            raise ConfigError(f"weight {self.weight}: expected a number from -100 to 100")


@dataclass(frozen=True)
class SearchQuestion:
    """A search. No parts: rows that match `where`, in an order that shows much of the database at once.

    where: a SQL expression over the columns. offset: how many results to leave out, for the next page. distinct: return
    files that are equal byte for byte only once.
    """

    databases: tuple[str, ...]
    parts: tuple[QueryPart, ...] = ()
    where: str = ""
    k: int = 60
    offset: int = 0
    distinct: bool = False
    order: Literal["mixed", "key"] = "mixed"

    def check(self) -> None:
        """Raises ConfigError."""
        if not 1 <= len(self.databases) <= 6:
            raise ConfigError(f"{len(self.databases)} databases: name 1 to 6")
        if len(self.parts) > MOST_PARTS:
            raise ConfigError(f"the query has {len(self.parts)} parts; at most {MOST_PARTS} are mixed")
        if not 1 <= self.k <= MOST_RESULTS:
            raise ConfigError(f"k is {self.k}: expected a number from 1 to {MOST_RESULTS}")
        if self.offset < 0 or (self.parts and self.offset + self.k > DEEPEST):
            raise ConfigError(
                f"offset is {self.offset}: a search returns at most {DEEPEST:,} results; filter to see others"
            )
        for part in self.parts:
            part.check()


@dataclass(frozen=True)
class Item:
    """A row on a card. `score` is null without a query. The picture is at /pictures/DATABASE/KEY."""

    key: int
    score: float | None
    title: str
    by: str
    caption: str
    licence: str
    source: str
    url: str
    width: int | None
    height: int | None


@dataclass(frozen=True)
class Answer:
    """The results in one database. `matched`: the number of rows that match the filter. `error`: the reason if there are
    no results."""

    database: str
    version: str
    matched: int
    rows: int
    milliseconds: float
    plan: str
    items: tuple[Item, ...]
    error: str = ""
    kind: str = ""  # of the error


@dataclass(frozen=True)
class SearchAnswer:
    """One answer for each database, in the order of the request."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class DatabaseFacts:
    """A database or view that can be searched."""

    name: str
    base: str  # of a view
    rows: int
    version: str
    encoder: str
    encoder_state: str
    has_text: bool
    trained: bool
    title: str
    licence: str
    images: str  # keep | thumbnail | drop
    problem: str = ""


@dataclass(frozen=True)
class DatabasesAnswer:
    """Databases, each followed by its views."""

    databases: tuple[DatabaseFacts, ...]


@dataclass(frozen=True)
class Session:
    """The facts that a page needs before its first request.

    `session` is sent in the header X-Rdmpipe-Session of requests that change something.
    """

    session: str
    version: str
    database: str
    allow_generate: bool


@dataclass(frozen=True)
class PictureAccepted:
    """An uploaded picture: use `id` as the `picture` of a part."""

    id: str
    width: int
    height: int


@dataclass(frozen=True)
class ColumnsAnswer:
    """The columns that filters can name, with the values of columns that have few."""

    columns: tuple[ColumnFacts, ...]


@dataclass(frozen=True)
class FacetsAnswer:
    """Counts of values among the rows that match a filter."""

    matched: int
    rows: int
    facets: tuple[ColumnFacts, ...]


@dataclass(frozen=True)
class ValuesAnswer:
    """Values of a column."""

    values: tuple[FacetValue, ...]


@dataclass(frozen=True)
class RowAnswer:
    """All metadata of a row without empty columns, and whether its picture is stored."""

    database: str
    version: str
    item: Item
    metadata: dict[str, object]
    has_picture: bool


@dataclass(frozen=True)
class MapAnswer:
    """A sample of rows as points, from the first two principal components of their vectors.

    x, y: positions, from -1 to 1 for 98 % of the points. groups: for each column with few values, the number of each
    point's value. explained: the share of the vectors' variance that the two axes show.
    """

    database: str
    version: str
    matched: int
    keys: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    titles: tuple[str, ...]
    explained: float
    groups: dict[str, object]


@dataclass(frozen=True)
class Failed:
    """A row that failed while the database was built."""

    key: int
    item: str
    url: str
    reason: str
    detail: str


@dataclass(frozen=True)
class FailuresAnswer:
    """Failed rows in order of key. `reasons`: the number of failed rows for each reason, in the whole database."""

    total: int
    reasons: dict[str, int]
    failures: tuple[Failed, ...]


@dataclass(frozen=True)
class CopiesGroup:
    """Rows with the same picture. kind: exact (byte for byte), or alike (equal perceptual hashes)."""

    kind: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class CopiesAnswer:
    """Groups of rows that show the same picture, largest first."""

    groups_total: int
    rows_total: int
    groups: tuple[CopiesGroup, ...]


@dataclass(frozen=True)
class Problem:
    """An error. `kind` is the class of rdmpipe's error; `error` states what was expected, what was found and what to do."""

    error: str
    kind: str
