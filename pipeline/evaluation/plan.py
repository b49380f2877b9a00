"""The subject of an evaluation and the list of its pictures, before any is made.

A trial names one picture and its purpose; equal pictures of different trials have equal keys and are made once. Reads:
published databases, a prompt list, the model's description. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.data import Caption, Labelled, choose_captions, chosen_styles, own_prompts, read_labelled
from pipeline.evaluation.records import ModelName, Setup
from pipeline.training import with_style

if TYPE_CHECKING:
    from pipeline.generation import ModelInfo, PromptRow

# Conditions of a picture: its context and its prompt.
SWAP = "swap"  # prompt, and neighbours from the style's own database

POSTFIX = "postfix"  # (a) prompt + "in the style of ...", and its neighbours from the general database

POSTFIX_NEIGHBOURS = "postfix, neighbours only"  # (b) the same neighbours without the prompt

POSTFIX_TEXT = "postfix, text only"  # (c) the same prompt without neighbours

UNNAMED = "no style named"  # (d) prompt and neighbours from the general database

CONDITIONS = (SWAP, POSTFIX, POSTFIX_NEIGHBOURS, POSTFIX_TEXT, UNNAMED)

ABSENT = "swap, content absent"  # the style's database without the requested contents

# A share of a database: the multiplier scatters consecutive keys, so that the rows of a style are reduced evenly even if they
# are stored together.
PRIME, MULTIPLIER = 10_007, 7919


@dataclass(frozen=True)
class Setting:
    """What is chosen on the validation captions."""

    k: int
    guidance: float


@dataclass(frozen=True)
class Trial:
    """One wanted picture. `style` is the wanted style, which UNNAMED does not tell the model; empty for databases
    without styles."""

    phase: str
    condition: str
    style: str
    caption: Caption
    prompt: str
    database: str
    where: str
    setting: Setting
    seed: int
    level: str = ""  # the level of the style in the general database, or the number that a sweep changed
    neighbours_only: bool = False

    def row(self, number: int, sampler: str, steps: int) -> PromptRow:
        """The trial as row `number`, from 0, of a prompt list."""
        from pipeline.generation import PromptRow, Sampling

        k = self.setting.k
        return PromptRow(
            number + 1, self.prompt, id=str(number), db=(self.database,) if k else (), where=self.where if k else "", k=k,
            seed=self.seed, sampling=Sampling(sampler, steps, self.setting.guidance),
        )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The databases of an evaluation and the filters on them."""

    config: EvaluateConfig
    styles: tuple[str, ...]
    absent: str = ""  # a filter that leaves out the requested contents, if a column names contents

    @property
    def general(self) -> str:
        return self.config.general or self.config.database

    @property
    def mixed(self) -> bool:
        """Whether the general database is the labelled one, so that its styles can be filtered."""
        return self.general == self.config.database

    def levels(self) -> tuple[str, ...]:
        return self.config.postfix.levels if self.mixed else ("as it is",)

    def source(self, style: str, more: str = "") -> tuple[str, str]:
        """(database, filter) of a style's own database."""
        own = self.config.sources.get(style)
        if own is not None:
            return own, more
        return self.config.database, both(f"{self.config.style} = {quoted(style)}", more)

    def separate(self) -> list[str]:
        """The styles that are compared as a filter and as a separate database: the named ones that this database has."""
        return [style for style in self.config.sweep.separate if style in self.styles]

    def general_filter(self, style: str, level: str) -> str:
        column = self.config.style
        if level == "rare":
            return f"{column} <> {quoted(style)} OR {share_filter(self.config.postfix.rare_share)}"
        return f"{column} <> {quoted(style)}" if level == "unseen" else ""


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def both(one: str, other: str) -> str:
    return f"({one}) AND ({other})" if one and other else one or other


def share_filter(share: float) -> str:
    """A filter that keeps a share of the database; empty if it keeps all."""
    return "" if share >= 1 else f"key * {MULTIPLIER} % {PRIME} < {max(1, round(share * PRIME))}"


def spread(styles: Sequence[str], count: int, first: int) -> list[str]:
    """`count` of the styles, from the position `first` and around the end, so that other positions use other styles."""
    return [styles[(first + i) % len(styles)] for i in range(min(count, len(styles)))]


def _trial(
    place: Place, phase: str, condition: str, style: str, caption: Caption, setting: Setting, seed: int, level: str = ""
) -> Trial:
    """A trial of one of the CONDITIONS."""
    if condition in (SWAP, ABSENT):
        database, where = place.source(style, place.absent if condition == ABSENT else "")
    else:
        database, where = place.general, place.general_filter(style, level)
    prompt = (
        with_style(caption.text, style) if condition in (POSTFIX, POSTFIX_NEIGHBOURS, POSTFIX_TEXT) else caption.text
    )
    if condition == POSTFIX_TEXT:
        setting = replace(setting, k=0)
    return Trial(phase, condition, style, caption, prompt, database, where, setting, seed, level,
                 condition == POSTFIX_NEIGHBOURS)  # fmt: skip


def tuning_trials(place: Place, captions: Sequence[Caption], most: int) -> list[Trial]:
    """Every condition at every point of its grid, on the validation captions. `most`: the model's largest number of
    neighbours."""
    tuning, seed = place.config.tuning, place.config.sampling.seeds[0]
    made = []
    for condition in CONDITIONS:
        ks = (0,) if condition == POSTFIX_TEXT else tuple(k for k in tuning.k if 0 < k <= most)
        for setting in (Setting(k, guidance) for k in ks for guidance in tuning.guidance):
            made += [
                _trial(place, "tuning", condition, style, caption, setting, seed, place.levels()[0])
                for i, caption in enumerate(captions)
                for style in spread(place.styles, tuning.styles, i * tuning.styles)
            ]
    return made


def test_trials(place: Place, captions: Sequence[Caption], chosen: Mapping[str, Setting], most: int) -> list[Trial]:
    """All trials whose results are reported, with each condition's chosen setting."""
    return [
        *_swap_trials(place, captions, chosen[SWAP]),
        *_postfix_trials(place, captions[: place.config.postfix.captions], chosen),
        *_sweep_trials(place, captions[: place.config.sweep.captions], chosen[SWAP], most),
    ]


def _swap_trials(place: Place, captions: Sequence[Caption], setting: Setting) -> Iterator[Trial]:
    """RQ1: every caption in every style; the same without the requested contents; and databases without a style."""
    seed = place.config.sampling.seeds[0]
    own = [style for style in place.styles if style not in place.config.sources]
    for i, caption in enumerate(captions):
        for style in place.styles:
            yield _trial(place, "swap", SWAP, style, caption, setting, seed)
        if place.absent:
            for style in spread(own, 2, 2 * i):
                yield _trial(place, "swap", ABSENT, style, caption, setting, seed)
        for name in place.config.others:
            yield Trial("swap", SWAP, "", caption, caption.text, name, "", setting, seed, name)


def postfix_styles(place: Place) -> tuple[str, ...]:
    """The styles in which swap and postfix are compared: the named ones, else `count` of them at equal distances."""
    postfix, styles = place.config.postfix, place.styles
    if postfix.styles:
        return tuple(style for style in postfix.styles if style in styles)
    count = min(postfix.count, len(styles))
    return tuple(styles[i * len(styles) // count] for i in range(count))


def _postfix_trials(place: Place, captions: Sequence[Caption], chosen: Mapping[str, Setting]) -> Iterator[Trial]:
    """RQ2 and RQ3: the same captions, styles and seeds under every condition and level."""
    for caption in captions:
        for style in postfix_styles(place):
            for seed in place.config.sampling.seeds:
                for level in place.levels():
                    for condition in CONDITIONS:
                        yield _trial(place, "postfix", condition, style, caption, chosen[condition], seed, level)


def _sweep_trials(place: Place, captions: Sequence[Caption], setting: Setting, most: int) -> Iterator[Trial]:
    """RQ4: neighbours, guidance, database size, filter against separate database; one at a time."""
    sweep, seed = place.config.sweep, place.config.sampling.seeds[0]
    for i, caption in enumerate(captions):
        for style in spread(place.styles, sweep.styles, i * sweep.styles):
            for k in sweep.k:
                if k <= most:
                    yield _trial(place, "neighbours", SWAP, style, caption, replace(setting, k=k), seed, f"{k}")
            for guidance in sweep.guidance:
                yield _trial(place, "guidance", SWAP, style, caption, replace(setting, guidance=guidance), seed,
                             f"{guidance:g}")  # fmt: skip
            for share in sweep.shares:
                database, where = place.source(style, share_filter(share))
                trial = _trial(place, "size", SWAP, style, caption, setting, seed, f"{share:g}")
                yield replace(trial, database=database, where=where)
        for style in place.separate():
            filtered = _trial(place, "separate", SWAP, style, caption, setting, seed, "filter")
            yield filtered
            yield replace(filtered, database=separate_name(place.config.database, style), where="", level="separate")


def separate_name(database: str, style: str) -> str:
    """The name of the database that holds only one style; it is not a view but has its own rows and index."""
    slug = "".join(letter if letter.isalnum() else "_" for letter in style.lower())
    return f"{database.replace('-', '_')}_only_{slug}"


@dataclass(frozen=True)
class Study:
    """The subject of an evaluation, after databases and model are read."""

    labelled: Labelled
    place: Place
    validation: tuple[Caption, ...]
    test: tuple[Caption, ...]
    model: ModelInfo


def open_study(config: EvaluateConfig, home: str | None) -> Study:
    """Read databases and model, and choose the captions. Raises RdmpipeError."""
    from pipeline.generation import find_model

    labelled, place, validation, test = open_captions(config, home)
    return Study(labelled, place, validation, test, find_model(config.model, home))


def open_captions(
    config: EvaluateConfig, home: str | None
) -> tuple[Labelled, Place, tuple[Caption, ...], tuple[Caption, ...]]:
    """The labelled pictures, and the captions for validation and test. Raises RdmpipeError."""
    labelled = read_labelled(config.database, config, home)
    styles = chosen_styles(labelled, config)
    if config.prompts.file:
        validation, test = own_prompts(config.prompts.file, config.prompts)
    else:
        validation, test = choose_captions(labelled, styles, config.prompts)
    named = [labelled.values[c.content] for c in (*validation, *test) if c.content in labelled.values]
    absent = f"{labelled.column} NOT IN ({', '.join(named)})" if named else ""
    return labelled, Place(config, styles, absent), validation, test


def count_pictures(place: Place, validation: Sequence[Caption], test: Sequence[Caption], most: int) -> dict[str, int]:
    """Distinct pictures by phase; settings that are not chosen yet count as the grid's last. `most`: the model's largest
    number of neighbours."""
    config = place.config
    guess = {condition: Setting(min(config.tuning.k[-1], most), config.tuning.guidance[-1]) for condition in CONDITIONS}
    seen: set[tuple[object, ...]] = set()
    counts: dict[str, int] = {}
    for trial in (
        *tuning_trials(place, validation, most),
        *test_trials(place, test, guess, most),
    ):
        asked = (trial.prompt, trial.seed, trial.setting, trial.neighbours_only)
        where = (trial.database, trial.where) if trial.setting.k else ()
        if (asked, where) not in seen:
            seen.add((asked, where))
            counts[trial.phase] = counts.get(trial.phase, 0) + 1
    return {**counts, "all": len(seen)}


def setup_of(config: EvaluateConfig, study: Study, home: str | None) -> Setup:
    """The protocol for protocol.json: the config, the versions and the captions."""
    from pipeline.catalog import resolve_database, with_encoder

    place, encoder = study.place, study.model.encoder
    selections = {name: resolve_database(name, home) for name in config.databases()}
    versions = {name: selection.version.id for name, selection in selections.items()}
    for selection in selections.values():  # and the databases of the model's vectors, if they are others
        used = with_encoder(selection, encoder) if encoder and not config.any_encoder else None
        if used is not None and used.database.name != selection.database.name:
            versions[used.database.name] = used.version.id
    return Setup(
        config=config,
        databases=versions,
        model=ModelName(study.model.name, study.model.hash),
        styles=place.styles,
        real_pictures=len(study.labelled.keys),
        validation_captions=tuple(caption.text for caption in study.validation),
        test_captions=tuple(caption.text for caption in study.test),
        contents_there=bool(place.absent),
    )
