"""`rdmpipe train`: one TOML file, three parts (encoder, autoencoder, rdm), one folder for the run.

Reads: the run's TOML, the pictures it names. Writes, under the run folder,

    <part>/config.json    the recipe of the part, preceded by earlier forms if a resumed run changed it
    <part>/state.pt       the state to resume from, or state/ of several workers; <part>/curve.csv and curve.png
    <part>/figures.json   the measurements of the last save; <part>/tensorboard/ all reports
    <part>/sheets/        sample sheets, written during training
    encoder/model/        open_clip's own folder;  autoencoder/model/, rdm/model/: diffusers' folders
    weights.json          sha256 of every weights file above

rdm needs the encoder and the autoencoder; the autoencoder uses the encoder's features if its recipe needs them.
pipeline/training/ray.py trains on several workers. Does not promise the same bits on another machine or with another number
of threads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.errors import ConfigError, ModelError
from pipeline.storage import Storage, sha256_file
from pipeline.training.config import Part, TrainConfig, check_resumed, recipe
from pipeline.training.tracking import check_trackers

if TYPE_CHECKING:
    from pipeline.execution import Progress
    from pipeline.training.crew import Crew


def train(
    part: Part, config: TrainConfig, progress: Progress, *, resume: bool = False, crew: Crew | None = None
) -> Path:
    """Train one part. Returns the folder of its finished model.

    `crew` is this worker's rank among several; by default it comes from torchrun's variables, else it is a crew of one. Raises
    ConfigError for a recipe that cannot be trained, SourceError for pictures that cannot be read, ModelError if the
    model or its state is wrong or the loss is not finite.
    """
    from pipeline.training.crew import Crew
    from pipeline.training.loop import PartRun
    from rdm.errors import RDMError
    from rdm.train import has_state

    table = getattr(config, part)
    if table is None:
        raise ConfigError(f"the run's TOML has no table [{part}]: add it, or train another part")
    check_trackers(config.track)
    crew = crew or Crew.of_environment(config.device, config.threads)
    folder = config.folder() / part
    if not resume and has_state(folder):
        raise ConfigError(f"{folder} already holds a run: resume it with --resume, or name another folder in `run`")
    forms = _read_forms(folder)
    if forms and has_state(folder):
        check_resumed(forms[-1]["recipe"], recipe(config, part), part)
    crew.prepare()
    if crew.first:
        _record_config(folder, config, part, forms)
    run = PartRun(part, config, table.train, progress, crew, resume)
    if part == "encoder":
        from pipeline.training.encoder import train_encoder as work
    elif part == "autoencoder":
        from pipeline.training.autoencoder import train_autoencoder as work
    else:
        from pipeline.training.denoiser import train_rdm as work
    try:
        model = work(run)
    except RDMError as error:
        raise ModelError(f"{part}: {error}") from error
    if crew.first:
        record_weights(config.folder())
    return model


class _Form(TypedDict):
    """One form of a recipe, and the step from which it was used."""

    from_step: int
    recipe: dict[str, dict[str, object]]


def _read_forms(folder: Path) -> list[_Form]:
    text = Storage(str(folder)).read_text("config.json")
    forms: list[_Form] = json.loads(text) if text else []
    return forms


def _record_config(folder: Path, config: TrainConfig, part: Part, forms: list[_Form]) -> None:
    """Write config.json: all forms of the recipe with their first steps, the newest last."""
    now = recipe(config, part)
    if not forms or forms[-1]["recipe"] != now:
        from rdm.train import CURVE, read_curve

        rows = read_curve(folder / CURVE)
        forms.append({"from_step": int(rows[-1]["step"]) if rows else 0, "recipe": now})
    Storage(str(folder)).write_text("config.json", json.dumps(forms, indent=1))


def record_weights(run: Path) -> dict[str, str]:
    """Write weights.json: the sha256 of every weights file of the run's finished models, by path."""
    hashes = {str(path.relative_to(run)): sha256_file(path) for path in sorted(run.glob("*/model/**/*.safetensors"))}
    Storage(str(run)).write_text("weights.json", json.dumps(hashes, indent=1) + "\n")
    return hashes
