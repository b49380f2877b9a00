"""What can be in a picture: the registry of subjects.

A subject is one short function that draws with a `Pen` in its own frame: x right, y *up*, standing on y = 0,
    one unit tall,
`width` wide around x = 0. `pen.main` is the colour that the caption names; it should be most of what one sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.atelier import settings_indoors, settings_land, settings_water
from pipeline.atelier.pen import Pen
from pipeline.atelier.settings import SETTINGS

__all__ = ["REGISTRY", "TABLE", "Subject", "settings_indoors", "settings_land", "settings_water", "subject"]


@dataclass(frozen=True)
class Subject:
    name: str
    genre: str
    noun: str  # singular, with {c} for the colour
    plural: str
    colours: tuple[str, ...]
    settings: tuple[str, ...]
    most: int  # largest number of them in a picture
    width: float  # in its own heights
    size: float  # height in the picture when alone, before chance
    lift: float  # how far above its place it floats, in its own heights
    draw: Callable[[Pen], None]


REGISTRY: dict[str, Subject] = {}

TABLE = "wooden table, tablecloth, window sill, shelf"


def subject(
    name: str,
    genre: str,
    colours: str,
    settings: str,
    *,
    width: float,
    size: float = 0.62,
    most: int = 3,
    lift: float = 0.0,
    noun: str = "",
    plural: str = "",
) -> Callable[[Callable[[Pen], None]], Callable[[Pen], None]]:
    """Register a subject. `colours` and `settings` are comma-separated names; `noun` and `plural` say it in a caption,
    with {c} where the colour goes ("woman in a {c} dress")."""
    noun = noun or "{c} " + name
    plural = plural or noun + "s"
    places = tuple(s.strip() for s in settings.split(","))
    unknown = [s for s in places if s not in SETTINGS]
    if unknown or name in REGISTRY:
        raise ValueError(f"subject {name!r}: " + (f"unknown settings {unknown}" if unknown else "registered twice"))

    def register(draw: Callable[[Pen], None]) -> Callable[[Pen], None]:
        REGISTRY[name] = Subject(
            name,
            genre,
            noun,
            plural,
            tuple(c.strip() for c in colours.split(",")),
            places,
            most,
            width,
            size,
            lift,
            draw,
        )
        return draw

    return register
