"""A loaded encoder: pictures and texts into vectors. Which encoder a name stands for is pipeline/encoders/specs.py.

Reads: weights. Writes nothing. Vectors of the same picture agree to float16 rounding between batch sizes and threads, and are
bit-identical for the same batch on the same machine; between CPU and GPU they agree to about 1e-3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.encoders.preprocess import Preprocess, preprocess_of_model
from pipeline.encoders.record import UNSTATED, EncoderRecord
from pipeline.encoders.specs import (
    OPENAI_MEAN,
    OPENAI_STD,
    EncoderSpec,
    build_network,
    check_encoder,
    model_config,
    resolve_encoder,
    tag_files,
    tokenizer_of,
)
from pipeline.encoders.weights import HUB_WEIGHTS, check_hub, fetch, read_state, sha256_of_state
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


class Encoder:
    """A model on a device. `record` says which one; `notes` holds what every result has to say of it."""

    def __init__(
        self,
        spec: EncoderSpec,
        record: EncoderRecord,
        model: torch.nn.Module,
        preprocess: Preprocess,
        tokenizer: Any,
        device: torch.device,
    ) -> None:
        import torch

        self.spec, self.record, self.model, self.preprocess, self.device = spec, record, model, preprocess, device
        self._tokenizer = tokenizer
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

    def prepare(self, picture: Image | NDArray[Any]) -> NDArray[Any]:
        """An RGB picture (Pillow's, or (H, W, 3) uint8) as the array `encode_images` takes a batch of. Safe in threads."""
        return self.preprocess(picture)

    def submit(self, batch: NDArray[Any]) -> torch.Tensor:
        """Start on a batch of prepared pictures, (B, size, size, 3) uint8 or float32 in 0..1; (B, dim) on the device.

        On a GPU this returns before the work is done. Vectors are as the model gives them, not normalised.
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
            tower: Any = self.model.visual
            made: Any = tower(values)
            vectors: torch.Tensor = made[0] if isinstance(made, tuple) else made  # CoCa's tower gives tokens too
            return vectors

    def encode_images(self, batch: NDArray[Any]) -> NDArray[Any]:
        """(B, size, size, 3) prepared pictures into (B, dim) float32, not normalised."""
        return to_numpy(self.submit(np.require(batch, requirements=["C", "W"])))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[Any]:
        """Texts into (B, dim) float32 unit rows. What is beyond the context length is cut off, with a warning.

        Raises EncoderError where the encoder has no text tower.
        """
        return self.text_vectors(texts)[0]

    def text_vectors(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Unit rows as `encode_texts`, and the lengths (B,) they had before: some models take vectors as they were."""
        import torch

        if not self.has_text:
            raise EncoderError(
                f"encoder {self.record.name!r} has no text tower: query by picture (--image) or by key (--key) instead"
            )
        if not texts:
            return np.zeros((0, self.dim), np.float32), np.zeros(0, np.float32)
        cut = self.overlong(texts)
        if cut:
            log.warning(
                "%d of %d texts are longer than the encoder's %d tokens; their ends are not seen",
                len(cut),
                len(texts),
                self._tokenizer.context_length,
            )
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _TEXT_BATCH):
                tokens = self._tokenizer(list(texts[start : start + _TEXT_BATCH])).to(self.device)
                parts.append(to_numpy(self.model.encode_text(tokens)))  # type: ignore[operator]
        return unit_rows(np.concatenate(parts))

    def overlong(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts that the tokenizer cuts off."""
        room = self._tokenizer.context_length - 2  # begin and end
        # A token has at least one byte, so that most texts need no second look.
        return [
            i
            for i, text in enumerate(texts)
            if len(text.encode()) > room
            and hasattr(self._tokenizer, "encode")
            and len(self._tokenizer.encode(text)) > room
        ]


def to_numpy(vectors: torch.Tensor) -> NDArray[Any]:
    """Vectors on any device as float32 in memory; waits for the device."""
    array: NDArray[Any] = vectors.float().cpu().numpy()
    return array


def unit_rows(vectors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(B, D) float32 rows scaled to length 1, and their lengths (B,) before. Zero or non-finite rows give NaN."""
    wide = vectors.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = wide / norms[:, None]
    return unit.astype(np.float32), norms.astype(np.float32)


@cache
def _say_untrained(name: str) -> None:
    """Once a process: a run loads its encoder for each of its stages."""
    log.warning("%s: %s", name, UNTRAINED)


def load_encoder(
    spec: EncoderSpec, device: str = "auto", precision: str = "fp32", preprocess: str = "openclip"
) -> Encoder:
    """Load an encoder for inference. device: auto (cuda where there is one, else cpu), cpu, cuda, cuda:1.

    Raises EncoderError where weights cannot be had, do not fit the config, or need code to be run.
    """
    import torch

    if precision not in PRECISIONS:
        raise EncoderError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    config, preprocess_config = model_config(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = build_network(spec, config, precision)
    if spec.trained:
        _load_state(spec, model, _weights_path(spec))
    model.eval().requires_grad_(False)
    digest = sha256_of_state(model.state_dict())
    if precision != "fp32":
        _lower(model, precision, "timm_model_name" in config["vision_cfg"])
    where = _device(device)
    model.to(where)
    visual: Any = model.visual
    has_text = bool(config.get("text_cfg"))
    defaults = {"mean": OPENAI_MEAN, "std": OPENAI_STD}
    record = EncoderRecord(spec.name, int(config["embed_dim"]), digest, preprocess, precision, spec.trained, has_text)
    if not spec.trained:
        _say_untrained(spec.name)
    return Encoder(
        spec,
        record,
        model,
        preprocess_of_model(preprocess, visual.image_size, {**defaults, **preprocess_config}),
        tokenizer_of(spec, config) if has_text else None,
        where,
    )


def load_recorded(record: EncoderRecord, device: str = "auto") -> Encoder:
    """Load the encoder that made a database's vectors. Raises EncoderError where what is found now is another."""
    encoder = load_encoder(resolve_encoder(record.name), device, record.precision, record.preprocess)
    require_match(record, encoder)
    return encoder


def require_match(record: EncoderRecord, encoder: Encoder) -> None:
    """Raise EncoderError where vectors of `encoder` cannot be compared with those of `record`. Precision may differ."""
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


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EncoderError(f"device {name!r} is not one that torch knows: use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EncoderError(f"device {name!r}: torch {torch.__version__} sees no GPU here; use --device cpu")
    return device


def _weights_path(spec: EncoderSpec) -> Any:
    if spec.weights is not None:
        check_encoder(spec)
        return spec.weights
    repo, names = (spec.repo, HUB_WEIGHTS) if spec.kind == "hub" else tag_files(spec)
    return fetch(spec.name, repo, check_hub(spec.name, repo, names, spec.revision), spec.revision)


def _load_state(spec: EncoderSpec, model: torch.nn.Module, path: Any) -> None:
    """Load a checkpoint into the model; every tensor has to be there, and no other. Raises EncoderError."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = read_state(path)
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding") and hasattr(model, "text"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    if "text.transformer.embeddings.position_ids" not in own:
        state.pop("text.transformer.embeddings.position_ids", None)
    for name in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        state.pop(name, None)
    for name in ("logit_scale", "logit_bias"):  # a scalar or one element
        if name in state and name in own:
            state[name] = state[name].reshape(own[name].shape)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise EncoderError(
            f"encoder {spec.name!r}: {path} does not fit its model config: {str(error)[:600]}. Check that config and weights "
            "belong together (a checkpoint without a text tower needs a config without text_cfg)"
        ) from error


def _lower(model: torch.nn.Module, precision: str, timm: bool) -> None:
    """Lower precision as open_clip does it: layer norms stay fp32."""
    import torch
    from open_clip.model import convert_weights_to_lp
    from open_clip.transformer import LayerNormFp32

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    if not timm:
        convert_weights_to_lp(model, dtype=dtype)
        return
    model.to(dtype=dtype)
    for module in model.modules():
        if isinstance(module, LayerNormFp32):
            module.float()
