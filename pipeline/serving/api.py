"""The HTTP API: a table of endpoints, each a function from a request to an answer.

Reads: databases through the library and the engine. Writes nothing; drawing.py holds the code that writes. Work that
takes longer than a few milliseconds runs in threads, so that one slow request does not block the others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.catalog import base_of, failed_rows, resolve_database
from pipeline.config import from_mapping, parse_json
from pipeline.database import RetrievalDatabase
from pipeline.errors import BusyError, ConfigError, DatabaseError, EncoderError, PictureError, RdmpipeError
from pipeline.installation import version
from pipeline.retrieval import SAMPLE
from pipeline.serving.chart import map_of
from pipeline.serving.copies import copies_of
from pipeline.serving.drawing import Studio
from pipeline.serving.engine import Engine, Waiting, item_of
from pipeline.serving.library import Encoders, Library
from pipeline.serving.options import ServeOptions
from pipeline.serving.questions import (
    Answer,
    ColumnsAnswer,
    CopiesAnswer,
    DatabaseFacts,
    DatabasesAnswer,
    FacetsAnswer,
    Failed,
    FailuresAnswer,
    MapAnswer,
    PictureAccepted,
    RowAnswer,
    SearchAnswer,
    SearchQuestion,
    Session,
    ValuesAnswer,
)
from pipeline.serving.runs import Runs
from pipeline.serving.security import has_session, refusal
from pipeline.serving.thumbs import StoredPictures
from pipeline.serving.uploads import Uploads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.serving.library import OpenDatabase

ENCODER_WAIT_S = 300.0  # how long a search waits for its encoder


@dataclass(frozen=True)
class Server:
    """The objects that the endpoints use."""

    options: ServeOptions
    session: str
    library: Library
    encoders: Encoders
    uploads: Uploads
    pictures: StoredPictures
    engine: Engine
    studio: Studio
    runs: Runs

    def close(self) -> None:
        self.studio.close()
        self.engine.close()
        self.library.close()


Handler = Callable[[Server, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Parameter:
    """A parameter in the URL."""

    name: str
    kind: str  # string | integer | boolean
    what: str


@dataclass(frozen=True)
class Endpoint:
    """One operation: its path, function, input and output (a dataclass, or a media type)."""

    method: str
    path: str
    run: Handler
    summary: str
    answer: object  # a type, or a media type as text
    body: object = None
    query: tuple[Parameter, ...] = ()
    changes: bool = False  # it writes: needs --allow-generate and the session's CSRF token

    def path_names(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    async def handle(self, server: Server, request: Request) -> Response:
        """Run the operation; RdmpipeErrors become answers."""
        if self.changes:
            if not server.options.allow_generate:
                return refusal(
                    403, "this server only reads: start it with `rdmpipe browse --allow-generate`", "ReadOnly"
                )
            if not has_session(request.headers, server.session):
                return refusal(403, "the header X-Rdmpipe-Session is missing or old: GET /api/session returns it")
        try:
            return await self.run(server, request)
        except RdmpipeError as error:
            return refusal(status_of(error), str(error), type(error).__name__)


def status_of(error: RdmpipeError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, ConfigError | PictureError):
        return 400
    if isinstance(error, BusyError):
        return 409
    if isinstance(error, DatabaseError):
        return 404
    return 503 if isinstance(error, EncoderError) else 500


def answer_json(value: object, seconds: int = 0) -> Response:
    """A dataclass or plain value as JSON, which the browser may cache for this many seconds."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=str)
    keep = f"private, max-age={seconds}" if seconds else "no-store"
    return Response(text, media_type="application/json", headers={"cache-control": keep})


async def read_table(request: Request) -> dict[str, object]:
    """The JSON object in a request's body. Raises ConfigError."""
    try:
        table = parse_json(await request.body())
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"the body is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError("the body is not a JSON object")
    return table


def whole_number(request: Request, name: str, default: int, most: int) -> int:
    """A parameter that is a whole number from 0 to `most`. Raises ConfigError."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) > most:
        raise ConfigError(f"{name}={text[:40]}: expected a whole number from 0 to {most:,}")
    return int(text)


# ---- databases


async def session(server: Server, request: Request) -> Response:
    options = server.options
    return answer_json(Session(server.session, version(), options.database, options.allow_generate))


async def databases(server: Server, request: Request) -> Response:
    def made() -> DatabasesAnswer:
        return DatabasesAnswer(tuple(_facts(server, row.name, row.base) for row in server.library.databases()))

    return answer_json(await run_in_threadpool(made))


def _facts(server: Server, name: str, base: str) -> DatabaseFacts:
    try:
        selection = resolve_database(name, server.options.home)
        made, record = selection.version, selection.version.encoder
        rows = server.library.count(selection)
    except RdmpipeError as error:  # a damaged database is listed with its problem and does not hide the others
        return DatabaseFacts(name, base, 0, "", "", "", False, False, "", "", "", str(error))
    told = made.manifest
    return DatabaseFacts(
        name, base, rows, made.id, record.name, server.encoders.state(record), record.has_text, record.trained,
        str(told.get("title") or ""), str(told.get("licence") or ""), made.images,
    )  # fmt: skip


# ---- searching


async def search(server: Server, request: Request) -> Response:
    question = from_mapping(SearchQuestion, await read_table(request), "search")
    question.check()
    asked = asyncio.gather(*(answered(server, name, question) for name in question.databases))
    leaving = asyncio.ensure_future(request.receive())  # after the body, this returns when the client disconnects
    leaving.add_done_callback(lambda _: asked.cancel())
    try:
        answers = await asked
    except asyncio.CancelledError:
        if not leaving.done():
            raise
        return Response(status_code=499)  # the query was replaced: the engine skips jobs that nobody waits for
    leaving.cancel()
    return answer_json(SearchAnswer(tuple(answers)))


async def answered(server: Server, name: str, question: SearchQuestion) -> Answer:
    """The results in one database. An error becomes part of the answer, so that other databases' results are shown."""
    try:
        if not question.parts:
            return await run_in_threadpool(_listed, server, name, question)
        return await found(server, name, question)
    except RdmpipeError as error:
        return Answer(name, "", 0, 0, 0.0, "", (), str(error), type(error).__name__)


async def found(server: Server, name: str, question: SearchQuestion) -> Answer:
    """Search one database, after its encoder is loaded. Raises RdmpipeError."""
    while True:
        try:
            return await asyncio.wrap_future(server.engine.submit(name, question))
        except Waiting:
            opened = await run_in_threadpool(server.library.current, name)
            loading = server.encoders.get(opened.version.encoder)
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(loading)), ENCODER_WAIT_S)


def _listed(server: Server, name: str, question: SearchQuestion) -> Answer:
    """Rows that match, without a query."""
    with server.library.beside(name) as (opened, searcher):
        ordinals = searcher.matching(question.where)
        matched = len(searcher.keys) if ordinals is None else len(ordinals)
        part = slice(question.offset, question.offset + question.k)
        if question.order == "mixed":
            places = _shuffled(opened, matched)[part]
            chosen = places if ordinals is None else ordinals[places]
        else:
            chosen = np.arange(matched)[part] if ordinals is None else ordinals[part]
        items = tuple(item_of(row, None) for row in opened.rows.take(np.asarray(chosen, np.int64)))
        return Answer(name, opened.version.id, matched, len(opened.rows), 0.0, f"rows in {question.order} order", items)


def _shuffled(opened: OpenDatabase, count: int) -> NDArray[np.int64]:
    """The positions 0 to count in a fixed order that mixes rows that are stored together."""
    kept = opened.kept.get("shuffled")
    if not isinstance(kept, np.ndarray) or len(kept) != count:
        kept = opened.kept["shuffled"] = np.random.default_rng(7).permutation(count)
    return kept


async def accept_picture(server: Server, request: Request) -> Response:
    data = await request.body()
    name = await run_in_threadpool(server.uploads.add, data)
    image = server.uploads.get(name)
    assert image is not None
    return answer_json(PictureAccepted(name, image.width, image.height))


async def shown_picture(server: Server, request: Request) -> Response:
    image = server.uploads.get(request.path_params["id"])
    if image is None:
        raise DatabaseError("the server no longer has this picture; drop it again")

    def encoded() -> bytes:
        small = image.copy()
        small.thumbnail((192, 192))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        return out.getvalue()

    return _picture(await run_in_threadpool(encoded), "image/jpeg")


async def picture(server: Server, request: Request) -> Response:
    name, key = request.path_params["name"], _key(request)
    original = request.query_params.get("original", "") not in ("", "0", "false")

    def read() -> tuple[bytes, str] | None:
        opened = server.library.current(name)
        opened.searcher.ordinals([key])  # a row that is gone keeps its picture in the tar until it is purged
        return server.pictures.picture(opened.selection.database, key, original)

    stored = await run_in_threadpool(read)
    if stored is None:
        raise DatabaseError(f"row {key} of {name!r} has no stored picture: the database was built with --images drop")
    return _picture(*stored)


def _picture(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"cache-control": "private, max-age=3600"})


def _key(request: Request) -> int:
    text = request.path_params["key"]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigError(f"{text[:40]!r} is not a row's key: a key is a whole number")
    return int(text)


# ---- looking at a database


async def columns(server: Server, request: Request) -> Response:
    opened = await run_in_threadpool(server.library.current, request.path_params["name"])

    def made() -> ColumnsAnswer:
        few = {one.name: one for one in opened.facets.counts(None)}
        facts = opened.facets.facts()
        return ColumnsAnswer(
            tuple(dataclasses.replace(one, values=few[one.name].values if one.name in few else ()) for one in facts)
        )

    return answer_json(await run_in_threadpool(made))


async def facets(server: Server, request: Request) -> Response:
    where = request.query_params.get("where", "")

    def made() -> FacetsAnswer:
        with server.library.beside(request.path_params["name"]) as (opened, searcher):
            ordinals = searcher.matching(where)
            matched = len(searcher.keys) if ordinals is None else len(ordinals)
            return FacetsAnswer(matched, len(opened.rows), tuple(opened.facets.counts(ordinals)))

    return answer_json(await run_in_threadpool(made))


async def values(server: Server, request: Request) -> Response:
    opened = await run_in_threadpool(server.library.current, request.path_params["name"])
    column, begins = request.query_params.get("column", ""), request.query_params.get("begins", "")[:100]
    return answer_json(ValuesAnswer(tuple(await run_in_threadpool(opened.facets.values, column, begins))))


async def row(server: Server, request: Request) -> Response:
    name, key = request.path_params["name"], _key(request)

    def made() -> RowAnswer:
        with server.library.beside(name) as (opened, searcher):
            table = opened.rows.take(searcher.ordinals([key]))[0]
            metadata = {column: value for column, value in table.items() if value is not None and value != ""}
            database = opened.selection.database
        has = server.pictures.picture(database, key, False) is not None
        return RowAnswer(name, opened.version.id, item_of(table, None), metadata, has)

    return answer_json(await run_in_threadpool(made))


async def picture_map(server: Server, request: Request) -> Response:
    where = request.query_params.get("where", "")
    sample = whole_number(request, "sample", SAMPLE, 1_000_000)

    def made() -> MapAnswer:
        with server.library.beside(request.path_params["name"]) as (opened, searcher):
            kept = opened.kept.get(f"map {sample} {where}")
            if not isinstance(kept, MapAnswer):
                kept = opened.kept[f"map {sample} {where}"] = map_of(opened, searcher, where, sample)
                maps = [name for name in opened.kept if name.startswith("map ")]
                for old in maps[:-4]:
                    del opened.kept[old]
            return kept

    return answer_json(await run_in_threadpool(made))


async def failures(server: Server, request: Request) -> Response:
    offset, most = whole_number(request, "offset", 0, 10**9), whole_number(request, "k", 100, 1000)

    def made() -> FailuresAnswer:
        name = base_of(request.path_params["name"].partition("@")[0], server.options.home)
        reasons: dict[str, int] = {}
        shown = []
        for number, one in enumerate(failed_rows(RetrievalDatabase(name, server.options.home))):
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
            if offset <= number < offset + most:
                shown.append(Failed(one.key, one.item, one.url, one.reason, one.detail))
        return FailuresAnswer(sum(reasons.values()), reasons, tuple(shown))

    return answer_json(await run_in_threadpool(made))


async def copies(server: Server, request: Request) -> Response:
    offset, most = whole_number(request, "offset", 0, 10**9), whole_number(request, "k", 30, 200)

    def made() -> CopiesAnswer:
        with server.library.beside(request.path_params["name"]) as (opened, searcher):
            return copies_of(opened, searcher, offset, most)

    return answer_json(await run_in_threadpool(made))


_WHERE = Parameter("where", "string", "a SQL expression over the columns: only rows that match")
_PAGE = (Parameter("offset", "integer", "how many to leave out"), Parameter("k", "integer", "how many at most"))
_DATABASE = "/api/databases/{name}"

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/session", session, "What this server is and allows.", Session),
    Endpoint("GET", "/api/databases", databases, "The databases and views of the home.", DatabasesAnswer),
    Endpoint("POST", "/api/search", search, "Search by texts, pictures and rows, mixed with weights.", SearchAnswer,
             SearchQuestion),
    Endpoint("POST", "/api/pictures", accept_picture, "A picture file to search by.", PictureAccepted, "image/*"),
    Endpoint("GET", "/api/pictures/{id}", shown_picture, "A picture that was sent, small.", "image/jpeg"),
    Endpoint("GET", f"{_DATABASE}/columns", columns, "The columns that a filter may name.", ColumnsAnswer),
    Endpoint("GET", f"{_DATABASE}/facets", facets, "Counts of the values of columns of few values.", FacetsAnswer,
             query=(_WHERE,)),
    Endpoint("GET", f"{_DATABASE}/values", values, "Values of a text column, for completion.", ValuesAnswer,
             query=(Parameter("column", "string", "the column"), Parameter("begins", "string", "letters to look for"))),
    Endpoint("GET", f"{_DATABASE}/rows/{{key}}", row, "All metadata of a row.", RowAnswer),
    Endpoint("GET", f"{_DATABASE}/map", picture_map, "A sample of rows as points on a plane.", MapAnswer,
             query=(_WHERE, Parameter("sample", "integer", "how many points; 10,000 at most"))),
    Endpoint("GET", f"{_DATABASE}/failures", failures, "Rows that failed while it was built.", FailuresAnswer, query=_PAGE),
    Endpoint("GET", f"{_DATABASE}/copies", copies, "Rows that show one picture.", CopiesAnswer, query=_PAGE),
    Endpoint("GET", "/pictures/{name}/{key}", picture, "The stored picture of a row.", "image/*",
             query=(Parameter("original", "boolean", "the file as it was kept, else one small enough for a card"),)),
)  # fmt: skip


def bound(endpoint: Endpoint, server: Server) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint as a Starlette handler."""
    return functools.partial(endpoint.handle, server)


def not_found(path: str) -> JSONResponse:
    return refusal(404, f"there is no {path[:100]}; /api lists the endpoints", "NotFound")
