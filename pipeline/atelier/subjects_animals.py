"""Animals that walk and crawl. One short function each; see `subjects` for their frame. They face right."""

from __future__ import annotations

import math

from pipeline.atelier.palette import CREAM, INK, WHITE, WOOD, Colour, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.subjects import subject

PINK: Colour = (0.93, 0.66, 0.62)


def eye_colour(coat: Colour) -> Colour:
    """The colour of eyes: dark, but light for a black animal."""
    return INK if max(coat) > 0.35 else (0.95, 0.80, 0.30)


def _legs(
    pen: Pen, colour: Colour, spots: tuple[float, ...], top: float, width: float, hoof: Colour | None = None
) -> None:
    """Straight legs; those at even positions are the far ones and darker."""
    for k, x in enumerate(spots):
        tone = times(colour, 0.74) if k % 2 == 0 else times(colour, 0.95)
        pen.poly(
            [(x - width * 0.55, top), (x + width * 0.55, top), (x + width * 0.42, 0.0), (x - width * 0.42, 0.0)],
            tone,
            shade=0.3,
            flow=1.57,
        )
        if hoof:
            pen.box(x - width * 0.48, 0.0, x + width * 0.52, 0.06, hoof, shade=0)


@subject(
    "cat",
    "animal",
    "black, white, orange, grey, brown",
    "garden, village, window sill, room, meadow, wooden table",
    width=0.80,
    size=0.58,
    most=3,
)
def cat(pen: Pen) -> None:
    m = pen.main
    pen.line([(-0.20, 0.08), (-0.40, 0.10), (-0.44, 0.30), (-0.34, 0.44)], 0.085, times(m, 0.9), curve=True, ink=1.0)
    pen.blob(
        [
            (-0.30, 0.03),
            (-0.32, 0.22),
            (-0.20, 0.48),
            (-0.02, 0.62),
            (0.16, 0.58),
            (0.20, 0.30),
            (0.22, 0.02),
            (-0.05, 0.0),
        ],
        m,
        grain=1.0,
        flow=1.2,
    )
    pen.blob([(-0.26, 0.02), (-0.25, 0.20), (-0.10, 0.28), (0.02, 0.14), (0.0, 0.01)], times(m, 0.88), ink=0.5)
    for x in (0.06, 0.17):
        pen.blob(
            [(x - 0.05, 0.40), (x + 0.05, 0.40), (x + 0.06, 0.03), (x, 0.0), (x - 0.06, 0.03)],
            times(m, 1.02),
            round=0.1,
            ink=0.6,
        )
    chest = mix(m, WHITE, 0.55) if max(m) > 0.3 else times(m, 1.5)
    pen.blob([(0.05, 0.52), (0.17, 0.52), (0.16, 0.32), (0.10, 0.27)], chest, round=0.1, ink=0.2)
    for s in (-1, 1):
        pen.poly([(0.10 + 0.20 * s, 0.80), (0.10 + 0.19 * s, 1.0), (0.10 + 0.02 * s, 0.90)], m)
        pen.poly([(0.10 + 0.17 * s, 0.83), (0.10 + 0.17 * s, 0.95), (0.10 + 0.07 * s, 0.89)], PINK, shade=0, ink=0.3)
    pen.blob(
        [(0.10, 0.93), (0.29, 0.86), (0.32, 0.70), (0.20, 0.57), (0.0, 0.57), (-0.12, 0.70), (-0.09, 0.86)],
        m,
        round=0.5,
        grain=1.0,
    )
    pen.oval(0.10, 0.645, 0.095, 0.065, mix(m, WHITE, 0.5) if max(m) > 0.3 else times(m, 1.8), shade=0.2, ink=0.2)
    for x in (0.02, 0.20):
        pen.oval(x, 0.75, 0.042, 0.046, (0.85, 0.82, 0.30), shade=0, round=0, ink=0.8)
        pen.oval(x, 0.75, 0.016, 0.042, INK, shade=0, round=0, ink=0.0)
    pen.poly([(0.075, 0.685), (0.125, 0.685), (0.10, 0.65)], PINK, shade=0, ink=0.4)
    whisker = CREAM if max(m) < 0.6 else times(m, 0.5)
    for s in (-1, 1):
        pen.line([(0.10 + 0.07 * s, 0.65), (0.10 + 0.30 * s, 0.67)], 0.010, whisker, ink=0.0)
        pen.line([(0.10 + 0.07 * s, 0.63), (0.10 + 0.28 * s, 0.60)], 0.010, whisker, ink=0.0)


@subject(
    "dog",
    "animal",
    "brown, white, black, orange, grey",
    "meadow, beach, garden, village, hill",
    width=1.28,
    size=0.50,
    most=3,
)
def dog(pen: Pen) -> None:
    m = pen.main
    patch = times(m, 0.62) if min(m) > 0.2 else times(m, 2.6)
    pen.line([(-0.44, 0.56), (-0.58, 0.70), (-0.56, 0.90)], 0.085, m, curve=True, ink=1.0)
    _legs(pen, m, (-0.30, -0.38, 0.16, 0.24), 0.40, 0.13)
    pen.blob(
        [
            (-0.50, 0.52),
            (-0.44, 0.66),
            (-0.10, 0.66),
            (0.20, 0.70),
            (0.34, 0.56),
            (0.30, 0.36),
            (0.05, 0.30),
            (-0.30, 0.32),
            (-0.48, 0.38),
        ],
        m,
        grain=1.0,
    )
    pen.blob([(-0.30, 0.64), (-0.05, 0.64), (-0.08, 0.46), (-0.28, 0.46)], patch, round=0.1, ink=0.3, grain=1.0)
    pen.blob([(0.14, 0.60), (0.20, 0.86), (0.40, 0.80), (0.38, 0.52)], m, round=0.1)
    pen.blob(
        [(0.18, 0.80), (0.22, 0.97), (0.38, 1.0), (0.48, 0.90), (0.64, 0.82), (0.66, 0.72), (0.52, 0.68), (0.30, 0.68)],
        m,
        round=0.4,
    )
    pen.blob([(0.24, 0.97), (0.14, 0.94), (0.10, 0.72), (0.19, 0.62), (0.28, 0.76), (0.32, 0.92)], patch, round=0.3)
    pen.oval(0.645, 0.80, 0.042, 0.038, INK, shade=0.2)
    pen.eye(0.43, 0.87, 0.030, eye_colour(m))
    pen.poly([(0.52, 0.69), (0.60, 0.70), (0.58, 0.59)], (0.90, 0.42, 0.42), shade=0, ink=0.6)
    pen.line([(0.16, 0.66), (0.36, 0.60)], 0.055, (0.80, 0.20, 0.18), ink=0.7)


@subject(
    "horse",
    "animal",
    "brown, white, black, grey, orange",
    "meadow, field, hill, beach, desert",
    width=1.16,
    size=0.60,
    most=3,
)
def horse(pen: Pen) -> None:
    m = pen.main
    mane = times(m, 0.42) if max(m) > 0.4 else (0.34, 0.26, 0.20)
    pen.blob(
        [(-0.40, 0.60), (-0.52, 0.54), (-0.54, 0.28), (-0.48, 0.20), (-0.45, 0.42), (-0.36, 0.52)], mane, round=0.1
    )
    for k, (x, bend) in enumerate(((-0.24, -0.05), (-0.35, 0.02), (0.14, 0.07), (0.23, 0.0))):
        tone = times(m, 0.72) if k % 2 == 0 else times(m, 0.95)
        pen.poly(
            [
                (x - 0.065, 0.44),
                (x + 0.065, 0.44),
                (x + 0.035 + bend, 0.22),
                (x + 0.035 + bend * 0.5, 0.04),
                (x - 0.03 + bend * 0.5, 0.04),
                (x - 0.03 + bend, 0.22),
            ],
            tone,
            shade=0.3,
            flow=1.57,
        )
        pen.box(x - 0.042 + bend * 0.5, 0.0, x + 0.052 + bend * 0.5, 0.05, INK, shade=0)
    pen.blob(
        [
            (-0.42, 0.56),
            (-0.36, 0.66),
            (-0.10, 0.62),
            (0.18, 0.66),
            (0.30, 0.54),
            (0.26, 0.38),
            (0.0, 0.34),
            (-0.28, 0.36),
            (-0.42, 0.42),
        ],
        m,
        grain=0.5,
    )
    pen.blob(
        [(0.08, 0.62), (0.24, 0.86), (0.34, 0.98), (0.42, 0.92), (0.38, 0.72), (0.30, 0.46)], m, round=0.3, flow=1.0
    )
    pen.blob([(0.04, 0.66), (0.16, 0.88), (0.30, 1.0), (0.33, 0.94), (0.24, 0.80), (0.14, 0.62)], mane, round=0.1)
    pen.blob(
        [(0.30, 0.94), (0.38, 0.96), (0.48, 0.84), (0.58, 0.70), (0.55, 0.62), (0.46, 0.66), (0.36, 0.74)], m, round=0.4
    )
    pen.blob([(0.50, 0.70), (0.58, 0.70), (0.57, 0.62), (0.50, 0.63)], times(m, 0.7), round=0.1, ink=0.3)
    pen.poly([(0.31, 0.94), (0.33, 1.03), (0.38, 0.95)], m, shade=0.3)
    pen.eye(0.41, 0.86, 0.020, eye_colour(m))


@subject(
    "cow", "animal", "white, brown, black, orange", "meadow, field, hill, mountains", width=1.48, size=0.48, most=3
)
def cow(pen: Pen) -> None:
    m = pen.main
    patch = INK if max(m) > 0.4 and min(m) > 0.6 else mix(m, WHITE, 0.85)
    pen.line([(-0.56, 0.72), (-0.66, 0.54), (-0.64, 0.28)], 0.045, times(m, 0.85), curve=True, ink=0.7)
    pen.dots([(-0.64, 0.26)], 0.055, times(INK, 1.4))
    _legs(pen, m, (-0.34, -0.46, 0.24, 0.34), 0.34, 0.13, times(INK, 1.6))
    pen.oval(-0.24, 0.30, 0.11, 0.085, PINK)
    pen.blob(
        [
            (-0.58, 0.70),
            (-0.52, 0.82),
            (0.0, 0.80),
            (0.36, 0.84),
            (0.48, 0.70),
            (0.44, 0.40),
            (0.30, 0.30),
            (-0.40, 0.30),
            (-0.56, 0.42),
        ],
        m,
        round=0.4,
        shade=0.9,
    )
    pen.blob([(-0.46, 0.80), (-0.22, 0.80), (-0.18, 0.60), (-0.34, 0.48), (-0.48, 0.60)], patch, round=0.2, ink=0.3)
    pen.blob([(0.02, 0.79), (0.24, 0.80), (0.22, 0.54), (0.08, 0.50), (0.0, 0.62)], patch, round=0.2, ink=0.3)
    for x, s in ((0.50, -1), (0.70, 1)):
        pen.line([(x, 0.92), (x + 0.08 * s, 0.97), (x + 0.07 * s, 1.05)], 0.045, CREAM, curve=True, ink=0.8)
        pen.oval(x + 0.12 * s, 0.84, 0.09, 0.045, times(m, 0.85), tilt=0.5 * s)
    pen.blob(
        [(0.46, 0.90), (0.60, 0.96), (0.74, 0.90), (0.73, 0.66), (0.72, 0.54), (0.48, 0.54), (0.47, 0.66)], m, round=0.4
    )
    pen.oval(0.60, 0.57, 0.145, 0.095, PINK, round=0.4)
    pen.dots([(0.55, 0.57), (0.66, 0.57)], 0.020, (0.45, 0.25, 0.25))
    for x in (0.53, 0.68):
        pen.eye(x, 0.79, 0.026, eye_colour(m))


@subject(
    "rabbit", "animal", "white, brown, grey, black", "meadow, garden, forest, field", width=0.82, size=0.52, most=4
)
def rabbit(pen: Pen) -> None:
    m = pen.main
    pen.oval(-0.36, 0.16, 0.09, 0.09, mix(m, WHITE, 0.6))
    for x, tilt in ((0.10, 0.22), (0.22, -0.12)):
        pen.oval(x, 0.83, 0.065, 0.20, times(m, 0.94), tilt=tilt, ink=0.9)
        pen.oval(x, 0.83, 0.030, 0.14, PINK, tilt=tilt, shade=0.2, round=0, ink=0.2)
    pen.blob(
        [
            (-0.36, 0.10),
            (-0.34, 0.34),
            (-0.16, 0.46),
            (0.10, 0.44),
            (0.26, 0.28),
            (0.24, 0.04),
            (0.0, 0.0),
            (-0.28, 0.0),
        ],
        m,
        grain=1.2,
    )
    pen.blob(
        [(-0.30, 0.02), (-0.30, 0.22), (-0.12, 0.30), (0.02, 0.16), (0.02, 0.0)], times(m, 0.88), ink=0.5, round=0.3
    )
    pen.oval(0.19, 0.05, 0.10, 0.05, times(m, 1.03), ink=0.7)
    pen.blob(
        [(0.02, 0.50), (0.08, 0.64), (0.22, 0.68), (0.36, 0.58), (0.40, 0.46), (0.30, 0.37), (0.12, 0.36)], m, round=0.6
    )
    pen.oval(0.32, 0.43, 0.07, 0.05, mix(m, WHITE, 0.6), shade=0.2, ink=0.2)
    pen.dots([(0.395, 0.47)], 0.022, PINK)
    pen.eye(0.25, 0.55, 0.034, INK if max(m) > 0.35 else (0.9, 0.8, 0.6))


@subject("elephant", "animal", "grey, pink, blue, brown", "meadow, field, desert", width=1.32, size=0.58, most=2)
def elephant(pen: Pen) -> None:
    m = pen.main
    pen.line([(-0.52, 0.62), (-0.62, 0.44), (-0.60, 0.30)], 0.040, times(m, 0.8), curve=True, ink=0.7)
    _legs(pen, m, (-0.24, -0.38, 0.12, 0.26), 0.44, 0.19, times(m, 1.25))
    pen.blob(
        [
            (-0.56, 0.50),
            (-0.52, 0.78),
            (-0.24, 0.90),
            (0.10, 0.88),
            (0.34, 0.74),
            (0.38, 0.46),
            (0.12, 0.34),
            (-0.30, 0.34),
            (-0.52, 0.38),
        ],
        m,
        grain=0.8,
    )
    trunk = [
        (0.44, 0.80),
        (0.62, 0.66),
        (0.64, 0.40),
        (0.60, 0.18),
        (0.66, 0.08),
        (0.58, 0.04),
        (0.50, 0.14),
        (0.51, 0.38),
        (0.42, 0.52),
    ]
    pen.blob(trunk, times(m, 0.95), round=0.2)
    pen.blob(
        [(0.20, 0.86), (0.36, 0.98), (0.54, 0.90), (0.60, 0.70), (0.50, 0.52), (0.32, 0.50), (0.20, 0.64)], m, round=0.5
    )
    pen.blob([(0.46, 0.52), (0.56, 0.44), (0.70, 0.46), (0.58, 0.38), (0.44, 0.44)], CREAM, round=0.2)
    pen.blob(
        [(0.24, 0.92), (0.02, 0.90), (-0.08, 0.66), (0.02, 0.44), (0.18, 0.46), (0.32, 0.64)], times(m, 0.82), round=0.4
    )
    pen.blob(
        [(0.18, 0.82), (0.05, 0.80), (0.0, 0.64), (0.08, 0.53), (0.20, 0.60)], mix(m, PINK, 0.45), round=0.1, ink=0.2
    )
    pen.eye(0.46, 0.76, 0.026)


@subject(
    "giraffe", "animal", "yellow, orange, brown, white", "meadow, field, desert, hill", width=0.74, size=0.74, most=2
)
def giraffe(pen: Pen) -> None:
    m = mix(pen.main, (0.90, 0.72, 0.42), 0.25)
    spot = times(mix(m, WOOD, 0.7), 0.75)
    pen.line([(-0.28, 0.42), (-0.34, 0.22)], 0.022, spot, ink=0.6)
    _legs(pen, m, (-0.17, -0.23, 0.07, 0.13), 0.32, 0.062, spot)
    pen.blob([(-0.29, 0.40), (-0.24, 0.47), (0.04, 0.54), (0.18, 0.46), (0.17, 0.32), (0.0, 0.28), (-0.22, 0.27)], m)
    pen.poly([(0.0, 0.48), (0.16, 0.88), (0.25, 0.86), (0.20, 0.42)], m, shade=0.8, flow=1.2)
    pen.line([(-0.005, 0.53), (0.16, 0.90)], 0.030, spot, ink=0.2)
    pen.blob([(0.13, 0.88), (0.18, 0.95), (0.26, 0.94), (0.40, 0.85), (0.38, 0.80), (0.24, 0.82)], m, round=0.3)
    for x in (0.17, 0.22):
        pen.line([(x, 0.94), (x + 0.005, 1.0)], 0.020, spot, ink=0.5)
    pen.poly([(0.13, 0.91), (0.03, 0.93), (0.12, 0.87)], m, shade=0.2)
    for x, y, r in (
        (-0.21, 0.40, 0.038),
        (-0.12, 0.34, 0.036),
        (-0.11, 0.44, 0.034),
        (-0.02, 0.38, 0.042),
        (-0.01, 0.48, 0.030),
        (0.08, 0.44, 0.038),
        (0.09, 0.34, 0.032),
        (0.10, 0.53, 0.032),
        (0.15, 0.61, 0.028),
        (0.13, 0.69, 0.025),
        (0.19, 0.76, 0.024),
    ):
        pen.poly(
            [(x - r, y), (x - r * 0.3, y + r), (x + r, y + r * 0.5), (x + r * 0.8, y - r * 0.7), (x - r * 0.5, y - r)],
            spot,
            shade=0,
            ink=0.2,
        )
    pen.eye(0.26, 0.895, 0.016)


@subject(
    "snail", "animal", "brown, orange, yellow, pink, purple", "garden, forest, meadow", width=1.45, size=0.46, most=3
)
def snail(pen: Pen) -> None:
    m = pen.main
    skin = (0.80, 0.70, 0.52)
    pen.blob(
        [
            (-0.74, 0.0),
            (-0.50, 0.14),
            (0.0, 0.20),
            (0.34, 0.20),
            (0.44, 0.48),
            (0.56, 0.56),
            (0.68, 0.48),
            (0.64, 0.22),
            (0.54, 0.02),
        ],
        skin,
    )
    for x, t in ((0.54, 0.50), (0.64, 0.72)):
        pen.line([(x - 0.02, 0.52), (t, 0.84)], 0.030, skin, ink=0.7)
        pen.dots([(t, 0.85)], 0.040, INK)
    pen.oval(-0.10, 0.54, 0.46, 0.44, m, round=0.8)
    spiral = []
    for k in range(22):
        a, r = 0.45 * k - 0.6, 0.40 * (1 - k / 24)
        spiral.append((-0.10 + r * math.cos(a), 0.54 + r * 0.95 * math.sin(a)))
    pen.line(spiral, 0.055, times(m, 0.55), curve=True, ink=0.4)
    pen.line([(0.56, 0.34), (0.64, 0.34)], 0.022, INK, ink=0.1)
