"""Where a scene takes place: each setting draws what is behind the subject and says where subjects stand.

A setting is one short function `(pen, scene) -> Ground`,
    registered with `@setting`. It draws in the frame of the picture
(x right, y down, 0..1), calls `sky` for its sky, and returns the strip on which subjects stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.atelier.palette import Colour
from pipeline.atelier.pen import Pen


@dataclass(frozen=True)
class View:
    """What a setting needs to know of its scene."""

    weather: str
    time_of_day: str
    horizon: float  # height of the horizon, 0 top .. 1 bottom


@dataclass(frozen=True)
class Ground:
    """The strip that subjects stand on: `far` and `near` are heights in the picture; `shadow` the colour of a cast
    shadow, None where nothing casts one (water,
        air); `water` the colour of water that a subject floats in."""

    far: float
    near: float
    shadow: Colour | None
    water: Colour | None = None


@dataclass(frozen=True)
class Setting:
    name: str
    phrases: tuple[str, ...]  # as a caption says it
    indoors: bool
    draw: Callable[[Pen, View], Ground]


SETTINGS: dict[str, Setting] = {}

Draw = Callable[[Pen, View], Ground]


def setting(name: str, *phrases: str, indoors: bool = False) -> Callable[[Draw], Draw]:
    """Register a setting under `name`; `phrases` are the ways in which captions say it."""

    def register(draw: Draw) -> Draw:
        SETTINGS[name] = Setting(name, phrases, indoors, draw)
        return draw

    return register
