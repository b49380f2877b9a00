"""The registry of styles.

A style is one short function from a `Plate` to colours, (size, size, 3) float32 in 0..1. It works at every size from 64 to
1024 pixels: each width is a fraction of `plate.size`, and all random numbers come from `plate.rng`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.atelier.palette import Array as Array
from pipeline.atelier.plate import Plate


@dataclass(frozen=True)
class Style:
    name: str
    phrases: tuple[str, ...]  # its forms in captions; {} is the caption without style
    paint: Callable[[Plate], Array]


STYLE_REGISTRY: dict[str, Style] = {}


def style(name: str, *phrases: str) -> Callable[[Callable[[Plate], Array]], Callable[[Plate], Array]]:
    """Register a style under a slug of [a-z0-9_]+. Raises ValueError for a slug that is taken or of another form."""
    if name in STYLE_REGISTRY or not name.replace("_", "").isalnum() or name != name.lower():
        raise ValueError(f"style {name!r}: expected a new slug of [a-z0-9_]+")

    def register(paint: Callable[[Plate], Array]) -> Callable[[Plate], Array]:
        STYLE_REGISTRY[name] = Style(name, phrases, paint)
        return paint

    return register


def between(low: float, high: float, x: Array) -> Array:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) * (1.0 / (high - low)), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def vivid(rgb: Array, amount: float) -> Array:
    """The colours with their distance from grey multiplied by `amount`."""
    grey = rgb.mean(axis=-1, keepdims=True)
    return np.asarray(np.clip(grey + (rgb - grey) * amount, 0.0, 1.0))


def over(under: Array, colour: tuple[float, float, float] | Array, alpha: Array) -> Array:
    """`colour` over `under`, with opacity `alpha` (H, W) in 0..1."""
    return np.asarray(under + (np.asarray(colour, np.float32) - under) * alpha[..., None])
