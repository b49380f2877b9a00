"""The results of an evaluation as records, and summary.json, which holds them under plain words.

`to_json` turns a record into JSON: the key is the field's name in words (`by_style` -> "by style"), unless the field
names another. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from pipeline.evaluation.config import EvaluateConfig
    from pipeline.evaluation.statistics import Estimate

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

T = TypeVar("T")


def _called(name: str) -> dict[str, str]:
    return {"json": name}


_OMITTED = {"omit": "where it is None"}


def to_json(value: object) -> Json:
    """A record, and mappings and sequences of records, as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value)
    if isinstance(value, Mapping):
        return {str(name): to_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    assert value is None or isinstance(value, bool | int | float | str), f"no JSON: {type(value).__name__}"
    return value


def _record(record: DataclassInstance) -> dict[str, Json]:
    made: dict[str, Json] = {}
    for one in fields(record):
        value = getattr(record, one.name)
        if "plain" in one.metadata:
            value = value.to_dict()
        if "flat" in one.metadata:
            part = to_json(value)
            assert isinstance(part, dict)
            made |= part
        elif value is not None or "omit" not in one.metadata:
            made[one.metadata.get("json", one.name.replace("_", " "))] = to_json(value)
    return made


# ---- pictures


@dataclass(frozen=True)
class Score:
    """One wanted picture with the judges' results: a row of pictures.parquet.

    style_hit, style_probability    for the wanted style; None if there is none
    rank                            of the right caption among the candidates, from 1; `found`: first, `nearly`: among TOP
    nearest*                        the nearest real picture, and its distance
    """

    phase: str
    condition: str
    level: str
    style: str
    caption: str
    content: str
    prompt: str
    database: str
    where: str
    k: int
    guidance: float
    seed: int
    key: str
    file: str
    neighbours: list[int]
    neighbour_pictures: list[str]
    guess: str
    style_hit: float | None
    style_probability: float | None
    rank: int
    found: float
    nearly: float
    nearest: int
    nearest_picture: str
    nearest_distance: float


# ---- measures


@dataclass(frozen=True)
class Measured:
    """Shares of pictures with their intervals. style_hit: None if not every picture has a wanted style."""

    style_hit: Estimate | None = field(metadata=_called("style_hit") | _OMITTED)
    found: Estimate
    nearly: Estimate

    def named(self) -> dict[str, Estimate]:
        """The measures that are not None, by name."""
        found = {"style_hit": self.style_hit, "found": self.found, "nearly": self.nearly}
        return {name: one for name, one in found.items() if one is not None}


@dataclass(frozen=True)
class StyleReference:
    """The style judge on real pictures of contents that it never saw: accuracy with Wilson's interval, and confusion."""

    accuracy: float
    low: float
    high: float
    pictures: int
    styles: tuple[str, ...]
    confusion: list[list[int]]  # rows: truth, columns: judged
    by_style: Mapping[str, float]


@dataclass(frozen=True)
class References:
    """The judges' results on pictures that are not generated."""

    style: StyleReference
    references: Mapping[str, Measured]


@dataclass(frozen=True)
class GridPoint:
    """A setting on the validation captions."""

    k: int
    guidance: float
    score: float
    pictures: int
    style: float
    found: float


@dataclass(frozen=True)
class Grid:
    """A condition's chosen setting, and all settings that were tried."""

    k: int
    guidance: float
    grid: tuple[GridPoint, ...]


@dataclass(frozen=True)
class Unstyled:
    """Databases without a style of the judge's: content, and the styles that the judge names."""

    measured: Mapping[str, Measured]
    guesses: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class SwapAnswer:
    """Is the picture in the style whose database was swapped in, and does it show the requested content?"""

    all: Measured | None
    seen_styles: Measured | None
    styles_never_seen: Measured | None
    content_absent: Measured | None
    by_style: Mapping[str, Measured]
    confusion: list[list[int]]  # rows: the style swapped in, columns: judged
    without_a_style: Unstyled


@dataclass(frozen=True)
class LevelAnswer:
    """Swap and the other conditions at one level of the style in the general database; differences are paired."""

    conditions: Mapping[str, Measured]
    by_style: Mapping[str, Mapping[str, Measured]]
    swap_minus: Mapping[str, Measured]


@dataclass(frozen=True)
class SeparateAnswer:
    """A filter over the mixed database against a database of only the style."""

    measured: Mapping[str, Measured] = field(metadata={"flat": "yes"})
    same_neighbours: float
    pairs: int


@dataclass(frozen=True)
class SweepAnswer:
    """One number changed at a time: measures by its value."""

    neighbours: Mapping[str, Measured]
    guidance: Mapping[str, Measured]
    size: Mapping[str, Measured]
    separate: SeparateAnswer | None = field(default=None, metadata=_OMITTED)


@dataclass(frozen=True)
class Retrieved:
    """The judges' results on the first real picture of each search, which is the score of a copy of it."""

    measured: Measured = field(metadata={"flat": "yes"})
    right: Estimate | None = field(metadata=_called("is the content asked for"))


@dataclass(frozen=True)
class Distance:
    """Kernel distances (KID) on one judge's features, to a style's real pictures."""

    kid: float
    same_contents: float | None = field(metadata=_called("real pictures of the same contents"))
    nearest_other_style: float | None


@dataclass(frozen=True)
class StyleDistances:
    """A style's pictures as a set."""

    style_judge: Distance
    content_judge: Distance
    diversity: float
    diversity_of_real_pictures: float

    def judges(self) -> dict[str, Distance]:
        return {"style judge": self.style_judge, "content judge": self.content_judge}


@dataclass(frozen=True)
class Copies:
    """Whether pictures are copies: distances to the nearest real picture, and those of real pictures to the nearest other.

    A generated picture counts as near if its distance is smaller than 95 % of the distances between real pictures.
    """

    pictures: int
    median_distance: float
    nearest_is_one_of_its_neighbours: float
    nearest_is_its_first_neighbour: float
    median_distance_of_real_pictures: float | None = field(default=None, metadata=_OMITTED)
    near_means_below: float | None = field(default=None, metadata=_OMITTED)
    share_that_is_near: float | None = field(default=None, metadata=_OMITTED)


# ---- the whole


@dataclass(frozen=True)
class ModelName:
    """The weights that were evaluated."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Setup:
    """The protocol as it is written before the first picture: the config, the versions and the captions."""

    config: EvaluateConfig = field(metadata={"plain": "its own field names"})
    databases: Mapping[str, str]  # versions
    model: ModelName
    styles: tuple[str, ...]
    real_pictures: int
    validation_captions: tuple[str, ...]
    test_captions: tuple[str, ...]
    contents_there: bool = field(metadata=_called("captions' contents are in the database"))


@dataclass(frozen=True)
class Cost:
    """The number of pictures of the evaluation, and the seconds of the last call's parts."""

    different_pictures: int
    rows: int
    seconds_now: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """Every number of an evaluation: summary.json."""

    setup: Setup
    judges: References
    tuning: Mapping[str, Grid]
    swap: SwapAnswer
    postfix: Mapping[str, LevelAnswer]
    sweeps: SweepAnswer
    retrieved: Retrieved | None
    distances: Mapping[str, StyleDistances]
    diversity_over_seeds: float | None
    copies: Copies
    cost: Cost

    def to_json(self) -> dict[str, Json]:
        """summary.json."""
        return _record(self)


def mapped(found: Mapping[str, T | None]) -> dict[str, T]:
    """The entries that are not None."""
    return {name: one for name, one in found.items() if one is not None}


def by_value(rows: Sequence[Score], column: str) -> list[str]:
    """The distinct values of a text column, in order of first appearance."""
    return list(dict.fromkeys(str(getattr(row, column)) for row in rows))
