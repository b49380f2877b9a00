"""clip-retrieval's HTTP API, so that its client and other programs for its backend work here unchanged.

`/indices-list`, `/knn-service` and `/metadata` have the JSON of clip-retrieval's `clip back`. An index's name is a
database's or view's name, an id is a row's key. As an addition, `where` takes a SQL filter. Reads databases; writes nothing.

Differences: `modality` text also searches the pictures, because a database holds no vectors of captions. `use_mclip`,
`use_safety_model`, `use_violence_detector` and the aesthetic settings are read and have no effect, because their models
are not installed. `image_url` is refused, because the server fetches nothing for a client.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from starlette.concurrency import run_in_threadpool

from pipeline.config import from_mapping
from pipeline.errors import ConfigError
from pipeline.serving.api import Endpoint, Server, answer_json, found, read_table
from pipeline.serving.questions import Item, QueryPart, SearchQuestion

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from starlette.requests import Request
    from starlette.responses import Response

ALIKE = 0.94  # cosine above which clip-retrieval treats two results as the same picture

MOST_IDS = 5_000


@dataclass(frozen=True)
class KnnQuestion:
    """A search of clip-retrieval's client. Exactly one of text, image (base64) and embedding_input."""

    indice_name: str
    text: str | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: tuple[float, ...] | None = None
    modality: str = "image"
    num_images: int = 40
    num_result_ids: int = 100
    deduplicate: bool = True
    where: str = ""
    use_mclip: bool | None = False
    use_safety_model: bool | None = False
    use_violence_detector: bool | None = False
    aesthetic_score: int | float | str | None = None
    aesthetic_weight: int | float | str | None = None
    verbose: bool | None = False


@dataclass(frozen=True)
class KnnResult:
    """A result. The first `num_images` results also have url, caption and, if the picture is stored, image (base64)."""

    id: int
    similarity: float
    url: str = ""
    caption: str = ""
    image: str = ""


@dataclass(frozen=True)
class MetadataQuestion:
    """Ids of rows, and their index."""

    ids: tuple[int, ...]
    indice_name: str


@dataclass(frozen=True)
class MetadataResult:
    """A row's metadata."""

    id: int
    metadata: dict[str, object]


async def indices_list(server: Server, request: Request) -> Response:
    return answer_json(await run_in_threadpool(lambda: [one.name for one in server.library.databases()]))


async def knn_service(server: Server, request: Request) -> Response:
    asked = from_mapping(KnnQuestion, await read_table(request), "knn-service")
    part = await run_in_threadpool(_part, server, asked)
    most = max(asked.num_images, asked.num_result_ids)
    if not 1 <= most <= MOST_IDS:
        raise ConfigError(f"num_result_ids is {most}: expected a number from 1 to {MOST_IDS:,}")
    question = SearchQuestion((asked.indice_name,), (part,), asked.where, most)
    answer = await found(server, asked.indice_name, question)
    return answer_json(await run_in_threadpool(_results, server, asked, answer.items))


def _part(server: Server, asked: KnnQuestion) -> QueryPart:
    """The query. As in clip-retrieval, a text has priority over a picture, and a picture over a vector."""
    if asked.text:
        part = QueryPart(text=asked.text)
    elif asked.image:
        try:
            part = QueryPart(picture=server.uploads.add(base64.b64decode(asked.image)))
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"image is not base64: {error}") from error
    elif asked.image_url:
        raise ConfigError("image_url is not fetched here: send the picture itself, as `image` in base64")
    elif asked.embedding_input:
        part = QueryPart(vector=asked.embedding_input)
    else:
        raise ConfigError("give one of text, image and embedding_input")
    part.check()
    return part


def _results(server: Server, asked: KnnQuestion, items: tuple[Item, ...]) -> list[dict[str, object]]:
    if asked.deduplicate and len(items) > 1:
        with server.library.beside(asked.indice_name) as (_, searcher):
            vectors, _ = searcher.vectors([item.key for item in items])
        items = tuple(items[place] for place in firsts(vectors))
    database = server.library.current(asked.indice_name).selection.database
    made = []
    for number, item in enumerate(items):
        result: dict[str, object] = {"id": item.key, "similarity": item.score}
        if number < asked.num_images:
            result |= {"url": item.url, "caption": item.caption or item.title}
            stored = server.pictures.picture(database, item.key, original=False)
            if stored is not None:
                result["image"] = base64.b64encode(stored[0]).decode()
        made.append(result)
    return made


def firsts(vectors: NDArray[np.float32], alike: float = ALIKE) -> list[int]:
    """Ascending positions of the first of each group of unit vectors (n, D) that are connected by cosines above `alike`."""
    near = vectors @ vectors.T > alike
    group = np.arange(len(vectors))
    while True:  # the smallest position spreads through each group
        smallest = np.where(near, group[None, :], len(vectors)).min(axis=1)
        smallest = np.minimum(smallest, group)
        if (smallest == group).all():
            return [int(place) for place in np.flatnonzero(group == np.arange(len(vectors)))]
        group = smallest


async def metadata(server: Server, request: Request) -> Response:
    asked = from_mapping(MetadataQuestion, await read_table(request), "metadata")
    if len(asked.ids) > MOST_IDS:
        raise ConfigError(f"{len(asked.ids):,} ids; at most {MOST_IDS:,} are answered at once")

    def made() -> list[dict[str, object]]:
        opened = server.library.current(asked.indice_name)
        rows = opened.rows.take(opened.searcher.ordinals(list(asked.ids)))
        results = []
        for key, row in zip(asked.ids, rows, strict=True):
            known = {name: value for name, value in row.items() if value is not None}
            stored = server.pictures.picture(opened.selection.database, key, original=False)
            if stored is not None:
                known["image"] = base64.b64encode(stored[0]).decode()
            results.append(dataclasses.asdict(MetadataResult(key, known)))
        return results

    return answer_json(await run_in_threadpool(made))


CLIP_RETRIEVAL: tuple[Endpoint, ...] = (
    Endpoint("GET", "/indices-list", indices_list, "clip-retrieval: the names that `indice_name` takes.", list[str]),
    Endpoint("POST", "/knn-service", knn_service, "clip-retrieval: search.", list[KnnResult], KnnQuestion),
    Endpoint("POST", "/metadata", metadata, "clip-retrieval: rows by id.", list[MetadataResult], MetadataQuestion),
)
