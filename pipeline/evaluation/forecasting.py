"""The forecast of an evaluation: the databases that it builds, the models that it uses, the number of pictures of each.

Reads: the protocol, published databases, models' descriptions and results of runs. Writes, builds and fetches nothing. If the
labelled database is not published, pictures are counted from the protocol only, which must then name styles (or their sources)
and a prompt list.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.config import Build, EvaluateConfig
from pipeline.evaluation.data import own_prompts
from pipeline.evaluation.plan import Place, count_pictures, open_captions

if TYPE_CHECKING:
    from pipeline.evaluation.data import Caption
    from pipeline.evaluation.records import Json
    from pipeline.generation import ModelRow


@dataclass(frozen=True)
class PlannedDatabase:
    """A database of the evaluation. `rows` is None if it is not published; then `command` builds it."""

    name: str
    encoder: str
    rows: int | None
    command: str


@dataclass(frozen=True)
class PlannedModel:
    """A model of the evaluation: its input, its licence, and the number of its distinct pictures by phase and in total."""

    name: str
    encoder: str
    where: str
    licence: str
    pictures: Mapping[str, int]
    hours: float | None = None  # of one worker here, estimated from the pictures of this home; None: there are none
    measured: int = 0  # pictures that the estimate is based on

    @property
    def time(self) -> str:
        """The hours as text, or the command that makes an estimate possible."""
        if self.hours is None:
            return (
                "hours: not known, because this home has no pictures of this model; they are known after: "
                + shlex.join(
                    ["rdmpipe", "generate", "a castle by the sea", "--model", self.name, "--use", "text", "--n", "3"]
                )
            )
        return f"about {self.hours:,.1f} hours of one worker here, as the {self.measured:,} pictures of this home took"


@dataclass(frozen=True)
class Forecast:
    """The whole plan."""

    databases: tuple[PlannedDatabase, ...]
    models: tuple[PlannedModel, ...]
    styles: int
    test_captions: int
    validation_captions: int

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "pictures": self.pictures}

    @property
    def pictures(self) -> int:
        return sum(model.pictures["all"] for model in self.models)

    def text(self) -> str:
        """The text to print: databases, models, and the pictures of each model by phase."""
        lines = ["databases"]
        for one in self.databases:
            state = f"to build: {one.command}" if one.rows is None else f"{one.rows:,} rows, vectors of {one.encoder}"
            lines.append(f"  {one.name}: {state}")
        lines.append("models")
        for model in self.models:
            takes = f"vectors of {model.encoder}" if model.encoder else "the neighbours' pictures"
            lines += [f"  {model.name}: takes {takes}; {model.where}", f"    licence: {model.licence or 'not stated'}"]
        lines.append(
            f"pictures ({self.test_captions} test captions, {self.validation_captions} for validation, {self.styles} styles)"
        )
        for model in self.models:
            parts = ", ".join(f"{name} {count:,}" for name, count in model.pictures.items() if name != "all")
            lines.append(f"  {model.name}: {model.pictures['all']:,} = {parts}")
            lines.append(f"    {model.time}")
        if len(self.models) > 1:
            lines.append(f"  all models: {self.pictures:,}")
        lines.append("training and use of the judges take additional time: minutes for small pictures")
        return "\n".join(lines)


def forecast(config: EvaluateConfig, home: str | None = None) -> Forecast:
    """The plan of an evaluation. Raises ConfigError if pictures cannot be counted yet, ModelError for an unknown model."""
    from pipeline.generation import measured_speed, outline_model

    singles = [config.of(one) for one in config.compare] or [config]
    rows = {one.model: outline_model(one.model, home) for one in singles}
    place, validation, test = _captions(config, home)
    models = []
    for one in singles:
        row = rows[one.model]
        if row.neighbours is None:
            raise ModelError(f"model {one.model!r} cannot be read: {row.where}")
        counts = count_pictures(Place(one, place.styles, place.absent), validation, test, row.neighbours)
        parts = [f"{part} {row.facts[part]}" for part in ("base", "adapter") if part in row.facts]
        speed = measured_speed(row.name, home)
        hours = counts["all"] * one.sampling.steps * speed.step_seconds / 3600 if speed else None
        models.append(
            PlannedModel(
                one.model, row.encoder or "", ", ".join(parts) or row.where, row.licence, counts, hours,
                speed.pictures if speed else 0,
            )
        )  # fmt: skip
    return Forecast(
        _databases(config, singles, rows, home), tuple(models), len(place.styles), len(test), len(validation)
    )


def _captions(config: EvaluateConfig, home: str | None) -> tuple[Place, tuple[Caption, ...], tuple[Caption, ...]]:
    """The styles, and the captions for validation and test. Raises ConfigError."""
    from pipeline.catalog import base_of
    from pipeline.database import RetrievalDatabase

    name = config.database.partition("@")[0]
    if RetrievalDatabase(base_of(name, home), home).exists():
        _, place, validation, test = open_captions(config, home)
        return place, validation, test
    styles = config.styles or tuple(config.sources)
    if not styles or not config.prompts.file:
        command = next(
            (_command(entry) for entry in config.build if entry.database == name), f"rdmpipe build-index {name}"
        )
        raise ConfigError(
            f"database {name!r} is not published, and the protocol names no `styles` (or [sources]) or no [prompts] `file`: "
            f"pictures cannot be counted yet. Name both, or build the database first: `{command}`"
        )
    validation, test = own_prompts(config.prompts.file, config.prompts)
    return Place(config, styles), validation, test


def _databases(
    config: EvaluateConfig, singles: list[EvaluateConfig], rows: Mapping[str, ModelRow], home: str | None
) -> tuple[PlannedDatabase, ...]:
    """Every database that a model reads, and those that hold its encoder's vectors."""
    from pipeline.catalog import base_of, command_that_adds, companion_name, resolve_database, with_encoder
    from pipeline.database import RetrievalDatabase

    entries = {entry.database: entry for entry in config.build}
    found: dict[str, PlannedDatabase] = {}
    for one in singles:
        encoder = rows[one.model].encoder or ""
        for name in one.databases():
            base = base_of(name.partition("@")[0], home)
            published = RetrievalDatabase(base, home).exists()
            if published:
                selection = resolve_database(base, home)
                version = selection.version
                found[base] = PlannedDatabase(base, version.encoder.name, version.index.rows, "")
            else:
                entry = entries.get(base, Build(base))
                found.setdefault(base, PlannedDatabase(base, entry.encoder, None, _command(entry)))
            if not encoder or one.any_encoder:
                continue
            other = companion_name(base, encoder)
            used = with_encoder(selection, encoder) if published else None
            if used is not None:
                own = used.version
                name = used.database.name
                found[name] = PlannedDatabase(name, encoder, own.index.rows, "")
            elif published:
                command = command_that_adds(RetrievalDatabase(base, home), encoder).strip("`")
                found.setdefault(other, PlannedDatabase(other, encoder, None, command))
            elif other in entries:
                kept = base in entries and entries[base].images == "keep"  # if so, nothing is downloaded again
                command = (
                    shlex.join(["rdmpipe", "embed", base, "--encoder", encoder]) if kept else _command(entries[other])
                )
                found.setdefault(other, PlannedDatabase(other, encoder, None, command))
    return tuple(found.values())


def _command(entry: Build) -> str:
    """The command for an entry of [[build]]."""
    words = ["rdmpipe", "build-index", entry.target]
    for flag in ("name", "encoder", "images", "preprocess", "where", "base_url"):
        if value := getattr(entry, flag):
            words += [f"--{flag.replace('_', '-')}", value]
    return shlex.join([*words, *(["--limit", str(entry.limit)] if entry.limit else [])])
