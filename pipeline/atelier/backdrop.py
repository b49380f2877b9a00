"""Parts that several settings draw: hills, sea, grass, flowers, background trees, in the frame of the picture (y down)."""

from __future__ import annotations

import numpy as np

from pipeline.atelier.palette import WHITE, Colour, mix, mute, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.sky import land, ridge


def shadow_on(pen: Pen, ground: Colour) -> Colour:
    return mix(times(ground, 0.55), mute(pen.palette.sky, 0.3), 0.18)


def far_hills(pen: Pen, y: float, n: int, colour: Colour, height: float = 0.14) -> None:
    for k in range(n):
        pen.thing(0.92 - 0.16 * k)
        land(
            pen,
            ridge(pen.rng, y + 0.02 * k, height * (1 - 0.3 * k), 0.8),
            mix(colour, pen.palette.haze, 0.45 - 0.2 * k),
        )


def draw_sea(pen: Pen, top: float, bottom: float = 1.02, *, waves: int = 16) -> None:
    p, rng = pen.palette, pen.rng
    pen.thing(0.8)
    far = mix(mix(p.water, p.horizon, 0.45), p.sky, 0.15)
    lit = pen.light.lit
    near = (p.water[0] * lit[0] * 0.8, p.water[1] * lit[1] * 0.8, p.water[2] * lit[2] * 0.8)
    pen.box(-0.02, top, 1.02, bottom, far, to=near, grain=0.5, haze=0.0, ink=0.3)
    # The reflection of the sun, then crests that widen towards the viewer
    x = pen.light.sun[0]
    glint = mix(p.horizon, p.sun, 0.5)
    depth = bottom - top
    for k in range(7):
        y = top + depth * (0.03 + 0.85 * (k / 7) ** 1.5)
        w = 0.025 + 0.07 * k / 7
        off = float(rng.uniform(-0.04, 0.04)) * (k / 5 + 0.3)
        pen.line([(x + off - w, y), (x + off + w, y)], 0.006 + 0.006 * k / 7, mix(far, glint, 0.75), haze=0.0, ink=0.0)
    crest = mix(far, WHITE, 0.35) if not pen.light.lamps else mix(near, p.horizon, 0.45)
    deep = times(near, 0.8)
    for k in range(waves):
        t = (k + float(rng.random())) / waves
        y = top + depth * (0.04 + 0.94 * t**1.4)
        w = 0.03 + 0.10 * t
        cx = float(rng.random())
        wave = [(cx - w, y), (cx - w / 3, y - 0.012 * t - 0.002), (cx + w / 3, y + 0.004), (cx + w, y - 0.004)]
        pen.line(wave, 0.005 + 0.007 * t, crest if k % 2 else deep, curve=True, haze=0.0, ink=0.25)


def tufts(pen: Pen, top: float, colour: Colour, n: int = 14) -> None:
    rng = pen.rng
    for _ in range(n):
        y = top + (1.0 - top) * float(rng.random()) ** 0.8
        s = 0.012 + 0.035 * (y - top)
        x = float(rng.random())
        pen.line(
            [(x - s, y - s), (x, y), (x + s * 0.2, y - s * 1.5), (x + s * 0.3, y), (x + s, y - s)],
            0.006,
            colour,
            ink=0.0,
        )


def flowers(pen: Pen, top: float, n: int) -> None:
    rng = pen.rng
    reds: tuple[Colour, ...] = ((0.92, 0.3, 0.25), (0.98, 0.85, 0.4), (0.95, 0.93, 0.9), (0.7, 0.5, 0.85))
    for colour in (reds[int(rng.integers(4))], reds[int(rng.integers(4))]):
        y = top + (0.99 - top) * rng.random(n)
        pen.dots(np.stack([rng.random(n), y], axis=1), 0.0095, vary(colour, rng), ink=0.2)


def tree(pen: Pen, x: float, y: float, h: float, colour: Colour, *, conifer: bool) -> None:
    """A background tree of height `h` that stands on (x, y), in the frame of the picture."""
    pen.box(x - h * 0.045, y - h * 0.4, x + h * 0.045, y, pen.palette.wood, shade=0)
    if conifer:
        for k in range(3):
            w, b = h * (0.27 - 0.06 * k), y - h * (0.12 + 0.26 * k)
            pen.poly([(x - w, b), (x, b - h * 0.40), (x + w, b)], times(colour, 0.9 + 0.1 * k), ink=0.6)
        return
    r = h * 0.30
    pen.blob(
        [
            (x - r, y - h * 0.45),
            (x - r * 1.05, y - h * 0.70),
            (x - r * 0.3, y - h * 0.98),
            (x + r * 0.5, y - h * 0.95),
            (x + r * 1.1, y - h * 0.68),
            (x + r * 0.9, y - h * 0.42),
            (x, y - h * 0.33),
        ],
        colour,
        ink=0.6,
        grain=0.8,
    )
