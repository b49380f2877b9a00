"""Colours and light of a scene: named colours, the sky at each hour, the effect of the weather on both.

A colour is a tuple of three sRGB floats in 0..1. Colours are mixed in sRGB, which is not photometrically correct.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

#: Arrays of pixels and points. NumPy's and OpenCV's stubs lose the type of a number in arithmetic; docstrings give it.
Array = NDArray[Any]

#: The values of the `colour` attribute, and the paint of each.
COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.13, 0.11),
    "orange": (0.93, 0.48, 0.11),
    "yellow": (0.97, 0.82, 0.20),
    "green": (0.25, 0.58, 0.25),
    "turquoise": (0.16, 0.66, 0.65),
    "blue": (0.14, 0.34, 0.76),
    "purple": (0.48, 0.24, 0.64),
    "pink": (0.95, 0.56, 0.67),
    "white": (0.95, 0.94, 0.90),
    "grey": (0.56, 0.57, 0.59),
    "black": (0.14, 0.14, 0.17),
    "brown": (0.47, 0.29, 0.16),
}

TIMES = ("dawn", "day", "dusk", "night")

WEATHERS = ("clear", "cloudy", "rain", "snow", "fog", "storm")

INK: Colour = (0.10, 0.09, 0.11)

CREAM: Colour = (0.96, 0.92, 0.82)

WOOD: Colour = (0.55, 0.36, 0.20)

STONE: Colour = (0.62, 0.60, 0.57)

IRON: Colour = (0.22, 0.23, 0.26)

GLASS: Colour = (0.62, 0.78, 0.86)

LAMP: Colour = (1.00, 0.86, 0.45)

LEAF: Colour = (0.27, 0.47, 0.20)

WHITE: Colour = (0.97, 0.96, 0.93)

SNOW: Colour = (0.93, 0.95, 0.98)


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """`a` for t = 0, `b` for t = 1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def times(a: Colour, k: float) -> Colour:
    """`a` made darker (k < 1) or lighter (k > 1), limited to 1."""
    return (min(1.0, a[0] * k), min(1.0, a[1] * k), min(1.0, a[2] * k))


def tint(a: Colour, b: Colour) -> Colour:
    """`a` under a light of colour `b`."""
    return (min(1.0, a[0] * b[0]), min(1.0, a[1] * b[1]), min(1.0, a[2] * b[2]))


def grey_of(a: Colour) -> float:
    """Rec. 601 luma of a colour."""
    return 0.299 * a[0] + 0.587 * a[1] + 0.114 * a[2]


def mute(a: Colour, t: float) -> Colour:
    """`a` with a share `t` of its saturation removed."""
    g = grey_of(a)
    return mix(a, (g, g, g), t)


def vary(a: Colour, rng: np.random.Generator, amount: float = 1.0) -> Colour:
    """`a` with a small random change of hue, saturation and value."""
    dh, ds, dv = (rng.random(3) - 0.5).tolist()
    h, s, v = colorsys.rgb_to_hsv(*a)
    return colorsys.hsv_to_rgb(
        (h + 0.035 * amount * dh) % 1.0,
        min(1.0, max(0.0, s * (1.0 + 0.25 * amount * ds))),
        min(1.0, max(0.0, v * (1.0 + 0.18 * amount * dv))),
    )


@dataclass(frozen=True)
class Light:
    """The direction of the light, and the colours of lit and shaded sides."""

    sun: tuple[float, float]  # position of the sun or moon in the picture, x right and y down, 0..1
    direction: tuple[float, float]  # unit vector towards the light, y down
    lit: Colour
    shade: Colour
    contrast: float  # from 0 (flat) to 1 (hard)
    lamps: bool  # whether windows and lamps are lit


@dataclass(frozen=True)
class Palette:
    """The base colours of a scene's surroundings."""

    sky: Colour
    horizon: Colour
    cloud: Colour
    sun: Colour
    water: Colour
    grass: Colour
    foliage: Colour
    earth: Colour
    sand: Colour
    rock: Colour
    haze: Colour
    haze_amount: float
    wall: Colour
    wood: Colour


# (sky, horizon, light, shade, sun, contrast): each hour has several keys; a scene picks one.
_HOURS: dict[str, tuple[tuple[Colour, Colour, Colour, Colour, Colour, float], ...]] = {
    "dawn": (
        ((0.52, 0.64, 0.82), (1.00, 0.84, 0.72), (1.06, 0.95, 0.88), (0.64, 0.63, 0.84), (1.0, 0.95, 0.78), 0.7),
        ((0.72, 0.68, 0.84), (1.00, 0.78, 0.76), (1.05, 0.92, 0.90), (0.66, 0.60, 0.80), (1.0, 0.92, 0.82), 0.6),
        ((0.50, 0.72, 0.78), (1.00, 0.92, 0.66), (1.07, 1.00, 0.84), (0.60, 0.66, 0.80), (1.0, 0.97, 0.80), 0.7),
    ),
    "day": (
        ((0.22, 0.48, 0.84), (0.76, 0.89, 0.97), (1.08, 1.05, 0.98), (0.56, 0.62, 0.80), (1.0, 0.97, 0.80), 1.0),
        ((0.34, 0.62, 0.90), (0.86, 0.94, 0.96), (1.07, 1.05, 1.00), (0.62, 0.66, 0.80), (1.0, 0.98, 0.86), 0.9),
        ((0.16, 0.55, 0.74), (0.82, 0.93, 0.88), (1.09, 1.06, 0.94), (0.56, 0.64, 0.74), (1.0, 0.95, 0.72), 1.0),
    ),
    "dusk": (
        ((0.26, 0.20, 0.46), (1.00, 0.52, 0.26), (1.06, 0.80, 0.62), (0.44, 0.36, 0.58), (1.0, 0.62, 0.28), 0.9),
        ((0.42, 0.20, 0.42), (0.99, 0.44, 0.40), (1.04, 0.76, 0.68), (0.44, 0.32, 0.54), (1.0, 0.55, 0.34), 0.9),
        ((0.18, 0.30, 0.46), (0.98, 0.68, 0.32), (1.05, 0.86, 0.62), (0.38, 0.42, 0.58), (1.0, 0.74, 0.34), 0.9),
    ),
    "night": (
        ((0.03, 0.06, 0.19), (0.15, 0.23, 0.44), (0.70, 0.78, 1.00), (0.34, 0.40, 0.66), (0.98, 0.97, 0.86), 0.8),
        ((0.07, 0.04, 0.17), (0.26, 0.19, 0.42), (0.74, 0.73, 0.98), (0.38, 0.36, 0.62), (1.0, 0.95, 0.80), 0.8),
        ((0.02, 0.10, 0.18), (0.10, 0.30, 0.40), (0.68, 0.82, 0.96), (0.30, 0.44, 0.60), (0.94, 0.98, 0.92), 0.8),
    ),
}

# weather: (grey mixed into the sky as a share of daylight, share, haze, contrast)
_WEATHER: dict[str, tuple[float, float, float, float]] = {
    "clear": (1.0, 0.0, 0.10, 1.0),
    "cloudy": (0.86, 0.35, 0.16, 0.7),
    "rain": (0.68, 0.55, 0.24, 0.6),
    "snow": (0.88, 0.55, 0.26, 0.6),
    "fog": (0.90, 0.70, 0.72, 0.4),
    "storm": (0.48, 0.72, 0.20, 0.85),
}

_DAYLIGHT = {"dawn": 0.92, "day": 0.98, "dusk": 0.66, "night": 0.30}


def sample_light(rng: np.random.Generator, time_of_day: str, weather: str) -> tuple[Light, Palette]:
    """The light and the palette of an hour and a weather. `rng` picks one of the keys of the hour and varies it."""
    keys = _HOURS[time_of_day]
    sky, horizon, lit, shade, sun, contrast = keys[int(rng.integers(len(keys)))]
    sky, horizon = vary(sky, rng), vary(horizon, rng)
    value, share, haze, flat = _WEATHER[weather]
    day = _DAYLIGHT[time_of_day]
    overcast = tint((value, value * 1.01, value * 1.05), mix((day, day, day), times(lit, day), 0.5))
    sky = mix(mute(sky, share * 0.6), times(overcast, 0.8), share)
    horizon = mix(mute(horizon, share * 0.4), overcast, share * 0.8)
    side = -1.0 if rng.random() < 0.5 else 1.0
    height = {"dawn": 0.30, "day": 0.13, "dusk": 0.36, "night": 0.16}[time_of_day]
    across = 0.5 + side * float(rng.uniform(0.16, 0.40))
    up = float(np.clip(height + rng.uniform(-0.05, 0.08), 0.09, 0.42))
    slope = {"dawn": 0.55, "day": 1.1, "dusk": 0.4, "night": 0.9}[time_of_day]
    norm = (1.0 + slope * slope) ** 0.5
    light = Light(
        sun=(across, up),
        direction=(side / norm, -slope / norm),
        lit=mix(lit, mute(lit, 0.7), share * 0.6),
        shade=mix(shade, mute(lit, 0.5), 0.45 * (1.0 - flat)),
        contrast=contrast * flat,
        lamps=time_of_day in ("dusk", "night") or weather == "storm",
    )
    base = SNOW if weather == "snow" else None

    def ground(colour: Colour, snow: float) -> Colour:
        colour = vary(colour, rng, 1.4)
        return mix(colour, base, snow) if base else colour

    greens = ((0.42, 0.60, 0.24), (0.55, 0.64, 0.28), (0.30, 0.54, 0.30), (0.68, 0.64, 0.32))
    trees = ((0.22, 0.42, 0.20), (0.16, 0.38, 0.28), (0.40, 0.46, 0.16), (0.60, 0.36, 0.14))
    walls = ((0.80, 0.72, 0.58), (0.55, 0.66, 0.66), (0.74, 0.56, 0.48), (0.50, 0.56, 0.70), (0.70, 0.72, 0.56))
    water = mix(mix((0.10, 0.36, 0.52), (0.16, 0.52, 0.56), float(rng.random())), sky, 0.35)
    palette = Palette(
        sky=sky,
        horizon=horizon,
        cloud=mix(mix(WHITE, horizon, 0.25), times(overcast, 0.95), share) if day > 0.5 else mix(sky, horizon, 0.8),
        sun=sun,
        water=water,
        grass=ground(greens[int(rng.integers(4))], 0.9),
        foliage=ground(trees[int(rng.integers(4))], 0.35),
        earth=ground((0.52, 0.40, 0.26), 0.8),
        sand=ground((0.90, 0.78, 0.54), 0.8),
        rock=ground((0.50, 0.46, 0.43), 0.4),
        haze=horizon,
        haze_amount=haze,
        wall=vary(walls[int(rng.integers(5))], rng, 2.0),
        wood=vary(WOOD, rng, 2.0),
    )
    return light, palette
