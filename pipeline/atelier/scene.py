"""A scene: a small description of what a picture shows, which every style renders.

`sample(seed, content_id)` is a pure function: the same two numbers give the same scene in every process and in every order
of calls. Nothing here draws; `compose` in atelier/compose.py does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pipeline.atelier import (  # noqa: F401 (these modules fill REGISTRY, in this order)
    subjects_animals,
    subjects_buildings,
    subjects_plants,
    subjects_things,
    subjects_vehicles,
    subjects_wings,
)
from pipeline.atelier.palette import Light, Palette, sample_light
from pipeline.atelier.settings import SETTINGS
from pipeline.atelier.subjects import REGISTRY

#: The share of contents whose split is "held_out".
HELD_OUT_FRACTION = 0.1

_NUMBERS = ("no", "one", "two", "three", "four", "five")

_WEATHERS = ("clear", "cloudy", "rain", "snow", "fog", "storm")

_WEATHER_ODDS = (0.34, 0.18, 0.14, 0.13, 0.10, 0.11)

_TIMES = ("dawn", "day", "dusk", "night")

_TIME_ODDS = (0.20, 0.38, 0.22, 0.20)

_NEVER_SNOW = ("desert", "beach")

_CALM = ("under water",)  # settings without weather

_SCALE = (1.0, 1.0, 0.80, 0.66, 0.58, 0.52)  # of each subject, by the number of subjects


@dataclass(frozen=True)
class Place:
    """The position and orientation of one of the subjects."""

    x: float  # 0..1 from the left
    nearness: float  # from 0 at the far end of the setting's strip to 1 at the near end
    height: float  # share of the picture
    flip: bool
    stretch: float
    lean: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows: attributes for captions and metadata, then composition, light and palette."""

    seed: int
    content_id: int
    subject: str
    colour: str
    number: int
    setting: str
    weather: str
    time_of_day: str
    caption: str
    horizon: float
    places: tuple[Place, ...]
    light: Light
    palette: Palette


def chance(seed: int, content_id: int, purpose: int) -> np.random.Generator:
    """The random generator of (seed, content, purpose); there is no global state."""
    return np.random.Generator(np.random.PCG64([seed, content_id & 0xFFFFFFFF, content_id >> 32, purpose]))


def split_of(content_id: int) -> str:
    """ "held_out" for a share HELD_OUT_FRACTION of contents, else "train".

    The split is a hash of only the content's number (SplitMix64, Steele et al. 2014), the same for every style and seed.
    """
    z = (content_id + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return "held_out" if (z ^ (z >> 31)) < HELD_OUT_FRACTION * 2**64 else "train"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options: tuple[str, ...], odds: tuple[float, ...]) -> str:
    u, total = float(rng.random()) * sum(odds), 0.0
    for option, odd in zip(options, odds, strict=True):
        total += odd
        if u < total:
            return option
    return options[-1]


def _places(rng: np.random.Generator, name: str, number: int) -> tuple[Place, ...]:
    subject = REGISTRY[name]
    height = subject.size * _SCALE[number] * float(rng.uniform(0.96, 1.20))
    room = 0.92 if number == 1 else 1.08 / number
    height = min(height, room / subject.width)
    half = height * subject.width / 2
    flip = bool(rng.random() < 0.5)
    # A group stands together: neighbours are at most one and a half widths apart
    span = min(0.94 - 1.8 * half, 3.0 * half * (number - 1))
    left = 0.5 - span / 2 + float(rng.uniform(-1, 1)) * max(0.0, 0.46 - 0.9 * half - span / 2)
    out = []
    for k in range(number):
        h = height * float(rng.uniform(0.90, 1.06))
        if number == 1:
            side = max(0.0, 0.5 - half - 0.04)
            x = 0.5 + float(rng.uniform(-1, 1)) * min(0.17, side)
        else:
            x = left + span * (k / (number - 1)) + float(rng.uniform(-0.025, 0.025))
        out.append(
            Place(
                x=x,
                nearness=float(rng.random()),
                height=h,
                flip=flip if rng.random() < 0.75 else not flip,
                stretch=float(rng.uniform(0.92, 1.09)),
                lean=float(rng.uniform(-0.04, 0.04)),
            )
        )
    return tuple(out)


def sample(seed: int, content_id: int) -> Scene:
    """The scene of a content: subject, attributes, caption, composition, light and palette."""
    rng = chance(seed, content_id, 1)
    names = tuple(REGISTRY)
    subject = REGISTRY[names[int(rng.integers(len(names)))]]
    colour = _pick(rng, subject.colours)
    number = 1 if subject.most == 1 or rng.random() < 0.6 else int(rng.integers(2, subject.most + 1))
    setting = _pick(rng, subject.settings)
    weather = _weighted(rng, _WEATHERS, _WEATHER_ODDS)
    time_of_day = _weighted(rng, _TIMES, _TIME_ODDS)
    if setting in _CALM or (weather == "snow" and setting in _NEVER_SNOW):
        weather = "clear"
    if subject.name == "snowman":
        weather = "snow"
    if setting in _CALM and time_of_day in ("dawn", "dusk"):
        time_of_day = "day"
    caption = _caption(rng, subject.name, colour, number, setting, weather, time_of_day)
    horizon = float(rng.uniform(0.50, 0.66))
    places = _places(rng, subject.name, number)
    light, palette = sample_light(rng, time_of_day, weather)
    return Scene(
        seed,
        content_id,
        subject.name,
        colour,
        number,
        setting,
        weather,
        time_of_day,
        caption,
        horizon,
        places,
        light,
        palette,
    )


# -- captions ----------------------------------------------------------------------------------------------------------

_WHEN = {
    "dawn": ("at dawn", "at sunrise", "in the early morning"),
    "day": ("", "on a clear day", "on a sunny day", "in bright sunshine"),
    "dusk": ("at dusk", "at sunset", "in the evening light"),
    "night": ("at night", "on a clear night", "by moonlight"),
}

_HOUR = {"dawn": "at dawn", "day": "", "dusk": "at dusk", "night": "at night"}

_SPELL = {"dawn": "morning", "day": "day", "dusk": "evening", "night": "night"}

_ADJECTIVE = {"cloudy": "cloudy", "rain": "rainy", "snow": "snowy", "fog": "foggy", "storm": "stormy"}

_IN = {
    "cloudy": "under a cloudy sky",
    "rain": "in the rain",
    "snow": "in the snow",
    "fog": "in the fog",
    "storm": "in a thunderstorm",
}

#: For each value of these attributes, words of which a caption has at least one. A clear day may be omitted.
CAPTION_WORDS: dict[str, tuple[str, ...]] = {
    "dawn": ("dawn", "sunrise", "morning"),
    "dusk": ("dusk", "sunset", "evening"),
    "night": ("night", "moonlight"),
    "cloudy": ("cloudy",),
    "rain": ("rain",),
    "snow": ("snow",),
    "fog": ("fog",),
    "storm": ("storm",),
}


def number_word(number: int) -> str:
    """one .. five."""
    return _NUMBERS[number]


def _caption(
    rng: np.random.Generator, name: str, colour: str, number: int, setting: str, weather: str, time_of_day: str
) -> str:
    subject, place = REGISTRY[name], SETTINGS[setting]
    if number == 1:
        noun = re.sub(r"\ba (?=[aeiou])", "an ", "a " + subject.noun.format(c=colour))
    else:
        noun = f"{number_word(number)} {subject.plural.format(c=colour)}"
    where = _pick(rng, place.phrases)
    if setting in _CALM:
        when = _HOUR[time_of_day]
    elif weather == "clear":
        when = _pick(rng, _WHEN[time_of_day])
    elif place.indoors or rng.random() < 0.5:
        when = f"on a {_ADJECTIVE[weather]} {_SPELL[time_of_day]}"
    else:
        when = f"{_HOUR[time_of_day]} {_IN[weather]}".strip()
    if when and rng.random() < 0.2:
        return f"{when}, {noun} {where}"
    return f"{noun} {where} {when}".strip()
