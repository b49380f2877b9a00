"""`rdmpipe train`: one TOML file, three parts (encoder, autoencoder, rdm), one run folder.

Reads: the run's TOML, the pictures it names. Writes, under the run folder,

    <part>/config.json    what the part was trained with, and every earlier form of it where a resumed run changed it
    <part>/state.pt       to go on from; <part>/curve.csv and curve.png
    <part>/sheets/        sample sheets as it goes
    encoder/model/        open_clip's own folder;  autoencoder/model/, rdm/model/: diffusers' folders
    weights.json          sha256 of every weights file above

Parts build on each other: rdm wants both others, autoencoder takes the encoder's features where it is there. Training on
several workers is pipeline/training/ray.py's. Does not promise the same bits on another machine or thread count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import canonical_json
from pipeline.errors import ConfigError
from pipeline.storage import Storage, sha256_file
from pipeline.training.config import Part, TrainConfig

if TYPE_CHECKING:
    from pipeline.execution import Progress
    from pipeline.training.crew import Crew


def train(
    part: Part, config: TrainConfig, progress: Progress, *, resume: bool = False, crew: Crew | None = None
) -> Path:
    """Train one part; the folder of its finished model. `crew` is this worker's place among several.

    Without one it is alone, or where torchrun's variables say.
    """
    from pipeline.training.crew import Crew

    table = getattr(config, part)
    if table is None:
        raise ConfigError(f"no [{part}] in the run's TOML: add the table, or train another part")
    crew = crew or Crew.of_environment(config.device, config.threads)
    folder = config.folder() / part
    if not resume and (folder / "state.pt").exists():
        raise ConfigError(f"{folder} holds a run already: go on with --resume, or name another folder in `run`")
    crew.prepare()
    if crew.first:
        _record_config(folder, config, part)
    if part == "encoder":
        from pipeline.training.encoder import train_encoder as work
    elif part == "autoencoder":
        from pipeline.training.autoencoder import train_autoencoder as work
    else:
        from pipeline.training.denoiser import train_rdm as work
    model = work(config, folder, progress, crew, resume)
    if crew.first:
        record_weights(config.folder())
    return model


def _record_config(folder: Path, config: TrainConfig, part: Part) -> None:
    """config.json: the newest form last, so that a run whose recipe changed on the way says so."""
    now = json.loads(canonical_json({"data": config.data, part: getattr(config, part)}))
    storage = Storage(str(folder))
    text = storage.read_text("config.json")
    forms = json.loads(text) if text else []
    state = folder / "curve.csv"
    if not forms or forms[-1]["recipe"] != now:
        from rdm.train import read_curve

        rows = read_curve(state)
        forms.append({"from_step": int(rows[-1]["step"]) if rows else 0, "recipe": now})
    storage.write_text("config.json", json.dumps(forms, indent=1))


def record_weights(run: Path) -> dict[str, str]:
    """weights.json: sha256 of every weights file of the run's finished models."""
    hashes = {str(path.relative_to(run)): sha256_file(path) for path in sorted(run.glob("*/model/**/*.safetensors"))}
    Storage(str(run)).write_text("weights.json", json.dumps(hashes, indent=1) + "\n")
    return hashes
