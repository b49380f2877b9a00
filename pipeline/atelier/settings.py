"""The registry of settings: each draws the background of the subject and defines where subjects stand.

A setting is one short function `(pen, view) -> Ground`, registered with `@setting`. It draws in the frame of the picture
(x to the right, y down, 0..1), calls `sky` for its sky, and returns the strip on which subjects stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.atelier.palette import Colour
from pipeline.atelier.pen import Pen


@dataclass(frozen=True)
class View:
    """The part of a scene that a setting reads."""

    weather: str
    time_of_day: str
    horizon: float  # height of the horizon, from 0 (top) to 1 (bottom)


@dataclass(frozen=True)
class Ground:
    """The strip on which subjects stand.

    `far` and `near` are heights in the picture. `shadow` is the colour of a cast shadow, None if nothing casts one (on
    water, in the air). `water` is the colour of the water in which a subject floats.
    """

    far: float
    near: float
    shadow: Colour | None
    water: Colour | None = None


@dataclass(frozen=True)
class Setting:
    name: str
    phrases: tuple[str, ...]  # its names in captions
    indoors: bool
    draw: Callable[[Pen, View], Ground]


SETTINGS: dict[str, Setting] = {}

Draw = Callable[[Pen, View], Ground]


def setting(name: str, *phrases: str, indoors: bool = False) -> Callable[[Draw], Draw]:
    """Register a setting under `name`; captions name it with one of `phrases`."""

    def register(draw: Draw) -> Draw:
        SETTINGS[name] = Setting(name, phrases, indoors, draw)
        return draw

    return register
