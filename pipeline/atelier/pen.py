"""The pen that subjects and settings draw with: shapes in unit coordinates, each with a paint.

A paint says what a shape is made of (its colour in light and in shade, where the light falls on it, how far away it
is, which object it belongs to, how its surface runs), not how it looks on paper: that is for a style to decide.
Nothing is rasterised here.

Subjects draw in their own frame: x to the right, y *up*, standing on y = 0 and about one unit tall, centred on x = 0.
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

Points = Sequence[tuple[float, float]]
#: Paints of one picture; ids are one byte, and 0 is the bare ground of the plate.
MAX_PAINTS = 255


@dataclass(frozen=True)
class Paint:
    """What one region of the picture is made of. Geometry is in picture coordinates (0..1, y down)."""

    lit: Colour
    dark: Colour
    # Light on the surface, 0 (dark) .. 1 (lit): t = l0 + lx x + ly y + qx x^2 + qy y^2, clipped
    l0: float
    lx: float
    ly: float
    qx: float
    qy: float
    depth: float  # 0 near .. 1 far
    thing: int  # object that the region is part of; outlines between two things are the strong ones
    subject: bool
    ink: float  # weight of its outline, 0..1
    grain: float  # strength of surface texture
    flow: float  # direction in which its surface runs, radians from the x axis, y down
    glow: bool


@dataclass(frozen=True)
class Shape:
    """One drawing instruction: a filled polygon, a polyline or a set of dots, in picture coordinates."""

    kind: str  # "poly", "line" or "dots"
    points: np.ndarray  # (n, 2) float64
    paint: int
    width: float = 0.0  # of a line, or radius of dots, as a fraction of the picture's side


@lru_cache(maxsize=4096)
def _circle(n: int) -> np.ndarray:
    a = np.arange(n) * (2 * math.pi / n)
    return np.stack([np.cos(a), np.sin(a)], axis=1)


@lru_cache(maxsize=64)
def _spline(n: int, closed: bool, steps: int = 5) -> np.ndarray:
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
        box: tuple[float, float, float, float] | None = None,
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
    ) -> int:
        """A paint and its number. With `to`, a gradient from `colour` to `to` along `way` (y down) over `box`
        (centre x, centre y, half width, half height); else the light of the scene falls on it: `shade` says how
        strongly the colour turns from light to shadow, `round` how much it falls off to the edges.
        """
        shaded = shade > 0.0 or round > 0.0 or to is not None
        key = (colour, glow, ink, grain, flow, haze, self._thing)
        if not shaded and key in self._flat:
            return self._flat[key]
        light = self.light
        end = colour if to is None else to
        lit, dark = (colour, end) if glow or to is not None else (tint(colour, light.lit), tint(colour, light.shade))
        amount = self.palette.haze_amount * self._depth**1.3 if haze is None else haze
        if amount and not glow:
            lit, dark = mix(lit, self.palette.haze, amount), mix(dark, self.palette.haze, amount)
        l0, lx, ly, qx, qy = 0.86, 0.0, 0.0, 0.0, 0.0
        if shaded and box is not None:
            cx, cy, rx, ry = box
            if to is not None:
                gx, gy, base, curve = -0.5 * way[0], -0.5 * way[1], 0.5, 0.0
            else:
                k = shade * (0.35 + 0.35 * light.contrast)
                gx, gy, base, curve = k * light.direction[0], k * light.direction[1], 0.80 - 0.2 * shade, 0.30 * round
            lx, ly, qx, qy = gx / rx, gy / ry, -curve / (rx * rx), -curve / (ry * ry)
            l0 = base + 0.12 * round - lx * cx - ly * cy + qx * cx * cx + qy * cy * cy
            lx, ly = lx - 2 * qx * cx, ly - 2 * qy * cy
        self.paints.append(
            Paint(
                lit, dark, l0, lx, ly, qx, qy, self._depth, self._thing, self._subject, ink, grain, flow, glow
            )
        )
        number = len(self.paints)
        if number > MAX_PAINTS:
            raise ValueError(
                f"a picture holds at most {MAX_PAINTS} paints and this one asked for more: "
                "draw repeated small details with one flat paint (shade=0)"
            )
        if not shaded:
            self._flat[key] = number
        return number

    def _put(self, points: np.ndarray, colour: Colour, shade: float, round: float, look: dict[str, Any]) -> None:
        placed = points @ self._matrix + self._origin
        low, high = placed.min(axis=0).tolist(), placed.max(axis=0).tolist()
        box = (
            (low[0] + high[0]) / 2,
            (low[1] + high[1]) / 2,
            max(1e-3, (high[0] - low[0]) / 2),
            max(1e-3, (high[1] - low[1]) / 2),
        )
        self.shapes.append(Shape("poly", placed, self.paint(colour, box, shade=shade, round=round, **look)))

    def poly(self, points: Points, colour: Colour, *, shade: float = 0.6, **look: Any) -> None:
        """A filled polygon. `look` is passed on to `paint`."""
        self._put(np.asarray(points, dtype=np.float64), colour, shade, look.pop("round", 0.0), look)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, shade: float = 0.6, **look: Any) -> None:
        """A rectangle between two corners."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, shade=shade, **look)

    def blob(self, points: Points, colour: Colour, *, shade: float = 0.8, **look: Any) -> None:
        """A closed smooth curve through the points, filled; rounded by the light unless told otherwise."""
        pts = _spline(len(points), True) @ np.asarray(points, dtype=np.float64)
        self._put(pts, colour, shade, look.pop("round", 0.5), look)

    def oval(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, *, tilt: float = 0.0, shade: float = 0.8,
        **look: Any,
    ) -> None:
        """An ellipse around (x, y), turned by `tilt` radians."""
        pts = _circle(20) * (rx, ry)
        if tilt:
            c, s = math.cos(tilt), math.sin(tilt)
            pts = pts @ np.array([[c, s], [-s, c]])
        self._put(pts + (x, y), colour, shade, look.pop("round", 0.7), look)

    def line(self, points: Points, width: float, colour: Colour, *, curve: bool = False, **look: Any) -> None:
        """A stroke of `width` through the points, straight or curved; flat."""
        pts = np.asarray(points, dtype=np.float64)
        if curve:
            pts = _spline(len(points), False) @ pts
        look.setdefault("ink", 0.4)
        number = self.paint(colour, **look)
        self.shapes.append(Shape("line", pts @ self._matrix + self._origin, number, width * self._scale))

    def dots(self, points: Points | np.ndarray, radius: float, colour: Colour, **look: Any) -> None:
        """Discs of one size and one paint: eyes, berries, stars, snow; flat."""
        look.setdefault("ink", 0.3)
        pts = np.asarray(points, dtype=np.float64) @ self._matrix + self._origin
        self.shapes.append(Shape("dots", pts, self.paint(colour, **look), radius * self._scale))

    def eye(self, x: float, y: float, radius: float, colour: Colour = INK) -> None:
        """A dark eye with a light in it."""
        self.dots([(x, y)], radius, colour)
        if radius * self._scale > 0.012:
            self.dots([(x + radius * 0.3, y + radius * 0.35)], radius * 0.35, (1.0, 1.0, 1.0), ink=0.0)
