"""The registry of subjects.

A subject is one short function that draws with a `Pen` in its own frame: x to the right, y *up*, standing on y = 0, one
unit tall and `width` wide around x = 0. `pen.main` is the colour that the caption names; it should cover most of the subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

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
    most: int  # the largest number of them in a picture
    width: float  # relative to its height
    size: float  # its height as a share of the picture when it is alone, before random variation
    lift: float  # how far it floats above its position, relative to its height
    draw: Callable[[Pen], None]


REGISTRY: dict[str, Subject] = {}

TABLE = "wooden table, tablecloth, window sill, shelf"


class Traits(TypedDict):
    """The optional arguments of `subject`; see the fields of `Subject`.

    `noun` and `plural` name it in a caption, with {c} in place of the colour ("woman in a {c} dress").
    """

    width: float
    size: NotRequired[float]
    most: NotRequired[int]
    lift: NotRequired[float]
    noun: NotRequired[str]
    plural: NotRequired[str]


def subject(
    name: str, genre: str, colours: str, settings: str, **traits: Unpack[Traits]
) -> Callable[[Callable[[Pen], None]], Callable[[Pen], None]]:
    """Register a subject. `colours` and `settings` are names separated by commas.

    Raises ValueError for a name that is taken or a setting that is not registered.
    """
    noun = traits.get("noun") or "{c} " + name
    plural = traits.get("plural") or noun + "s"
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
            traits.get("most", 3),
            traits["width"],
            traits.get("size", 0.62),
            traits.get("lift", 0.0),
            draw,
        )
        return draw

    return register
