"""Pictures by number: `picture(index)` is a pure function of index, seed, size and style.

Reads nothing, writes nothing,
    keeps no state but small caches of textures. The same arguments give the same bytes on
another day,
    in another order and in any number of processes; not promised: the same bytes from another version of OpenCV
or NumPy, or from another kind of processor.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.atelier import styles_brush, styles_craft, styles_print
from pipeline.atelier.compose import compose
from pipeline.atelier.plate import make_plate
from pipeline.atelier.scene import Scene, chance, sample, split_of
from pipeline.atelier.settings import SETTINGS
from pipeline.atelier.styles import STYLE_REGISTRY
from pipeline.atelier.subjects import REGISTRY
from pipeline.errors import ConfigError, nearest

__all__ = ["styles_brush", "styles_craft", "styles_print"]

STYLES: tuple[str, ...] = tuple(sorted(STYLE_REGISTRY))

SUBJECTS: tuple[str, ...] = tuple(REGISTRY)

SMALLEST, LARGEST = 64, 1024


@dataclass(frozen=True)
class DrawnPicture:
    """A picture and what it is of. `image` is (size, size, 3) uint8 RGB; `metadata` has flat scalar values."""

    image: np.ndarray[Any, np.dtype[np.uint8]]
    metadata: dict[str, str | int]

    @property
    def caption_with_style(self) -> str:
        """The caption with the style named in it."""
        return caption_with_style(str(self.metadata["caption"]), str(self.metadata["style"]))


def caption_with_style(caption: str, style: str) -> str:
    """A caption that names the style as well ("a mosaic of a red lighthouse ..."); the phrasing is the caption's own."""
    phrases = STYLE_REGISTRY[_known_style(style)].phrases
    # The length of a caption is as good a die as any, and needs no seed
    return phrases[len(caption) % len(phrases)].format(caption)


def _known_style(style: str) -> str:
    if style not in STYLE_REGISTRY:
        raise ConfigError(f"unknown style {style!r}{nearest(style, STYLES)}: expected one of {', '.join(STYLES)}")
    return style


def cell(
    index: int, *, seed: int = 0, style: str | None = None, layout: Literal["grid", "own"] = "grid"
) -> tuple[int, str]:
    """(content id, style) of an index.

    A `style` given: the content is the index itself. Else layout "grid" runs through content x style,
    `index // len(STYLES)` and `index % len(STYLES)`; layout "own" gives each index a content of its own and a style by
    chance from (seed, index).
    """
    if index < 0 or seed < 0:
        raise ConfigError(
            f"atelier: index and seed count from 0, found index {index} and seed {seed}: use numbers >= 0"
        )
    if style is not None:
        return index, _known_style(style)
    if layout == "grid":
        return index // len(STYLES), STYLES[index % len(STYLES)]
    if layout == "own":
        return index, STYLES[int(chance(seed, index, 4).integers(len(STYLES)))]
    raise ConfigError(f"atelier: unknown layout {layout!r}{nearest(layout, ('grid', 'own'))}: expected 'grid' or 'own'")


def describe(scene: Scene, style: str) -> dict[str, str | int]:
    """The metadata row of a picture: flat scalar columns."""
    return {
        "item_id": f"{scene.seed}-{scene.content_id:09d}-{style}",
        "caption": scene.caption,
        "style": style,
        "subject": scene.subject,
        "genre": REGISTRY[scene.subject].genre,
        "colour": scene.colour,
        "number": scene.number,
        "setting": scene.setting,
        "place": "indoors" if SETTINGS[scene.setting].indoors else "outdoors",
        "weather": scene.weather,
        "time_of_day": scene.time_of_day,
        "content_id": scene.content_id,
        "split": split_of(scene.content_id),
        "seed": scene.seed,
    }


def metadata(
    index: int, *, seed: int = 0, style: str | None = None, layout: Literal["grid", "own"] = "grid"
) -> dict[str, str | int]:
    """What `picture` of the same arguments says of its picture, without drawing it."""
    content, style = cell(index, seed=seed, style=style, layout=layout)
    return describe(sample(seed, content), style)


def picture(
    index: int, *, seed: int = 0, size: int = 64, style: str | None = None, layout: Literal["grid", "own"] = "grid"
) -> DrawnPicture:
    """The picture with a number, `size` x `size` pixels (64 to 1024); see `cell` for what an index stands for.

    Raises ConfigError for a size, style, layout, index or seed that cannot be.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(
            f"atelier draws pictures of {SMALLEST} to {LARGEST} pixels a side, found size {size}: "
            f"ask for a size in that range and scale the picture"
        )
    content, style = cell(index, seed=seed, style=style, layout=layout)
    scene = sample(seed, content)
    return DrawnPicture(render(scene, style, size), describe(scene, style))


def render(scene: Scene, style: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A scene in a style: (size, size, 3) uint8 RGB."""
    rng = chance(scene.seed, scene.content_id, zlib.crc32(style.encode()))
    out = STYLE_REGISTRY[style].paint(make_plate(compose(scene), size, rng))
    return np.asarray(np.clip(out * 255.0 + 0.5, 0, 255).astype(np.uint8))


def png_bytes(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """An RGB image as PNG; the same image gives the same bytes."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise ConfigError(f"OpenCV could not write a PNG of an image of shape {image.shape}: expected (H, W, 3) uint8")
    return bytes(data.tobytes())
