"""The interface between a run and a model: the model's facts, its input, and its output.

A kind of model is one module with the functions of `ModelKind`, named in KINDS. A model of that kind is a folder with its
weights or its description. Everything else in this package (keys, plans, resume, provenance, gallery, memory checks, workers)
uses models only through these types. Reads and writes nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np

from pipeline.errors import ModelError
from pipeline.generation.requests import WEIGHTINGS, ImagePrompting, PictureRequest, Weighting
from pipeline.generation.sampling import Sampling, known

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.generation.provenance import Neighbour

KINDS = {
    "rdm": "pipeline.generation.rdm_model",
    "rdm-lora": "pipeline.generation.rdm_lora",
    "ip-adapter": "pipeline.generation.ip_adapter",
}

DESCRIPTION = (
    "model.toml"  # in a model's folder; its `kind` is one of KINDS. A folder with unet/ and without it is an RDM
)

PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are loaded.

    folder          where its weights or its description are
    hash            sha256 that changes whenever its pictures would
    encoder, dim    the encoder whose vectors it takes, and their length
    norm            unit: it takes unit vectors; raw: stored vectors times their norm
    prompt          vector: it takes the prompt's vector; text: it encodes the prompt itself
    sampling        its default settings, complete; `samplers`: the samplers that it takes
    side            pictures' sides are multiples of this many pixels
    prompting       default use of neighbours as image prompts; None: it does not take image prompts
    blocks          names of sets of attention blocks that `prompting` may choose
    facts           further facts to print: base, adapter, revision, licence, terms
    weightings      weightings that `prompting` may choose
    takes           vectors: the neighbours' stored vectors; pictures: their stored pictures. `encoder` and `dim` are empty then
    gpu_precision   default precision on a GPU
    guidance_range  smallest and largest scale of a model with distilled guidance, which takes no negative prompt; None: any
    recipe          how a new run computes its pictures; increased when a change of the kind's code changes their last digits
    """

    name: str
    kind: str
    folder: str
    hash: str
    encoder: str
    dim: int
    norm: Literal["unit", "raw"]
    prompt: Literal["vector", "text"]
    max_neighbours: int
    default_k: int
    samplers: tuple[str, ...]
    sampling: Sampling
    side: int
    prompting: ImagePrompting | None = None
    blocks: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    weightings: tuple[Weighting, ...] = WEIGHTINGS
    takes: Literal["vectors", "pictures"] = "vectors"
    gpu_precision: Literal["fp16", "bf16"] = "fp16"
    recipe: int = 1
    guidance_range: tuple[float, float] | None = None

    @property
    def default_size(self) -> int:
        """Pixels of the longer side of a picture by default."""
        return max(self.sampling.size)

    def check_guidance(self, scale: float, negative: str, dashes: str = "") -> None:
        """Raise ModelError for a guidance scale or a negative prompt that a model with distilled guidance does not take."""
        if self.guidance_range is None:
            return
        low, high = self.guidance_range
        if not low <= scale <= high:
            raise ModelError(
                f"{dashes}scale is {scale:g}; {self.name} was distilled for scales from {low:g} to {high:g}"
            )
        if negative:
            raise ModelError(
                f"{self.name} takes no negative prompt, because its guidance was distilled into one pass: leave "
                f"{dashes}negative out, or use the model that it was distilled from"
            )

    def check_size(self, height: int, width: int, dashes: str = "") -> None:
        """Raise ModelError for a size that the model cannot make."""
        for name, length in (("height", height), ("width", width)):
            if length < self.side or length % self.side:
                below = max(length // self.side, 1) * self.side
                raise ModelError(
                    f"{dashes}{name} is {length} pixels; {self.name} wants a multiple of {self.side}, such as {below}"
                )


@dataclass(frozen=True)
class Given:
    """The input of a picture: the vectors of its prompt and of its neighbours, nearest first.

    Vectors are unit rows with separate norms, as a database stores them. `prompt` and `negative` are None for a model that
    encodes texts itself, unless a picture replaces the text.

    `pictures` are encoded pictures for a model that takes them: the picture prompt if there is one, then the neighbours'.
    """

    prompt: NDArray[np.float32] | None  # (D,)
    prompt_norm: float
    vectors: NDArray[np.float32]  # (m, D)
    norms: NDArray[np.float32]  # (m,)
    records: tuple[Neighbour, ...]
    notes: tuple[str, ...] = ()
    negative: NDArray[np.float32] | None = None  # (D,)
    negative_norm: float = 1.0
    pictures: tuple[bytes, ...] = ()
    lost: int = 0  # neighbours that were left out because their pictures are not stored

    @property
    def images(self) -> int:
        """The number of image prompts: the neighbours, and a picture prompt."""
        return len(self.pictures) or len(self.vectors) + (self.prompt is not None)

    @property
    def scores(self) -> NDArray[np.float64]:
        """(m,) cosines of the prompt with the neighbours."""
        return np.array([record["score"] for record in self.records], np.float64)


class LoadedModel(Protocol):
    """A model with its weights, in one worker."""

    def paint(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture with non-finite values. Noise is drawn on the
        CPU from each picture's own seed. Raises ModelError, and BudgetError if the GPU has too little memory."""
        ...

    def through_first_stage(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 after the model's own encoder and decoder, on the CPU. A drawn picture cannot
        be better than these."""
        ...


class ModelKind(Protocol):
    """The functions of a kind's module."""

    def outline(self, folder: Path, name: str) -> ModelInfo:
        """The facts of the model in this folder, without its hash. Fetches nothing. Raises ModelError."""
        ...

    def describe(self, folder: Path, name: str) -> ModelInfo:
        """The same with the hash, for which missing weights files are fetched. Raises ModelError."""
        ...

    def load(self, info: ModelInfo, precision: str, device: str, recipe: int) -> LoadedModel:
        """The model on its device, for pictures of this recipe. Raises ModelError."""
        ...

    def count_bytes(self, info: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
        """Peak bytes of weights and activations while `batch` pictures are made."""
        ...


def kind_named(name: str) -> ModelKind:
    """The module of a kind. Raises ModelError."""
    if name not in KINDS:
        raise ModelError(f"no kind of model is called {name!r}; the kinds are {', '.join(KINDS)}")
    return cast("ModelKind", importlib.import_module(KINDS[name]))


def torch_dtype(precision: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def to_arrays(images: torch.Tensor) -> list[NDArray[np.uint8] | None]:
    """uint8 (H, W, 3) of pictures (B, 3, H, W) in -1..1, clamped and rounded; None if a number is not finite."""
    import torch

    finite = torch.isfinite(images).flatten(1).all(dim=1)
    pixels = (images.clamp(-1, 1) * 127.5 + 127.5).nan_to_num(0).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return [array if good else None for array, good in zip(arrays, finite.tolist(), strict=True)]


def too_little_memory(pictures: Sequence[PictureRequest]) -> str:
    """The error for a batch that ran out of GPU memory."""
    sampling = pictures[0].sampling
    return (
        f"the GPU has too little memory for {len(pictures)} picture(s) of {known(sampling.width)} x "
        f"{known(sampling.height)} at a time: use a smaller --batch, or --precision fp16"
    )
