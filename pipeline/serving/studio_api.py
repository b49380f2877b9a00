"""The endpoints that draw, and those that show runs. Those that write need --allow-generate and the session's CSRF token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pipeline.config import from_mapping
from pipeline.serving.api import Endpoint, Parameter, Server, answer_json, read_table, whole_number
from pipeline.serving.drawing import Drawing, DrawQuestion, ModelFacts
from pipeline.serving.runs import FavouriteQuestion, RunsAnswer

if TYPE_CHECKING:
    from starlette.requests import Request


@dataclass(frozen=True)
class ModelsAnswer:
    """Models by name."""

    models: tuple[ModelFacts, ...]


@dataclass(frozen=True)
class FavouritesAnswer:
    """The number of favourites."""

    favourites: int


async def models(server: Server, request: Request) -> Response:
    return answer_json(ModelsAnswer(tuple(await run_in_threadpool(server.studio.models))))


async def draw(server: Server, request: Request) -> Response:
    question = from_mapping(DrawQuestion, await read_table(request), "draw")
    return answer_json(await run_in_threadpool(server.studio.draw, question))


async def drawing(server: Server, request: Request) -> Response:
    return answer_json(server.studio.get(request.path_params["id"]))


async def stop_drawing(server: Server, request: Request) -> Response:
    return answer_json(server.studio.stop(request.path_params["id"]))


async def runs(server: Server, request: Request) -> Response:
    offset, most = whole_number(request, "offset", 0, 10**9), whole_number(request, "k", 60, 500)
    favourites = request.query_params.get("favourites", "") not in ("", "0", "false")
    run = request.query_params.get("run", "")
    return answer_json(await run_in_threadpool(server.runs.page, run, offset, most, favourites))


async def run_picture(server: Server, request: Request) -> Response:
    data = await run_in_threadpool(
        server.runs.picture, request.path_params["run"], f"images/{request.path_params['file']}"
    )
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


async def favourite(server: Server, request: Request) -> Response:
    question = from_mapping(FavouriteQuestion, await read_table(request), "favourite")
    return answer_json(FavouritesAnswer(await run_in_threadpool(server.runs.mark, question)))


STUDIO: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/models", models, "The models that can draw.", ModelsAnswer),
    Endpoint("POST", "/api/draw", draw, "Draw a prompt with each of some databases.", Drawing, DrawQuestion, changes=True),
    Endpoint("GET", "/api/draw/{id}", drawing, "The progress of a drawing, with previews.", Drawing),
    Endpoint("POST", "/api/draw/{id}/stop", stop_drawing, "Stop a drawing.", Drawing, changes=True),
    Endpoint("GET", "/api/runs", runs, "Pictures of all runs of the home.", RunsAnswer,
             query=(Parameter("run", "string", "pictures of this run only"),
                    Parameter("favourites", "boolean", "favourites only"),
                    Parameter("offset", "integer", "how many to leave out"), Parameter("k", "integer", "how many at most"))),
    Endpoint("GET", "/runs/{run}/images/{file}", run_picture, "A picture of a run, with its provenance inside.", "image/png"),
    Endpoint("POST", "/api/favourites", favourite, "Mark a picture as a favourite, or remove the mark.", FavouritesAnswer,
             FavouriteQuestion, changes=True),
)  # fmt: skip
