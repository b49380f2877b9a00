"""Trees, flowers and fruit. One short function each; see `subjects` for their frame."""

from __future__ import annotations

import math

from pipeline.atelier.palette import CREAM, INK, LEAF, SNOW, WOOD, Colour, mix, times
from pipeline.atelier.pen import Pen
from pipeline.atelier.subjects import TABLE, subject


def _snowy(pen: Pen, colour: Colour, amount: float = 0.35) -> Colour:
    return mix(colour, SNOW, amount) if pen.snow else colour


def leaf(pen: Pen, x: float, y: float, length: float, angle: float, colour: Colour, plump: float = 0.28) -> None:
    """A pointed leaf from (x, y), `angle` from the x axis, y up."""
    c, s = math.cos(angle), math.sin(angle)
    outline = [(0, 0), (0.3, plump), (0.65, plump * 0.8), (1.0, 0.0), (0.65, -plump * 0.8), (0.3, -plump)]
    pts = [(x + length * (u * c - v * s), y + length * (u * s + v * c)) for u, v in outline]
    pen.poly(pts, colour, flow=-angle, ink=0.6)


@subject(
    "tree",
    "plant",
    "green, orange, yellow, red",
    "meadow, hill, field, garden, village",
    width=0.86,
    size=0.68,
    most=3,
    noun="{c} tree",
)
def tree(pen: Pen) -> None:
    m, rng = _snowy(pen, pen.main), pen.rng
    bark = times(WOOD, 0.75)
    pen.poly(
        [(-0.10, 0.0), (-0.05, 0.16), (-0.05, 0.45), (0.05, 0.45), (0.05, 0.16), (0.10, 0.0)],
        bark,
        flow=1.57,
        grain=1.0,
    )
    pen.line([(0.0, 0.30), (-0.18, 0.52)], 0.05, bark)
    pen.line([(0.0, 0.34), (0.17, 0.54)], 0.045, bark)
    for x, y, r, k in (
        (-0.24, 0.52, 0.18, 0.72),
        (0.24, 0.54, 0.18, 0.74),
        (0.0, 0.56, 0.22, 0.80),
        (-0.20, 0.70, 0.20, 0.92),
        (0.20, 0.72, 0.19, 0.95),
        (0.0, 0.80, 0.20, 1.06),
    ):
        x, y = x + float(rng.uniform(-0.02, 0.02)), y + float(rng.uniform(-0.02, 0.02))
        pts = []
        for j in range(10):
            bump = 1.06 if j % 2 else 0.92
            a = j * math.pi / 5
            pts.append((x + r * bump * math.cos(a), y + r * bump * 0.9 * math.sin(a)))
        pen.blob(pts, times(m, k), ink=0.6, grain=1.4)


@subject(
    "pine tree",
    "plant",
    "green, turquoise, blue",
    "mountains, forest, hill, meadow",
    width=0.62,
    size=0.72,
    most=4,
    noun="{c} pine tree",
)
def pine(pen: Pen) -> None:
    m = mix(times(pen.main, 0.8), LEAF, 0.15)
    pen.box(-0.045, 0.0, 0.045, 0.18, times(WOOD, 0.7), flow=1.57)
    for k, (w, y) in enumerate(((0.31, 0.12), (0.26, 0.30), (0.205, 0.48), (0.145, 0.66))):
        h = 0.34
        tier = times(m, 0.86 + 0.08 * k)
        pen.poly(
            [
                (-w, y),
                (-w * 0.45, y + h * 0.42),
                (0.0, y + h),
                (w * 0.45, y + h * 0.42),
                (w, y),
                (w * 0.5, y + 0.025),
                (0.12 * w, y - 0.02),
                (-0.45 * w, y + 0.03),
            ],
            tier,
            shade=1.0,
            grain=1.2,
            flow=1.2,
        )
        if pen.snow:
            pen.poly(
                [
                    (-w * 0.62, y + h * 0.30),
                    (0.0, y + h),
                    (w * 0.62, y + h * 0.30),
                    (0.2 * w, y + h * 0.45),
                    (-0.25 * w, y + h * 0.36),
                ],
                SNOW,
                shade=0.7,
                ink=0.3,
            )


@subject(
    "palm tree",
    "plant",
    "green, yellow, turquoise",
    "beach, desert",
    width=0.90,
    size=0.72,
    most=3,
    noun="{c} palm tree",
)
def palm(pen: Pen) -> None:
    m = pen.main
    bend = float(pen.rng.uniform(0.04, 0.12))
    trunk = [(-0.055, 0.0), (-0.02 + bend, 0.40), (0.05, 0.76), (0.10, 0.76), (0.05 + bend, 0.40), (0.06, 0.0)]
    pen.blob(trunk, (0.56, 0.42, 0.28), grain=1.0, flow=0.0)
    for ring in range(6):
        y = 0.08 + 0.11 * ring
        x = bend * math.sin(min(1.0, y / 0.42) * 1.5) + 0.04 * y
        pen.line([(x - 0.035, y), (x + 0.045, y + 0.012)], 0.014, (0.38, 0.27, 0.18), ink=0.1)
    hub = (0.075, 0.77)
    for a, length, k in (
        (2.9, 0.40, 0.72),
        (0.2, 0.40, 0.76),
        (3.6, 0.36, 0.68),
        (-0.55, 0.36, 0.7),
        (2.3, 0.36, 0.9),
        (0.85, 0.36, 0.95),
        (1.6, 0.24, 1.05),
    ):
        c, s = math.cos(a), math.sin(a)
        tip = (hub[0] + length * c, hub[1] + length * s * 0.7 - 0.10)
        mid = (hub[0] + length * 0.55 * c, hub[1] + length * 0.55 * s * 0.8 + 0.07)
        low = (mid[0] - 0.01 * c, mid[1] - 0.10)
        pen.blob([hub, mid, tip, low], times(m, k), shade=0.6, round=0.1, ink=0.7, grain=1.0, flow=-a)
    pen.dots([(0.045, 0.745), (0.10, 0.735), (0.075, 0.715)], 0.028, (0.38, 0.24, 0.13))


@subject("cactus", "plant", "green, turquoise, purple", "desert", width=0.72, size=0.64, most=4, plural="{c} cacti")
def cactus(pen: Pen) -> None:
    m = pen.main
    arm = times(m, 0.92)
    h = float(pen.rng.uniform(-0.06, 0.08))
    pen.blob(
        [
            (-0.08, 0.40 + h),
            (-0.32, 0.40 + h),
            (-0.35, 0.46 + h),
            (-0.34, 0.70 + h),
            (-0.28, 0.75 + h),
            (-0.22, 0.70 + h),
            (-0.22, 0.54 + h),
            (-0.08, 0.53 + h),
        ],
        arm,
        flow=1.57,
    )
    pen.blob(
        [
            (0.08, 0.26),
            (0.30, 0.27),
            (0.34, 0.34),
            (0.34, 0.58),
            (0.28, 0.63),
            (0.22, 0.58),
            (0.22, 0.41),
            (0.08, 0.39),
        ],
        arm,
        flow=1.57,
    )
    pen.blob(
        [(-0.12, 0.0), (-0.135, 0.45), (-0.12, 0.88), (0.0, 0.99), (0.12, 0.88), (0.135, 0.45), (0.12, 0.0)],
        m,
        round=0.7,
        flow=1.57,
    )
    for x in (-0.05, 0.045):
        pen.line([(x, 0.03), (x, 0.90)], 0.015, times(m, 0.70), ink=0.1)
    pen.line([(-0.28, 0.48 + h), (-0.28, 0.70 + h)], 0.012, times(m, 0.70), ink=0.1)
    pen.dots([(0.0, 0.985), (-0.28, 0.755 + h), (0.05, 0.97)], 0.036, (0.94, 0.40, 0.52))


@subject(
    "mushroom", "plant", "red, brown, orange, white, purple", "forest, meadow, garden", width=0.95, size=0.56, most=5
)
def mushroom(pen: Pen) -> None:
    m = pen.main
    pen.blob([(-0.14, 0.0), (-0.105, 0.30), (-0.12, 0.55), (0.12, 0.55), (0.105, 0.30), (0.14, 0.0)], CREAM, flow=1.57)
    pen.blob(
        [(-0.46, 0.47), (-0.15, 0.53), (0.15, 0.53), (0.46, 0.47), (0.12, 0.42), (-0.12, 0.42)],
        mix(CREAM, WOOD, 0.35),
        ink=0.6,
    )
    pen.poly([(-0.13, 0.36), (0.13, 0.36), (0.17, 0.29), (0.0, 0.27), (-0.17, 0.29)], times(CREAM, 0.9), ink=0.5)
    pen.blob(
        [
            (-0.48, 0.47),
            (-0.40, 0.72),
            (-0.18, 0.93),
            (0.0, 0.98),
            (0.18, 0.93),
            (0.40, 0.72),
            (0.48, 0.47),
            (0.20, 0.54),
            (-0.20, 0.54),
        ],
        m,
        round=0.6,
    )
    spot = CREAM if min(m) < 0.7 else (0.75, 0.6, 0.45)
    for x, y, r in (
        (-0.26, 0.66, 0.065),
        (0.02, 0.82, 0.07),
        (0.26, 0.68, 0.06),
        (-0.02, 0.62, 0.045),
        (-0.16, 0.84, 0.035),
    ):
        pen.oval(x, y, r, r * 0.8, spot, shade=0.4, ink=0.5)


@subject("sunflower", "plant", "yellow, orange, red", "field, garden, meadow", width=0.62, size=0.70, most=5)
def sunflower(pen: Pen) -> None:
    m = pen.main
    stem = (0.30, 0.50, 0.20)
    pen.line([(0.02, 0.0), (-0.02, 0.35), (0.0, 0.66)], 0.045, stem, curve=True, ink=0.7)
    leaf(pen, 0.0, 0.22, 0.30, 0.55, times(stem, 1.1))
    leaf(pen, -0.01, 0.30, 0.28, 2.65, times(stem, 0.9))
    turn = float(pen.rng.uniform(0.0, 0.5))
    for ring, (reach, k) in enumerate(((0.29, 0.84), (0.25, 1.05))):
        petals: list[tuple[float, float]] = []
        for j in range(13):
            a = turn + (j + 0.5 * ring) * 2 * math.pi / 13
            d = math.pi / 13
            petals += [
                (0.15 * math.cos(a - d), 0.71 + 0.15 * math.sin(a - d)),
                (reach * math.cos(a), 0.71 + reach * math.sin(a)),
            ]
        pen.poly(petals, times(m, k), shade=0.4, ink=0.7)
    pen.oval(0.0, 0.71, 0.145, 0.145, (0.34, 0.20, 0.11), grain=1.5)
    pen.oval(0.0, 0.71, 0.075, 0.075, (0.24, 0.15, 0.09), shade=0.3, ink=0.3)


@subject(
    "tulip", "plant", "red, yellow, pink, purple, orange, white", "garden, meadow, field", width=0.56, size=0.62, most=5
)
def tulip(pen: Pen) -> None:
    m = pen.main
    stem = (0.34, 0.56, 0.26)
    pen.line([(0.0, 0.0), (0.015, 0.3), (0.0, 0.62)], 0.045, stem, curve=True, ink=0.7)
    leaf(pen, 0.0, 0.02, 0.56, 1.15, times(stem, 0.95), 0.14)
    leaf(pen, 0.0, 0.02, 0.50, 2.05, times(stem, 0.8), 0.14)
    pen.blob([(-0.02, 0.58), (-0.10, 0.80), (0.0, 1.0), (0.10, 0.80), (0.02, 0.58)], times(m, 0.78), ink=0.6)
    pen.blob([(0.0, 0.56), (-0.19, 0.62), (-0.22, 0.80), (-0.18, 0.98), (-0.06, 0.82), (0.02, 0.62)], m, ink=0.8)
    pen.blob(
        [(0.0, 0.56), (0.19, 0.62), (0.22, 0.80), (0.18, 0.98), (0.06, 0.82), (-0.02, 0.62)], times(m, 0.92), ink=0.8
    )
    pen.blob(
        [(-0.10, 0.58), (-0.10, 0.76), (0.0, 0.90), (0.10, 0.76), (0.10, 0.58), (0.0, 0.55)], times(m, 1.08), ink=0.7
    )


@subject("apple", "still life", "red, green, yellow", TABLE + ", garden", width=0.96, size=0.50, most=5)
def apple(pen: Pen) -> None:
    m = pen.main
    pen.blob(
        [
            (0.0, 0.84),
            (0.20, 0.92),
            (0.44, 0.78),
            (0.47, 0.48),
            (0.32, 0.12),
            (0.12, 0.0),
            (0.0, 0.03),
            (-0.12, 0.0),
            (-0.32, 0.12),
            (-0.47, 0.48),
            (-0.44, 0.78),
            (-0.20, 0.92),
        ],
        m,
        round=0.9,
    )
    pen.blob([(-0.12, 0.84), (0.0, 0.88), (0.12, 0.84), (0.0, 0.78)], times(m, 0.55), shade=0, round=0, ink=0.4)
    pen.oval(
        0.22 * (1 if pen.light.direction[0] > 0 else -1),
        0.68,
        0.08,
        0.11,
        mix(m, (1.0, 1.0, 1.0), 0.55),
        shade=0,
        round=0,
        ink=0.0,
    )
    pen.line([(0.0, 0.82), (0.02, 0.92), (0.07, 1.02)], 0.05, times(WOOD, 0.7), curve=True)
    leaf(pen, 0.04, 0.92, 0.30, 0.35, (0.34, 0.56, 0.22))


@subject("pear", "still life", "green, yellow, brown", TABLE, width=0.70, size=0.56, most=5)
def pear(pen: Pen) -> None:
    m = mix(pen.main, (0.75, 0.72, 0.25), 0.3)
    pen.blob(
        [
            (0.0, 0.92),
            (0.12, 0.86),
            (0.17, 0.68),
            (0.30, 0.46),
            (0.35, 0.26),
            (0.24, 0.05),
            (0.0, 0.0),
            (-0.24, 0.05),
            (-0.35, 0.26),
            (-0.30, 0.46),
            (-0.17, 0.68),
            (-0.12, 0.86),
        ],
        m,
        round=0.9,
    )
    pen.oval(
        0.13 * (1 if pen.light.direction[0] > 0 else -1),
        0.42,
        0.05,
        0.10,
        mix(m, (1.0, 1.0, 0.95), 0.5),
        shade=0,
        round=0,
        ink=0.0,
    )
    pen.line([(0.0, 0.90), (0.03, 0.97), (0.06, 1.03)], 0.04, times(WOOD, 0.7), curve=True)
    leaf(pen, 0.03, 0.95, 0.22, 2.7, (0.34, 0.56, 0.22))


@subject(
    "bunch of grapes",
    "still life",
    "purple, green, red",
    "wooden table, tablecloth, window sill, shelf",
    width=0.92,
    size=0.52,
    most=2,
    noun="bunch of {c} grapes",
    plural="bunches of {c} grapes",
)
def grapes(pen: Pen) -> None:
    m = pen.main
    pen.line([(0.0, 0.78), (0.0, 1.0)], 0.05, times(WOOD, 0.7))
    leaf(pen, 0.0, 0.90, 0.42, 0.2, (0.34, 0.52, 0.22), 0.42)
    leaf(pen, 0.0, 0.90, 0.40, 2.95, (0.28, 0.46, 0.20), 0.42)
    for row, (y, n) in enumerate(((0.74, 5), (0.58, 4), (0.42, 4), (0.27, 3), (0.12, 1))):
        for k in range(n):
            x = (k - (n - 1) / 2) * 0.165 + 0.02 * (row % 2)
            pen.oval(x, y, 0.105, 0.11, times(m, 0.82 + 0.12 * ((k + row) % 3)), round=0.9, ink=0.7)


@subject(
    "pumpkin",
    "still life",
    "orange, yellow, green, white",
    "field, garden, wooden table, village",
    width=1.25,
    size=0.46,
    most=4,
)
def pumpkin(pen: Pen) -> None:
    m = pen.main
    for x, r, k in (
        (-0.38, 0.24, 0.78),
        (0.38, 0.24, 0.80),
        (-0.22, 0.26, 0.92),
        (0.22, 0.26, 0.94),
        (0.0, 0.24, 1.06),
    ):
        pen.oval(x, 0.41, r, 0.40 if abs(x) < 0.3 else 0.35, times(m, k), round=0.6, ink=0.7, flow=1.57)
    pen.poly([(-0.07, 0.76), (0.07, 0.76), (0.13, 1.0), (0.02, 1.0)], (0.36, 0.42, 0.18))
    pen.line([(0.05, 0.82), (0.25, 0.90), (0.36, 0.80)], 0.03, (0.36, 0.46, 0.2), curve=True)


@subject(
    "vase of flowers",
    "still life",
    "red, yellow, pink, blue, white, purple",
    TABLE,
    width=0.80,
    size=0.68,
    most=1,
    noun="vase of {c} flowers",
    plural="vases of {c} flowers",
)
def vase(pen: Pen) -> None:
    m, rng = pen.main, pen.rng
    glaze = ((0.30, 0.46, 0.62), (0.86, 0.84, 0.78), (0.52, 0.34, 0.24), (0.36, 0.52, 0.44))[int(rng.integers(4))]
    stem = (0.28, 0.46, 0.22)
    heads = [(-0.27, 0.70), (0.27, 0.69), (-0.12, 0.60), (0.13, 0.60), (-0.15, 0.86), (0.16, 0.85), (0.0, 0.74)]
    for x, y in heads:
        pen.line([(0.0, 0.38), (x, y)], 0.025, stem)
    for x, a in ((-0.10, 2.5), (0.10, 0.6), (-0.1, 3.1), (0.1, 0.05)):
        leaf(pen, x, 0.50, 0.24, a, times(stem, 1.15))
    for x, y in heads:
        x, y = x + float(rng.uniform(-0.03, 0.03)), y + float(rng.uniform(-0.03, 0.03))
        pts: list[tuple[float, float]] = []
        for j in range(6):
            a = j * math.pi / 3 + x
            pts += [
                (x + 0.125 * math.cos(a), y + 0.125 * math.sin(a)),
                (x + 0.08 * math.cos(a + 0.52), y + 0.08 * math.sin(a + 0.52)),
            ]
        pen.blob(pts, times(m, float(rng.uniform(0.85, 1.1))), ink=0.7, round=0.4)
        pen.dots([(x, y)], 0.036, (0.95, 0.80, 0.30) if m[1] < 0.7 or min(m) > 0.7 else (0.5, 0.28, 0.12))
    pen.blob(
        [
            (-0.11, 0.46),
            (-0.09, 0.38),
            (-0.21, 0.24),
            (-0.20, 0.10),
            (-0.11, 0.0),
            (0.11, 0.0),
            (0.20, 0.10),
            (0.21, 0.24),
            (0.09, 0.38),
            (0.11, 0.46),
        ],
        glaze,
        round=0.7,
    )
    pen.line([(-0.19, 0.20), (0.19, 0.20)], 0.025, mix(glaze, INK, 0.35), ink=0.2)
