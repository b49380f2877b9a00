"""Birds, butterflies and what lives in water. One short function each; see `subjects`. They face right."""

from __future__ import annotations

from pipeline.atelier.palette import CREAM, INK, SNOW, WHITE, WOOD, Colour, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.subjects import subject
from pipeline.atelier.subjects_animals import eye_colour

BEAK: Colour = (0.96, 0.62, 0.16)


@subject("owl", "animal", "brown, white, grey, orange", "forest, garden, mountains", width=0.72, size=0.60, most=2)
def owl(pen: Pen) -> None:
    m = pen.main
    bark = times(WOOD, 0.8)
    pen.poly(
        [(-0.22, 0.05), (0.22, 0.05), (0.24, -0.12), (0.30, -0.17), (-0.30, -0.17), (-0.24, -0.12)],
        bark,
        grain=1.2,
        flow=1.57,
    )
    pen.oval(0.0, 0.05, 0.22, 0.045, mix(WOOD, CREAM, 0.45), shade=0.3, round=0)
    pen.blob(
        [
            (0.0, 0.08),
            (0.24, 0.14),
            (0.34, 0.44),
            (0.30, 0.74),
            (0.0, 0.94),
            (-0.30, 0.74),
            (-0.34, 0.44),
            (-0.24, 0.14),
        ],
        m,
        grain=1.2,
    )
    for s in (-1, 1):
        pen.poly([(0.30 * s, 0.78), (0.27 * s, 1.0), (0.09 * s, 0.90)], times(m, 0.85))
        pen.blob(
            [(0.25 * s, 0.60), (0.35 * s, 0.44), (0.30 * s, 0.18), (0.18 * s, 0.24), (0.20 * s, 0.50)],
            times(m, 0.72),
            round=0.2,
            grain=1.4,
        )
    pen.blob(
        [(0.0, 0.12), (0.14, 0.20), (0.18, 0.42), (0.0, 0.52), (-0.18, 0.42), (-0.14, 0.20)],
        mix(m, CREAM, 0.6),
        round=0.2,
        ink=0.4,
    )
    for x, y in ((-0.07, 0.40), (0.07, 0.40), (0.0, 0.33), (-0.07, 0.26), (0.07, 0.26)):
        pen.line([(x - 0.03, y + 0.012), (x, y - 0.015), (x + 0.03, y + 0.012)], 0.014, times(m, 0.6), ink=0.0)
    for x in (-0.135, 0.135):
        pen.oval(x, 0.68, 0.135, 0.135, mix(m, CREAM, 0.7), shade=0.2, round=0.1, ink=0.6)
        pen.oval(x, 0.68, 0.088, 0.088, (0.97, 0.76, 0.18), shade=0, round=0, ink=0.6)
        pen.eye(x, 0.68, 0.052)
    pen.poly([(-0.045, 0.63), (0.045, 0.63), (0.0, 0.53)], BEAK, shade=0.3)
    for x in (-0.10, 0.10):
        pen.line([(x - 0.035, 0.08), (x - 0.035, 0.02)], 0.028, BEAK, ink=0.5)
        pen.line([(x + 0.035, 0.08), (x + 0.035, 0.02)], 0.028, BEAK, ink=0.5)


@subject("duck", "animal", "yellow, white, brown, green, grey", "lake, harbour", width=1.15, size=0.44, most=4)
def duck(pen: Pen) -> None:
    m = pen.main
    pen.blob(
        [
            (-0.58, 0.50),
            (-0.42, 0.38),
            (-0.10, 0.42),
            (0.20, 0.46),
            (0.42, 0.34),
            (0.40, 0.12),
            (0.20, -0.02),
            (-0.26, -0.02),
            (-0.46, 0.16),
        ],
        m,
        round=0.4,
    )
    pen.blob(
        [(-0.44, 0.30), (-0.26, 0.38), (0.06, 0.32), (0.10, 0.18), (-0.12, 0.08), (-0.36, 0.16)],
        times(m, 0.80),
        round=0.3,
        ink=0.7,
    )
    pen.line([(-0.32, 0.20), (-0.12, 0.17), (0.04, 0.22)], 0.022, times(m, 0.62), ink=0.1)
    neck = (0.16, 0.42, 0.26) if m[0] < 0.62 and m[1] < 0.6 else m
    pen.blob([(0.10, 0.40), (0.16, 0.66), (0.36, 0.66), (0.42, 0.34), (0.26, 0.26)], neck, round=0.1)
    pen.oval(0.29, 0.77, 0.205, 0.195, neck)
    pen.blob([(0.44, 0.80), (0.56, 0.77), (0.66, 0.71), (0.56, 0.65), (0.43, 0.68)], BEAK, round=0.2)
    pen.eye(0.35, 0.83, 0.036, eye_colour(neck))
    if neck != m:
        pen.line([(0.13, 0.50), (0.40, 0.49)], 0.045, WHITE, ink=0.3)


@subject("flamingo", "animal", "pink, orange, red, white", "beach, lake", width=0.72, size=0.68, most=3)
def flamingo(pen: Pen) -> None:
    m = pen.main
    leg = mix(m, (0.85, 0.40, 0.40), 0.55)
    pen.line([(-0.02, 0.46), (-0.03, 0.0)], 0.032, leg, ink=0.6)
    pen.line([(0.06, 0.46), (0.18, 0.26), (-0.01, 0.22)], 0.032, times(leg, 0.85), ink=0.6)
    pen.line([(-0.06, 0.005), (0.03, 0.005)], 0.026, leg, ink=0.3)
    pen.line([(0.18, 0.52), (0.34, 0.60), (0.24, 0.73), (0.15, 0.85), (0.22, 0.95)], 0.075, m, curve=True, ink=1.0)
    pen.blob(
        [(-0.40, 0.46), (-0.22, 0.58), (0.06, 0.64), (0.24, 0.56), (0.20, 0.43), (0.0, 0.38), (-0.20, 0.40)],
        m,
        round=0.4,
    )
    pen.blob(
        [(-0.40, 0.46), (-0.16, 0.55), (0.06, 0.55), (0.08, 0.46), (-0.14, 0.42)], times(m, 0.80), round=0.2, ink=0.6
    )
    pen.oval(0.24, 0.93, 0.085, 0.065, m)
    pen.blob([(0.30, 0.95), (0.36, 0.89), (0.36, 0.80), (0.31, 0.80), (0.26, 0.89)], CREAM, round=0.2)
    pen.blob([(0.32, 0.84), (0.365, 0.85), (0.35, 0.78), (0.31, 0.79)], INK, round=0, ink=0.3)
    pen.eye(0.255, 0.945, 0.018)


@subject("penguin", "animal", "black, blue, grey", "beach, mountains", width=0.64, size=0.58, most=4)
def penguin(pen: Pen) -> None:
    m = pen.main
    for x in (-0.12, 0.12):
        pen.oval(x, 0.03, 0.11, 0.04, BEAK, shade=0.3)
    for s in (-1, 1):
        pen.blob(
            [(0.22 * s, 0.64), (0.31 * s, 0.44), (0.33 * s, 0.22), (0.24 * s, 0.28), (0.18 * s, 0.46)],
            times(m, 0.85),
            round=0.2,
        )
    pen.blob(
        [
            (0.0, 0.03),
            (0.22, 0.08),
            (0.28, 0.34),
            (0.23, 0.64),
            (0.18, 0.86),
            (0.0, 0.99),
            (-0.18, 0.86),
            (-0.23, 0.64),
            (-0.28, 0.34),
            (-0.22, 0.08),
        ],
        m,
    )
    pen.blob(
        [
            (0.0, 0.05),
            (0.16, 0.10),
            (0.205, 0.34),
            (0.15, 0.60),
            (0.0, 0.66),
            (-0.15, 0.60),
            (-0.205, 0.34),
            (-0.16, 0.10),
        ],
        SNOW,
        round=0.4,
        ink=0.5,
    )
    for s in (-1, 1):
        pen.oval(0.075 * s, 0.80, 0.085, 0.10, SNOW, shade=0.2, round=0, ink=0.4)
        pen.oval(0.13 * s, 0.67, 0.045, 0.05, (0.97, 0.76, 0.22), shade=0, round=0, ink=0.0)
        pen.eye(0.065 * s, 0.82, 0.032)
    pen.poly([(-0.055, 0.77), (0.055, 0.77), (0.0, 0.68)], BEAK, shade=0.2)


@subject(
    "rooster",
    "animal",
    "red, brown, white, black, orange",
    "village, field, garden, meadow",
    width=1.0,
    size=0.56,
    most=2,
)
def rooster(pen: Pen) -> None:
    m = pen.main
    tail = ((0.10, 0.36, 0.34), (0.12, 0.24, 0.36), (0.18, 0.14, 0.16))
    for k, (dx, dy) in enumerate(((-0.50, 0.48), (-0.52, 0.66), (-0.46, 0.82), (-0.34, 0.90))):
        pen.blob(
            [(-0.14, 0.42), (dx * 0.75, dy + 0.05), (dx, dy - 0.02), (dx * 0.98, dy - 0.16), (dx * 0.72, dy - 0.10)],
            tail[k % 3],
            round=0.1,
            ink=0.8,
        )
    for x in (-0.06, 0.08):
        pen.line([(x, 0.24), (x, 0.04)], 0.032, BEAK, ink=0.6)
        pen.line([(x - 0.06, 0.01), (x, 0.05), (x + 0.08, 0.01)], 0.028, BEAK, ink=0.5)
    pen.blob(
        [
            (-0.28, 0.44),
            (-0.20, 0.56),
            (0.06, 0.52),
            (0.18, 0.72),
            (0.34, 0.68),
            (0.32, 0.42),
            (0.16, 0.22),
            (-0.10, 0.20),
            (-0.26, 0.30),
        ],
        m,
        round=0.4,
        grain=0.8,
    )
    pen.blob(
        [(-0.22, 0.44), (0.02, 0.46), (0.10, 0.36), (-0.04, 0.28), (-0.20, 0.34)], times(m, 0.70), round=0.2, ink=0.7
    )
    pen.blob(
        [(0.10, 0.60), (0.16, 0.82), (0.34, 0.84), (0.38, 0.58), (0.24, 0.48)],
        mix(m, (0.95, 0.66, 0.22), 0.65),
        round=0.3,
        ink=0.6,
    )
    pen.oval(0.265, 0.83, 0.105, 0.10, mix(m, (0.95, 0.66, 0.22), 0.4), ink=0.7)
    comb = (0.86, 0.12, 0.12)
    pen.poly(
        [(0.16, 0.88), (0.15, 1.0), (0.22, 0.94), (0.26, 1.03), (0.30, 0.94), (0.38, 0.99), (0.34, 0.88)],
        comb,
        shade=0.3,
    )
    pen.oval(0.33, 0.72, 0.042, 0.075, comb)
    pen.poly([(0.35, 0.86), (0.48, 0.81), (0.35, 0.78)], BEAK, shade=0.3)
    pen.eye(0.29, 0.86, 0.024)


@subject(
    "turtle",
    "animal",
    "green, brown, turquoise, yellow",
    "beach, garden, under water, desert",
    width=1.75,
    size=0.38,
    most=3,
)
def turtle(pen: Pen) -> None:
    m = pen.main
    skin = mix(m, (0.72, 0.72, 0.42), 0.55)
    for x, s in ((-0.42, -1), (0.38, 1)):
        pen.blob(
            [(x - 0.10, 0.30), (x + 0.10, 0.30), (x + 0.14 * s + 0.06, 0.02), (x + 0.10 * s - 0.08, 0.0)],
            skin,
            round=0.2,
        )
    pen.poly([(-0.62, 0.30), (-0.86, 0.18), (-0.60, 0.20)], skin)
    pen.blob(
        [
            (0.50, 0.26),
            (0.64, 0.44),
            (0.68, 0.62),
            (0.84, 0.70),
            (0.95, 0.58),
            (0.90, 0.44),
            (0.76, 0.34),
            (0.62, 0.20),
        ],
        skin,
        round=0.3,
    )
    pen.blob(
        [
            (-0.66, 0.24),
            (-0.56, 0.62),
            (-0.28, 0.90),
            (0.0, 1.0),
            (0.28, 0.90),
            (0.54, 0.62),
            (0.62, 0.24),
            (0.0, 0.16),
        ],
        m,
        round=0.6,
    )
    dark = times(m, 0.62)
    for x in (-0.40, -0.02, 0.36):
        r = 0.15
        pen.poly(
            [
                (x - r, 0.50),
                (x - r * 0.5, 0.72),
                (x + r * 0.5, 0.72),
                (x + r, 0.50),
                (x + r * 0.5, 0.32),
                (x - r * 0.5, 0.32),
            ],
            dark,
            shade=0.5,
            ink=0.5,
        )
    pen.poly([(-0.18, 0.78), (-0.08, 0.92), (0.08, 0.92), (0.18, 0.78)], dark, shade=0.5, ink=0.5)
    pen.line([(-0.66, 0.22), (0.0, 0.13), (0.62, 0.22)], 0.085, times(mix(m, CREAM, 0.35), 0.9), curve=True, ink=0.8)
    pen.eye(0.84, 0.60, 0.035)


@subject(
    "butterfly",
    "animal",
    "orange, blue, yellow, purple, red, white",
    "garden, meadow, forest, field",
    width=1.18,
    size=0.56,
    most=3,
    plural="{c} butterflies",
    lift=0.22,
)
def butterfly(pen: Pen) -> None:
    m = pen.main
    edge = INK if max(m) > 0.3 else (0.5, 0.3, 0.2)
    spot = mix(m, WHITE, 0.6) if min(m) < 0.7 else (0.40, 0.52, 0.70)
    for s in (-1, 1):
        pen.blob(
            [(0.04 * s, 0.44), (0.30 * s, 0.44), (0.48 * s, 0.26), (0.38 * s, 0.02), (0.16 * s, 0.10)],
            edge,
            shade=0.2,
            round=0,
        )
        pen.blob(
            [(0.05 * s, 0.43), (0.28 * s, 0.40), (0.40 * s, 0.25), (0.34 * s, 0.09), (0.16 * s, 0.15)],
            times(m, 0.88),
            round=0.3,
            ink=0.3,
            flow=0.6 * s,
        )
        pen.blob(
            [(0.04 * s, 0.48), (0.18 * s, 0.84), (0.44 * s, 1.0), (0.59 * s, 0.86), (0.46 * s, 0.52), (0.20 * s, 0.42)],
            edge,
            shade=0.2,
            round=0,
        )
        pen.blob(
            [
                (0.07 * s, 0.50),
                (0.21 * s, 0.78),
                (0.42 * s, 0.90),
                (0.50 * s, 0.80),
                (0.40 * s, 0.56),
                (0.20 * s, 0.47),
            ],
            m,
            round=0.3,
            ink=0.3,
            flow=-0.6 * s,
        )
        pen.oval(0.37 * s, 0.74, 0.07, 0.065, spot, shade=0, round=0, ink=0.3)
        pen.oval(0.29 * s, 0.24, 0.05, 0.05, spot, shade=0, round=0, ink=0.3)
        pen.line([(0.0, 0.68), (0.06 * s, 0.84), (0.15 * s, 0.92)], 0.018, INK, curve=True, ink=0.2)
    pen.oval(0.0, 0.44, 0.042, 0.25, (0.20, 0.15, 0.14), shade=0.5)
    pen.dots([(0.0, 0.70)], 0.055, (0.20, 0.15, 0.14))


@subject(
    "fish",
    "animal",
    "orange, blue, yellow, red, green, pink",
    "under water",
    width=1.65,
    size=0.38,
    most=5,
    plural="{c} fish",
)
def fish(pen: Pen) -> None:
    m = pen.main
    fin = times(m, 0.78)
    pen.blob([(-0.44, 0.50), (-0.66, 0.70), (-0.84, 0.92), (-0.74, 0.50), (-0.84, 0.08), (-0.66, 0.30)], fin, round=0.2)
    pen.blob([(-0.26, 0.72), (-0.10, 0.98), (0.16, 1.0), (0.24, 0.80), (0.0, 0.70)], fin, round=0.2)
    pen.blob([(-0.18, 0.26), (-0.06, 0.02), (0.10, 0.04), (0.10, 0.26)], fin, round=0.2)
    pen.blob(
        [
            (-0.50, 0.50),
            (-0.22, 0.76),
            (0.16, 0.86),
            (0.52, 0.74),
            (0.74, 0.52),
            (0.54, 0.28),
            (0.16, 0.16),
            (-0.22, 0.26),
        ],
        m,
        round=0.6,
    )
    band = mix(m, WHITE, 0.75)
    for x in (-0.18, 0.22):
        pen.blob(
            [
                (x - 0.05, 0.76 + 0.12 * (x > 0)),
                (x + 0.06, 0.78 + 0.08 * (x > 0)),
                (x + 0.08, 0.50),
                (x + 0.06, 0.22 - 0.04 * (x > 0)),
                (x - 0.05, 0.27 - 0.08 * (x > 0)),
                (x - 0.03, 0.50),
            ],
            band,
            round=0.1,
            ink=0.5,
        )
    pen.blob([(0.02, 0.50), (-0.16, 0.42), (-0.20, 0.30), (0.02, 0.38)], fin, round=0.1, ink=0.7)
    pen.oval(0.50, 0.60, 0.075, 0.085, WHITE, shade=0, round=0, ink=0.7)
    pen.eye(0.52, 0.60, 0.044)
    pen.line([(0.73, 0.50), (0.62, 0.44)], 0.030, times(m, 0.5), ink=0.1)


@subject("whale", "animal", "blue, grey, black, white", "sea", width=1.85, size=0.44, most=1)
def whale(pen: Pen) -> None:
    m = pen.main
    spray = mix(pen.palette.horizon, WHITE, 0.7)
    for s in (-1, 1):
        pen.line(
            [(0.36, 0.62), (0.36 + 0.04 * s, 0.84), (0.36 + 0.18 * s, 0.92), (0.36 + 0.24 * s, 0.80)],
            0.055,
            spray,
            curve=True,
            ink=0.4,
        )
    pen.blob(
        [
            (-0.70, 0.30),
            (-0.84, 0.62),
            (-1.0, 0.84),
            (-0.80, 0.78),
            (-0.72, 0.72),
            (-0.58, 0.86),
            (-0.46, 0.82),
            (-0.60, 0.60),
            (-0.50, 0.24),
        ],
        times(m, 0.85),
        round=0.3,
    )
    pen.blob(
        [
            (-0.78, 0.24),
            (-0.52, 0.30),
            (-0.20, 0.52),
            (0.20, 0.64),
            (0.60, 0.58),
            (0.86, 0.34),
            (0.84, 0.04),
            (0.60, -0.04),
            (-0.56, -0.04),
        ],
        m,
        round=0.4,
    )
    pen.blob(
        [(0.86, 0.20), (0.50, 0.18), (0.10, 0.06), (0.06, -0.04), (0.60, -0.04), (0.84, 0.04)],
        mix(m, WHITE, 0.65),
        round=0.2,
        ink=0.5,
    )
    for k in range(3):
        pen.line([(0.84 - 0.03 * k, 0.12 - 0.045 * k), (0.40, 0.10 - 0.045 * k)], 0.014, times(m, 0.85), ink=0.1)
    pen.blob([(0.22, 0.10), (0.06, -0.02), (0.28, -0.05), (0.40, 0.06)], times(m, 0.75), round=0.2)
    pen.eye(0.58, 0.28, 0.034, eye_colour(m))


@subject(
    "jellyfish",
    "animal",
    "pink, purple, blue, orange, white",
    "under water",
    width=0.70,
    size=0.58,
    most=4,
    plural="{c} jellyfish",
)
def jellyfish(pen: Pen) -> None:
    m = pen.main
    for k in range(6):
        x = -0.22 + 0.088 * k
        sway = 0.06 * (1 if k % 2 else -1)
        pen.line(
            [(x, 0.62), (x + sway, 0.44), (x - sway, 0.26), (x + sway * 0.8, 0.03 + 0.06 * (k % 3))],
            0.034,
            times(mix(m, WHITE, 0.15), 0.9),
            curve=True,
            ink=0.4,
            haze=0.0,
        )
    for x in (-0.08, 0.08):
        pen.blob(
            [(x - 0.05, 0.60), (x - 0.08, 0.42), (x, 0.28), (x + 0.07, 0.44), (x + 0.05, 0.60)],
            mix(m, WHITE, 0.4),
            round=0.2,
            ink=0.4,
        )
    pen.blob(
        [
            (-0.34, 0.60),
            (-0.31, 0.82),
            (-0.14, 0.97),
            (0.14, 0.97),
            (0.31, 0.82),
            (0.34, 0.60),
            (0.18, 0.64),
            (0.06, 0.58),
            (-0.06, 0.58),
            (-0.18, 0.64),
        ],
        m,
        round=0.5,
    )
    pen.oval(
        0.10 * (1 if pen.light.direction[0] > 0 else -1),
        0.83,
        0.10,
        0.06,
        mix(m, WHITE, 0.55),
        shade=0,
        round=0,
        ink=0.0,
    )
    pen.dots([(-0.2, 0.70), (0.0, 0.69), (0.2, 0.70)], 0.030, mix(m, WHITE, 0.5), ink=0.1)


@subject("crab", "animal", "red, orange, blue, purple", "beach", width=1.65, size=0.38, most=3)
def crab(pen: Pen) -> None:
    m = pen.main
    for s in (-1, 1):
        for k in range(3):
            x = 0.36 * s + 0.06 * k * s
            pen.line(
                [(0.30 * s, 0.36 - 0.05 * k), (x + 0.24 * s, 0.42 - 0.10 * k), (x + 0.30 * s, 0.06 - 0.03 * k + 0.04)],
                0.055,
                times(m, 0.8),
                ink=0.8,
            )
        pen.line([(0.34 * s, 0.50), (0.58 * s, 0.60), (0.60 * s, 0.72)], 0.085, times(m, 0.92), ink=0.9)
        pen.blob(
            [
                (0.54 * s, 0.70),
                (0.46 * s, 0.86),
                (0.54 * s, 1.0),
                (0.60 * s, 0.86),
                (0.70 * s, 1.0),
                (0.80 * s, 0.86),
                (0.72 * s, 0.70),
            ],
            m,
            round=0.4,
        )
        pen.line([(0.14 * s, 0.58), (0.16 * s, 0.74)], 0.045, times(m, 0.9), ink=0.8)
        pen.oval(0.16 * s, 0.77, 0.060, 0.060, WHITE, shade=0, round=0, ink=0.8)
        pen.eye(0.16 * s, 0.77, 0.034)
    pen.blob(
        [
            (-0.46, 0.42),
            (-0.34, 0.62),
            (0.0, 0.68),
            (0.34, 0.62),
            (0.46, 0.42),
            (0.30, 0.20),
            (0.0, 0.15),
            (-0.30, 0.20),
        ],
        m,
        round=0.6,
    )
    pen.line([(-0.16, 0.32), (0.0, 0.27), (0.16, 0.32)], 0.032, times(m, 0.5), curve=True, ink=0.1)
    pen.dots([(-0.20, 0.52), (0.0, 0.56), (0.20, 0.52)], 0.030, times(m, 1.25), ink=0.1)
