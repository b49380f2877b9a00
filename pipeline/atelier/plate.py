"""From shapes to a plate: the paint of every pixel, and the maps that styles derive from it.

Reads the shapes and paints of a `Pen`. A plate is the underpainting that styles use: the scene in plain colours,
light, depth, outlines, the direction of surfaces. It is not meant to be shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.atelier.opencv import cv2
from pipeline.atelier.palette import Array, Light, Palette
from pipeline.atelier.pen import Paint, Pen, Shape
from pipeline.atelier.texture import noise

_SHIFT = 4  # fractional bits of cv2's integer coordinates


def rasterise(shapes: list[Shape], side: int) -> tuple[Array, Array]:
    """The topmost paint at each pixel, (side, side) uint8, 0 if there is none; and the boxes of the shapes.

    A box is a row of (n, 4) float64: centre x, centre y, half width, half height.
    """
    ids = np.zeros((side, side), np.uint8)
    every = np.concatenate([s.points for s in shapes])
    starts = np.cumsum([0, *(len(s.points) for s in shapes[:-1])])
    low, high = np.minimum.reduceat(every, starts, axis=0), np.maximum.reduceat(every, starts, axis=0)
    boxes = np.concatenate([(low + high) / 2, np.maximum((high - low) / 2, 1e-3)], axis=1)
    fixed = np.rint(every * (side << _SHIFT) - (1 << _SHIFT - 1)).astype(np.int32)
    for shape, start in zip(shapes, starts.tolist(), strict=True):
        points = fixed[start : start + len(shape.points)]
        if shape.kind == "poly":
            cv2.fillPoly(ids, [points], shape.paint, cv2.LINE_8, _SHIFT)
        elif shape.kind == "line":
            width = max(1, round(shape.width * side))
            cv2.polylines(ids, [points], False, shape.paint, width, cv2.LINE_8, _SHIFT)
        else:
            radius = max(8, round(shape.width * (side << _SHIFT)))
            for x, y in points.tolist():
                cv2.circle(ids, (x, y), radius, shape.paint, -1, cv2.LINE_8, _SHIFT)
    return ids, boxes


@dataclass(frozen=True)
class Plate:
    """An underpainted scene of `size` x `size` pixels; `fine` is the paint map at `factor` times that."""

    size: int
    factor: int
    fine: Array
    boxes: Array  # (shapes, 4): centre x, centre y, half width, half height
    paints: list[Paint]
    light: Light
    palette: Palette
    rng: np.random.Generator  # the random numbers of the style

    def without_halo(self) -> Plate:
        """The plate without the glow around sun or moon, for styles that do not blend.

        The plain sky, the first paint out of doors, takes its place.
        """
        keep = np.arange(256, dtype=np.uint8)
        for number, p in enumerate(self.paints, 1):
            if p.halo:
                keep[number] = 1
        return replace(self, fine=cv2.LUT(self.fine, keep))

    def table(self, name: str) -> Array:
        """One attribute of the paints by paint number, (256,) float32."""
        out = np.zeros(256, np.float32)
        out[1 : len(self.paints) + 1] = [getattr(p, name) for p in self.paints]
        return out

    @cached_property
    def ids(self) -> Array:
        """(size, size) uint8: paint number per pixel."""
        return np.ascontiguousarray(self.fine[:: self.factor, :: self.factor]) if self.factor > 1 else self.fine

    def map(self, name: str) -> Array:
        """(size, size) float32: one attribute of the paint at each pixel (depth, flow, ink, subject, glow, thing)."""
        return np.asarray(cv2.LUT(self.ids, self.table(name)))

    @cached_property
    def _geometry(self) -> Array:
        # Rows: t = 0 + 1 x + 2 y + 3 x^2 + 4 y^2, then 5 grain, 6..8 lit, 9..11 dark
        rows = np.array([(p.base, p.gx, p.gy, p.curve, p.over, p.grain, *p.lit, *p.dark) for p in self.paints]).T
        base, gx, gy, curve, over = rows[:5]
        cx, cy, rx, ry = self.boxes[over.astype(np.int64)].T
        gx, gy, qx, qy = gx / rx, gy / ry, -curve / (rx * rx), -curve / (ry * ry)
        rows[0] = base - gx * cx - gy * cy + qx * cx * cx + qy * cy * cy
        rows[1], rows[2], rows[3], rows[4] = gx - 2 * qx * cx, gy - 2 * qy * cy, qx, qy
        out = np.zeros((12, 256), np.float32)
        out[:, 1 : len(self.paints) + 1] = rows
        return out

    def _light_on(self, ids: Array) -> Array:
        side = ids.shape[0]
        at = (np.arange(side, dtype=np.float32) + 0.5) / side
        x, y = at[None, :], at[:, None]
        l0, lx, ly, qx, qy = (cv2.LUT(ids, self._geometry[k]) for k in range(5))
        return np.asarray(np.clip(l0 + (lx + qx * x) * x + (ly + qy * y) * y, 0.0, 1.0))

    @cached_property
    def shade(self) -> Array:
        """(size, size) float32 in 0..1: the light on each pixel; 1 is fully lit."""
        return self._light_on(self.ids)

    @cached_property
    def rgb(self) -> Array:
        """(size, size, 3) float32 in 0..1: the scene in plain colours, shaded and antialiased."""
        ids = self.fine
        t = self._light_on(ids)
        table = self._geometry
        grain = cv2.LUT(ids, table[5]) * np.roll(noise(ids.shape[0], 64), int(self.fine[0, 0]), axis=1)
        value = 1.0 + 0.06 * grain
        planes = []
        for c in range(3):
            dark = cv2.LUT(ids, table[9 + c])
            planes.append((dark + (cv2.LUT(ids, table[6 + c]) - dark) * t) * value)
        out = cv2.merge(planes)
        if self.factor > 1:
            out = cv2.resize(out, (self.size, self.size), interpolation=cv2.INTER_AREA)
        else:
            soft = cv2.blur(out, (3, 3))
            out = np.where(self._borders[..., None] > 0, soft, out)
        return np.asarray(np.clip(out, 0.0, 1.0))

    def flat(self) -> Array:
        """(256, 3) float32: the colour of each paint without light and texture, by paint number."""
        table = self._geometry
        return np.ascontiguousarray((0.75 * table[6:9] + 0.25 * table[9:12]).T)

    @cached_property
    def _borders(self) -> Array:
        """(side, side) uint8 at the fine size: 255 times the weight of the outline between two paints, 0 elsewhere.

        The weight is that of the nearer paint, which is drawn later; between parts of one thing it is halved.
        """
        ids = self.fine
        ink = np.rint(255 * self.table("ink")).astype(np.uint8)
        thing = self.table("thing").astype(np.uint8)
        weight = cv2.LUT(ids, ink)
        objects = cv2.LUT(ids, thing)
        out = np.zeros_like(ids)
        for axis in (0, 1):
            a: tuple[slice, ...] = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
            b: tuple[slice, ...] = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
            differ = ids[a] != ids[b]
            owner = np.where(ids[a] > ids[b], weight[a], weight[b])
            edge = np.where(objects[a] == objects[b], owner >> 1, owner) * differ
            np.maximum(out[a], edge, out=out[a])
        return out

    def tone(self) -> Array:
        """(size, size) float32 in 0..1: `grey` stretched to the whole range, so that a night scene has light tones too."""
        mean, spread = (float(v[0, 0]) for v in cv2.meanStdDev(self.grey))
        low, high = max(0.0, mean - 1.9 * spread), min(1.0, mean + 1.9 * spread)
        return np.asarray(np.clip((self.grey - low) * (1.0 / max(0.2, high - low)), 0.0, 1.0))

    def outline(self, width: float, *, inner: float = 1.0) -> Array:
        """(size, size) float32 in 0..1: antialiased outlines.

        `width` is a fraction of the side. `inner` scales the lines inside things, which have half the full weight.
        """
        lines = self._borders
        if inner != 1.0:
            lines = np.where(lines > 128, lines, (lines * inner).astype(np.uint8))
        reach = max(1, round(width * self.fine.shape[0]))
        if reach > 1:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
            lines = cv2.dilate(lines, kernel)
        out = lines.astype(np.float32) / 255.0
        if self.factor > 1:
            out = cv2.resize(out, (self.size, self.size), interpolation=cv2.INTER_AREA)
        else:
            out = cv2.blur(out, (3, 3))
        return np.asarray(out)

    @cached_property
    def grey(self) -> Array:
        """(size, size) float32: luma of `rgb`."""
        return np.asarray(cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY))

    @cached_property
    def run(self) -> Array:
        """(size, size) float32 radians: the direction of a brush, along the edge if there is one, else the surface."""
        soft = cv2.GaussianBlur(self.grey, (0, 0), max(0.8, self.size / 60))
        gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
        gain = self.size / 64
        jxx, jyy, jxy = gx * gx * gain**2, gy * gy * gain**2, gx * gy * gain**2
        flow = self.map("flow")
        keep = 0.02
        # Orientations are added as doubled angles. The gradient is turned by a quarter so that it follows the edge.
        c2 = cv2.blur(jyy - jxx, (5, 5)) + keep * np.cos(2 * flow)
        s2 = cv2.blur(-2 * jxy, (5, 5)) + keep * np.sin(2 * flow)
        return np.asarray(0.5 * np.arctan2(s2, c2), np.float32)


def make_plate(pen: Pen, size: int, rng: np.random.Generator) -> Plate:
    """Rasterise the drawing of a pen. Pictures of up to 256 pixels are drawn at twice their size, for smooth edges."""
    factor = 2 if size <= 256 else 1
    ids, boxes = rasterise(pen.shapes, size * factor)
    return Plate(size, factor, ids, boxes, pen.paints, pen.light, pen.palette, rng)
