"""From an RGB picture to the pixels that an encoder takes. The method is part of a database's identity, so each has a name.

    openclip   open_clip's own transform for the model: resize the shorter side (bicubic with antialias) and crop the centre;
               if the model's config says `squash`, resize both sides
    compvis    the method of CompVis's RDM databases: bicubic directly to the model's size, align_corners, no antialias, no crop
               (retrieval-augmented-diffusion-models, FrozenClipImageEmbedder)

Reads and writes nothing; runs in threads beside a model. `openclip` differs from open_clip's own pixels by at most 2 steps
of 255, in fewer than 1 % of the values: torch's resize of 8-bit pictures is four times as fast as Pillow's and rounds
differently. The encoder applies mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.modelconfig import PreprocessConfig
from pipeline.errors import EncoderError
from pipeline.images import resize

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8] | NDArray[np.float32]  # `openclip` | `compvis`

Kind = Literal["openclip", "compvis"]

KINDS: tuple[Kind, ...] = ("openclip", "compvis")

_LONGEST = 8  # `openclip`: if a picture is longer than this many widths, only the crop is resized


@dataclass(frozen=True)
class Preprocess:
    """One method of preparing pictures. size: pixels a side of the model's input; mean and std: RGB, of values in 0..1."""

    kind: Kind
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # `openclip`: bicubic | bilinear
    resize_mode: str = "shortest"  # `openclip`: shortest | squash

    @property
    def side(self) -> int:
        """Pixels of the shorter side that are needed; 0: all of them (without antialias, the picture must not be reduced
        before)."""
        return 0 if self.kind == "compvis" else self.size

    def __call__(self, picture: Image | NDArray[np.uint8]) -> Pixels:
        """An RGB picture, Pillow's or (H, W, 3) uint8, as (size, size, 3).

        The result is uint8; for compvis it is float32, 0 black and 1 white, not clipped.
        """
        pixels = picture if isinstance(picture, np.ndarray) else np.array(picture)
        if self.kind == "compvis":
            return _align_corners(pixels, self.size)
        return _openclip(pixels, self.size, self.interpolation, self.resize_mode)


def preprocess_of_model(kind: str, size: int | tuple[int, int], config: PreprocessConfig) -> Preprocess:
    """The preprocessing `kind` for a model whose input has `size` pixels. Raises EncoderError."""
    if kind not in KINDS:
        raise EncoderError(f"preprocessing {kind!r} is not one of {', '.join(KINDS)}")
    sides = set(size) if isinstance(size, tuple | list) else {size}
    mode, filter_name = config.resize_mode, config.interpolation
    if len(sides) != 1 or mode not in ("shortest", "squash") or filter_name not in ("bicubic", "bilinear"):
        raise EncoderError(
            f"the model's preprocessing (size {size}, resize mode {mode}, {filter_name}) is not supported: square input, "
            "shortest or squash, bicubic or bilinear are"
        )
    return Preprocess(kind, int(sides.pop()), config.mean, config.std, filter_name, mode)


def _openclip(pixels: NDArray[np.uint8], size: int, interpolation: str, mode: str) -> NDArray[np.uint8]:
    """open_clip's inference transform up to uint8: torchvision's Resize(size) and CenterCrop(size), rounded as they do."""
    height, width = pixels.shape[:2]
    if mode == "squash":  # Pillow orders the two passes by the shape, so only Pillow gives the same pixels
        return _pillow(pixels, size, interpolation, (0.0, 0.0, width, height))
    short, long = min(width, height), max(width, height)
    resized = int(size * long / short)
    start = round((resized - size) / 2.0)
    if long > _LONGEST * short:  # most of it lies outside the crop
        first, last = start * long / resized, (start + size) * long / resized
        box = (0.0, first, width, last) if height > width else (first, 0.0, last, height)
        return _pillow(pixels, size, interpolation, box)
    if height > width:
        return resize(pixels, size, resized, interpolation)[start : start + size]
    return resize(pixels, resized, size, interpolation)[:, start : start + size]


def _pillow(
    pixels: NDArray[np.uint8], size: int, interpolation: str, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    from PIL import Image

    resample = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((size, size), resample, box=box))


@lru_cache(maxsize=256)
def _taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Cubic convolution (a = -0.75) from `length` samples to `size`, corners aligned: (size, 4) indices and weights."""
    position = np.arange(size) * ((length - 1) / (size - 1) if size > 1 else 0.0)
    first = np.floor(position)
    t = (position - first)[:, None]
    distance = np.abs(t - np.array([-1.0, 0.0, 1.0, 2.0]))
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    indices = np.clip(first[:, None].astype(np.int64) + np.array([-1, 0, 1, 2]), 0, length - 1)
    return indices, np.where(distance <= 1, near, far).astype(np.float32)


def _align_corners(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (size, size, 3) float32 in 0..1 with overshoot, as torch's bicubic with align_corners."""
    rows, row_weights = _taps(pixels.shape[0], size)
    columns, column_weights = _taps(pixels.shape[1], size)
    tall = sum(pixels[rows[:, i]] * row_weights[:, i, None, None] for i in range(4))
    wide = sum(np.asarray(tall)[:, columns[:, i]] * column_weights[None, :, i, None] for i in range(4))
    return np.ascontiguousarray(wide, dtype=np.float32) / np.float32(255.0)
