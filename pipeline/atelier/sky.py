"""Skies and weather: the background behind the land, and the rain or snow in front of it.

Draws with a `Pen` in the frame of the picture (x right, y down, 0..1).
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.atelier.palette import LAMP, WHITE, Colour, mix, times
from pipeline.atelier.pen import Pen


def ridge(
    rng: np.random.Generator, y: float, height: float, rough: float = 1.0, n: int = 26
) -> list[tuple[float, float]]:
    """A line of hills from left to right around `y`: points from (-0.02, ..) to (1.02, ..)."""
    x = np.linspace(-0.02, 1.02, n)
    line = np.zeros(n)
    for octave in range(1, 5):
        line += np.sin(x * octave * rng.uniform(2.0, 5.0) + rng.uniform(0, 6.3)) * rough ** (octave - 1) / octave
    line = y - height * (line - line.min()) / (np.ptp(line) + 1e-6)
    return list(zip(x.tolist(), line.tolist(), strict=True))


def land(
    pen: Pen, line: list[tuple[float, float]], colour: Colour, to: Colour | None = None, *, grain: float = 0.5
) -> None:
    """Fill from a line down to the bottom of the picture; `to` is the colour in the foreground."""
    pts = [*line, (1.02, 1.02), (-0.02, 1.02)]
    lit = pen.light.lit
    far = (colour[0] * lit[0], colour[1] * lit[1], colour[2] * lit[2])
    end = times(colour, 0.72) if to is None else to
    near = (end[0] * lit[0], end[1] * lit[1], end[2] * lit[2])
    slope = math.atan2(line[-1][1] - line[0][1], 1.0)
    pen.poly(pts, far, to=near, grain=grain, flow=slope)


def sky(pen: Pen, horizon: float, weather: str, time_of_day: str) -> None:
    """The sky down to `horizon`, with the sun or moon, stars and clouds of the hour and the weather."""
    p, rng = pen.palette, pen.rng
    pen.thing(1.0)
    pen.box(-0.02, -0.02, 1.02, horizon + 0.06, p.sky, to=p.horizon, haze=0.0, ink=0.0, grain=0.12)
    if time_of_day == "night" and weather in ("clear", "cloudy"):
        n = 46 if weather == "clear" else 12
        spots = rng.random((n, 2)) * (1.0, horizon * 0.9)
        pen.dots(spots[: n // 3], 0.0065, (1.0, 0.98, 0.86), glow=True, ink=0.0)
        pen.dots(spots[n // 3 :], 0.0038, (0.86, 0.90, 1.0), glow=True, ink=0.0)
    if weather in ("clear", "cloudy", "fog", "snow"):
        _sun(pen, min(horizon * 0.8, pen.light.sun[1]), weather, time_of_day)
    if weather == "storm" and rng.random() < 0.85:
        _lightning(pen, horizon)
    _clouds(pen, horizon, weather)
    if time_of_day != "night" and weather in ("clear", "cloudy") and rng.random() < 0.5:
        _birds(pen, horizon)


def _sun(pen: Pen, y: float, weather: str, time_of_day: str) -> None:
    p, rng, x = pen.palette, pen.rng, pen.light.sun[0]
    pen.thing(0.99)
    radius = float(rng.uniform(0.045, 0.07)) * (1.25 if time_of_day in ("dawn", "dusk") else 1.0)
    behind = mix(p.sky, p.horizon, min(1.0, y * 2.0))
    strength = 0.30 if weather == "clear" else 0.15
    halos = ((2.3, strength * 0.45), (1.6, strength)) if weather in ("clear", "fog") else ((1.5, strength),)
    for reach, amount in halos:
        pen.oval(
            x,
            y,
            radius * reach,
            radius * reach,
            mix(behind, p.sun, amount),
            shade=0,
            round=0,
            glow=True,
            halo=True,
            ink=0.0,
        )
    disc = p.sun if weather == "clear" else mix(p.sun, behind, 0.4 if weather == "cloudy" else 0.65)
    pen.oval(x, y, radius, radius, disc, shade=0, round=0, glow=True, ink=0.5, grain=0.05)
    if time_of_day == "night" and rng.random() < 0.5:
        pen.oval(
            x + radius * 0.45,
            y - radius * 0.1,
            radius * 0.85,
            radius * 0.9,
            mix(behind, p.sun, 0.2),
            shade=0,
            round=0,
            glow=True,
            ink=0.0,
        )


def _clouds(pen: Pen, horizon: float, weather: str) -> None:
    p, rng = pen.palette, pen.rng
    low, high = {"clear": (0, 4), "cloudy": (5, 8), "rain": (5, 7), "snow": (3, 5), "fog": (0, 2), "storm": (6, 9)}[
        weather
    ]
    base = times(p.cloud, 0.7) if weather == "storm" else p.cloud
    for _ in range(int(rng.integers(low, high))):
        pen.thing(0.95)
        x, y = float(rng.uniform(-0.05, 1.05)), float(rng.uniform(0.05, max(0.1, horizon * 0.75)))
        size = float(rng.uniform(0.10, 0.22)) * (1.3 if weather in ("storm", "rain", "cloudy") else 1.0)
        if rng.random() < 0.3:  # a streak
            pen.oval(x, y, size * 1.5, size * 0.13, mix(base, p.sky, 0.25), shade=0.5, ink=0.25, round=0.2, haze=0.0)
            continue
        # Puffs along an arc over a flat base, with one outline for all of them
        n = int(rng.integers(4, 7))
        top = []
        for k in range(n):
            a = math.pi * (1 - k / (n - 1))
            bulge = float(rng.uniform(0.75, 1.2))
            top.append((x + size * math.cos(a), y - size * 0.42 * math.sin(a) * bulge - size * 0.06))
            if k < n - 1:
                b = math.pi * (1 - (k + 0.5) / (n - 1))
                top.append((x + size * 0.86 * math.cos(b), y - size * 0.30 * math.sin(b)))
        body = [*top, (x + size * 1.05, y + size * 0.04), (x - size * 1.05, y + size * 0.04)]
        pen.blob(body, base, to=mix(base, mix(p.sky, p.horizon, 0.4), 0.62), ink=0.35, haze=0.0, grain=0.1)


def _birds(pen: Pen, horizon: float) -> None:
    rng = pen.rng
    x, y = float(rng.uniform(0.1, 0.8)), float(rng.uniform(0.08, horizon * 0.6))
    dark = mix((0.15, 0.15, 0.2), pen.palette.horizon, 0.25)
    for _ in range(int(rng.integers(2, 5))):
        bx, by = x + float(rng.uniform(-0.1, 0.12)), y + float(rng.uniform(-0.05, 0.05))
        s = float(rng.uniform(0.012, 0.02))
        wing = [
            (bx - s, by - s * 0.5),
            (bx - s * 0.4, by - s * 0.6),
            (bx, by),
            (bx + s * 0.4, by - s * 0.6),
            (bx + s, by - s * 0.5),
        ]
        pen.line(wing, 0.006, dark, ink=0.0)


def _lightning(pen: Pen, horizon: float) -> None:
    rng = pen.rng
    x = float(rng.uniform(0.1, 0.9))
    path = [(x, 0.0)]
    for k in range(1, 6):
        path.append((path[-1][0] + float(rng.uniform(-0.07, 0.07)), horizon * k / 5))
    pen.line(path, 0.022, mix(pen.palette.sky, (0.9, 0.88, 1.0), 0.4), glow=True, ink=0.0)
    pen.line(path, 0.009, (1.0, 0.98, 0.90), glow=True, ink=0.0)


def falling(pen: Pen, weather: str) -> None:
    """Rain or snow in front of everything."""
    rng = pen.rng
    if weather in ("rain", "storm"):
        pen.thing(0.0)
        slant = float(rng.uniform(-0.35, 0.35))
        colour = mix(pen.palette.horizon, WHITE, 0.35)
        tops = rng.random((30 if weather == "rain" else 22, 2)) * 1.1 - 0.08
        lengths = rng.uniform(0.05, 0.11, len(tops))
        for (x, y), d in zip(tops.tolist(), lengths.tolist(), strict=True):
            pen.line([(x, y), (x + d * slant, y + d)], 0.004, colour, haze=0.0, ink=0.0, grain=0.0, glow=True)
    elif weather == "snow":
        pen.thing(0.0)
        bright = (0.97, 0.98, 1.0) if not pen.light.lamps else (0.86, 0.89, 0.97)
        flakes = rng.random((46, 2))
        pen.dots(flakes[:12], 0.0105, bright, glow=True, ink=0.0)
        pen.dots(flakes[12:], 0.0065, bright, glow=True, ink=0.0)


def lamp_or_dark(pen: Pen, dark: Colour = (0.20, 0.24, 0.32)) -> tuple[Colour, bool]:
    """A window seen from outside: its colour, and whether it glows."""
    return (LAMP, True) if pen.light.lamps else (dark, False)
