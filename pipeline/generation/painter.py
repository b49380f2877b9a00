"""The state of a worker (the model, the encoders, the open databases), and how it makes pictures.

Reads: model folder, databases, image prompts in <run>/inputs. Writes nothing. A picture in the same batch is the same for any
shard and worker: noise is drawn on the CPU from the picture's own seed, each prompt is encoded separately, and scores
are computed again from the stored vectors. In a batch of another shape, pixels may differ by rounding, except for an RDM on a
CPU (rdm_model.py).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.database import RetrievalDatabase, Version, picture_files
from pipeline.encoders import EncoderRecord
from pipeline.generation.kinds import Given, LoadedModel, ModelInfo
from pipeline.generation.models import load_model
from pipeline.generation.requests import Neighbourhood, PictureRequest
from pipeline.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.encoders import Encoder
    from pipeline.generation.provenance import Neighbour
    from pipeline.retrieval import Searcher

CUT = "the prompt is longer than the encoder reads: its end was not seen"

_LEFT_OUT = ("phash", "width", "height", "duplicate_of")  # columns that are not part of a neighbour's provenance


@dataclass(frozen=True)
class Rendering:
    """The settings with which every worker of a run is set up."""

    out: str  # the run's folder
    home: str | None
    model: ModelInfo
    precision: str
    device: str
    threads: int  # of torch; 0: torch's default
    text_encoder: EncoderRecord | None = None  # for pictures without a database
    recipe: int = 1  # how pixels are computed (ModelInfo.recipe)
    workers: int = 1  # batches that one process computes at a time, in threads that share the model


class Encoded(NamedTuple):
    """A prompt's unit vector (D,), its length before normalising, and whether the text was cut off."""

    vector: NDArray[np.float32]
    norm: float
    cut: bool


class Found(NamedTuple):
    """A prompt's neighbours, nearest first: unit vectors (m, D), norms (m,), and the database's metadata of each.

    `pictures` are their stored pictures, encoded, for a model that takes pictures. `lost` counts neighbours that were left
    out because none is stored.
    """

    vectors: NDArray[np.float32]
    norms: NDArray[np.float32]
    records: tuple[Neighbour, ...]
    pictures: tuple[bytes, ...] = ()
    lost: int = 0


@dataclass
class Painter:
    """A process's model, encoders and databases, each loaded when it is first needed. Threads share it. Close it at the end."""

    rendering: Rendering
    model: LoadedModel
    encoders: dict[str, Encoder] = field(default_factory=dict)
    _versions: dict[tuple[str, str], Version] = field(default_factory=dict)
    _searchers: dict[tuple[str, str], Searcher] = field(default_factory=dict)
    _prompts: dict[tuple[str, str, str], Encoded] = field(default_factory=dict)
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _painting: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._painting = threading.Semaphore(self.rendering.workers)

    def close(self) -> None:
        for searcher in self._searchers.values():
            searcher.close()
        self._searchers.clear()

    # ---- prompts

    def record(self, picture: PictureRequest) -> EncoderRecord | None:
        """The encoder of the picture's database, or the one for pictures without; None if none is needed."""
        if picture.source is not None:
            return self._version(picture.source).encoder
        return self.rendering.text_encoder

    def _version(self, source: Neighbourhood) -> Version:
        where = (source.database, source.version)
        if where not in self._versions:
            self._versions[where] = RetrievalDatabase(source.database, self.rendering.home).version(source.version)
        return self._versions[where]

    def vector(self, record: EncoderRecord, text: str, image: str = "") -> Encoded:
        """The vector of an image prompt if there is one, else of a text."""
        key = (record.id, text, image)
        if key not in self._prompts:
            encoder = self._encoder(record)
            if image:
                from pipeline.images import decode

                unit, norms = encoder.picture_vectors([decode(self._input(image)).image])
                cut = False
            else:
                unit, norms = encoder.text_vectors(
                    [text]
                )  # alone: the batch's other texts would change its last digits
                cut = bool(encoder.overlong([text]))
            self._prompts[key] = Encoded(unit[0], float(norms[0]), cut)
        return self._prompts[key]

    def _input(self, image: str) -> bytes:
        """The file of an image prompt."""
        return Storage(self.rendering.out).read_bytes(f"inputs/{image}")

    def _encoder(self, record: EncoderRecord) -> Encoder:
        if record.id not in self.encoders:
            from pipeline.encoders import load_recorded

            self.encoders[record.id] = load_recorded(record, self.rendering.device)
        return self.encoders[record.id]

    # ---- neighbours

    def near(self, pictures: Mapping[str, PictureRequest]) -> dict[str, Given]:
        """The input of every picture, by key; one search for all pictures with the same database, filter and k."""
        with self._looking:
            use_threads(self.rendering.threads)
            return self._near(pictures)

    def _near(self, pictures: Mapping[str, PictureRequest]) -> dict[str, Given]:
        groups: dict[tuple[Neighbourhood | None, int], list[str]] = {}
        for key, picture in pictures.items():
            groups.setdefault((picture.source, picture.k), []).append(key)
        given: dict[str, Given] = {}
        for (source, k), keys in groups.items():
            prompts = [self._prompt(pictures[key]) for key in keys]
            if source is None:
                nothing = np.zeros((0, 0), np.float32)
                found = [Found(nothing, np.zeros(0, np.float32), ())] * len(keys)
            else:
                queries = [prompt.vector for prompt in prompts if prompt is not None]
                found = list(self._neighbours(source, np.stack(queries), k))
            for key, prompt, one in zip(keys, prompts, found, strict=True):
                given[key] = self._given(pictures[key], prompt, one)
        return given

    def _prompt(self, picture: PictureRequest) -> Encoded | None:
        record = self.record(picture)
        if record is None:  # only a text, for a model that encodes texts itself
            return None
        return self.vector(record, picture.prompt, picture.image)

    def _given(self, picture: PictureRequest, prompt: Encoded | None, found: Found) -> Given:
        model = self.rendering.model
        as_text = model.prompt == "text" and not picture.image
        shown = None if as_text or model.takes == "pictures" else prompt
        own = (self._input(picture.image),) if model.takes == "pictures" and picture.image else ()
        negative = None
        if picture.negative and model.prompt == "vector":
            record = self.record(picture)
            assert record is not None, "a model that is given vectors has an encoder"
            negative = self.vector(record, picture.negative)
        return Given(
            prompt=shown.vector if shown else None,
            prompt_norm=shown.norm if shown else 1.0,
            vectors=found.vectors,
            norms=found.norms,
            records=found.records,
            notes=(CUT,) if prompt and prompt.cut else (),
            negative=negative.vector if negative else None,
            negative_norm=negative.norm if negative else 1.0,
            pictures=own + found.pictures,
            lost=found.lost,
        )

    def _neighbours(self, source: Neighbourhood, queries: NDArray[np.float32], k: int) -> Iterator[Found]:
        place = (source.database, source.version)
        if place not in self._searchers:
            from pipeline.retrieval import open_search

            database = RetrievalDatabase(source.database, self.rendering.home)
            self._searchers[place] = open_search(
                database, self._version(source), threads=self.rendering.threads, device=self.rendering.device
            )
        searcher, model = self._searchers[place], self.rendering.model
        where = " AND ".join(f"({part})" for part in source.where)
        found = searcher.search(queries, k, where).keys
        different = np.unique(
            found
        )  # metadata is read once for all queries: one row of a row group costs as much as all
        table = searcher.metadata(different).drop_columns(list(_LEFT_OUT))
        details = dict(zip(different.tolist(), table.to_pylist(), strict=True))
        stored = {}
        if model.takes == "pictures":
            stored = picture_files(RetrievalDatabase(source.database, self.rendering.home), different.tolist(), True)
        for query, keys in zip(queries, found, strict=True):
            vectors, norms = searcher.vectors(keys)
            # The last digits of a search's scores depend on the other queries of the batch; these do not.
            scores = vectors.astype(np.float64) @ query.astype(np.float64)
            order = np.lexsort((keys, -scores))
            if model.takes == "pictures":
                order = order[[key in stored for key in keys[order].tolist()]]
            records = tuple(
                {
                    "key": key,
                    "score": round(float(score), 6),
                    **{n: v for n, v in details[key].items() if v is not None and n != "key"},
                }
                for key, score in zip(keys[order].tolist(), scores[order], strict=True)
            )
            yield Found(
                vectors[order],
                norms[order],
                records,
                tuple(stored[key] for key in keys[order].tolist()) if stored else (),
                len(keys) - len(order),
            )

    # ---- pictures

    def paint(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture with non-finite values.

        At most `workers` batches are painted at a time; other threads search, encode and write meanwhile.
        """
        with self._painting:
            use_threads(self.rendering.threads)
            return self.model.paint(pictures, given)


def set_up(rendering: Rendering) -> Painter:
    """Load the model: once per worker. Raises ModelError."""
    use_threads(rendering.threads)
    return Painter(rendering, load_model(rendering.model, rendering.precision, rendering.device, rendering.recipe))


def use_threads(threads: int) -> None:
    """Set the number of torch's threads in the calling thread (OpenMP keeps it per thread); 0 leaves it to torch."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def painter(rendering: Rendering) -> Iterator[Painter]:
    """A painter that is closed at the end of the block."""
    made = set_up(rendering)
    try:
        yield made
    finally:
        made.close()
