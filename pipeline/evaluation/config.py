"""The protocol of an evaluation: one strict TOML file that is written down before the first picture is made.

Reads: the job's TOML. Writes nothing. Everything that a person could choose after seeing results is a key here, and the run
keeps a copy that a resumed run has to agree with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.config import from_mapping, read_toml
from pipeline.errors import ConfigError
from pipeline.training import Steps

LEVELS = ("common", "rare", "unseen")


@dataclass(frozen=True)
class Build:
    """A database that is built first where it is needed and not published yet: what `rdmpipe build-index` takes.

    A target that is a file's name is looked for beside the job.
    """

    target: str
    name: str = ""
    encoder: str = ""
    images: str = ""
    preprocess: str = ""
    where: str = ""
    limit: int = 0
    base_url: str = ""

    @property
    def database(self) -> str:
        """The name of the database that it builds, as far as the entry says it."""
        return self.name or Path(self.target).stem


@dataclass(frozen=True)
class Prompts:
    """Which captions are asked for.

    file         a prompt list to use in place of the database's held-out captions
    test         captions that results are reported for; validation: others, for choosing k and guidance
    held_out     share of the contents held out in training (pipeline/training/data.py's rule, which gives the same ones)
    candidates   captions among which the content network has to find the right one
    """

    file: str = ""
    test: int = 100
    validation: int = 10
    held_out: float = 0.1
    candidates: int = 100


@dataclass(frozen=True)
class PictureSettings:
    """How every picture is made. `batch` pictures at a time; 0: by device."""

    sampler: str = "dpmpp_2m"
    steps: int = 12
    batch: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"


@dataclass(frozen=True)
class Tuning:
    """Grids that are searched on the validation captions for each condition; each caption in `styles` of the styles."""

    k: tuple[int, ...] = (1, 4, 8, 19)
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
    styles: int = 3


@dataclass(frozen=True)
class Postfix:
    """Swap against "in the style of ...": captions, styles (empty: `count` of them, spread), what the general database holds.

    common: the general database as it is; rare: the style thinned to `rare_share`; unseen: the style left out. Only the
    labelled database can be thinned; another general database is used as it is.
    """

    captions: int = 40
    styles: tuple[str, ...] = ()
    count: int = 3
    levels: tuple[str, ...] = LEVELS
    rare_share: float = 0.01


@dataclass(frozen=True)
class Sweep:
    """One number changed at a time, on `captions` test captions in `styles` of the styles each."""

    captions: int = 12
    styles: int = 4
    k: tuple[int, ...] = (0, 1, 2, 4, 8, 19)
    guidance: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    shares: tuple[float, ...] = (0.02, 0.1, 0.3, 1.0)  # of the style's database
    separate: tuple[str, ...] = ()  # styles, of those there are, that are also built as a database of their own


@dataclass(frozen=True)
class Judge:
    """A judge's network. `backbone`: a torchvision model in place of the small network; `pretrained`: with its weights."""

    train: Steps
    width: int = 32
    backbone: str = ""
    pretrained: bool = False


@dataclass(frozen=True)
class Compared:
    """A model of a comparison. What is empty is the protocol's: databases, sampler, steps, and the tuning's grids.

    A model that takes another encoder's vectors finds those that `rdmpipe embed NAME --encoder ...` added to a database.
    """

    model: str
    database: str = ""
    general: str = ""
    content_database: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    sampler: str = ""
    steps: int = 0
    k: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()


def _style_judge() -> Judge:
    return Judge(Steps(steps=1100, batch=96, learning_rate=2e-3, warmup=30, decay=0.5, ema=0.98, seed=11))


def _content_judge() -> Judge:
    return Judge(Steps(steps=800, batch=80, learning_rate=2e-3, warmup=50, decay=0.5, ema=0.98, seed=12))


# Settings of a training that are younger than the first protocols: they are written down only where they say something, so that
# protocols and folders that exist keep their hashes.
_LATER = {"accumulate": 1}


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    database         labelled: real pictures with a style, captions unless `content_database` or prompts.file has them
    general          the database that the model was trained with; empty: the labelled one, all styles mixed
    sources          style -> database to swap in; a style that is not named is a filter over the labelled database
    others           databases swapped in that carry no style of the classifier's: content and diversity only
    content          columns that name a content; the first one that the database has; none: every picture its own
    never_seen       styles that neither encoder nor model was trained with
    encoder_captions how often the encoder's training captions name the style: words for the report
    size             pixels a side at which pictures are judged
    compare          models to evaluate one after the other by this protocol; `model` is left aside then
    """

    database: str = "atelier"
    model: str = "rdm-mini"
    general: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    style: str = "style"
    caption: str = "caption"
    content: tuple[str, ...] = ("content_id", "base_hexcode")
    tags: str = "tags"
    content_database: str = ""
    never_seen: tuple[str, ...] = ()
    encoder_captions: str = "not stated"
    any_encoder: bool = False
    size: int = 64
    most_pictures: int = 20_000  # real pictures read of each database, by chance where it has more
    build: tuple[Build, ...] = ()
    prompts: Prompts = field(default_factory=Prompts)
    sampling: PictureSettings = field(default_factory=PictureSettings)
    tuning: Tuning = field(default_factory=Tuning)
    postfix: Postfix = field(default_factory=Postfix)
    sweep: Sweep = field(default_factory=Sweep)
    style_judge: Judge = field(default_factory=_style_judge)
    content_judge: Judge = field(default_factory=_content_judge)
    compare: tuple[Compared, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The protocol as it is written down and hashed; `compare` is there only where it says something."""
        table = asdict(self)
        if not self.compare:
            del table["compare"]
        for judge in ("style_judge", "content_judge"):
            table[judge]["train"] = {
                name: value for name, value in table[judge]["train"].items() if _LATER.get(name) != value
            }
        return table

    def databases(self) -> list[str]:
        """Every database that is read, once."""
        named = (self.database, self.general, *self.sources.values(), *self.others, self.content_database)
        return [name for name in dict.fromkeys(named) if name]

    def of(self, one: Compared) -> EvaluateConfig:
        """The protocol for one model of the comparison."""
        return replace(
            self,
            model=one.model,
            database=one.database or self.database,
            general=one.general or self.general,
            content_database=one.content_database or self.content_database,
            sources=one.sources or self.sources,
            sampling=replace(
                self.sampling, sampler=one.sampler or self.sampling.sampler, steps=one.steps or self.sampling.steps
            ),
            tuning=replace(self.tuning, k=one.k or self.tuning.k, guidance=one.guidance or self.tuning.guidance),
            compare=(),
        )

    def __post_init__(self) -> None:
        for level in self.postfix.levels:
            if level not in LEVELS:
                raise ConfigError(f"[postfix] levels: {level!r} is not one of {', '.join(LEVELS)}")
        if not 0 < self.postfix.rare_share < 1 or any(not 0 < share <= 1 for share in self.sweep.shares):
            raise ConfigError("[postfix] rare_share and [sweep] shares are shares of a database, above 0 and up to 1")
        if (
            not self.sampling.seeds
            or self.prompts.test < 2
            or self.prompts.validation < 1
            or self.prompts.candidates < 2
        ):
            raise ConfigError(
                "an evaluation needs a seed, 2 test captions, 1 validation caption and 2 candidates, or more"
            )
        names = [one.model for one in self.compare]
        if len(set(names)) < len(names):
            raise ConfigError(f"[[compare]] names a model twice: {', '.join(names)}; name each once")
        if self.content_judge.backbone:
            raise ConfigError("[content_judge] takes no `backbone`: remove that line")


def read_evaluate_config(path: Path) -> EvaluateConfig:
    """The protocol that a TOML file describes; files that it names are looked for beside it. Raises ConfigError."""
    config = from_mapping(EvaluateConfig, read_toml(path), path.name)

    def beside(name: str) -> str:
        return str(path.parent / name) if name and (path.parent / name).is_file() else name

    build = tuple(replace(entry, target=beside(entry.target)) for entry in config.build)
    return replace(config, build=build, prompts=replace(config.prompts, file=beside(config.prompts.file)))
