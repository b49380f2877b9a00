"""Buildings. One short function each; see `subjects` for their frame."""

from __future__ import annotations

import math

from pipeline.atelier.palette import CREAM, GLASS, IRON, LAMP, SNOW, STONE, WHITE, WOOD, Colour, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.sky import lamp_or_dark
from pipeline.atelier.subjects import subject


def pane(pen: Pen, x: float, y: float, w: float, h: float) -> None:
    """A window pane around x, lit if lamps are on."""
    colour, glow = lamp_or_dark(pen)
    pen.box(x - w / 2, y, x + w / 2, y + h, colour, shade=0, glow=glow, ink=0.6)


def contrast(colour: Colour) -> Colour:
    """White for most colours, dark for those that are nearly white."""
    return (0.62, 0.16, 0.14) if min(colour) > 0.75 else WHITE


def roof_colour(pen: Pen, colour: Colour) -> Colour:
    """The colour of a roof, under snow if it snows."""
    return mix(colour, SNOW, 0.75) if pen.snow else colour


def smoke(pen: Pen, x: float, y: float, puffs: int, radius: float, drift: float, amount: float = 0.35) -> None:
    """A plume that widens as it rises; one flat paint, so that the puffs make one shape."""
    colour = mix(pen.palette.horizon, mix(WHITE, IRON, amount), 0.55)
    for k in range(puffs):
        r = radius * (1 + 0.32 * k)
        pen.oval(x + drift * k, y + radius * 1.15 * k, r, r * 0.78, colour, shade=0, round=0, ink=0.3)


@subject("lighthouse", "building", "red, blue, white, yellow, green", "cliff, beach", width=0.46, size=0.70, most=1)
def lighthouse(pen: Pen) -> None:
    m, band = pen.main, contrast(pen.main)

    def side(y: float) -> float:
        return 0.15 - 0.075 * y

    pen.box(-0.24, 0.0, 0.24, 0.05, STONE, grain=0.8)
    pen.poly([(-0.15, 0.03), (0.15, 0.03), (side(0.74), 0.74), (-side(0.74), 0.74)], m, shade=1.0, flow=1.57)
    for y in (0.20, 0.49):
        pen.poly(
            [(-side(y), y), (side(y), y), (side(y + 0.13), y + 0.13), (-side(y + 0.13), y + 0.13)],
            band,
            shade=1.0,
            flow=1.57,
        )
    if pen.light.lamps:
        beam = mix(mix(pen.palette.sky, pen.palette.horizon, 0.4), LAMP, 0.40)
        pen.poly([(0.0, 0.84), (-1.3, 0.98), (-1.3, 0.72)], beam, shade=0, glow=True, ink=0.0)
    pen.box(-0.135, 0.73, 0.135, 0.775, IRON, shade=0.4)
    pen.box(-0.075, 0.775, 0.075, 0.88, LAMP if pen.light.lamps else GLASS, shade=0.2, glow=pen.light.lamps)
    pen.line([(-0.03, 0.775), (-0.03, 0.88)], 0.012, IRON)
    pen.line([(0.03, 0.775), (0.03, 0.88)], 0.012, IRON)
    pen.poly([(-0.10, 0.875), (-0.06, 0.945), (0.0, 0.97), (0.06, 0.945), (0.10, 0.875)], m if band == WHITE else band)
    pen.line([(0.0, 0.96), (0.0, 1.0)], 0.014, IRON)
    pane(pen, 0.0, 0.38, 0.045, 0.07)
    pane(pen, 0.0, 0.64, 0.04, 0.06)
    pen.box(-0.045, 0.03, 0.045, 0.15, times(WOOD, 0.6), shade=0)


@subject(
    "windmill",
    "building",
    "red, white, blue, brown, green",
    "meadow, hill, field, village",
    width=0.92,
    size=0.68,
    most=2,
)
def windmill(pen: Pen) -> None:
    m = pen.main
    pen.poly([(-0.19, 0.0), (0.19, 0.0), (0.125, 0.60), (-0.125, 0.60)], m, shade=1.0, flow=1.57, grain=0.5)
    pen.line([(-0.165, 0.24), (0.165, 0.24)], 0.022, times(m, 0.7))
    pen.blob(
        [(-0.15, 0.585), (0.15, 0.585), (0.13, 0.68), (0.0, 0.74), (-0.13, 0.68)],
        roof_colour(pen, times(mix(m, WOOD, 0.7), 0.7)),
    )
    pen.box(-0.05, 0.0, 0.05, 0.15, times(WOOD, 0.55), shade=0)
    pane(pen, -0.06, 0.31, 0.05, 0.07)
    pane(pen, 0.06, 0.42, 0.05, 0.07)
    turn = float(pen.rng.uniform(0.15, 1.4))
    sail = mix(CREAM, m, 0.0 if min(m) < 0.7 else -0.35)
    sail = (max(0.0, sail[0]), max(0.0, sail[1]), max(0.0, sail[2]))
    for k in range(4):
        a = turn + k * math.pi / 2
        c, s = math.cos(a), math.sin(a)

        def at(u: float, v: float, c: float = c, s: float = s) -> tuple[float, float]:
            return (u * c - v * s, 0.645 + u * s + v * c)

        pen.poly(
            [at(0.09, 0.005), at(0.43, 0.005), at(0.43, 0.105), at(0.09, 0.09)], sail, shade=0.3, flow=-a, grain=0.6
        )
        pen.line([at(0.0, 0.0), at(0.44, 0.0)], 0.026, times(WOOD, 0.55))
        pen.line([at(0.2, 0.0), at(0.2, 0.095)], 0.012, times(WOOD, 0.6))
        pen.line([at(0.32, 0.0), at(0.32, 0.1)], 0.012, times(WOOD, 0.6))
    pen.dots([(0.0, 0.645)], 0.032, IRON)


@subject(
    "cottage",
    "building",
    "white, yellow, pink, blue, red, green",
    "meadow, hill, forest, mountains, garden, field",
    width=1.15,
    size=0.52,
    most=2,
)
def cottage(pen: Pen) -> None:
    m = pen.main
    roof = roof_colour(pen, (0.36, 0.24, 0.20) if m[0] > 0.6 else (0.62, 0.30, 0.20))
    pen.box(0.20, 0.62, 0.32, 0.98, mix(STONE, (0.6, 0.35, 0.28), 0.5), grain=0.8)
    if pen.rng.random() < 0.7:
        smoke(pen, 0.27, 1.02, 4, 0.042, 0.065, 0.0)
    pen.box(-0.46, 0.0, 0.46, 0.52, m, shade=0.8, grain=0.5, flow=1.57)
    pen.poly([(-0.56, 0.48), (-0.36, 0.88), (0.36, 0.88), (0.56, 0.48)], roof, shade=0.9, grain=0.9, flow=0.9)
    for y in (0.60, 0.74):
        pen.line([(-0.50 + (y - 0.48) * 0.5, y), (0.50 - (y - 0.48) * 0.5, y)], 0.014, times(roof, 0.78), ink=0.1)
    pen.box(-0.09, 0.0, 0.09, 0.33, times(WOOD, 0.75), shade=0.3)
    pen.dots([(0.05, 0.16)], 0.015, LAMP)
    for x in (-0.29, 0.29):
        pen.box(x - 0.115, 0.17, x + 0.115, 0.39, WHITE if min(m) < 0.75 else WOOD, shade=0, ink=0.6)
        pane(pen, x, 0.19, 0.18, 0.18)
        pen.line([(x, 0.19), (x, 0.37)], 0.016, WHITE if min(m) < 0.75 else WOOD, ink=0.1)


@subject(
    "castle",
    "building",
    "grey, white, pink, yellow, brown",
    "hill, cliff, mountains, meadow",
    width=1.1,
    size=0.62,
    most=1,
)
def castle(pen: Pen) -> None:
    m = pen.main
    roof = roof_colour(pen, (0.26, 0.34, 0.52) if m[2] < 0.7 or min(m) > 0.8 else (0.55, 0.25, 0.24))

    def merlons(x0: float, x1: float, y: float, n: int) -> None:
        w = (x1 - x0) / (2 * n - 1)
        for k in range(n):
            pen.box(x0 + 2 * k * w, y - 0.01, x0 + (2 * k + 1) * w, y + 0.045, m, shade=0.3)

    def tower(x: float, w: float, h: float, cone: float) -> None:
        pen.box(x - w, 0.0, x + w, h, m, shade=1.0, grain=0.8, flow=1.57)
        pen.box(x - w * 1.18, h - 0.03, x + w * 1.18, h + 0.02, times(m, 0.9), shade=0.8)
        pen.poly([(x - w * 1.3, h + 0.02), (x, h + cone), (x + w * 1.3, h + 0.02)], roof, shade=1.0)
        pane(pen, x, h - 0.16, 0.045, 0.085)

    tower(0.0, 0.10, 0.70, 0.26)
    pen.line([(0.0, 0.94), (0.0, 1.03)], 0.010, IRON)
    pen.poly([(0.0, 1.03), (0.10, 1.0), (0.0, 0.975)], (0.80, 0.2, 0.18), shade=0)
    pen.box(-0.40, 0.0, 0.40, 0.38, m, shade=0.9, grain=0.9)
    merlons(-0.40, 0.40, 0.38, 8)
    tower(-0.42, 0.105, 0.52, 0.22)
    tower(0.42, 0.105, 0.52, 0.22)
    pen.poly(
        [(-0.09, 0.0), (-0.09, 0.16), (-0.05, 0.23), (0.0, 0.25), (0.05, 0.23), (0.09, 0.16), (0.09, 0.0)],
        times(WOOD, 0.5),
        shade=0.2,
    )
    for x in (-0.22, 0.22):
        pane(pen, x, 0.18, 0.05, 0.09)


@subject(
    "church",
    "building",
    "white, red, yellow, grey, blue",
    "village, hill, mountains, meadow",
    width=0.95,
    size=0.66,
    most=1,
)
def church(pen: Pen) -> None:
    m = pen.main
    roof = roof_colour(pen, (0.30, 0.33, 0.38) if m[0] > 0.6 else (0.50, 0.27, 0.20))
    pen.box(-0.10, 0.0, 0.44, 0.34, m, shade=0.8, flow=1.57, grain=0.4)
    pen.poly([(-0.14, 0.33), (-0.02, 0.52), (0.40, 0.52), (0.49, 0.33)], roof, shade=0.9, grain=0.6)
    pen.box(-0.36, 0.0, -0.08, 0.58, m, shade=0.9, flow=1.57, grain=0.4)
    pen.box(-0.38, 0.56, -0.06, 0.60, times(m, 0.85), shade=0.5)
    pen.poly([(-0.39, 0.60), (-0.22, 0.92), (-0.05, 0.60)], roof, shade=1.0)
    pen.line([(-0.22, 0.90), (-0.22, 1.02)], 0.018, (0.85, 0.68, 0.25))
    pen.line([(-0.26, 0.975), (-0.18, 0.975)], 0.018, (0.85, 0.68, 0.25))
    pen.oval(-0.22, 0.47, 0.05, 0.05, CREAM, shade=0, round=0)
    pen.poly([(-0.285, 0.0), (-0.285, 0.14), (-0.22, 0.22), (-0.155, 0.14), (-0.155, 0.0)], times(WOOD, 0.6), shade=0)
    for x in (0.06, 0.20, 0.34):
        colour, glow = lamp_or_dark(pen)
        pen.poly(
            [(x - 0.035, 0.09), (x - 0.035, 0.21), (x, 0.26), (x + 0.035, 0.21), (x + 0.035, 0.09)],
            colour,
            shade=0,
            glow=glow,
        )


@subject(
    "pagoda",
    "building",
    "red, green, white, black, orange",
    "mountains, hill, garden, forest",
    width=0.85,
    size=0.70,
    most=1,
)
def pagoda(pen: Pen) -> None:
    m = pen.main
    tile = roof_colour(pen, (0.20, 0.27, 0.30) if max(m) > 0.5 else (0.60, 0.22, 0.16))
    pen.box(-0.36, 0.0, 0.36, 0.05, STONE)
    y = 0.05
    for w, h in ((0.27, 0.15), (0.22, 0.13), (0.175, 0.12), (0.13, 0.10)):
        pen.box(-w, y, w, y + h, m, shade=0.8, flow=1.57)
        for x in (-0.5, 0.5):
            pane(pen, w * x, y + 0.025, w * 0.42, h * 0.5)
        y += h
        e = w + 0.15
        pen.poly(
            [
                (-e, y + 0.025),
                (-e * 0.92, y - 0.012),
                (e * 0.92, y - 0.012),
                (e, y + 0.025),
                (w * 0.80, y + 0.075),
                (-w * 0.80, y + 0.075),
            ],
            tile,
            shade=0.9,
        )
        y += 0.06
    pen.line([(0.0, y), (0.0, 1.0)], 0.022, (0.80, 0.63, 0.25))


@subject(
    "tent",
    "building",
    "orange, red, green, blue, yellow",
    "forest, mountains, meadow, beach, desert",
    width=1.35,
    size=0.44,
    most=3,
)
def tent(pen: Pen) -> None:
    m = pen.main
    pen.poly([(-0.20, 0.95), (0.42, 0.85), (0.66, 0.0), (0.12, 0.0)], times(m, 0.80), shade=0.5, flow=1.2)
    pen.poly([(-0.62, 0.0), (-0.20, 0.95), (0.14, 0.0)], m, shade=0.6, flow=1.2)
    inside, glow = lamp_or_dark(pen, times(m, 0.30))
    pen.poly([(-0.38, 0.0), (-0.20, 0.72), (-0.06, 0.0)], inside, shade=0, glow=glow)
    pen.poly([(-0.20, 0.72), (-0.06, 0.0), (0.03, 0.0)], times(m, 1.15), shade=0)
    pen.line([(-0.20, 0.95), (-0.78, 0.0)], 0.012, CREAM)
    pen.line([(0.42, 0.85), (0.80, 0.0)], 0.012, CREAM)
    pen.line([(-0.20, 0.90), (-0.20, 1.03)], 0.025, WOOD)
