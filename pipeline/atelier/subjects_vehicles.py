"""Vehicles by land, water and air. One short function each; see `subjects` for the frame they draw in."""

from __future__ import annotations

import math

from pipeline.atelier.palette import CREAM, GLASS, INK, IRON, LAMP, WHITE, WOOD, Colour, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.sky import lamp_or_dark
from pipeline.atelier.subjects import subject
from pipeline.atelier.subjects_buildings import contrast, pane, smoke


def _wheel(pen: Pen, x: float, y: float, r: float, rim: Colour = IRON, hub: Colour = (0.7, 0.7, 0.68)) -> None:
    pen.oval(x, y, r, r, rim, shade=0.3, round=0)
    pen.oval(x, y, r * 0.45, r * 0.45, hub, shade=0.3, round=0)


@subject(
    "sailing boat",
    "vehicle",
    "red, white, blue, yellow, orange, green",
    "sea, lake, harbour",
    width=0.95,
    size=0.66,
    most=3,
)
def sailing_boat(pen: Pen) -> None:
    m = pen.main
    hull = (0.42, 0.26, 0.17) if max(m) - min(m) > 0.2 else (0.22, 0.34, 0.48)
    pen.line([(-0.04, 0.12), (-0.04, 0.98)], 0.024, times(WOOD, 0.7))
    pen.poly([(-0.005, 0.95), (0.06, 0.60), (0.44, 0.22), (-0.005, 0.22)], m, shade=0.9, flow=1.2)
    pen.line([(0.0, 0.55), (0.13, 0.53)], 0.012, times(m, 0.8), ink=0.1)
    pen.poly([(-0.08, 0.88), (-0.40, 0.23), (-0.08, 0.23)], mix(m, WHITE, 0.35), shade=0.9, flow=1.9)
    pen.poly([(-0.48, 0.17), (0.50, 0.19), (0.36, -0.02), (-0.34, -0.02)], hull, shade=0.6, flow=0.0)
    pen.line([(-0.47, 0.16), (0.48, 0.18)], 0.026, CREAM)
    pen.poly([(-0.04, 1.0), (0.09, 0.965), (-0.04, 0.93)], (0.80, 0.2, 0.18), shade=0)


@subject("steamship", "vehicle", "black, red, white, blue, green", "sea, harbour", width=1.62, size=0.44, most=2)
def steamship(pen: Pen) -> None:
    m = pen.main
    for x in (-0.16, 0.12):
        smoke(pen, x, 1.0, 4, 0.075, -0.13, 0.6)
    pen.box(-0.50, 0.30, 0.44, 0.46, WHITE, shade=0.5)
    pen.box(-0.36, 0.46, 0.30, 0.58, WHITE, shade=0.5)
    for x in (-0.16, 0.12):
        pen.poly(
            [(x - 0.075, 0.56), (x + 0.075, 0.56), (x + 0.065, 0.96), (x - 0.065, 0.96)],
            (0.80, 0.30, 0.16) if m[0] < 0.6 or m[1] > 0.6 else (0.85, 0.68, 0.3),
            shade=1.0,
        )
        pen.box(x - 0.070, 0.86, x + 0.070, 0.97, INK, shade=0.4)
    pen.line([(0.52, 0.3), (0.52, 0.9)], 0.02, WOOD)
    pen.poly([(-0.74, 0.34), (0.84, 0.38), (0.68, -0.03), (-0.64, -0.03)], m, shade=0.6)
    pen.poly(
        [(-0.66, 0.06), (0.715, 0.06), (0.68, -0.03), (-0.64, -0.03)],
        (0.62, 0.18, 0.15) if m[0] < 0.6 or m[1] > 0.6 else INK,
        shade=0.4,
        ink=0.4,
    )
    pen.dots([(-0.5 + 0.17 * k, 0.22) for k in range(7)], 0.026, lamp_or_dark(pen, CREAM)[0], glow=pen.light.lamps)
    pen.dots(
        [(-0.40 + 0.15 * k, 0.385) for k in range(6)],
        0.024,
        lamp_or_dark(pen, (0.25, 0.32, 0.42))[0],
        glow=pen.light.lamps,
    )


@subject(
    "hot-air balloon",
    "vehicle",
    "red, yellow, blue, orange, purple, green, pink",
    "open sky, sea sky",
    width=0.74,
    size=0.62,
    most=3,
)
def balloon(pen: Pen) -> None:
    m = pen.main
    stripe = mix(m, WHITE, 0.72) if pen.rng.random() < 0.6 else mix(m, (0.98, 0.85, 0.4), 0.6)
    for x, foot in ((-0.16, -0.065), (0.16, 0.065)):
        pen.line([(x, 0.36), (foot, 0.14)], 0.010, INK)
    outer = [
        (0.0, 1.0),
        (0.22, 0.95),
        (0.36, 0.78),
        (0.35, 0.60),
        (0.22, 0.42),
        (0.10, 0.30),
        (-0.10, 0.30),
        (-0.22, 0.42),
        (-0.35, 0.60),
        (-0.36, 0.78),
        (-0.22, 0.95),
    ]
    pen.blob(outer, m, round=0.9, flow=1.57)
    for a, b in ((-0.78, -0.42), (-0.10, 0.22), (0.52, 0.80)):
        pts = [(a * 0.22, 0.95), (a * 0.36, 0.78), (a * 0.35, 0.60), (a * 0.22, 0.42), (a * 0.10, 0.31)]
        pts += [
            (b * 0.10, 0.31),
            (b * 0.22, 0.42),
            (b * 0.35, 0.60),
            (b * 0.36, 0.78),
            (b * 0.22, 0.95),
            ((a + b) * 0.04, 0.995),
        ]
        pen.blob(pts, stripe, round=0.4, shade=0.7, ink=0.5, flow=1.57)
    pen.box(-0.085, 0.0, 0.085, 0.13, (0.58, 0.40, 0.20), shade=0.8, grain=1.0)
    pen.line([(-0.095, 0.13), (0.095, 0.13)], 0.022, times(WOOD, 0.6))


@subject(
    "car",
    "vehicle",
    "red, blue, yellow, green, black, white, orange",
    "city, village, field, desert",
    width=1.95,
    size=0.36,
    most=2,
)
def car(pen: Pen) -> None:
    m = pen.main
    pen.blob([(-0.52, 0.52), (-0.36, 0.90), (0.0, 1.0), (0.30, 0.92), (0.50, 0.54)], m, shade=0.7, round=0.1)
    window, glow = (LAMP, True) if pen.light.lamps else (GLASS, False)
    pen.poly([(-0.40, 0.56), (-0.28, 0.84), (-0.05, 0.90), (-0.05, 0.56)], window, shade=0.3, glow=glow)
    pen.poly([(0.03, 0.56), (0.03, 0.90), (0.24, 0.84), (0.38, 0.56)], window, shade=0.3, glow=glow)
    pen.blob(
        [
            (-0.92, 0.20),
            (-0.90, 0.46),
            (-0.55, 0.58),
            (0.0, 0.60),
            (0.55, 0.57),
            (0.90, 0.46),
            (0.95, 0.22),
            (0.6, 0.16),
            (-0.6, 0.16),
        ],
        m,
        shade=0.9,
        round=0.2,
    )
    pen.line([(-0.88, 0.36), (0.90, 0.36)], 0.03, times(m, 0.72) if min(m) > 0.1 else WHITE, ink=0.1)
    pen.line([(0.0, 0.56), (0.0, 0.22)], 0.016, times(m, 0.6), ink=0.1)
    pen.oval(0.89, 0.42, 0.05, 0.065, LAMP, shade=0, round=0, glow=pen.light.lamps)
    pen.box(-0.95, 0.38, -0.88, 0.46, (0.8, 0.15, 0.12), shade=0)
    for x in (-0.55, 0.55):
        _wheel(pen, x, 0.19, 0.20, INK)


@subject(
    "train",
    "vehicle",
    "black, red, green, blue",
    "mountains, meadow, field, village, desert",
    width=2.05,
    size=0.38,
    most=1,
    noun="{c} steam train",
)
def train(pen: Pen) -> None:
    m = pen.main
    smoke(pen, 0.60, 1.08, 6, 0.085, -0.21, 0.1)
    pen.box(-1.3, -0.03, 1.3, 0.02, times(WOOD, 0.5), shade=0)
    pen.box(-1.02, 0.20, -0.46, 0.62, mix(m, (0.55, 0.3, 0.2), 0.35), shade=0.7)  # tender
    pen.blob([(-0.98, 0.60), (-0.85, 0.72), (-0.62, 0.72), (-0.50, 0.60)], INK, shade=0.4)
    pen.box(-0.42, 0.20, 0.02, 0.88, m, shade=0.8)
    pen.box(-0.48, 0.86, 0.08, 0.95, IRON if max(m) > 0.3 else (0.6, 0.2, 0.16), shade=0.5)
    pane(pen, -0.20, 0.56, 0.24, 0.22)
    pen.box(0.0, 0.34, 0.78, 0.70, m, shade=1.0)
    pen.box(0.76, 0.32, 0.86, 0.72, times(m, 0.7), shade=0.5)
    for x in (0.22, 0.5):
        pen.box(x - 0.018, 0.34, x + 0.018, 0.70, (0.80, 0.63, 0.25), shade=0, ink=0.3)
    pen.poly([(0.56, 0.68), (0.70, 0.68), (0.74, 1.0), (0.52, 1.0)], IRON, shade=0.8)
    pen.oval(0.28, 0.71, 0.08, 0.09, (0.80, 0.63, 0.25))
    pen.box(-0.98, 0.14, 0.84, 0.26, (0.55, 0.18, 0.15) if m[0] < 0.5 else INK, shade=0.3)
    pen.poly([(0.84, 0.26), (1.04, 0.02), (0.80, 0.02)], (0.55, 0.18, 0.15) if m[0] < 0.5 else INK, shade=0.3)
    for x, r in ((-0.86, 0.10), (-0.60, 0.10), (-0.25, 0.17), (0.12, 0.17), (0.45, 0.11), (0.70, 0.11)):
        _wheel(pen, x, r, r, IRON, (0.72, 0.30, 0.24))
    pen.oval(0.89, 0.56, 0.045, 0.055, LAMP, shade=0, round=0, glow=True)


@subject(
    "bicycle",
    "vehicle",
    "red, blue, green, yellow, black, turquoise",
    "village, city, meadow, garden, beach",
    width=1.55,
    size=0.50,
    most=1,
)
def bicycle(pen: Pen) -> None:
    m = pen.main
    for x in (-0.48, 0.48):
        ring = [(x + 0.28 * math.cos(a / 9 * math.pi), 0.30 + 0.28 * math.sin(a / 9 * math.pi)) for a in range(19)]
        for k in range(4):
            a = k * math.pi / 4
            pen.line(
                [
                    (x - 0.27 * math.cos(a), 0.30 - 0.27 * math.sin(a)),
                    (x + 0.27 * math.cos(a), 0.30 + 0.27 * math.sin(a)),
                ],
                0.010,
                (0.72, 0.72, 0.70),
                ink=0.0,
            )
        pen.line(ring, 0.055, INK)
        pen.dots([(x, 0.30)], 0.035, IRON)
    w = 0.060
    pen.line([(-0.48, 0.30), (-0.18, 0.74), (0.36, 0.74), (-0.04, 0.30), (-0.48, 0.30)], w, m, ink=0.8)
    pen.line([(-0.22, 0.84), (-0.04, 0.30)], w, m, ink=0.8)
    pen.line([(0.48, 0.30), (0.36, 0.74), (0.33, 0.92)], w, m, ink=0.8)
    pen.line([(0.33, 0.92), (0.24, 0.97), (0.12, 0.93)], 0.045, IRON, curve=True)
    pen.blob([(-0.36, 0.86), (-0.20, 0.84), (-0.08, 0.87), (-0.20, 0.92), (-0.36, 0.92)], (0.36, 0.22, 0.14))
    pen.dots([(-0.04, 0.30)], 0.06, IRON)
    pen.poly([(0.30, 0.62), (0.62, 0.62), (0.58, 0.86), (0.34, 0.86)], (0.70, 0.52, 0.30), shade=0.6, grain=1.0)


@subject(
    "aeroplane",
    "vehicle",
    "red, yellow, white, blue, orange",
    "open sky, sea sky",
    width=1.7,
    size=0.40,
    most=2,
    noun="{c} aeroplane",
)
def aeroplane(pen: Pen) -> None:
    m = pen.main
    pen.poly([(-0.10, 0.56), (0.20, 0.56), (0.02, 0.96), (-0.24, 0.96)], times(m, 0.78), shade=0.3)
    pen.poly([(-0.80, 0.90), (-0.62, 0.92), (-0.44, 0.58), (-0.74, 0.54)], m, shade=0.5)
    pen.blob(
        [
            (-0.84, 0.56),
            (-0.30, 0.64),
            (0.30, 0.68),
            (0.66, 0.60),
            (0.78, 0.48),
            (0.66, 0.38),
            (0.20, 0.33),
            (-0.35, 0.40),
            (-0.80, 0.50),
        ],
        m,
        shade=1.0,
        round=0.4,
    )
    pen.line([(-0.70, 0.50), (0.66, 0.50)], 0.035, contrast(m), ink=0.1)
    pen.poly([(0.36, 0.64), (0.46, 0.74), (0.56, 0.62)], GLASS, shade=0)
    pen.dots(
        [(-0.24 + 0.14 * k, 0.565) for k in range(5)],
        0.030,
        lamp_or_dark(pen, (0.25, 0.33, 0.45))[0],
        glow=pen.light.lamps,
    )
    pen.poly([(-0.14, 0.46), (0.24, 0.46), (-0.16, 0.02), (-0.44, 0.02)], mix(m, WHITE, 0.15), shade=0.7)
    pen.poly([(-0.76, 0.52), (-0.56, 0.50), (-0.76, 0.32), (-0.92, 0.32)], mix(m, WHITE, 0.1), shade=0.5)
    pen.oval(0.80, 0.49, 0.02, 0.20, mix(IRON, pen.palette.sky, 0.35), shade=0, round=0)
    pen.dots([(0.79, 0.49)], 0.045, IRON)


@subject(
    "rocket", "vehicle", "red, white, blue, orange, grey", "desert, open sky, mountains", width=0.62, size=0.66, most=1
)
def rocket(pen: Pen) -> None:
    m = pen.main
    fin = (0.80, 0.22, 0.18) if not (m[0] > 0.6 and m[1] < 0.6) else (0.22, 0.34, 0.60)
    pen.blob(
        [(-0.09, 0.14), (-0.10, 0.04), (0.0, -0.16), (0.10, 0.04), (0.09, 0.14)],
        (1.0, 0.62, 0.16),
        glow=True,
        shade=0,
        round=0,
    )
    pen.blob(
        [(-0.05, 0.14), (-0.045, 0.06), (0.0, -0.04), (0.045, 0.06), (0.05, 0.14)],
        (1.0, 0.92, 0.55),
        glow=True,
        shade=0,
        round=0,
    )
    pen.poly([(-0.11, 0.42), (-0.29, 0.16), (-0.28, 0.04), (-0.10, 0.18)], fin, shade=0.5)
    pen.poly([(0.11, 0.42), (0.29, 0.16), (0.28, 0.04), (0.10, 0.18)], fin, shade=0.5)
    pen.blob(
        [
            (-0.10, 0.13),
            (-0.165, 0.40),
            (-0.14, 0.68),
            (-0.05, 0.92),
            (0.0, 0.99),
            (0.05, 0.92),
            (0.14, 0.68),
            (0.165, 0.40),
            (0.10, 0.13),
        ],
        m,
        shade=1.0,
        round=0.3,
        flow=1.57,
    )
    pen.poly([(-0.105, 0.79), (-0.05, 0.92), (0.0, 0.99), (0.05, 0.92), (0.105, 0.79)], fin, shade=0.8)
    pen.oval(0.0, 0.62, 0.075, 0.075, IRON, shade=0.3, round=0)
    pen.oval(0.0, 0.62, 0.052, 0.052, GLASS, shade=0.4, round=0)
    pen.box(-0.115, 0.11, 0.115, 0.16, IRON, shade=0.5)
    pen.poly([(-0.025, 0.04), (0.025, 0.04), (0.03, 0.36), (-0.03, 0.36)], times(fin, 0.85), shade=0)
