"""What a worker holds, once: the model, the encoders, the open databases; and how pictures come of them.

Reads: model folder, databases, image prompts in <run>/inputs. Writes nothing. The same picture comes out in the same batch
whatever the shard or worker: noise is drawn per picture on the CPU from its own seed, a prompt is encoded by itself, and scores
are computed again from the stored vectors. In a batch of another shape pixels may differ by rounding (tests state how much).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.database import RetrievalDatabase, Version
from pipeline.encoders import EncoderRecord
from pipeline.errors import BudgetError, ModelError
from pipeline.generation.requests import NEIGHBOURS, Neighbourhood, PictureRequest
from pipeline.storage import Storage

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.encoders import Encoder
    from pipeline.retrieval import Searcher
    from rdm.conditioning import Context
    from rdm.model import RDM

CUT = "the prompt is longer than the encoder reads: its end was not seen"

_LEFT_OUT = ("phash", "width", "height", "duplicate_of")  # metadata that says nothing of where a neighbour comes from


@dataclass(frozen=True)
class Rendering:
    """How a run's pictures are made: what every worker is set up with."""

    out: str  # the run's folder
    home: str | None
    model: str  # folder
    model_name: str
    model_hash: str
    precision: str
    device: str
    threads: int
    text_encoder: EncoderRecord | None = None


@dataclass(frozen=True)
class Near:
    """A picture's prompt and neighbours: unit vectors, norms before, and what results say of each neighbour."""

    prompt: NDArray[Any]  # (D,)
    prompt_norm: float
    vectors: NDArray[Any]  # (m, D)
    norms: NDArray[Any]  # (m,)
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


@dataclass
class Painter:
    """One worker's model, encoders and databases, loaded when first needed. Close it at the end."""

    rendering: Rendering
    model: RDM
    encoders: dict[str, Encoder] = field(default_factory=dict)
    _versions: dict[tuple[str, str], Version] = field(default_factory=dict)
    _searchers: dict[tuple[str, str], Searcher] = field(default_factory=dict)
    _prompts: dict[tuple[str, str, str], tuple[NDArray[Any], float, bool]] = field(default_factory=dict)

    def close(self) -> None:
        for searcher in self._searchers.values():
            searcher.close()
        self._searchers.clear()

    # ---- prompts

    def record(self, picture: PictureRequest) -> EncoderRecord:
        """The encoder of the picture's database, or the one for pictures without."""
        if picture.source is not None:
            return self._version(picture.source).encoder
        assert self.rendering.text_encoder is not None, "a picture without a database needs a text encoder"
        return self.rendering.text_encoder

    def _version(self, source: Neighbourhood) -> Version:
        where = (source.database, source.version)
        if where not in self._versions:
            self._versions[where] = RetrievalDatabase(source.database, self.rendering.home).version(source.version)
        return self._versions[where]

    def vector(self, record: EncoderRecord, text: str, image: str = "") -> tuple[NDArray[Any], float, bool]:
        """(unit vector (D,), its length before, whether the text was cut off) of an image prompt, else of a text."""
        key = (record.id, text, image)
        if key not in self._prompts:
            if record.id not in self.encoders:
                from pipeline.encoders import load_recorded

                self.encoders[record.id] = load_recorded(record, self.rendering.device)
            encoder = self.encoders[record.id]
            if image:
                from pipeline.encoders import unit_rows
                from pipeline.images import decode

                data = Storage(self.rendering.out).read_bytes(f"inputs/{image}")
                unit, norms = unit_rows(encoder.encode_images(encoder.prepare(decode(data).image)[None]))
                cut = False
            else:
                unit, norms = encoder.text_vectors([text])  # alone: a batch's other texts would change its last digits
                cut = bool(encoder.overlong([text]))
            self._prompts[key] = (unit[0], float(norms[0]), cut)
        return self._prompts[key]

    # ---- neighbours

    def near(self, pictures: Mapping[str, PictureRequest]) -> dict[str, Near]:
        """Prompt and neighbours of every picture, by key; one search for all pictures that ask the same rows for as many."""
        groups: dict[tuple[Neighbourhood | None, int], list[str]] = {}
        for key, picture in pictures.items():
            groups.setdefault((picture.source, picture.k), []).append(key)
        found: dict[str, Near] = {}
        for (source, k), keys in groups.items():
            prompts = [self.vector(self.record(p), p.prompt, p.image) for p in (pictures[key] for key in keys)]
            lists: list[tuple[Any, Any, tuple[dict[str, Any], ...]]]
            if source is None:
                dim = len(prompts[0][0])
                lists = [(np.zeros((0, dim), np.float32), np.zeros(0, np.float32), ())] * len(keys)
            else:
                lists = list(self._neighbours(source, np.stack([prompt[0] for prompt in prompts]), k))
            for key, (unit, norm, cut), (vectors, norms, records) in zip(keys, prompts, lists, strict=True):
                found[key] = Near(unit, norm, vectors, norms, records, (CUT,) if cut else ())
        return found

    def _neighbours(
        self, source: Neighbourhood, queries: NDArray[Any], k: int
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], tuple[dict[str, Any], ...]]]:
        place = (source.database, source.version)
        if place not in self._searchers:
            from pipeline.retrieval import open_search

            database = RetrievalDatabase(source.database, self.rendering.home)
            self._searchers[place] = open_search(database, self._version(source), threads=self.rendering.threads)
        searcher = self._searchers[place]
        where = " AND ".join(f"({part})" for part in source.where)
        found = searcher.search(queries, k, where).keys
        different = np.unique(
            found
        )  # metadata is read once for all queries: a row group costs the same for one row and all
        details = dict(
            zip(different.tolist(), searcher.metadata(different).drop_columns(list(_LEFT_OUT)).to_pylist(), strict=True)
        )
        for query, keys in zip(queries, found, strict=True):
            vectors, norms = searcher.vectors(keys)
            # A search's scores differ in their last digits with the queries beside it; these do not.
            scores = vectors.astype(np.float64) @ query.astype(np.float64)
            order = np.lexsort((keys, -scores))
            records = tuple(
                {
                    "key": key,
                    "score": round(float(score), 6),
                    **{n: v for n, v in details[key].items() if v is not None and n != "key"},
                }
                for key, score in zip(keys[order].tolist(), scores[order], strict=True)
            )
            yield vectors[order], norms[order], records

    # ---- pictures

    def paint(self, pictures: Sequence[PictureRequest], near: Sequence[Near]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture whose numbers are not finite."""
        import torch

        from rdm.errors import RDMError

        first = pictures[0]
        try:
            context = self._context(pictures, near)
            null = self._null(pictures)
            latents = self.model.sample(
                context.tokens, mask=context.mask, null_context=null, steps=first.steps, sampler=first.sampler,
                eta=first.eta, guidance_scale=first.scale, height=first.height, width=first.width,
                generator=[torch.Generator().manual_seed(picture.seed) for picture in pictures],
            )  # fmt: skip
            images = self.model.decode(latents).cpu()
        except RDMError as error:
            raise ModelError(str(error)) from error
        except torch.cuda.OutOfMemoryError as error:
            raise BudgetError(
                f"the GPU's memory does not suffice for {len(pictures)} picture(s) of {first.width} x {first.height} at a "
                "time: use a smaller --batch, or --precision fp16"
            ) from error
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        pixels = (images.clamp(-1, 1) * 127.5 + 127.5).nan_to_num(0).round().to(torch.uint8)
        arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return [array if good else None for array, good in zip(arrays, finite.tolist(), strict=True)]

    def _context(self, pictures: Sequence[PictureRequest], near: Sequence[Near]) -> Context:
        import torch

        from rdm.conditioning import assemble, join

        made = []
        for picture, found in zip(pictures, near, strict=True):
            prompt = None
            if picture.use != NEIGHBOURS or not len(found.vectors):
                prompt = torch.from_numpy(self._as_taken(found.prompt, found.prompt_norm))[None]
            made.append(
                assemble(
                    self.model.config,
                    prompt,
                    torch.from_numpy(found.vectors)[None] if len(found.vectors) else None,
                    norms=torch.from_numpy(found.norms)[None] if len(found.vectors) else None,
                    prompt_weight=picture.text_weight,
                )
            )
        return join(made)

    def _null(self, pictures: Sequence[PictureRequest]) -> torch.Tensor | None:
        """What guidance steers away from: the negative prompts (B, 1, D), or None for the model's own."""
        import torch

        if not pictures[0].negative:  # a batch has negative prompts or none
            return None
        vectors = [self.vector(self.record(picture), picture.negative) for picture in pictures]
        return torch.from_numpy(np.stack([self._as_taken(unit, norm) for unit, norm, _ in vectors]))[:, None]

    def _as_taken(self, unit: NDArray[Any], norm: float) -> NDArray[Any]:
        taken: NDArray[Any] = unit * np.float32(norm) if self.model.config.context_norm == "raw" else unit
        return taken.astype(np.float32)


def set_up(rendering: Rendering) -> Painter:
    """Load the model: once per worker. Raises ModelError."""
    import torch

    from pipeline.machine import prepare_torchvision

    prepare_torchvision()
    from rdm import RDM
    from rdm.errors import RDMError

    if rendering.threads:
        torch.set_num_threads(rendering.threads)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[rendering.precision]
    try:
        model = RDM.from_pretrained(rendering.model, dtype=None)
    except RDMError as error:
        raise ModelError(f"model {rendering.model}: {error}") from error
    model.to(torch.device(rendering.device), dtype, first_stage_dtype=torch.float32)
    return Painter(rendering, model)


@contextlib.contextmanager
def painter(rendering: Rendering) -> Iterator[Painter]:
    """A painter for the length of the block."""
    made = set_up(rendering)
    try:
        yield made
    finally:
        made.close()
