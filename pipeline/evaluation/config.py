"""The protocol of an evaluation: one strict TOML file that is fixed before the first picture is made.

Reads: the job's TOML. Writes nothing. Every choice that could be made after seeing results is a key here. The run
stores a copy, and a resumed run must have the same protocol.
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
    """A database that is built first if it is needed and not published yet, with the settings of `rdmpipe build-index`.

    target       a data set's name, or a manifest; a file's name is relative to the job
    name         name of the database; empty: the target's
    encoder, images, preprocess, where, limit, base_url    as the option of `rdmpipe build-index`
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
        """The name of the database that it builds, if the entry determines it."""
        return self.name or Path(self.target).stem


@dataclass(frozen=True)
class Prompts:
    """The captions of the evaluation.

    file         a prompt list to use in place of the database's held-out captions
    test         number of captions for the results
    validation   number of other captions, for choosing k and guidance
    held_out     share of the contents held out in training (the rule of pipeline/training/data.py gives the same ones)
    candidates   number of captions among which the content judge has to find the right one
    """

    file: str = ""
    test: int = 100
    validation: int = 10
    held_out: float = 0.1
    candidates: int = 100


@dataclass(frozen=True)
class PictureSettings:
    """The sampling of every picture.

    sampler, steps, precision    as the option of `rdmpipe generate`
    batch        pictures at a time; 0: chosen by device
    seeds        one picture is made with each seed
    """

    sampler: str = "dpmpp_2m"
    steps: int = 12
    batch: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"


@dataclass(frozen=True)
class Tuning:
    """Grids that are searched on the validation captions for each condition.

    k            numbers of neighbours to try
    guidance     guidance scales to try
    styles       number of styles for each caption
    """

    k: tuple[int, ...] = (1, 4, 8, 19)
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
    styles: int = 3


@dataclass(frozen=True)
class Postfix:
    """The comparison of swap and "in the style of ...".

    captions     number of test captions
    styles       styles to compare; empty: `count` of them, evenly chosen
    count        number of styles, if `styles` is empty
    levels       common: the general database unchanged; rare: the style reduced to `rare_share`; unseen: the style left out.
                 Only the labelled database can be reduced; another general database is used unchanged
    rare_share   share of the style's rows at the level `rare`
    """

    captions: int = 40
    styles: tuple[str, ...] = ()
    count: int = 3
    levels: tuple[str, ...] = LEVELS
    rare_share: float = 0.01


@dataclass(frozen=True)
class Sweep:
    """Sweeps, which change one number at a time.

    captions     number of test captions
    styles       number of styles for each caption
    k            numbers of neighbours
    guidance     guidance scales
    shares       shares of the style's database
    separate     styles that are also built as a separate database, if they exist
    """

    captions: int = 12
    styles: int = 4
    k: tuple[int, ...] = (0, 1, 2, 4, 8, 19)
    guidance: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    shares: tuple[float, ...] = (0.02, 0.1, 0.3, 1.0)
    separate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judge:
    """A judge's network.

    width        channels of the first stage of the small network
    backbone     a torchvision model in place of the small network
    pretrained   use the published weights of `backbone`
    """

    train: Steps
    width: int = 32
    backbone: str = ""
    pretrained: bool = False


@dataclass(frozen=True)
class Compared:
    """A model of a comparison. For empty keys (databases, sampler, steps, the tuning's grids), the protocol's values apply.

    A model that takes another encoder's vectors uses those that `rdmpipe embed NAME --encoder ...` added to a database.

    model        the model, by name or folder
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


# Training settings that are newer than the first protocols. They are written only if they differ from the default, so that
# existing protocols and folders keep their hashes.
_LATER = {"accumulate": 1}


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation.

    database         the labelled database: real pictures with a style, and captions unless `content_database` or
                     prompts.file has them
    model            the model to evaluate, by name or folder
    general          the database with which the model was trained; empty: the labelled one with all its styles
    sources          style -> database to swap in; a style that is not named is a filter over the labelled database
    others           databases to swap in without a style of the classifier's: only content and diversity are measured
    styles           styles to evaluate; empty: all
    style            column with the style
    caption          column with the caption
    tags             column with the tags
    content          columns that name a content; the first that the database has is used; without one, each picture is a
                     separate content
    content_database  a database with captions for the content judge; empty: the labelled one
    never_seen       styles with which neither encoder nor model was trained
    encoder_captions  how often the encoder's training captions name the style: words for the report
    any_encoder      accept a database whose encoder has another name than the model's
    size             pixels a side of the pictures for the judges
    build            databases to build first
    compare          models to evaluate in turn by this protocol, in place of `model`
    """

    database: str = "atelier"
    model: str = "rdm-mini-2"
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
    most_pictures: int = 20_000  # real pictures read from each database, a random sample if it has more
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
        """The protocol for the file and its hash; `compare` is only present if it is not empty."""
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
    """The protocol that a TOML file describes; its file names are relative to it. Raises ConfigError."""
    config = from_mapping(EvaluateConfig, read_toml(path), path.name)

    def beside(name: str) -> str:
        return str(path.parent / name) if name and (path.parent / name).is_file() else name

    build = tuple(replace(entry, target=beside(entry.target)) for entry in config.build)
    return replace(config, build=build, prompts=replace(config.prompts, file=beside(config.prompts.file)))
