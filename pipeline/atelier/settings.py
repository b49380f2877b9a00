"""Where a scene takes place: each setting draws what is behind the subject and says where subjects stand.

A setting is one short function `(pen, scene) -> Ground`, registered with `@setting`. It draws in the frame of the picture
(x right, y down, 0..1), calls `sky` for its sky, and returns the strip on which subjects stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.atelier.palette import INK, SNOW, STONE, WHITE, Colour, mix, mute, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.sky import lamp_or_dark, land, ridge, sky


@dataclass(frozen=True)
class View:
    """What a setting needs to know of its scene."""

    weather: str
    time_of_day: str
    horizon: float  # height of the horizon, 0 top .. 1 bottom


@dataclass(frozen=True)
class Ground:
    """The strip that subjects stand on: `far` and `near` are heights in the picture; `shadow` the colour of a cast
    shadow, None where nothing casts one (water, air); `water` the colour of water that a subject floats in."""

    far: float
    near: float
    shadow: Colour | None
    water: Colour | None = None


@dataclass(frozen=True)
class Setting:
    name: str
    phrases: tuple[str, ...]  # as a caption says it
    indoors: bool
    draw: Callable[[Pen, View], Ground]


SETTINGS: dict[str, Setting] = {}


def setting(name: str, *phrases: str, indoors: bool = False) -> Callable[[Callable[[Pen, View], Ground]], Callable[[Pen, View], Ground]]:
    """Register a setting under `name`; `phrases` are the ways in which captions say it."""

    def register(draw: Callable[[Pen, View], Ground]) -> Callable[[Pen, View], Ground]:
        SETTINGS[name] = Setting(name, phrases, indoors, draw)
        return draw

    return register


def _shadow(pen: Pen, ground: Colour) -> Colour:
    return mix(times(ground, 0.55), mute(pen.palette.sky, 0.3), 0.18)


def _far_hills(pen: Pen, y: float, n: int, colour: Colour, height: float = 0.14) -> None:
    for k in range(n):
        pen.thing(0.92 - 0.16 * k)
        land(pen, ridge(pen.rng, y + 0.02 * k, height * (1 - 0.3 * k), 0.8), mix(colour, pen.palette.haze, 0.45 - 0.2 * k))


def _sea(pen: Pen, top: float, bottom: float = 1.02, *, waves: int = 16) -> None:
    p, rng = pen.palette, pen.rng
    pen.thing(0.8)
    far = mix(mix(p.water, p.horizon, 0.45), p.sky, 0.15)
    lit = pen.light.lit
    near = (p.water[0] * lit[0] * 0.8, p.water[1] * lit[1] * 0.8, p.water[2] * lit[2] * 0.8)
    pen.box(-0.02, top, 1.02, bottom, far, to=near, grain=0.5, haze=0.0, ink=0.3)
    # The path of light under the sun, then crests that widen towards the viewer
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


def _tufts(pen: Pen, top: float, colour: Colour, n: int = 14) -> None:
    rng = pen.rng
    for _ in range(n):
        y = top + (1.0 - top) * float(rng.random()) ** 0.8
        s = 0.012 + 0.035 * (y - top)
        x = float(rng.random())
        pen.line([(x - s, y - s), (x, y), (x + s * 0.2, y - s * 1.5), (x + s * 0.3, y), (x + s, y - s)], 0.006, colour, ink=0.0)


def _flowers(pen: Pen, top: float, n: int) -> None:
    rng = pen.rng
    reds: tuple[Colour, ...] = ((0.92, 0.3, 0.25), (0.98, 0.85, 0.4), (0.95, 0.93, 0.9), (0.7, 0.5, 0.85))
    for colour in (reds[int(rng.integers(4))], reds[int(rng.integers(4))]):
        y = top + (0.99 - top) * rng.random(n)
        pen.dots(np.stack([rng.random(n), y], axis=1), 0.0095, vary(colour, rng), ink=0.2)


def tree(pen: Pen, x: float, y: float, h: float, colour: Colour, *, conifer: bool) -> None:
    """A background tree standing on (x, y), in the frame of the picture."""
    pen.box(x - h * 0.045, y - h * 0.4, x + h * 0.045, y, pen.palette.wood, shade=0)
    if conifer:
        for k in range(3):
            w, b = h * (0.27 - 0.06 * k), y - h * (0.12 + 0.26 * k)
            pen.poly([(x - w, b), (x, b - h * 0.40), (x + w, b)], times(colour, 0.9 + 0.1 * k), ink=0.6)
        return
    r = h * 0.30
    pen.blob(
        [(x - r, y - h * 0.45), (x - r * 1.05, y - h * 0.70), (x - r * 0.3, y - h * 0.98), (x + r * 0.5, y - h * 0.95),
         (x + r * 1.1, y - h * 0.68), (x + r * 0.9, y - h * 0.42), (x, y - h * 0.33)], colour, ink=0.6, grain=0.8,
    )


@setting("meadow", "in a meadow", "in a flowery meadow", "in a green meadow")
def meadow(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 2, mix(p.foliage, p.grass, 0.4))
    pen.thing(0.45)
    land(pen, ridge(pen.rng, h + 0.03, 0.04, 0.5), p.grass)
    pen.thing(0.3)
    _tufts(pen, h + 0.06, times(p.grass, 0.72))
    if view.weather != "snow":
        _flowers(pen, h + 0.08, 11)
    return Ground(h + 0.10, 0.93, _shadow(pen, p.grass))


@setting("hill", "on a hill", "on top of a hill", "on a grassy hill")
def hill(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, min(0.86, view.horizon + 0.12)
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h + 0.02, 2, mix(p.foliage, p.rock, 0.4), 0.18)
    pen.thing(0.4)
    top = h - float(rng.uniform(0.02, 0.06))
    line = [(-0.02, top + 0.16), (0.18, top + 0.06), (0.38, top + 0.005), (0.62, top), (0.84, top + 0.05), (1.02, top + 0.17)]
    pen.blob([*line, (1.1, 1.1), (0.5, 1.12), (-0.1, 1.1)], p.grass, to=times(p.grass, 0.6), grain=0.6)
    pen.thing(0.3)
    _tufts(pen, top + 0.1, times(p.grass, 0.7), 8)
    return Ground(top + 0.035, top + 0.07, _shadow(pen, p.grass))


@setting("cliff", "on a cliff", "on a cliff above the sea", "on a rocky cliff")
def cliff(pen: Pen, view: View) -> Ground:
    p, rng = pen.palette, pen.rng
    sea = min(0.74, view.horizon + 0.06)
    sky(pen, sea, view.weather, view.time_of_day)
    _sea(pen, sea, waves=10)
    pen.thing(0.35)
    top = float(rng.uniform(0.78, 0.84))
    mirror = rng.random() < 0.5
    edge = [(-0.02, top - 0.01), (0.70, top), (0.88, top + 0.03), (0.92, top + 0.10), (0.97, 1.02), (-0.02, 1.02)]
    rim = [(-0.02, top - 0.01), (0.70, top), (0.88, top + 0.03), (0.84, top + 0.055), (0.5, top + 0.05), (-0.02, top + 0.06)]
    cracks = [[(0.15, top + 0.06), (0.2, 1.0)], [(0.45, top + 0.05), (0.42, 1.0)], [(0.70, top + 0.05), (0.74, 1.0)]]
    if mirror:
        edge, rim = [(1 - x, y) for x, y in edge], [(1 - x, y) for x, y in rim]
        cracks = [[(1 - x, y) for x, y in c] for c in cracks]
    pen.poly(edge, p.rock, shade=0.9, grain=0.9, flow=1.4)
    for c in cracks:
        pen.line(c, 0.012, times(p.rock, 0.6), ink=0.2)
    pen.poly(rim, p.grass, shade=0.3, grain=0.5)
    return Ground(top + 0.02, top + 0.045, _shadow(pen, p.grass))


@setting("mountains", "in the mountains", "below the mountains", "in front of snowy mountains")
def mountains(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    for k, (x, s) in enumerate(((float(rng.uniform(0.1, 0.4)), 0.42), (float(rng.uniform(0.55, 0.95)), 0.36), (0.5, 0.24))):
        pen.thing(0.9 - 0.12 * k)
        x, top = x + float(rng.uniform(-0.08, 0.08)), h - s * float(rng.uniform(0.8, 1.1))
        colour = mix(p.rock, p.sky, 0.30 - 0.1 * k)
        foot = h + 0.04
        pen.poly([(x - s, foot), (x, top), (x + s, foot)], colour, shade=0, grain=0.6, flow=0.7)
        side = s if pen.light.direction[0] < 0 else -s
        pen.poly([(x, top), (x + side, foot), (x + side * 0.25, foot)], times(colour, 0.72), shade=0, ink=0.3, flow=0.7)
        c = 0.36
        rim = top + (foot - top) * c
        pen.poly([(x, top), (x + s * c, rim), (x + s * 0.12, rim - 0.03), (x - s * 0.06, rim + 0.02), (x - s * 0.2, rim - 0.025),
                  (x - s * c, rim)], SNOW, shade=0.9, ink=0.5)
    pen.thing(0.45)
    land(pen, ridge(rng, h + 0.04, 0.04, 0.5), mix(p.grass, p.foliage, 0.3))
    pen.thing(0.55)
    for _ in range(int(rng.integers(2, 6))):
        tree(pen, float(rng.random()), h + 0.05, float(rng.uniform(0.10, 0.17)), p.foliage, conifer=True)
    return Ground(h + 0.12, 0.93, _shadow(pen, p.grass))


@setting("desert", "in the desert", "among sand dunes", "in a sandy desert")
def desert(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 1, mix(p.sand, p.rock, 0.6), 0.09)
    for k in range(3):
        pen.thing(0.7 - 0.2 * k)
        crest = float(rng.uniform(0.15, 0.85))
        y = h + 0.02 + 0.07 * k
        line = [(-0.02, y + 0.02), (crest * 0.6, y - 0.01), (crest, y - 0.05), (crest + 0.2, y - 0.005), (1.02, y + 0.03)]
        land(pen, line, vary(p.sand, rng), mix(p.sand, p.earth, 0.45), grain=0.35)
        pen.poly([(crest, y - 0.05), (crest + 0.2, y - 0.005), (crest + 0.12, y + 0.10), (crest - 0.05, y + 0.06)],
                 times(p.sand, 0.74), shade=0, ink=0.2)
    return Ground(h + 0.17, 0.93, _shadow(pen, p.sand))


@setting("forest", "in a forest", "at the edge of a forest", "among the trees")
def forest(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    conifer = bool(rng.random() < 0.5)
    for k, n in enumerate((5, 4)):
        pen.thing(0.8 - 0.22 * k)
        land(pen, ridge(rng, h + 0.01 + 0.04 * k, 0.05), mix(p.foliage, p.haze, 0.35 - 0.2 * k))
        for j in range(n):
            x = (j + float(rng.uniform(0.1, 0.9))) / n
            tree(pen, x, h + 0.04 + 0.04 * k, float(rng.uniform(0.26, 0.42)), mix(vary(p.foliage, rng, 1.5), p.haze, 0.25 - 0.15 * k), conifer=conifer)
    pen.thing(0.4)
    land(pen, ridge(rng, h + 0.10, 0.03, 0.4), mix(p.grass, p.foliage, 0.35))
    _tufts(pen, h + 0.14, times(p.foliage, 0.8), 8)
    return Ground(h + 0.15, 0.93, _shadow(pen, p.grass))


@setting("beach", "on the beach", "on a sandy beach", "on the shore")
def beach(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _sea(pen, h, waves=9)
    pen.thing(0.4)
    y = h + 0.12
    line = ridge(pen.rng, y, 0.05, 0.3)
    land(pen, [(x, v - 0.016) for x, v in line], WHITE, p.sand, grain=0.2)
    land(pen, line, p.sand, mix(p.sand, p.earth, 0.3))
    pebbles = np.stack([pen.rng.random(12), y + 0.05 + (0.95 - y) * pen.rng.random(12)], axis=1)
    pen.dots(pebbles, 0.008, times(p.sand, 0.72))
    return Ground(y + 0.05, 0.93, _shadow(pen, p.sand))


@setting("field", "in a wheat field", "in a golden field", "in a field of wheat")
def field(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 2, p.foliage, 0.10)
    gold = mix(vary((0.86, 0.68, 0.26), rng), SNOW, 0.6 if view.weather == "snow" else 0.0)
    pen.thing(0.45)
    land(pen, [(-0.02, h + 0.02), (0.5, h + 0.01), (1.02, h + 0.02)], gold, times(gold, 0.75), grain=0.9)
    x = float(rng.uniform(0.2, 0.8))
    for k in range(-7, 8):  # furrows run to one vanishing point
        pen.line([(x + 0.035 * k, h + 0.03), (x + 0.28 * k, 1.0)], 0.010, times(gold, 0.80), ink=0.0)
    pen.thing(0.5)
    for _ in range(2):
        tree(pen, float(rng.random()), h + 0.03, float(rng.uniform(0.09, 0.15)), p.foliage, conifer=False)
    return Ground(h + 0.12, 0.93, _shadow(pen, gold))


@setting("village", "in a village", "in a small village", "on a village green")
def village(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 1, p.foliage, 0.16)
    pen.thing(0.6)
    land(pen, [(-0.02, h), (0.5, h - 0.01), (1.02, h)], p.grass)
    roofs: tuple[Colour, ...] = ((0.66, 0.33, 0.24), (0.45, 0.36, 0.36), (0.58, 0.42, 0.26))
    x = -0.06
    while x < 1.0:
        w, t = float(rng.uniform(0.13, 0.20)), float(rng.uniform(0.10, 0.17))
        pen.thing(0.6)
        wall = vary(mix((0.90, 0.84, 0.72), p.wall, float(rng.random()) * 0.5), rng)
        roof = SNOW if view.weather == "snow" else vary(roofs[int(rng.integers(3))], rng)
        pen.box(x, h + 0.03 - t, x + w, h + 0.05, wall, grain=0.4, flow=1.57)
        pen.poly([(x - 0.02, h + 0.035 - t), (x + w / 2, h - t - w * 0.45), (x + w + 0.02, h + 0.035 - t)], roof)
        pane, glow = lamp_or_dark(pen)
        pen.box(x + w * 0.22, h + 0.055 - t, x + w * 0.42, h + 0.10 - t, pane, shade=0, glow=glow)
        pen.box(x + w * 0.60, h + 0.055 - t, x + w * 0.80, h + 0.10 - t, pane, shade=0, glow=glow)
        x += w + float(rng.uniform(0.03, 0.12))
    pen.thing(0.45)
    land(pen, [(-0.02, h + 0.05), (0.5, h + 0.04), (1.02, h + 0.05)], p.grass)
    a = float(rng.uniform(0.3, 0.7))
    pen.poly([(a - 0.03, h + 0.045), (a + 0.03, h + 0.045), (a + 0.22, 1.02), (a - 0.22, 1.02)], p.earth, shade=0, ink=0.3, flow=1.5)
    return Ground(h + 0.14, 0.93, _shadow(pen, mix(p.grass, p.earth, 0.4)))


@setting("city", "in the city", "in front of the city skyline", "in a city street")
def city(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    for k in range(2):
        pen.thing(0.85 - 0.2 * k)
        x = -0.05
        while x < 1.0:
            w, t = float(rng.uniform(0.09, 0.17)), float(rng.uniform(0.16, 0.40)) * (1.1 - 0.35 * k)
            wall = mix(mix(mute(p.wall, 0.4), times(STONE, 0.8), float(rng.random())), p.haze, 0.35 - 0.2 * k)
            pen.box(x, h - t, x + w, h + 0.06, wall, shade=0.8, flow=1.57, grain=0.3)
            if k == 1 or w > 0.13:
                pane, glow = lamp_or_dark(pen, times(wall, 0.62))
                rows = int(t / 0.07)
                for r in range(rows):
                    y = h - t + 0.03 + r * 0.065
                    for c in range(2):
                        if rng.random() < 0.75:
                            pen.box(x + w * (0.18 + 0.4 * c), y, x + w * (0.40 + 0.4 * c), y + 0.03, pane, shade=0, glow=glow, ink=0.3)
            x += w + 0.01
    pen.thing(0.4)
    street = mix(SNOW, STONE, 0.3) if view.weather == "snow" else vary(mute(mix(STONE, p.earth, 0.2), 0.3), rng)
    land(pen, [(-0.02, h + 0.05), (1.02, h + 0.05)], street, times(street, 0.8))
    pen.line([(-0.02, h + 0.085), (1.02, h + 0.085)], 0.014, times(street, 0.7), ink=0.2)
    for k in range(-4, 5):
        pen.line([(0.5 + 0.16 * k, h + 0.09), (0.5 + 0.42 * k, 1.0)], 0.006, times(street, 0.75), ink=0.0)
    return Ground(h + 0.14, 0.93, _shadow(pen, street))


@setting("garden", "in a garden", "in the garden", "in front of a garden fence")
def garden(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    pen.thing(0.7)
    for j in range(4):
        tree(pen, (j + float(rng.uniform(0.2, 0.8))) / 4, h + 0.05, float(rng.uniform(0.2, 0.34)), mix(vary(p.foliage, rng, 2), p.haze, 0.2), conifer=False)
    pen.thing(0.5)
    land(pen, [(-0.02, h + 0.04), (1.02, h + 0.04)], p.grass)
    fence = vary(WHITE, rng) if rng.random() < 0.6 else p.wood
    pen.thing(0.5)
    for y in (h - 0.03, h + 0.03):
        pen.box(-0.02, y, 1.02, y + 0.018, fence, shade=0, ink=0.5)
    for j in range(12):
        x = (j + 0.3) / 12
        pen.poly([(x, h + 0.06), (x, h - 0.06), (x + 0.018, h - 0.085), (x + 0.036, h - 0.06), (x + 0.036, h + 0.06)], fence, shade=0, ink=0.5, flow=1.57)
    pen.thing(0.4)
    if view.weather != "snow":
        _flowers(pen, h + 0.07, 12)
    _tufts(pen, h + 0.1, times(p.grass, 0.75), 6)
    return Ground(h + 0.13, 0.93, _shadow(pen, p.grass))


@setting("sea", "on the sea", "on the open sea", "out at sea")
def sea(pen: Pen, view: View) -> Ground:
    sky(pen, view.horizon, view.weather, view.time_of_day)
    if pen.rng.random() < 0.4:
        _far_hills(pen, view.horizon + 0.005, 1, pen.palette.rock, 0.07)
    _sea(pen, view.horizon, waves=22)
    return Ground(view.horizon + 0.12, 0.90, None, pen.palette.water)


@setting("lake", "on a lake", "on a calm lake", "on a mountain lake")
def lake(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 2, mix(p.foliage, p.rock, 0.5), 0.20)
    pen.thing(0.8)
    for _ in range(4):
        tree(pen, float(pen.rng.random()), h + 0.015, float(pen.rng.uniform(0.08, 0.14)), p.foliage, conifer=True)
    _sea(pen, h + 0.01, waves=12)
    pen.thing(0.2)
    reed = times(p.foliage, 0.9)
    side = 0.02 if pen.rng.random() < 0.5 else 0.86
    for k in range(6):
        x = side + 0.024 * k
        pen.line([(x, 1.02), (x + float(pen.rng.uniform(-0.03, 0.03)), float(pen.rng.uniform(0.80, 0.90)))], 0.010, reed)
    return Ground(h + 0.14, 0.88, None, p.water)


@setting("harbour", "in a harbour", "in the harbour", "in a quiet harbour")
def harbour(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h - 0.01, 1, p.foliage, 0.16)
    x = -0.04
    while x < 1.0:
        w, t = float(rng.uniform(0.09, 0.13)), float(rng.uniform(0.09, 0.18))
        pen.thing(0.7)
        wall = vary(mix((0.88, 0.74, 0.58), p.wall, float(rng.random())), rng, 2.5)
        pen.box(x, h - t, x + w, h + 0.03, mix(wall, p.haze, 0.12), grain=0.3, flow=1.57)
        roof = SNOW if view.weather == "snow" else vary((0.62, 0.32, 0.24), rng)
        pen.poly([(x, h - t), (x + w / 2, h - t - 0.05), (x + w, h - t)], roof)
        pane, glow = lamp_or_dark(pen, times(wall, 0.5))
        for c in (0.2, 0.6):
            pen.box(x + w * c, h - t + 0.025, x + w * (c + 0.2), h - t + 0.06, pane, shade=0, glow=glow, ink=0.4)
        x += w
    pen.thing(0.65)
    pen.box(-0.02, h, 1.02, h + 0.04, mix(STONE, p.haze, 0.1), grain=0.8)
    _sea(pen, h + 0.035, waves=13)
    return Ground(h + 0.15, 0.90, None, p.water)


@setting("open sky", "in the sky", "high in the sky", "above the hills")
def open_sky(pen: Pen, view: View) -> Ground:
    p = pen.palette
    h = 0.90
    sky(pen, h, view.weather, view.time_of_day)
    _far_hills(pen, h, 2, mix(p.foliage, p.grass, 0.5), 0.12)
    pen.thing(0.6)
    land(pen, ridge(pen.rng, h + 0.04, 0.05, 0.5), p.grass)
    return Ground(0.60, 0.86, None)


@setting("sea sky", "over the sea", "high above the sea", "above the waves")
def sea_sky(pen: Pen, view: View) -> Ground:
    h = 0.84
    sky(pen, h, view.weather, view.time_of_day)
    _sea(pen, h, waves=9)
    return Ground(0.56, 0.82, None)


@setting("under water", "under the sea", "under water", "at the bottom of the sea")
def under_water(pen: Pen, view: View) -> Ground:
    p, rng = pen.palette, pen.rng
    dark = view.time_of_day == "night"
    top, deep = ((0.10, 0.34, 0.52), (0.02, 0.10, 0.24)) if dark else ((0.42, 0.80, 0.84), (0.06, 0.36, 0.56))
    top, deep = vary(top, rng, 2), vary(deep, rng, 2)
    pen.thing(1.0)
    pen.box(-0.02, -0.02, 1.02, 1.02, top, to=deep, grain=0.3, haze=0.0, flow=0.1)
    for _ in range(3):  # shafts of light
        x, w = float(rng.random()), float(rng.uniform(0.02, 0.05))
        slant = -0.25 * pen.light.direction[0]
        pen.poly([(x, -0.02), (x + w, -0.02), (x + w * 2 + slant, 0.62), (x + slant, 0.62)], mix(top, WHITE, 0.10), to=mix(top, deep, 0.55), ink=0.0, haze=0.0)
    floor = mix(p.sand, deep, 0.45)
    pen.thing(0.6)
    y = float(rng.uniform(0.84, 0.90))
    land(pen, ridge(rng, y, 0.06, 0.7), mix(floor, deep, 0.3), floor)
    corals: tuple[Colour, ...] = ((0.90, 0.42, 0.40), (0.95, 0.65, 0.35), (0.72, 0.40, 0.70), (0.35, 0.62, 0.38))
    for _ in range(4):
        pen.thing(0.4)
        x, s, colour = float(rng.random()), float(rng.uniform(0.06, 0.13)), mix(corals[int(rng.integers(4))], deep, 0.25)
        if rng.random() < 0.5:
            for k in (-1, 0, 1):
                pen.line([(x, y + 0.08), (x + 0.3 * s * k, y + 0.04 - s * 0.5), (x + 0.55 * s * k, y + 0.03 - s)], 0.022, colour, curve=True)
        else:
            for k in range(3):
                dx = 0.035 * (k - 1)
                pen.line([(x + dx, y + 0.1), (x + dx + 0.02, y + 0.02), (x + dx - 0.015, y - s * 0.6), (x + dx + 0.015, y - s * 1.3)], 0.012, mix(corals[3], deep, 0.3), curve=True)
    pen.dots(rng.random((7, 2)) * (1, 0.7), 0.010, mix(top, WHITE, 0.6), haze=0.0)
    return Ground(0.58, 0.84, None)


def _window(pen: Pen, view: View, x0: float, y0: float, x1: float, y1: float) -> None:
    """A window that shows hour and weather; everything drawn through it stays inside its frame."""
    p, rng = pen.palette, pen.rng
    pen.thing(0.95)
    frame = mix(WHITE, p.wood, float(rng.random()) * 0.7)
    pen.box(x0 - 0.03, y0 - 0.03, x1 + 0.03, y1 + 0.03, frame, shade=0.3)
    pen.box(x0, y0, x1, y1, p.sky, to=p.horizon, haze=0.0, ink=0.6)
    w, h = x1 - x0, y1 - y0
    mx, my = x0 + w * float(rng.uniform(0.25, 0.75)), y0 + h * 0.3
    if view.weather in ("clear", "cloudy") and view.time_of_day != "day":
        pen.oval(mx, my, 0.04, 0.04, p.sun, shade=0, round=0, glow=True)
    if view.weather in ("cloudy", "storm", "rain"):
        pen.oval(x0 + w * 0.35, y0 + h * 0.30, w * 0.26, h * 0.09, p.cloud, haze=0.0, ink=0.3)
        pen.oval(x0 + w * 0.70, y0 + h * 0.20, w * 0.20, h * 0.07, p.cloud, haze=0.0, ink=0.3)
    foot = y1 - h * 0.25
    hills = [(x0, foot), (x0 + w * 0.3, foot - h * 0.12), (x0 + w * 0.6, foot), (x0 + w * 0.85, foot - h * 0.08), (x1, foot - 0.01), (x1, y1), (x0, y1)]
    pen.poly(hills, mix(p.foliage, p.haze, 0.2 + p.haze_amount * 0.7), ink=0.4)
    if view.weather in ("rain", "storm"):
        for x, y in rng.random((12, 2)).tolist():
            at = (x0 + w * 0.9 * x + w * 0.05, y0 + h * 0.75 * y)
            pen.line([at, (at[0] + 0.01, at[1] + h * 0.16)], 0.005, mix(p.horizon, WHITE, 0.6), ink=0.0)
    if view.weather == "storm":
        pen.line([(mx, y0), (mx - 0.03, y0 + h * 0.25), (mx + 0.02, y0 + h * 0.35), (mx - 0.02, y0 + h * 0.6)], 0.012, (1.0, 0.98, 0.8), glow=True)
    if view.weather == "snow":
        pen.dots(rng.random((16, 2)) * (w * 0.9, h * 0.9) + (x0 + w * 0.05, y0 + h * 0.05), 0.008, WHITE, glow=True)
    pen.thing(0.93)
    pen.box((x0 + x1) / 2 - 0.010, y0, (x0 + x1) / 2 + 0.010, y1, frame, shade=0)
    pen.box(x0, (y0 + y1) / 2 - 0.010, x1, (y0 + y1) / 2 + 0.010, frame, shade=0)


def _room(pen: Pen, view: View, *, window: bool = True) -> None:
    p, rng = pen.palette, pen.rng
    pen.thing(1.0)
    wall = mix(p.wall, p.horizon, 0.12)
    lit = pen.light.lit if not pen.light.lamps else (0.80, 0.70, 0.62)
    wall = (wall[0] * lit[0], wall[1] * lit[1], wall[2] * lit[2])
    pen.box(-0.02, -0.02, 1.02, 1.02, times(wall, 1.05), to=times(wall, 0.72), way=(-pen.light.direction[0], 0.4), haze=0.0, grain=0.4)
    if rng.random() < 0.35:  # wallpaper
        for k in range(9):
            x = (k + 0.5) / 9
            pen.line([(x, -0.02), (x, 1.0)], 0.014, times(wall, 0.88), haze=0.0, ink=0.0)
    if window:
        left = pen.light.direction[0] < 0
        x0 = float(rng.uniform(0.06, 0.14)) if left else float(rng.uniform(0.50, 0.58))
        _window(pen, view, x0, float(rng.uniform(0.06, 0.10)), x0 + float(rng.uniform(0.32, 0.37)), float(rng.uniform(0.46, 0.55)))


def _table(pen: Pen, y: float, colour: Colour) -> None:
    pen.thing(0.4)
    lit = pen.light.lit if not pen.light.lamps else (0.85, 0.74, 0.62)
    top = (colour[0] * lit[0], colour[1] * lit[1], colour[2] * lit[2])
    pen.box(-0.02, y, 1.02, 1.02, times(top, 1.05), to=times(top, 0.7), haze=0.0, grain=0.9)


@setting("wooden table", "on a wooden table", "on an old wooden table", "on a table", indoors=True)
def wooden_table(pen: Pen, view: View) -> Ground:
    y = view.horizon
    _room(pen, view)
    _table(pen, y, pen.palette.wood)
    for k in range(1, 5):
        v = y + (1 - y) * (k / 5) ** 1.3
        pen.line([(-0.02, v), (1.02, v)], 0.006, times(pen.palette.wood, 0.62), ink=0.0, haze=0.0)
    return Ground(y + 0.10, 0.93, _shadow(pen, pen.palette.wood))


@setting("tablecloth", "on a checked tablecloth", "on a striped tablecloth", "on a tablecloth", indoors=True)
def tablecloth(pen: Pen, view: View) -> Ground:
    y, rng = view.horizon, pen.rng
    _room(pen, view)
    cloth = vary(WHITE, rng)
    _table(pen, y, cloth)
    stripes: tuple[Colour, ...] = ((0.75, 0.35, 0.32), (0.35, 0.48, 0.70), (0.40, 0.58, 0.42), (0.85, 0.66, 0.32))
    colour = mix(vary(stripes[int(rng.integers(4))], rng), pen.light.shade, 0.15)
    for k in range(-5, 6):
        a, b = 0.5 + 0.13 * k, 0.5 + 0.21 * k
        pen.poly([(a - 0.02, y), (a + 0.02, y), (b + 0.034, 1.02), (b - 0.034, 1.02)], colour, shade=0, ink=0.1, haze=0.0, flow=1.5)
    for k in range(4):
        v = y + (1 - y) * (k / 4) ** 1.3
        pen.box(-0.02, v, 1.02, v + 0.02 + 0.012 * k, mix(colour, cloth, 0.25), shade=0, ink=0.1, haze=0.0)
    return Ground(y + 0.10, 0.93, _shadow(pen, cloth))


@setting("window sill", "by a window", "on a window sill", "in front of a window", indoors=True)
def window_sill(pen: Pen, view: View) -> Ground:
    y = max(0.66, view.horizon)
    _room(pen, view, window=False)
    _window(pen, view, 0.12, 0.05, 0.88, y - 0.03)
    pen.thing(0.7)
    curtain = vary(mix(pen.palette.wall, (0.75, 0.3, 0.3), 0.4), pen.rng, 3)
    for side in (0.0, 1.0):
        d = 1 - 2 * side
        pen.blob([(side - 0.05 * d, -0.05), (side + 0.16 * d, -0.05), (side + 0.17 * d, 0.2), (side + 0.07 * d, y - 0.1), (side - 0.05 * d, y)], curtain, grain=0.7, flow=1.5, round=0.2)
    _table(pen, y, mix(WHITE, pen.palette.wood, 0.35))
    return Ground(y + 0.08, 0.93, _shadow(pen, WHITE))


@setting("shelf", "on a shelf", "on a kitchen shelf", "on a bookshelf", indoors=True)
def shelf(pen: Pen, view: View) -> Ground:
    rng, wood = pen.rng, pen.palette.wood
    _room(pen, view, window=False)
    _window(pen, view, 0.64, 0.06, 0.94, 0.36)
    y = float(rng.uniform(0.80, 0.86))
    pen.thing(0.6)
    x = float(rng.uniform(-0.02, 0.02))
    while x < 0.9:  # books and jars standing behind
        w, t = float(rng.uniform(0.035, 0.06)), float(rng.uniform(0.13, 0.22))
        if not 0.25 < x < 0.72:
            pen.box(x, y - t, x + w, y, vary(mix(pen.palette.wall, (0.5, 0.3, 0.3), float(rng.random())), rng, 4), shade=0.6, flow=1.57)
        x += w
    pen.thing(0.4)
    pen.box(-0.02, y, 1.02, y + 0.075, wood, shade=0, grain=0.9)
    pen.box(-0.02, y + 0.075, 1.02, 1.02, times(wood, 0.45), to=times(pen.palette.wall, 0.55), ink=0.6, haze=0.0)
    return Ground(y + 0.012, y + 0.05, _shadow(pen, wood))


@setting("room", "in a room", "in a quiet room", "in the living room", indoors=True)
def room(pen: Pen, view: View) -> Ground:
    y, rng = view.horizon, pen.rng
    _room(pen, view)
    _table(pen, y, mix(pen.palette.wood, INK, 0.1))
    pen.line([(-0.02, y), (1.02, y)], 0.02, mix(WHITE, pen.palette.wood, 0.4), haze=0.0, ink=0.3)
    for k in range(-4, 5):
        pen.line([(0.5 + 0.16 * k, y), (0.5 + 0.36 * k, 1.02)], 0.006, times(pen.palette.wood, 0.6), ink=0.0, haze=0.0)
    rug = vary((0.65, 0.32, 0.30), rng, 6)
    pen.oval(0.5, 0.90, 0.44, 0.085, rug, shade=0.3, round=0.2)
    pen.oval(0.5, 0.90, 0.36, 0.062, mix(rug, WHITE, 0.35), shade=0, round=0)
    pen.oval(0.5, 0.90, 0.33, 0.052, rug, shade=0, round=0)
    return Ground(0.88, 0.92, _shadow(pen, rug))
