"""The pen that subjects and settings draw with: shapes in unit coordinates, each with a paint.

A paint says what a shape is made of (its colour in light and in shade, where the light falls on it,
    how far away it
is, which object it belongs to, how its surface runs),
    not how it looks on paper: that is for a style to decide.
Nothing is rasterised here.

Subjects draw in their own frame: x to the right, y *up*, standing on y = 0 and about one unit tall,
    centred on x = 0.
Settings draw in the frame of the picture: x to the right, y *down*, 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.atelier.palette import INK, Colour, Light, Palette, mix, tint

Array = np.ndarray[Any, Any]

Points = Sequence[tuple[float, float]]

#: Paints of one picture; ids are one byte, and 0 is the bare ground of the plate.
MAX_PAINTS = 255


@dataclass(frozen=True)
class Paint:
    """What one region of the picture is made of. Geometry is in picture coordinates (0..1, y down)."""

    lit: Colour
    dark: Colour
    # Light on the surface, 0 (dark) .. 1 (lit): t = base + gx u + gy v - curve (u^2 + v^2), clipped, where u and v run
    # from -1 to 1 over the box of the shape numbered `over` (none for flat paints)
    base: float
    gx: float
    gy: float
    curve: float
    over: int
    blend: bool  # a gradient that the drawing asked for, rather than light
    depth: float  # 0 near .. 1 far
    thing: int  # object that the region is part of; outlines between two things are the strong ones
    subject: bool
    ink: float  # weight of its outline, 0..1
    grain: float  # strength of surface texture
    flow: float  # direction in which its surface runs, radians from the x axis, y down
    glow: bool
    halo: bool  # the glow of the sky around sun or moon


@dataclass(frozen=True)
class Shape:
    """One drawing instruction: a filled polygon, a polyline or a set of dots, in picture coordinates."""

    kind: str  # "poly", "line" or "dots"
    points: Array  # (n, 2) float64
    paint: int
    width: float = 0.0  # of a line, or radius of dots, as a fraction of the picture's side


@lru_cache(maxsize=4096)
def _circle(n: int) -> Array:
    a = np.arange(n) * (2 * math.pi / n)
    return np.stack([np.cos(a), np.sin(a)], axis=1)


@lru_cache(maxsize=64)
def _spline(n: int, closed: bool, steps: int = 5) -> Array:
    """Matrix (m, n) that turns n control points into points of the Catmull-Rom curve through them."""
    t = np.arange(steps) / steps
    w = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], 1) / 2
    spans = n if closed else n - 1
    rows = np.zeros((spans * steps + (0 if closed else 1), n))
    for i in range(spans):
        for j in range(4):
            at = (i + j - 1) % n if closed else min(n - 1, max(0, i + j - 1))
            rows[i * steps : (i + 1) * steps, at] += w[:, j]
    if not closed:
        rows[-1, -1] = 1.0
    return rows


class Pen:
    """Collects shapes and paints. `main` is the colour attribute of the subject, `rng` the drawing's own chance."""

    def __init__(self, light: Light, palette: Palette, rng: np.random.Generator, *, snow: bool = False) -> None:
        self.light, self.palette, self.rng, self.snow = light, palette, rng, snow
        self.main: Colour = (0.5, 0.5, 0.5)
        self.shapes: list[Shape] = []
        self.paints: list[Paint] = []
        self._flat: dict[tuple[Any, ...], int] = {}
        self._matrix, self._origin, self._scale = np.eye(2), np.zeros(2), 1.0
        self._thing, self._depth, self._subject = 0, 1.0, False

    # -- where ---------------------------------------------------------------------------------------------------

    def thing(self, depth: float, *, subject: bool = False) -> None:
        """Start a new object at `depth` (0 near .. 1 far): it gets an outline of its own and its share of haze."""
        self._thing, self._depth, self._subject = self._thing + 1, depth, subject

    def picture_frame(self) -> None:
        """Draw in the frame of the picture (y down)."""
        self._matrix, self._origin, self._scale = np.eye(2), np.zeros(2), 1.0

    def subject_frame(
        self, x: float, y: float, height: float, *, flip: bool = False, stretch: float = 1.0, lean: float = 0.0
    ) -> None:
        """Draw in the frame of a subject that stands on (x, y) and is `height` tall, mirrored or leaning if asked."""
        c, s = math.cos(lean), math.sin(lean)
        wide = -stretch if flip else stretch
        self._matrix = np.array([[wide * c, wide * s], [s, -c]]) * height
        self._origin, self._scale = np.array([x, y]), height * math.sqrt(stretch)

    # -- what ----------------------------------------------------------------------------------------------------

    def paint(
        self,
        colour: Colour,
        *,
        to: Colour | None = None,
        way: tuple[float, float] = (0.0, 1.0),
        shade: float = 0.0,
        round: float = 0.0,
        glow: bool = False,
        ink: float = 1.0,
        grain: float = 0.25,
        flow: float = 0.0,
        haze: float | None = None,
        halo: bool = False,
    ) -> int:
        """A paint for the next shape, and its number. With `to`, a gradient from `colour` to `to` along `way` (y down)
        over that shape; else the light of the scene falls on it: `shade` says how strongly the colour turns from light
        to shadow, `round` how much it falls off to the edges. Equal flat paints of one thing share a number.
        """
        shaded = shade > 0.0 or round > 0.0 or to is not None
        key = (colour, glow, ink, grain, flow, haze, self._thing)
        if not shaded and key in self._flat:
            return self._flat[key]
        light = self.light
        lit = dark = colour
        if to is not None:
            dark = to
        elif not glow:
            lit, dark = tint(colour, light.lit), tint(colour, light.shade)
        amount = self.palette.haze_amount * self._depth**1.3 if haze is None else haze
        if amount and not glow:
            lit, dark = mix(lit, self.palette.haze, amount), mix(dark, self.palette.haze, amount)
        base, gx, gy, curve = 0.86, 0.0, 0.0, 0.0
        if to is not None:
            base, gx, gy = 0.5, -0.5 * way[0], -0.5 * way[1]
        elif shaded:
            k = shade * (0.35 + 0.35 * light.contrast)
            base, gx, gy = 0.80 - 0.2 * shade + 0.12 * round, k * light.direction[0], k * light.direction[1]
            curve = 0.30 * round
        self.paints.append(
            Paint(
                lit, dark, base, gx, gy, curve, len(self.shapes) if shaded else -1, to is not None,
                    self._depth,
                self._thing, self._subject, ink, grain, flow, glow, halo,
            )
        )  # fmt: skip
        number = len(self.paints)
        if number > MAX_PAINTS:
            raise ValueError(
                f"a picture holds at most {MAX_PAINTS} paints and this one asked for more: "
                "draw repeated small details with one flat paint (shade=0)"
            )
        if not shaded:
            self._flat[key] = number
        return number

    def _put(self, points: Array, colour: Colour, shade: float, round: float, look: dict[str, Any]) -> None:
        number = self.paint(colour, shade=shade, round=round, **look)
        self.shapes.append(Shape("poly", points @ self._matrix + self._origin, number))

    def poly(self, points: Points, colour: Colour, *, shade: float = 0.6, **look: Any) -> None:
        """A filled polygon. `look` is passed on to `paint`."""
        self._put(np.asarray(points, dtype=np.float64), colour, shade, look.pop("round", 0.0), look)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, shade: float = 0.6, **look: Any
    ) -> None:
        """A rectangle between two corners."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, shade=shade, **look)

    def blob(self, points: Points, colour: Colour, *, shade: float = 0.8, **look: Any) -> None:
        """A closed smooth curve through the points, filled; rounded by the light unless told otherwise."""
        pts = _spline(len(points), True) @ np.asarray(points, dtype=np.float64)
        self._put(pts, colour, shade, look.pop("round", 0.5), look)

    def oval(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Colour,
        *,
        tilt: float = 0.0,
        shade: float = 0.8,
        **look: Any,
    ) -> None:
        """An ellipse around (x, y), turned by `tilt` radians."""
        pts = _circle(20) * (rx, ry)
        if tilt:
            c, s = math.cos(tilt), math.sin(tilt)
            pts = pts @ np.array([[c, s], [-s, c]])
        self._put(pts + np.array((x, y)), colour, shade, look.pop("round", 0.7), look)

    def line(self, points: Points, width: float, colour: Colour, *, curve: bool = False, **look: Any) -> None:
        """A stroke of `width` through the points, straight or curved; flat."""
        pts = np.asarray(points, dtype=np.float64)
        if curve:
            pts = _spline(len(points), False) @ pts
        look.setdefault("ink", 0.4)
        number = self.paint(colour, **look)
        self.shapes.append(Shape("line", pts @ self._matrix + self._origin, number, width * self._scale))

    def dots(self, points: Points | Array, radius: float, colour: Colour, **look: Any) -> None:
        """Discs of one size and one paint: eyes, berries, stars, snow; flat."""
        look.setdefault("ink", 0.3)
        pts = np.asarray(points, dtype=np.float64) @ self._matrix + self._origin
        self.shapes.append(Shape("dots", pts, self.paint(colour, **look), radius * self._scale))

    def eye(self, x: float, y: float, radius: float, colour: Colour = INK) -> None:
        """A dark eye with a light in it."""
        self.dots([(x, y)], radius, colour)
        if radius * self._scale > 0.012:
            self.dots([(x + radius * 0.3, y + radius * 0.35)], radius * 0.35, (1.0, 1.0, 1.0), ink=0.0)
