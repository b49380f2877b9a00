"""Settings indoors. One short function each; see `settings`. Hour and weather are seen through a window."""

from __future__ import annotations

from pipeline.atelier.backdrop import shadow_on
from pipeline.atelier.palette import INK, WHITE, Colour, mix, times, vary
from pipeline.atelier.pen import Pen
from pipeline.atelier.settings import Ground, View, setting


def _window(pen: Pen, view: View, x0: float, y0: float, x1: float, y1: float) -> None:
    """A window that shows hour and weather; what is seen through it stays inside its frame."""
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
    hills = [
        (x0, foot),
        (x0 + w * 0.3, foot - h * 0.12),
        (x0 + w * 0.6, foot),
        (x0 + w * 0.85, foot - h * 0.08),
        (x1, foot - 0.01),
        (x1, y1),
        (x0, y1),
    ]
    pen.poly(hills, mix(p.foliage, p.haze, 0.2 + p.haze_amount * 0.7), ink=0.4)
    if view.weather in ("rain", "storm"):
        for x, y in rng.random((12, 2)).tolist():
            at = (x0 + w * 0.9 * x + w * 0.05, y0 + h * 0.75 * y)
            pen.line([at, (at[0] + 0.01, at[1] + h * 0.16)], 0.005, mix(p.horizon, WHITE, 0.6), ink=0.0)
    if view.weather == "storm":
        pen.line(
            [(mx, y0), (mx - 0.03, y0 + h * 0.25), (mx + 0.02, y0 + h * 0.35), (mx - 0.02, y0 + h * 0.6)],
            0.012,
            (1.0, 0.98, 0.8),
            glow=True,
        )
    if view.weather == "snow":
        pen.dots(rng.random((16, 2)) * (w * 0.9, h * 0.9) + (x0 + w * 0.05, y0 + h * 0.05), 0.008, WHITE, glow=True)
    pen.thing(0.93)
    pen.box((x0 + x1) / 2 - 0.010, y0, (x0 + x1) / 2 + 0.010, y1, frame, shade=0)
    pen.box(x0, (y0 + y1) / 2 - 0.010, x1, (y0 + y1) / 2 + 0.010, frame, shade=0)


def _room(pen: Pen, view: View, *, window: bool = True) -> None:
    p, rng = pen.palette, pen.rng
    pen.thing(0.98)
    wall = mix(p.wall, p.horizon, 0.12)
    lit = pen.light.lit if not pen.light.lamps else (0.80, 0.70, 0.62)
    wall = (wall[0] * lit[0], wall[1] * lit[1], wall[2] * lit[2])
    pen.box(
        -0.02,
        -0.02,
        1.02,
        1.02,
        times(wall, 1.05),
        to=times(wall, 0.72),
        way=(-pen.light.direction[0], 0.4),
        haze=0.0,
        grain=0.4,
    )
    if rng.random() < 0.35:  # wallpaper
        for k in range(9):
            x = (k + 0.5) / 9
            pen.line([(x, -0.02), (x, 1.0)], 0.014, times(wall, 0.88), haze=0.0, ink=0.0)
    if window:
        left = pen.light.direction[0] < 0
        x0 = float(rng.uniform(0.06, 0.14)) if left else float(rng.uniform(0.50, 0.58))
        _window(
            pen,
            view,
            x0,
            float(rng.uniform(0.06, 0.10)),
            x0 + float(rng.uniform(0.32, 0.37)),
            float(rng.uniform(0.46, 0.55)),
        )


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
    return Ground(y + 0.10, 0.93, shadow_on(pen, pen.palette.wood))


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
        pen.poly(
            [(a - 0.02, y), (a + 0.02, y), (b + 0.034, 1.02), (b - 0.034, 1.02)],
            colour,
            shade=0,
            ink=0.1,
            haze=0.0,
            flow=1.5,
        )
    for k in range(4):
        v = y + (1 - y) * (k / 4) ** 1.3
        pen.box(-0.02, v, 1.02, v + 0.02 + 0.012 * k, mix(colour, cloth, 0.25), shade=0, ink=0.1, haze=0.0)
    return Ground(y + 0.10, 0.93, shadow_on(pen, cloth))


@setting("window sill", "by a window", "on a window sill", "in front of a window", indoors=True)
def window_sill(pen: Pen, view: View) -> Ground:
    y = max(0.66, view.horizon)
    _room(pen, view, window=False)
    _window(pen, view, 0.12, 0.05, 0.88, y - 0.03)
    pen.thing(0.7)
    curtain = vary(mix(pen.palette.wall, (0.75, 0.3, 0.3), 0.4), pen.rng, 3)
    for side in (0.0, 1.0):
        d = 1 - 2 * side
        pen.blob(
            [
                (side - 0.05 * d, -0.05),
                (side + 0.16 * d, -0.05),
                (side + 0.17 * d, 0.2),
                (side + 0.07 * d, y - 0.1),
                (side - 0.05 * d, y),
            ],
            curtain,
            grain=0.7,
            flow=1.5,
            round=0.2,
        )
    _table(pen, y, mix(WHITE, pen.palette.wood, 0.35))
    return Ground(y + 0.08, 0.93, shadow_on(pen, WHITE))


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
            pen.box(
                x,
                y - t,
                x + w,
                y,
                vary(mix(pen.palette.wall, (0.5, 0.3, 0.3), float(rng.random())), rng, 4),
                shade=0.6,
                flow=1.57,
            )
        x += w
    pen.thing(0.4)
    pen.box(-0.02, y, 1.02, y + 0.075, wood, shade=0, grain=0.9)
    pen.box(-0.02, y + 0.075, 1.02, 1.02, times(wood, 0.45), to=times(pen.palette.wall, 0.55), ink=0.6, haze=0.0)
    return Ground(y + 0.012, y + 0.05, shadow_on(pen, wood))


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
    return Ground(0.88, 0.92, shadow_on(pen, rug))
