"""Settings by the sea, on water, under it and in the air. One short function each; see `settings`."""

from __future__ import annotations

import numpy as np

from pipeline.atelier.backdrop import draw_sea, far_hills, shadow_on, tree
from pipeline.atelier.palette import SNOW, STONE, WHITE, Colour, mix, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.settings import Ground, View, setting
from pipeline.atelier.sky import lamp_or_dark, land, ridge, sky


@setting("cliff", "on a cliff", "on a cliff above the sea", "on a rocky cliff")
def cliff(pen: Pen, view: View) -> Ground:
    p, rng = pen.palette, pen.rng
    sea = min(0.74, view.horizon + 0.06)
    sky(pen, sea, view.weather, view.time_of_day)
    draw_sea(pen, sea, waves=10)
    pen.thing(0.35)
    top = float(rng.uniform(0.78, 0.84))
    mirror = rng.random() < 0.5
    edge = [(-0.02, top - 0.01), (0.70, top), (0.88, top + 0.03), (0.92, top + 0.10), (0.97, 1.02), (-0.02, 1.02)]
    rim = [
        (-0.02, top - 0.01),
        (0.70, top),
        (0.88, top + 0.03),
        (0.84, top + 0.055),
        (0.5, top + 0.05),
        (-0.02, top + 0.06),
    ]
    cracks = [[(0.15, top + 0.06), (0.2, 1.0)], [(0.45, top + 0.05), (0.42, 1.0)], [(0.70, top + 0.05), (0.74, 1.0)]]
    if mirror:
        edge, rim = [(1 - x, y) for x, y in edge], [(1 - x, y) for x, y in rim]
        cracks = [[(1 - x, y) for x, y in c] for c in cracks]
    pen.poly(edge, p.rock, shade=0.9, grain=0.9, flow=1.4)
    for c in cracks:
        pen.line(c, 0.012, times(p.rock, 0.6), ink=0.2)
    pen.poly(rim, p.grass, shade=0.3, grain=0.5)
    return Ground(top + 0.02, top + 0.045, shadow_on(pen, p.grass))


@setting("beach", "on the beach", "on a sandy beach", "on the shore")
def beach(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    draw_sea(pen, h, waves=9)
    pen.thing(0.4)
    y = h + 0.12
    line = ridge(pen.rng, y, 0.05, 0.3)
    land(pen, [(x, v - 0.016) for x, v in line], WHITE, p.sand, grain=0.2)
    land(pen, line, p.sand, mix(p.sand, p.earth, 0.3))
    pebbles = np.stack([pen.rng.random(12), y + 0.05 + (0.95 - y) * pen.rng.random(12)], axis=1)
    pen.dots(pebbles, 0.008, times(p.sand, 0.72))
    return Ground(y + 0.05, 0.93, shadow_on(pen, p.sand))


@setting("sea", "on the sea", "on the open sea", "out at sea")
def sea(pen: Pen, view: View) -> Ground:
    sky(pen, view.horizon, view.weather, view.time_of_day)
    if pen.rng.random() < 0.4:
        far_hills(pen, view.horizon + 0.005, 1, pen.palette.rock, 0.07)
    draw_sea(pen, view.horizon, waves=22)
    return Ground(view.horizon + 0.12, 0.90, None, pen.palette.water)


@setting("lake", "on a lake", "on a calm lake", "on a mountain lake")
def lake(pen: Pen, view: View) -> Ground:
    p, h = pen.palette, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 2, mix(p.foliage, p.rock, 0.5), 0.20)
    pen.thing(0.8)
    for _ in range(4):
        tree(pen, float(pen.rng.random()), h + 0.015, float(pen.rng.uniform(0.08, 0.14)), p.foliage, conifer=True)
    draw_sea(pen, h + 0.01, waves=12)
    pen.thing(0.2)
    reed = times(p.foliage, 0.9)
    side = 0.02 if pen.rng.random() < 0.5 else 0.86
    for k in range(6):
        x = side + 0.024 * k
        pen.line(
            [(x, 1.02), (x + float(pen.rng.uniform(-0.03, 0.03)), float(pen.rng.uniform(0.80, 0.90)))], 0.010, reed
        )
    return Ground(h + 0.14, 0.88, None, p.water)


@setting("harbour", "in a harbour", "in the harbour", "in a quiet harbour")
def harbour(pen: Pen, view: View) -> Ground:
    p, rng, h = pen.palette, pen.rng, view.horizon
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h - 0.01, 1, p.foliage, 0.16)
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
    draw_sea(pen, h + 0.035, waves=13)
    return Ground(h + 0.15, 0.90, None, p.water)


@setting("open sky", "in the sky", "high in the sky", "above the hills")
def open_sky(pen: Pen, view: View) -> Ground:
    p = pen.palette
    h = 0.90
    sky(pen, h, view.weather, view.time_of_day)
    far_hills(pen, h, 2, mix(p.foliage, p.grass, 0.5), 0.12)
    pen.thing(0.6)
    land(pen, ridge(pen.rng, h + 0.04, 0.05, 0.5), p.grass)
    return Ground(0.60, 0.86, None)


@setting("sea sky", "over the sea", "high above the sea", "above the waves")
def sea_sky(pen: Pen, view: View) -> Ground:
    h = 0.84
    sky(pen, h, view.weather, view.time_of_day)
    draw_sea(pen, h, waves=9)
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
        pen.poly(
            [(x, -0.02), (x + w, -0.02), (x + w * 2 + slant, 0.62), (x + slant, 0.62)],
            mix(top, WHITE, 0.10),
            to=mix(top, deep, 0.55),
            ink=0.0,
            haze=0.0,
        )
    floor = mix(p.sand, deep, 0.45)
    pen.thing(0.6)
    y = float(rng.uniform(0.84, 0.90))
    land(pen, ridge(rng, y, 0.06, 0.7), mix(floor, deep, 0.3), floor)
    corals: tuple[Colour, ...] = ((0.90, 0.42, 0.40), (0.95, 0.65, 0.35), (0.72, 0.40, 0.70), (0.35, 0.62, 0.38))
    for _ in range(4):
        pen.thing(0.4)
        x, s, colour = (
            float(rng.random()),
            float(rng.uniform(0.06, 0.13)),
            mix(corals[int(rng.integers(4))], deep, 0.25),
        )
        if rng.random() < 0.5:
            for k in (-1, 0, 1):
                pen.line(
                    [(x, y + 0.08), (x + 0.3 * s * k, y + 0.04 - s * 0.5), (x + 0.55 * s * k, y + 0.03 - s)],
                    0.022,
                    colour,
                    curve=True,
                )
        else:
            for k in range(3):
                dx = 0.035 * (k - 1)
                pen.line(
                    [
                        (x + dx, y + 0.1),
                        (x + dx + 0.02, y + 0.02),
                        (x + dx - 0.015, y - s * 0.6),
                        (x + dx + 0.015, y - s * 1.3),
                    ],
                    0.012,
                    mix(corals[3], deep, 0.3),
                    curve=True,
                )
    pen.dots(rng.random((7, 2)) * (1, 0.7), 0.010, mix(top, WHITE, 0.6), haze=0.0)
    return Ground(0.58, 0.84, None)
