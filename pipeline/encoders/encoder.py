"""A loaded encoder: pictures and texts into vectors. pipeline/encoders/specs.py resolves names of encoders.

Reads: weights. Writes: huggingface_hub's cache. Vectors of the same picture agree to float16 rounding between batch sizes and
threads. They are bit-identical for the same batch on the same machine; between CPU and GPU they agree to about 1e-3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np

from pipeline import machine
from pipeline.encoders.causal import short_features
from pipeline.encoders.modelconfig import ModelConfig
from pipeline.encoders.preprocess import Pixels, Preprocess, preprocess_of_model
from pipeline.encoders.record import UNSTATED, EncoderRecord
from pipeline.encoders.specs import (
    Tokenizer,
    build_network,
    import_open_clip,
    model_config,
    needs_whole,
    resolve_encoder,
    tokenizer_of,
    weights_path,
)
from pipeline.encoders.weights import read_state, sha256_of_state
from pipeline.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "bf16"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")

UNTRAINED = "the encoder has random weights: its results carry no meaning"

_TEXT_BATCH = 64


class _Tower(Protocol):
    image_size: int | tuple[int, int]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]: ...


class _Towers(Protocol):
    """The part of an open_clip model that is used here."""

    visual: _Tower

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor: ...


class Encoder:
    """A model on a device. `record` identifies the encoder; `notes` holds what every result must state about it."""

    def __init__(
        self,
        record: EncoderRecord,
        model: torch.nn.Module,
        preprocess: Preprocess,
        tokenizer: Tokenizer | None,
        device: torch.device,
    ) -> None:
        import torch

        self.record, self.model, self.preprocess, self.device = record, model, preprocess, device
        self._towers = cast("_Towers", model)
        self._tokenizer, self._said_cut = tokenizer, False
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[record.precision]
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocess.mean, device=device).reshape(shape)
        self._std = torch.tensor(preprocess.std, device=device).reshape(shape)

    def __repr__(self) -> str:
        return f"Encoder({self.record.name!r}, {self.record.precision}, {self.device})"

    @property
    def dim(self) -> int:
        return self.record.dim

    @property
    def has_text(self) -> bool:
        return self.record.has_text

    @property
    def image_size(self) -> int:
        """Pixels a side of the model's input."""
        return self.preprocess.size

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.record.trained else (UNTRAINED,)

    def prepare(self, picture: Image | NDArray[np.uint8]) -> Pixels:
        """An RGB picture (Pillow's, or (H, W, 3) uint8) as (size, size, 3): `encode_images` takes a batch of them.

        Safe to call from several threads.
        """
        return self.preprocess(picture)

    def submit(self, batch: Pixels) -> torch.Tensor:
        """Vectors (B, dim) on the device of prepared pictures, (B, size, size, 3) uint8 or float32 in 0..1.

        On a GPU this returns before the work is done. The vectors are not normalised.
        """
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(batch)
            if self.device.type == "cuda":
                pixels = pixels.pin_memory().to(self.device, non_blocking=True)
            # A permuted NHWC array is channels_last already.
            values = pixels.permute(0, 3, 1, 2).to(torch.float32)
            if batch.dtype == np.uint8:
                values = values / 255.0
            values = ((values - self._mean) / self._std).to(self._dtype)
            made = self._towers.visual(values)
            return made[0] if isinstance(made, tuple) else made  # CoCa's tower also returns tokens

    def encode_images(self, batch: Pixels) -> NDArray[np.float32]:
        """Vectors (B, dim) float32 of prepared pictures, (B, size, size, 3). The vectors are not normalised."""
        return to_numpy(self.submit(np.require(batch, requirements=["C", "W"])))

    def picture_vectors(
        self, pictures: Sequence[Image | NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(vectors (B, dim) float32 of unit norm, their lengths (B,) before normalising) of RGB pictures, in one batch."""
        if not pictures:
            return np.zeros((0, self.dim), np.float32), np.zeros(0, np.float32)
        batch = cast("Pixels", np.stack([self.prepare(picture) for picture in pictures]))
        return unit_rows(self.encode_images(batch))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (B, dim) float32 of unit norm. A text longer than the context is cut off, with a warning.

        Raises EncoderError if the encoder has no text tower.
        """
        return self.text_vectors(texts)[0]

    def text_vectors(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(vectors as from `encode_texts`, their lengths (B,) before normalising): some models are conditioned on
        unscaled vectors."""
        return self._text_vectors(texts, lambda tokens: self._towers.encode_text(tokens.to(self.device)))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`encode_texts` for searches: equal to it up to rounding (1e-5 in fp32), and several times faster for short texts.

        Not for vectors that are stored or that condition a generation, because their bytes would change. Raises EncoderError.
        """
        return self._text_vectors(texts, lambda tokens: short_features(self.model, tokens, self.device))[0]

    def _text_vectors(
        self, texts: Sequence[str], features: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(unit vectors, lengths) of texts. `features`: the vectors (B, dim) of tokens (B, context), which are on the CPU."""
        import torch

        tokenizer = self._tokenizer
        if tokenizer is None:
            raise EncoderError(
                f"encoder {self.record.name!r} has no text tower: query by picture (--image) or by key (--key) instead"
            )
        if not texts:
            return np.zeros((0, self.dim), np.float32), np.zeros(0, np.float32)
        cut = self.overlong(texts)
        if cut and not self._said_cut:  # once: callers that encode many texts count them
            self._said_cut = True
            log.warning(
                "%d of %d texts are longer than the encoder's %d tokens; the encoder does not see their ends",
                len(cut),
                len(texts),
                tokenizer.context_length,
            )
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _TEXT_BATCH):
                parts.append(to_numpy(features(tokenizer(list(texts[start : start + _TEXT_BATCH])))))
        return unit_rows(np.concatenate(parts))

    def overlong(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that the tokenizer cuts off."""
        encode = getattr(self._tokenizer, "encode", None)
        if self._tokenizer is None or encode is None:
            return []
        room = self._tokenizer.context_length - 2  # begin and end
        # A token has at least one byte, so most texts need not be tokenized here.
        return [i for i, text in enumerate(texts) if len(text.encode()) > room and len(encode(text)) > room]


def to_numpy(vectors: torch.Tensor) -> NDArray[np.float32]:
    """Vectors on any device as float32 in main memory. Waits for the device."""
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array


def unit_rows(vectors: NDArray[np.float32] | NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(B, D) float32 rows scaled to length 1, and their former lengths (B,). Zero or non-finite rows give NaN."""
    wide = vectors.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = wide / norms[:, None]
    return unit.astype(np.float32), norms.astype(np.float32)


@cache
def _say_untrained(name: str) -> None:
    """Warn once per process, because a run loads its encoder for each of its stages."""
    log.warning("%s: %s", name, UNTRAINED)


def load_encoder(name: str, device: str = "auto", precision: str = "fp32", preprocess: str = "openclip") -> Encoder:
    """Load the encoder that `name` stands for, for inference. device: auto (cuda if there is one, else cpu), cpu, cuda:1.

    Raises EncoderError if the name is unknown, if the weights cannot be reached or do not fit the config, or if a
    file would need code to be run. Weights are located before the network is built.
    """
    import torch

    if precision not in PRECISIONS:
        raise EncoderError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    spec, where = resolve_encoder(name), torch.device(machine.device(device))
    config = model_config(spec)
    weights = weights_path(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = build_network(name, config, precision)
    if weights is not None:
        _load_state(name, model, weights)
    model.eval().requires_grad_(False)
    digest = sha256_of_state(model.state_dict())
    if precision != "fp32":
        _lower(model, precision, config)
    model.to(where)
    has_text = config.text is not None
    record = EncoderRecord(name, config.embed_dim, digest, preprocess, precision, spec.trained, has_text)
    if not spec.trained:
        _say_untrained(name)
    return Encoder(
        record,
        model,
        preprocess_of_model(preprocess, cast("_Towers", model).visual.image_size, config.preprocess),
        tokenizer_of(spec, config) if has_text else None,
        where,
    )


def load_recorded(record: EncoderRecord, device: str = "auto") -> Encoder:
    """Load the encoder that made a database's vectors. Use this for every database that exists.

    Raises EncoderError if it cannot be loaded, or if another encoder is found under its name.
    """
    encoder = load_encoder(record.name, device, record.precision, record.preprocess)
    require_match(record, encoder)
    return encoder


def require_match(record: EncoderRecord, encoder: Encoder) -> None:
    """Raise EncoderError if vectors of `encoder` and of `record` cannot be compared. Precision may differ."""
    found = encoder.record
    differing = [
        f"{what} {theirs} in the database, {ours} now"
        for what, theirs, ours in (
            ("weights", record.weights[:12], found.weights[:12]),
            ("preprocessing", record.preprocess, found.preprocess),
            ("dimensions", record.dim, found.dim),
        )
        if theirs != ours and theirs != UNSTATED[:12]
    ]
    if differing:
        raise EncoderError(
            f"encoder {found.name!r} did not make this database's vectors, {record.name!r} did: {'; '.join(differing)}. "
            f"Use --encoder {record.name} with --preprocess {record.preprocess} and the same weights, or build the database "
            f"again with --encoder {found.name}"
        )


def _load_state(name: str, model: torch.nn.Module, path: Path) -> None:
    """Load a checkpoint into the model; it must hold every tensor of the model, and no other. Raises EncoderError."""
    open_clip = import_open_clip()
    state = open_clip.convert.convert_state_dict(model, read_state(path))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding") and hasattr(model, "text"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    if "text.transformer.embeddings.position_ids" not in own:
        state.pop("text.transformer.embeddings.position_ids", None)
    for extra in ("input_resolution", "context_length", "vocab_size"):  # in OpenAI's archives
        state.pop(extra, None)
    try:
        for scalar in ("logit_scale", "logit_bias"):  # a scalar or one element
            if scalar in state and scalar in own:
                state[scalar] = state[scalar].reshape(own[scalar].shape)
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise EncoderError(
            f"encoder {name!r}: {path} does not fit its model config: {str(error)[:600]}. Check that config and weights "
            "belong together (a checkpoint without a text tower needs a config without text_cfg)"
        ) from error


def _lower(model: torch.nn.Module, precision: str, config: ModelConfig) -> None:
    """Convert the weights to lower precision as open_clip does: layer norms stay fp32."""
    import torch

    open_clip = import_open_clip(needs_whole(config))  # the copy that built the model: its classes are compared
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    if not config.is_timm:
        open_clip.model.convert_weights_to_lp(model, dtype=dtype)
        return
    model.to(dtype=dtype)
    for module in model.modules():
        if isinstance(module, open_clip.transformer.LayerNormFp32):
            module.float()
