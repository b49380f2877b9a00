"""The pen with which subjects and settings draw: shapes in unit coordinates, each with a paint.

A paint describes the material of a shape: its colours in light and in shade, the light on it, its depth, its object and the
direction of its surface. A style decides how that is shown. Nothing is rasterised here.

Subjects draw in their own frame: x to the right, y *up*, standing on y = 0, about one unit tall and centred on x = 0.
Settings draw in the frame of the picture: x to the right, y *down*, 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict, Unpack

import numpy as np

from pipeline.atelier.palette import INK, Array, Colour, Light, Palette, mix, tint

Points = Sequence[tuple[float, float]]

#: The largest number of paints in a picture. A paint's number is one byte, and 0 is the bare ground of the plate.
MAX_PAINTS = 255


@dataclass(frozen=True)
class Paint:
    """The material of one region of the picture. Geometry is in picture coordinates (0..1, y down)."""

    lit: Colour
    dark: Colour
    # Light on the surface, from 0 (dark) to 1 (lit): t = base + gx u + gy v - curve (u^2 + v^2), clipped. u and v run from
    # -1 to 1 over the box of shape number `over`, which is -1 for flat paints
    base: float
    gx: float
    gy: float
    curve: float
    over: int
    blend: bool  # an explicit gradient instead of light
    depth: float  # from 0 (near) to 1 (far)
    thing: int  # number of the object that the region belongs to; outlines between two objects are stronger
    subject: bool
    ink: float  # weight of its outline, 0..1
    grain: float  # strength of surface texture
    flow: float  # direction of its surface, radians from the x axis, y down
    glow: bool
    halo: bool  # the glow of the sky around sun or moon


class Look(TypedDict, total=False):
    """The properties of a paint other than its colour. The default of each key is in parentheses.

    to      end of a gradient from the colour along `way`, which replaces the light of the scene (none)
    way     direction of that gradient, y down (0, 1)
    shade   how strongly the colour turns from light to shadow (0)
    round   how much the light falls off towards the edges (0)
    glow    the paint emits light: neither light nor haze changes it (False)
    ink     weight of its outline (1)
    grain   strength of its texture (0.25)
    flow    direction of its surface in radians, y down (0)
    haze    share of haze mixed in; None takes it from the depth (None)
    halo    the paint is the glow of the sky around sun or moon (False)
    """

    to: Colour | None
    way: tuple[float, float]
    shade: float
    round: float
    glow: bool
    ink: float
    grain: float
    flow: float
    haze: float | None
    halo: bool


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
    """The matrix (m, n) from n control points to points of the Catmull-Rom curve through them."""
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
    """Collects shapes and paints. `main` is the colour attribute of the subject, `rng` the drawing's random generator."""

    def __init__(self, light: Light, palette: Palette, rng: np.random.Generator, *, snow: bool = False) -> None:
        self.light, self.palette, self.rng, self.snow = light, palette, rng, snow
        self.main: Colour = (0.5, 0.5, 0.5)
        self.shapes: list[Shape] = []
        self.paints: list[Paint] = []
        self._flat: dict[tuple[object, ...], int] = {}  # numbers of the flat paints
        self._matrix, self._origin, self._scale = np.eye(2), np.zeros(2), 1.0
        self._thing, self._depth, self._subject = 0, 1.0, False

    # -- frames --------------------------------------------------------------------------------------------------

    def thing(self, depth: float, *, subject: bool = False) -> None:
        """Start a new object at `depth`, from 0 (near) to 1 (far). It gets its own outline, and haze according to its depth."""
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

    # -- shapes --------------------------------------------------------------------------------------------------

    def paint(self, colour: Colour, **look: Unpack[Look]) -> int:
        """The number of a paint for the next shape. Equal flat paints of one object share a number.

        Raises ValueError for more than MAX_PAINTS paints.
        """
        to, shade, rounded, glow = (
            look.get("to"),
            look.get("shade", 0.0),
            look.get("round", 0.0),
            look.get("glow", False),
        )
        ink, grain, flow = look.get("ink", 1.0), look.get("grain", 0.25), look.get("flow", 0.0)
        shaded = shade > 0.0 or rounded > 0.0 or to is not None
        key = (colour, glow, ink, grain, flow, look.get("haze"), self._thing)
        if not shaded and key in self._flat:
            return self._flat[key]
        lit, dark = self._colours(colour, to, glow, look.get("haze"))
        base, gx, gy, curve = 0.86, 0.0, 0.0, 0.0
        if to is not None:
            way = look.get("way", (0.0, 1.0))
            base, gx, gy = 0.5, -0.5 * way[0], -0.5 * way[1]
        elif shaded:
            k = shade * (0.35 + 0.35 * self.light.contrast)
            base = 0.80 - 0.2 * shade + 0.12 * rounded
            gx, gy, curve = k * self.light.direction[0], k * self.light.direction[1], 0.30 * rounded
        over = len(self.shapes) if shaded else -1
        self.paints.append(
            Paint(lit, dark, base, gx, gy, curve, over, to is not None, self._depth, self._thing, self._subject, ink,
                  grain, flow, glow, look.get("halo", False))
        )  # fmt: skip
        number = len(self.paints)
        if number > MAX_PAINTS:
            raise ValueError(
                f"this picture needs more than {MAX_PAINTS} paints: draw small details that repeat with one flat "
                "paint (shade=0)"
            )
        if not shaded:
            self._flat[key] = number
        return number

    def _colours(self, colour: Colour, to: Colour | None, glow: bool, haze: float | None) -> tuple[Colour, Colour]:
        """The paint in light and in shade, or both ends of its gradient, with haze mixed in."""
        lit = dark = colour
        if to is not None:
            dark = to
        elif not glow:
            lit, dark = tint(colour, self.light.lit), tint(colour, self.light.shade)
        amount = self.palette.haze_amount * self._depth**1.3 if haze is None else haze
        if amount and not glow:
            lit, dark = mix(lit, self.palette.haze, amount), mix(dark, self.palette.haze, amount)
        return lit, dark

    def _put(self, points: Array, colour: Colour, look: Look) -> None:
        number = self.paint(colour, **look)
        self.shapes.append(Shape("poly", points @ self._matrix + self._origin, number))

    def poly(self, points: Points, colour: Colour, **look: Unpack[Look]) -> None:
        """A filled polygon; shade is 0.6 unless given."""
        look.setdefault("shade", 0.6)
        self._put(np.asarray(points, dtype=np.float64), colour, look)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, **look: Unpack[Look]) -> None:
        """A rectangle between two corners, painted as a polygon."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, **look)

    def blob(self, points: Points, colour: Colour, **look: Unpack[Look]) -> None:
        """A closed smooth curve through the points, filled; shade is 0.8 and round 0.5 unless given."""
        look.setdefault("shade", 0.8)
        look.setdefault("round", 0.5)
        self._put(_spline(len(points), True) @ np.asarray(points, dtype=np.float64), colour, look)

    def oval(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, *, tilt: float = 0.0, **look: Unpack[Look]
    ) -> None:
        """An ellipse around (x, y), turned by `tilt` radians; shade is 0.8 and round 0.7 unless given."""
        look.setdefault("shade", 0.8)
        look.setdefault("round", 0.7)
        pts = _circle(20) * (rx, ry)
        if tilt:
            c, s = math.cos(tilt), math.sin(tilt)
            pts = pts @ np.array([[c, s], [-s, c]])
        self._put(pts + np.array((x, y)), colour, look)

    def line(self, points: Points, width: float, colour: Colour, *, curve: bool = False, **look: Unpack[Look]) -> None:
        """A flat stroke of `width` through the points, straight or curved; ink is 0.4 unless given."""
        pts = np.asarray(points, dtype=np.float64)
        if curve:
            pts = _spline(len(points), False) @ pts
        look.setdefault("ink", 0.4)
        number = self.paint(colour, **look)
        self.shapes.append(Shape("line", pts @ self._matrix + self._origin, number, width * self._scale))

    def dots(self, points: Points | Array, radius: float, colour: Colour, **look: Unpack[Look]) -> None:
        """Flat discs of one size and one paint: eyes, berries, stars, snow; ink is 0.3 unless given."""
        look.setdefault("ink", 0.3)
        pts = np.asarray(points, dtype=np.float64) @ self._matrix + self._origin
        self.shapes.append(Shape("dots", pts, self.paint(colour, **look), radius * self._scale))

    def eye(self, x: float, y: float, radius: float, colour: Colour = INK) -> None:
        """A dark eye with a light spot."""
        self.dots([(x, y)], radius, colour)
        if radius * self._scale > 0.012:
            self.dots([(x + radius * 0.3, y + radius * 0.35)], radius * 0.35, (1.0, 1.0, 1.0), ink=0.0)
