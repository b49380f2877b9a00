"""What an evaluation is about: databases, captions and model, looked at before the first picture.

Reads: published databases, a prompt list, the model's description. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.evaluate_config import EvaluateConfig
from pipeline.evaluate_data import Caption, Labelled, choose_captions, chosen_styles, own_prompts, read_labelled
from pipeline.evaluate_plan import CONDITIONS, Place, Setting, test_trials, tuning_trials

if TYPE_CHECKING:
    from pipeline.models import ModelInfo


@dataclass(frozen=True)
class Study:
    """What an evaluation is about, once databases and model were looked at."""

    labelled: Labelled
    place: Place
    validation: tuple[Caption, ...]
    test: tuple[Caption, ...]
    model: ModelInfo


def open_study(config: EvaluateConfig, home: str | None) -> Study:
    """Look at databases and model, and choose the captions. Raises RdmpipeError."""
    from pipeline.models import find_model

    labelled = read_labelled(config.database, config, home)
    styles = chosen_styles(labelled, config)
    if config.prompts.file:
        validation, test = own_prompts(config.prompts.file, config.prompts)
    else:
        validation, test = choose_captions(labelled, styles, config.prompts)
    named = [labelled.values[c.content] for c in (*validation, *test) if c.content in labelled.values]
    absent = f"{labelled.column} NOT IN ({', '.join(named)})" if named else ""
    return Study(labelled, Place(config, styles, absent), validation, test, find_model(config.model, home))


def count_pictures(study: Study) -> dict[str, int]:
    """Different pictures by phase, as far as they can be told before settings are chosen."""
    config, most = study.place.config, study.model.config.max_neighbours
    guess = {condition: Setting(min(config.tuning.k[-1], most), config.tuning.guidance[-1]) for condition in CONDITIONS}
    seen: set[Any] = set()
    counts: dict[str, int] = {}
    for trial in (
        *tuning_trials(study.place, study.validation, most),
        *test_trials(study.place, study.test, guess, most),
    ):
        asked = (trial.prompt, trial.seed, trial.setting, trial.neighbours_only)
        where = (trial.database, trial.where) if trial.setting.k else ()
        if (asked, where) not in seen:
            seen.add((asked, where))
            counts[trial.phase] = counts.get(trial.phase, 0) + 1
    return {**counts, "all": len(seen)}


def setup_of(config: EvaluateConfig, study: Study, home: str | None) -> dict[str, Any]:
    """The protocol as it is written down: what was asked for, of which versions, for which captions."""
    from pipeline.resolve import resolve_database

    place = study.place
    names = [config.database, place.general, *config.sources.values(), *config.others, config.content_database]
    versions = {name: resolve_database(name, home).version.id for name in dict.fromkeys(names) if name}
    return {
        "config": config,
        "databases": versions,
        "model": {"name": study.model.config.name, "sha256": study.model.hash},
        "styles": place.styles,
        "real pictures": len(study.labelled.keys),
        "validation captions": [caption.text for caption in study.validation],
        "test captions": [caption.text for caption in study.test],
        "captions' contents are in the database": bool(place.absent),
    }
