"""Things on tables, in rooms and out of doors, and people. One short function each; see `subjects` for their frame."""

from __future__ import annotations

import math

from pipeline.atelier.palette import CREAM, INK, IRON, LAMP, SNOW, WHITE, WOOD, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.subjects import TABLE, subject

GOLD = (0.82, 0.64, 0.26)

SKIN = ((0.93, 0.76, 0.62), (0.78, 0.56, 0.42), (0.52, 0.35, 0.25))


@subject("teapot", "still life", "blue, white, red, green, yellow, brown", TABLE, width=1.45, size=0.50, most=1)
def teapot(pen: Pen) -> None:
    m = pen.main
    handle = [(-0.40, 0.62), (-0.62, 0.66), (-0.68, 0.45), (-0.58, 0.26), (-0.40, 0.22)]
    pen.line(handle, 0.10, times(m, 0.8), curve=True, ink=1.0)
    pen.blob(
        [(0.34, 0.24), (0.52, 0.36), (0.58, 0.58), (0.72, 0.72), (0.64, 0.76), (0.48, 0.66), (0.36, 0.52)],
        times(m, 0.92),
    )
    pen.blob(
        [
            (-0.30, 0.70),
            (-0.46, 0.50),
            (-0.44, 0.22),
            (-0.26, 0.03),
            (0.26, 0.03),
            (0.44, 0.22),
            (0.46, 0.50),
            (0.30, 0.70),
        ],
        m,
        round=0.9,
    )
    pen.box(-0.24, 0.0, 0.24, 0.05, times(m, 0.7), shade=0.4)
    pen.blob([(-0.30, 0.69), (-0.20, 0.80), (0.0, 0.85), (0.20, 0.80), (0.30, 0.69)], times(m, 1.05), round=0.5)
    pen.oval(0.0, 0.91, 0.065, 0.075, GOLD)
    band = CREAM if min(m) < 0.7 else (0.35, 0.45, 0.65)
    pen.line([(-0.44, 0.40), (-0.2, 0.36), (0.2, 0.36), (0.44, 0.40)], 0.05, band, curve=True, ink=0.3)


@subject(
    "cup of coffee",
    "still life",
    "white, red, blue, yellow, green, black",
    TABLE,
    width=1.25,
    size=0.46,
    most=3,
    noun="{c} cup of coffee",
    plural="{c} cups of coffee",
)
def cup(pen: Pen) -> None:
    m = pen.main
    pen.oval(0.0, 0.07, 0.62, 0.075, mix(m, WHITE, 0.35), shade=0.5, round=0.2)
    pen.line([(0.34, 0.58), (0.60, 0.58), (0.58, 0.32), (0.30, 0.24)], 0.085, times(m, 0.85), curve=True, ink=1.0)
    pen.blob(
        [(-0.42, 0.72), (-0.40, 0.40), (-0.24, 0.10), (0.0, 0.06), (0.24, 0.10), (0.40, 0.40), (0.42, 0.72)],
        m,
        round=0.6,
    )
    pen.oval(0.0, 0.71, 0.42, 0.085, mix(m, WHITE, 0.4), shade=0.2, round=0)
    pen.oval(0.0, 0.70, 0.35, 0.060, (0.30, 0.18, 0.10), shade=0.2, round=0)
    steam = mix(pen.palette.wall, WHITE, 0.55)
    for x in (-0.14, 0.10):
        pen.line([(x, 0.80), (x + 0.06, 0.88), (x - 0.05, 0.97), (x + 0.04, 1.06)], 0.035, steam, curve=True, ink=0.1)


@subject("candle", "still life", "white, red, green, yellow, blue, purple", TABLE, width=0.55, size=0.64, most=3)
def candle(pen: Pen) -> None:
    m = pen.main
    glow = mix(pen.palette.wall, LAMP, 0.45)
    pen.oval(
        0.0,
        0.86,
        0.17,
        0.19,
        glow if not pen.light.lamps else mix(glow, LAMP, 0.2),
        shade=0,
        round=0,
        glow=True,
        ink=0.0,
    )
    pen.blob([(-0.27, 0.08), (-0.20, 0.0), (0.20, 0.0), (0.27, 0.08), (0.0, 0.13)], GOLD)
    pen.box(-0.05, 0.10, 0.05, 0.24, GOLD, shade=0.9)
    pen.blob([(-0.15, 0.28), (-0.11, 0.21), (0.11, 0.21), (0.15, 0.28), (0.0, 0.30)], times(GOLD, 1.1))
    pen.box(-0.095, 0.26, 0.095, 0.72, m, shade=1.0, flow=1.57)
    pen.blob(
        [(-0.095, 0.74), (-0.105, 0.60), (-0.05, 0.56), (-0.02, 0.68), (0.095, 0.74)],
        mix(m, WHITE, 0.35),
        round=0.1,
        ink=0.3,
    )
    pen.line([(0.0, 0.72), (0.0, 0.79)], 0.018, INK)
    pen.blob(
        [(0.0, 0.76), (-0.065, 0.84), (0.0, 1.0), (0.065, 0.84)],
        (1.0, 0.66, 0.20),
        glow=True,
        shade=0,
        round=0,
        ink=0.5,
    )
    pen.blob(
        [(0.0, 0.77), (-0.03, 0.82), (0.0, 0.91), (0.03, 0.82)], (1.0, 0.95, 0.65), glow=True, shade=0, round=0, ink=0.0
    )


@subject(
    "guitar",
    "still life",
    "brown, red, orange, blue, black",
    "room, window sill, wooden table",
    width=0.50,
    size=0.78,
    most=1,
)
def guitar(pen: Pen) -> None:
    m = pen.main
    pen.box(-0.035, 0.48, 0.035, 0.90, times(WOOD, 0.5), shade=0.6, flow=1.57)
    pen.poly([(-0.05, 0.88), (0.05, 0.88), (0.065, 1.0), (-0.065, 1.0)], times(WOOD, 0.65))
    pen.blob(
        [
            (0.0, 0.0),
            (0.19, 0.04),
            (0.235, 0.18),
            (0.14, 0.31),
            (0.165, 0.42),
            (0.11, 0.52),
            (0.0, 0.53),
            (-0.11, 0.52),
            (-0.165, 0.42),
            (-0.14, 0.31),
            (-0.235, 0.18),
            (-0.19, 0.04),
        ],
        m,
        round=0.4,
        flow=1.57,
        grain=0.6,
    )
    pen.oval(0.0, 0.34, 0.072, 0.072, times(CREAM, 0.8), shade=0, round=0, ink=0.4)
    pen.oval(0.0, 0.34, 0.058, 0.058, INK, shade=0, round=0, ink=0.2)
    pen.box(-0.075, 0.12, 0.075, 0.155, times(WOOD, 0.45), shade=0)
    for x in (-0.018, 0.018):
        pen.line([(x, 0.14), (x, 0.95)], 0.008, CREAM, ink=0.0)
    pen.dots([(-0.08, 0.92), (-0.08, 0.96), (0.08, 0.92), (0.08, 0.96)], 0.018, CREAM)


@subject(
    "clock",
    "still life",
    "brown, red, blue, green, white, black",
    "shelf, wooden table, window sill, tablecloth",
    width=0.85,
    size=0.56,
    most=1,
)
def clock(pen: Pen) -> None:
    m = pen.main
    for x in (-0.24, 0.24):
        pen.poly([(x - 0.03, 0.18), (x + 0.05, 0.18), (x * 1.25, 0.0), (x * 1.25 - 0.05, 0.0)], times(m, 0.7))
        pen.oval(x * 0.85, 0.92, 0.12, 0.085, GOLD, tilt=-x * 2.2)
    pen.line([(0.0, 0.88), (0.0, 1.02)], 0.04, IRON)
    pen.oval(0.0, 0.48, 0.42, 0.42, m, round=0.5)
    pen.oval(0.0, 0.48, 0.33, 0.33, CREAM, shade=0.3, round=0.1)
    marks = [(0.27 * math.cos(k * math.pi / 6), 0.48 + 0.27 * math.sin(k * math.pi / 6)) for k in range(12)]
    pen.dots(marks, 0.020, INK)
    a, b = float(pen.rng.uniform(0, 6.28)), float(pen.rng.uniform(0, 6.28))
    pen.line([(0.0, 0.48), (0.15 * math.cos(a), 0.48 + 0.15 * math.sin(a))], 0.045, INK)
    pen.line([(0.0, 0.48), (0.24 * math.cos(b), 0.48 + 0.24 * math.sin(b))], 0.030, INK)


@subject("bottle", "still life", "green, brown, blue, red, turquoise", TABLE, width=0.34, size=0.70, most=4)
def bottle(pen: Pen) -> None:
    m = pen.main
    pen.blob(
        [
            (-0.155, 0.02),
            (-0.16, 0.48),
            (-0.13, 0.60),
            (-0.06, 0.70),
            (-0.052, 0.92),
            (0.052, 0.92),
            (0.06, 0.70),
            (0.13, 0.60),
            (0.16, 0.48),
            (0.155, 0.02),
            (0.0, 0.0),
        ],
        m,
        shade=1.0,
        round=0.3,
        flow=1.57,
    )
    side = 1 if pen.light.direction[0] > 0 else -1
    pen.line([(0.09 * side, 0.12), (0.095 * side, 0.46)], 0.030, mix(m, WHITE, 0.55), ink=0.0)
    pen.box(-0.155, 0.16, 0.155, 0.40, CREAM, shade=0.7, ink=0.6)
    pen.line([(-0.09, 0.32), (0.09, 0.32)], 0.025, times(WOOD, 0.8), ink=0.1)
    pen.line([(-0.07, 0.25), (0.07, 0.25)], 0.018, times(WOOD, 0.8), ink=0.1)
    pen.box(-0.062, 0.90, 0.062, 1.0, (0.66, 0.48, 0.30), shade=0.5)


@subject(
    "lamp",
    "still life",
    "yellow, red, green, blue, white, pink",
    "wooden table, shelf, window sill, tablecloth",
    width=0.72,
    size=0.64,
    most=1,
    noun="{c} lamp",
)
def lamp(pen: Pen) -> None:
    m, lit = pen.main, pen.light.lamps
    if lit:
        pen.oval(0.0, 0.68, 0.52, 0.42, mix(pen.palette.wall, LAMP, 0.35), shade=0, round=0, ink=0.0, glow=True)
    pen.blob([(-0.22, 0.05), (-0.18, 0.0), (0.18, 0.0), (0.22, 0.05), (0.0, 0.09)], GOLD)
    pen.blob(
        [
            (-0.035, 0.06),
            (-0.10, 0.18),
            (-0.11, 0.28),
            (-0.03, 0.40),
            (-0.025, 0.56),
            (0.025, 0.56),
            (0.03, 0.40),
            (0.11, 0.28),
            (0.10, 0.18),
            (0.035, 0.06),
        ],
        GOLD,
    )
    shade = mix(m, LAMP, 0.25) if lit else m
    pen.poly([(-0.36, 0.52), (0.36, 0.52), (0.19, 0.97), (-0.19, 0.97)], shade, shade=0.8, glow=lit, flow=1.57)
    pen.line([(-0.355, 0.53), (0.355, 0.53)], 0.035, times(m, 0.7), ink=0.2)
    pen.line([(-0.19, 0.965), (0.19, 0.965)], 0.025, times(m, 0.7), ink=0.2)


@subject("chair", "object", "red, blue, green, yellow, white, brown", "room", width=0.62, size=0.66, most=1)
def chair(pen: Pen) -> None:
    m = pen.main
    for x, y in ((-0.16, 0.10), (0.27, 0.10)):
        pen.line([(x, 0.44), (x + 0.01, y)], 0.050, times(m, 0.6), ink=0.8)
    for x in (-0.25, 0.20):
        pen.box(x - 0.03, 0.45, x + 0.03, 1.0, m, shade=0.4, flow=1.57)
    for y in (0.60, 0.74, 0.88):
        pen.box(-0.25, y, 0.20, y + 0.075, times(m, 0.92), shade=0.4)
    pen.poly([(-0.30, 0.40), (0.24, 0.40), (0.32, 0.50), (-0.20, 0.50)], (0.84, 0.70, 0.42), shade=0.4, grain=1.0)
    pen.poly([(-0.30, 0.35), (0.24, 0.35), (0.24, 0.405), (-0.30, 0.405)], times(m, 0.85), shade=0)
    for x in (-0.265, 0.205):
        pen.line([(x, 0.38), (x, 0.0)], 0.055, m, ink=1.0)
    pen.line([(-0.265, 0.18), (0.205, 0.18)], 0.035, times(m, 0.85), ink=0.6)


@subject(
    "umbrella",
    "object",
    "red, yellow, blue, green, orange, pink, purple",
    "beach, garden, meadow",
    width=1.15,
    size=0.62,
    most=3,
)
def umbrella(pen: Pen) -> None:
    m = pen.main
    pen.line([(0.0, 0.0), (0.0, 0.97)], 0.034, times(WOOD, 0.85), ink=0.8)
    rim = [(-0.56, 0.56), (-0.34, 0.51), (-0.11, 0.50), (0.11, 0.50), (0.34, 0.51), (0.56, 0.56)]
    other = mix(m, WHITE, 0.75)
    for k in range(5):
        (x0, y0), (x1, y1) = rim[k], rim[k + 1]
        bend0, bend1 = (x0 * 0.80, y0 + (0.96 - y0) * 0.55), (x1 * 0.80, y1 + (0.96 - y1) * 0.55)
        mid = ((x0 + x1) / 2, (y0 + y1) / 2 + 0.030)
        pen.poly(
            [(x0, y0), bend0, (0.0, 0.97), bend1, (x1, y1), mid],
            times(m if k % 2 == 0 else other, 1.0 - 0.07 * abs(k - 2)),
            shade=0.7,
            ink=0.7,
        )
    pen.dots([(0.0, 0.985)], 0.028, times(WOOD, 0.85))


@subject(
    "snowman",
    "figure",
    "red, blue, green, yellow, orange",
    "forest, mountains, village, meadow",
    width=0.90,
    size=0.62,
    most=2,
    noun="snowman with a {c} scarf",
    plural="snowmen with {c} scarves",
)
def snowman(pen: Pen) -> None:
    m = pen.main
    for x, s in ((-0.22, -1), (0.22, 1)):
        pen.line([(x, 0.50), (x + 0.22 * s, 0.64)], 0.028, times(WOOD, 0.6))
        pen.line([(x + 0.15 * s, 0.59), (x + 0.24 * s, 0.56)], 0.020, times(WOOD, 0.6))
    pen.oval(0.0, 0.21, 0.29, 0.23, SNOW, round=0.8)
    pen.oval(0.0, 0.49, 0.215, 0.18, SNOW, round=0.8)
    pen.oval(0.0, 0.725, 0.155, 0.145, SNOW, round=0.8)
    pen.dots([(0.0, 0.53), (0.0, 0.45), (0.0, 0.27), (0.0, 0.36)], 0.020, INK)
    pen.blob([(-0.18, 0.64), (0.0, 0.59), (0.18, 0.64), (0.17, 0.57), (0.0, 0.52), (-0.17, 0.57)], m, round=0.2)
    pen.poly([(0.07, 0.57), (0.17, 0.59), (0.20, 0.32), (0.08, 0.33)], times(m, 0.85))
    pen.dots([(-0.055, 0.76), (0.065, 0.76)], 0.021, INK)
    pen.poly([(0.0, 0.73), (0.0, 0.69), (0.17, 0.70)], (0.95, 0.50, 0.15), shade=0.3)
    pen.box(-0.19, 0.835, 0.19, 0.872, INK, shade=0.3)
    pen.box(-0.115, 0.86, 0.115, 1.0, INK, shade=0.6)
    pen.box(-0.115, 0.875, 0.115, 0.91, m, shade=0.3)


@subject(
    "scarecrow",
    "figure",
    "red, blue, green, purple, orange",
    "field, garden",
    width=0.95,
    size=0.70,
    most=2,
    noun="scarecrow in a {c} coat",
    plural="scarecrows in {c} coats",
)
def scarecrow(pen: Pen) -> None:
    m = pen.main
    straw = (0.88, 0.72, 0.36)
    pen.line([(0.0, 0.0), (0.0, 0.8)], 0.045, times(WOOD, 0.7), ink=0.8)
    for s in (-1, 1):
        pen.poly(
            [(0.38 * s, 0.66), (0.52 * s, 0.70), (0.47 * s, 0.64), (0.52 * s, 0.58), (0.38 * s, 0.60)], straw, shade=0.3
        )
    pen.poly(
        [
            (-0.41, 0.68),
            (0.41, 0.68),
            (0.41, 0.57),
            (0.16, 0.55),
            (0.20, 0.20),
            (0.08, 0.24),
            (-0.02, 0.18),
            (-0.10, 0.24),
            (-0.20, 0.20),
            (-0.16, 0.55),
            (-0.41, 0.57),
        ],
        m,
        shade=0.8,
        grain=0.6,
    )
    pen.box(-0.18, 0.36, 0.18, 0.41, times(WOOD, 0.6), shade=0)
    pen.box(0.03, 0.44, 0.12, 0.53, mix(m, straw, 0.6), shade=0)
    pen.oval(0.0, 0.775, 0.115, 0.115, straw)
    pen.dots([(-0.04, 0.79), (0.045, 0.79)], 0.018, INK)
    pen.line([(-0.05, 0.73), (0.0, 0.715), (0.055, 0.73)], 0.014, INK)
    pen.blob([(-0.25, 0.835), (0.0, 0.80), (0.25, 0.835), (0.0, 0.88)], (0.44, 0.30, 0.18), round=0.2)
    pen.poly([(-0.115, 0.85), (-0.04, 1.0), (0.06, 0.99), (0.115, 0.85)], (0.44, 0.30, 0.18), shade=0.8)


@subject(
    "woman",
    "figure",
    "red, blue, yellow, green, purple, pink, white",
    "meadow, beach, city, garden, forest, village",
    width=0.52,
    size=0.72,
    most=2,
    noun="woman in a {c} dress",
    plural="women in {c} dresses",
)
def woman(pen: Pen) -> None:
    m, rng = pen.main, pen.rng
    skin = SKIN[int(rng.integers(3))]
    hair = ((0.20, 0.13, 0.10), (0.45, 0.26, 0.13), (0.80, 0.62, 0.30))[int(rng.integers(3))]
    for x in (-0.05, 0.05):
        pen.line([(x, 0.20), (x, 0.03)], 0.042, skin, ink=0.8)
        pen.oval(x + 0.015, 0.015, 0.040, 0.020, INK, shade=0, round=0)
    pen.blob([(-0.09, 0.92), (-0.115, 0.80), (-0.09, 0.72), (0.09, 0.72), (0.115, 0.80), (0.09, 0.92)], hair, round=0.2)
    for s in (-1, 1):
        pen.line([(0.09 * s, 0.69), (0.155 * s, 0.55), (0.14 * s, 0.42)], 0.042, skin, ink=0.8)
    pen.box(-0.03, 0.70, 0.03, 0.78, skin, shade=0)
    pen.blob(
        [
            (-0.11, 0.72),
            (-0.085, 0.54),
            (-0.17, 0.34),
            (-0.235, 0.15),
            (0.0, 0.13),
            (0.235, 0.15),
            (0.17, 0.34),
            (0.085, 0.54),
            (0.11, 0.72),
            (0.0, 0.70),
        ],
        m,
        shade=1.0,
        round=0.2,
        flow=1.57,
    )
    for x in (-0.10, 0.03, 0.13):
        pen.line([(x * 0.4, 0.48), (x, 0.16)], 0.014, times(m, 0.75), ink=0.1)
    pen.box(-0.09, 0.525, 0.09, 0.56, times(m, 0.62), shade=0)
    pen.oval(0.0, 0.845, 0.078, 0.092, skin, round=0.4)
    pen.dots([(-0.03, 0.845), (0.03, 0.845)], 0.011, INK)
    pen.line([(-0.022, 0.80), (0.022, 0.80)], 0.012, (0.72, 0.25, 0.24), ink=0.1)
    if rng.random() < 0.5:
        pen.oval(0.0, 0.905, 0.20, 0.030, (0.88, 0.74, 0.45), shade=0.4)
        pen.blob([(-0.10, 0.905), (-0.07, 0.99), (0.07, 0.99), (0.10, 0.905)], (0.88, 0.74, 0.45), round=0.2)
        pen.line([(-0.10, 0.918), (0.10, 0.918)], 0.024, times(m, 0.9), ink=0.2)
    else:
        pen.blob(
            [(-0.09, 0.85), (-0.085, 0.94), (0.0, 0.985), (0.085, 0.94), (0.09, 0.85), (0.03, 0.915), (-0.04, 0.905)],
            hair,
            round=0.2,
        )


@subject(
    "kite",
    "object",
    "red, yellow, blue, purple, orange, green, pink",
    "open sky, sea sky",
    width=0.72,
    size=0.62,
    most=3,
)
def kite(pen: Pen) -> None:
    m = pen.main
    other = mix(m, WHITE, 0.6)
    tail = [(0.0, 0.34), (0.10, 0.24), (-0.03, 0.14), (0.08, 0.03), (0.0, -0.10)]
    pen.line(tail, 0.020, times(m, 0.7), curve=True, ink=0.4)
    for x, y in tail[1:4]:
        pen.poly([(x - 0.06, y + 0.03), (x, y), (x - 0.06, y - 0.03)], other, shade=0)
        pen.poly([(x + 0.06, y + 0.03), (x, y), (x + 0.06, y - 0.03)], m, shade=0)
    top, left, right, foot, mid = (0.0, 1.0), (-0.33, 0.72), (0.33, 0.72), (0.0, 0.32), (0.0, 0.72)
    for pts, colour in (
        ((top, left, mid), m),
        ((top, mid, right), other),
        ((left, mid, foot), other),
        ((mid, right, foot), m),
    ):
        pen.poly(pts, colour, shade=0.5, ink=0.7)
    pen.line([top, foot], 0.018, times(WOOD, 0.6))
    pen.line([left, right], 0.018, times(WOOD, 0.6))
