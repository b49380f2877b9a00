"""The application (the page's files, the API, and the guard around them), and the server that runs it.

Reads: pipeline/assets/browse and the home. Writes only a temporary folder, unless --allow-generate allows drawing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mimetypes
import secrets
import socket
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pipeline.errors import ConfigError
from pipeline.installation import asset, version
from pipeline.pages import render
from pipeline.serving import openapi
from pipeline.serving.api import ENDPOINTS, Server, answer_json, bound, not_found
from pipeline.serving.clip_retrieval import CLIP_RETRIEVAL
from pipeline.serving.drawing import Studio
from pipeline.serving.engine import Engine
from pipeline.serving.jobs import JOBS
from pipeline.serving.library import Encoders, Library
from pipeline.serving.options import ServeOptions
from pipeline.serving.runs import Runs
from pipeline.serving.security import Guard
from pipeline.serving.studio_api import STUDIO
from pipeline.serving.thumbs import StoredPictures
from pipeline.serving.uploads import Uploads


def make_server(options: ServeOptions) -> Server:
    """The objects that the endpoints use. Close it at the end."""
    library, encoders, uploads = Library(options.home, options.threads), Encoders(options.device), Uploads()
    return Server(
        options, secrets.token_urlsafe(24), library, encoders, uploads, StoredPictures(), Engine(library, encoders, uploads),
        Studio(options.home, options.device, options.threads), Runs(options.home),
    )  # fmt: skip


def create_app(options: ServeOptions, server: Server | None = None) -> Starlette:
    """The ASGI application. Raises ConfigError for options that contradict each other."""
    options = options.checked()
    running = server or make_server(options)
    endpoints = (*ENDPOINTS, *STUDIO, *JOBS, *CLIP_RETRIEVAL)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        running.close()

    async def index(_: Request) -> Response:
        page = render("browse.html", session=running.session, version=version())
        return HTMLResponse(page, headers={"cache-control": "no-store"})

    async def api_page(_: Request) -> Response:
        return HTMLResponse(openapi.page(endpoints, version()))

    async def api_document(_: Request) -> Response:
        return answer_json(openapi.document(endpoints, version()))

    async def missing(request: Request, _: Exception) -> Response:
        return not_found(request.url.path)

    routes = [
        Route("/", index),
        Route("/api", api_page),
        Route("/api/openapi.json", api_document),
        Route("/static/{file}", static_file),
        *(Route(one.path, bound(one, running), methods=[one.method]) for one in endpoints),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, options=options)],
        exception_handlers={404: missing},
    )


@functools.cache
def _static() -> dict[str, bytes]:
    """The page's files by name."""
    files = {path.name: path.read_bytes() for path in asset("browse").iterdir() if path.is_file()}
    return {**files, "design.css": asset("design.css").read_bytes()}


async def static_file(request: Request) -> Response:
    data = _static().get(request.path_params["file"])
    if data is None:
        raise HTTPException(404)
    mark = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"etag": mark, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    name = request.path_params["file"]
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(data, media_type=kind, headers=headers)


def serve(options: ServeOptions, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. `started` is called with the address when connections are accepted.

    Raises ConfigError if the port is taken, DatabaseError if the named database is not published.
    """
    import uvicorn

    options = options.checked()
    listener = listen(options)
    server = make_server(options)
    try:
        _prepare(server)
        app = create_app(options, server)
        listener.listen(128)  # connections are accepted from here on, and answered when the loop runs
        started(options.address + (f"?token={options.token}" if options.token else ""))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def listen(options: ServeOptions) -> socket.socket:
    """A socket that is bound to the address of the options. Raises ConfigError if the port is taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY on connections. Without it, every body waits 40 ms behind its headers,
    # until the client has acknowledged them.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((options.host, options.port))
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}. Another program may use the port: "
            f"`rdmpipe browse --port {options.port + 1}`"
        ) from error
    return made


def _prepare(server: Server) -> None:
    """Open the database that is shown first, and start loading its encoder."""
    name = server.options.database
    listed = [one.name for one in server.library.databases() if not one.base]
    if not name and not listed:
        raise ConfigError(
            "there is no database to show. Build one: `rdmpipe build-index atelier --limit 200 --encoder mini-2` draws 200 "
            "pictures and needs no network"
        )
    opened = server.library.current(name or listed[0])
    server.encoders.get(opened.version.encoder)
