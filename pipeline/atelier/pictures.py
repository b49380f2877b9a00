"""Pictures by index: `picture(index)` is a pure function of index, seed, size, style and layout.

Reads nothing, writes nothing, and keeps no state except small caches of textures. The same arguments give the same bytes
in every process and in every order of calls. It does not promise the same bytes with another version of OpenCV or NumPy, or
on another kind of processor.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.atelier import styles_brush, styles_craft, styles_print
from pipeline.atelier.compose import compose
from pipeline.atelier.opencv import cv2
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
    """A picture and its description. `image` is (size, size, 3) uint8 RGB; `metadata` has flat scalar values."""

    image: NDArray[np.uint8]
    metadata: dict[str, str | int]

    @property
    def caption_with_style(self) -> str:
        """The caption, with the style named in it."""
        return caption_with_style(str(self.metadata["caption"]), str(self.metadata["style"]))


def caption_with_style(caption: str, style: str) -> str:
    """The caption with the style in it ("a mosaic of a red lighthouse ..."); a caption always gets the same phrase."""
    phrases = STYLE_REGISTRY[_known_style(style)].phrases
    # The length of the caption selects the phrase, so that no seed is needed
    return phrases[len(caption) % len(phrases)].format(caption)


def _known_style(style: str) -> str:
    if style not in STYLE_REGISTRY:
        raise ConfigError(f"unknown style {style!r}{nearest(style, STYLES)}: expected one of {', '.join(STYLES)}")
    return style


def cell(
    index: int, *, seed: int = 0, style: str | None = None, layout: Literal["grid", "own"] = "grid"
) -> tuple[int, str]:
    """The content id and the style of an index.

    With a `style`, the content is the index. Otherwise layout "grid" runs through contents and styles: the content is
    `index // len(STYLES)`, the style number `index % len(STYLES)`. Layout "own" makes the index the content and draws the
    style from (seed, index). Raises ConfigError for a negative number, an unknown style or layout.
    """
    if index < 0 or seed < 0:
        raise ConfigError(f"atelier: index is {index} and seed is {seed}; whole numbers of 0 or more were expected")
    if style is not None:
        return index, _known_style(style)
    if layout == "grid":
        return index // len(STYLES), STYLES[index % len(STYLES)]
    if layout == "own":
        return index, STYLES[int(chance(seed, index, 4).integers(len(STYLES)))]
    raise ConfigError(f"atelier: unknown layout {layout!r}{nearest(layout, ('grid', 'own'))}: expected 'grid' or 'own'")


def describe(scene: Scene, style: str) -> dict[str, str | int]:
    """The metadata row of a picture: one scalar in each column."""
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
    """The metadata of `picture` with the same arguments, without the drawing."""
    content, style = cell(index, seed=seed, style=style, layout=layout)
    return describe(sample(seed, content), style)


def picture(
    index: int, *, seed: int = 0, size: int = 64, style: str | None = None, layout: Literal["grid", "own"] = "grid"
) -> DrawnPicture:
    """The picture of an index, `size` x `size` pixels (64 to 1024). `cell` defines the meaning of an index.

    Raises ConfigError for a size, style, layout, index or seed that is out of range or unknown.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(
            f"atelier: size is {size}; {SMALLEST} to {LARGEST} pixels were expected: draw at a size in that range and "
            "scale the picture"
        )
    content, style = cell(index, seed=seed, style=style, layout=layout)
    scene = sample(seed, content)
    return DrawnPicture(render(scene, style, size), describe(scene, style))


def render(scene: Scene, style: str, size: int) -> NDArray[np.uint8]:
    """A scene in a style: (size, size, 3) uint8 RGB."""
    rng = chance(scene.seed, scene.content_id, zlib.crc32(style.encode()))
    out = STYLE_REGISTRY[style].paint(make_plate(compose(scene), size, rng))
    return np.asarray(np.clip(out * 255.0 + 0.5, 0, 255).astype(np.uint8))


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """An RGB image (H, W, 3) as PNG. The same image gives the same bytes. Raises ConfigError for another form of array."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise ConfigError(f"OpenCV could not write a PNG of an image of shape {image.shape}: expected (H, W, 3) uint8")
    return bytes(data.tobytes())
