"""Models by name: where a model's folder is, what it takes, and which weights they are.

Reads: a folder that `save_pretrained` or `rdmpipe convert` wrote, under its path, in <home>/models or in the package; or the
Hub's copy of a published model. Writes: the cache of file checksums. Loads no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import cache_dir, canonical_json, default_home, digest
from pipeline.errors import BudgetError, ModelError, nearest
from pipeline.installation import asset
from pipeline.storage import sha256_file

if TYPE_CHECKING:
    from rdm.config import RDMConfig

HUB = {"rdm-768": "fusing/rdm"}  # published models that the Hub has in diffusers' layout

SHIPPED = asset("models")  # models that come with the package

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class ModelInfo:
    """A model at hand: its folder, its description, and a hash that differs whenever its pictures would."""

    folder: str
    config: RDMConfig
    hash: str


def find_model(name: str, home: str | None = None) -> ModelInfo:
    """The model called `name`: a folder, one in <home>/models, a shipped or a published model, or a Hub id.

    Raises ModelError.
    """
    from pipeline.machine import prepare_torchvision

    prepare_torchvision()
    from rdm.errors import RDMError
    from rdm.folder import find_folder, read_folder_config

    own = Path(home or default_home()) / "models"
    paths = [path for path in (Path(name).expanduser(), own / name, SHIPPED / name) if (path / "unet").is_dir()]
    if not paths and name not in HUB and name.count("/") != 1:
        known = sorted({*HUB, *(path.parent.name for place in (own, SHIPPED) for path in place.glob("*/unet"))})
        raise ModelError(
            f"no model {name!r}{nearest(name, known)}: expected a folder with unet/ and vae/ (`rdmpipe convert model.ckpt "
            f"FOLDER` writes one), a folder in {own}, or one of {', '.join(known)}"
        )
    try:
        folder = paths[0] if paths else find_folder(HUB.get(name, name))
        config = read_folder_config(folder)
    except RDMError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    except Exception as error:  # the Hub's client has a dozen kinds of errors
        raise ModelError(
            f"model {name!r} cannot be fetched from the Hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}). Give "
            f"a folder, or put one at {own / name}: `rdmpipe convert model.ckpt {own / name}`"
        ) from error
    return ModelInfo(str(folder.absolute()), config, _hash(folder, config))


def default_model(encoder: str, home: str | None = None) -> str:
    """The first model of `list_models` that was trained with this encoder. Raises ModelError where there is none."""
    from pipeline.encoders import same_encoder

    rows = list_models(home)
    for row in rows:
        if row["encoder"] is not None and same_encoder(encoder, row["encoder"]):
            return str(row["name"])
    known = ", ".join(f"{row['name']} ({row['encoder']})" for row in rows)
    raise ModelError(
        f"no model by name takes the vectors of encoder {encoder}; give --model NAME or FOLDER, or build the database with a "
        f"model's encoder: {known}"
    )


def _hash(folder: Path, config: RDMConfig) -> str:
    """sha256 over the description and the checksums of the weights' files, in order of their paths."""
    parts = [part for part in ("unet", "vae", "vqvae") if (folder / part).is_dir()]
    files = sorted(file for part in parts for pattern in _WEIGHTS for file in (folder / part).glob(pattern))
    sums = [[file.relative_to(folder).as_posix(), _checksum(file)] for file in files]
    return digest([config.to_dict(), sums], 64)


def _checksum(file: Path) -> str:
    """sha256 of a file, remembered by path, size and time: weights have gigabytes."""
    stat = file.stat()
    mark = [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    note = cache_dir() / "checksums" / f"{hashlib.sha256(canonical_json(mark).encode()).hexdigest()}.json"
    if note.is_file():
        known: Any = json.loads(note.read_text(encoding="utf-8"))
        return str(known)
    found = sha256_file(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(f".{found[:8]}.part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(note)
    return found


def check_memory(
    model: ModelInfo, precision: str, device: str, batch: int, sizes: set[tuple[int, int]], workers: int
) -> int:
    """Bytes one worker wants for its largest batch, (height, width) in `sizes`. Raises BudgetError where they are not there.

    Looks at this machine: on a cluster elsewhere (workers = 0) the number alone is given.
    """
    import torch

    from rdm.memory import count_memory

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    need = count_memory(model.config, batch=batch, height=height, width=width, dtype=dtype).peak
    if not workers:
        return need
    if torch.device(device).type == "cuda":
        free, workers = torch.cuda.mem_get_info(torch.device(device))[0] - (1 << 30), 1  # its context and workspaces
    else:
        free = _available()
    if free and need * workers > free:
        raise BudgetError(
            f"{batch} picture(s) of {width} x {height} at a time with {model.config.name} in {precision} take about "
            f"{need / 1e9:.1f} GB in each of {workers} worker(s); {free / 1e9:.1f} GB are free here. Use a smaller --batch, "
            "fewer --workers, --precision fp16 on a GPU, or smaller pictures."
        )
    return need


def _available() -> int:
    """Bytes this machine can still give, or 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def list_models(home: str | None = None) -> list[dict[str, Any]]:
    """Models by name: the home's, the shipped and the published: encoder, most neighbours, pixels, and where they are."""
    from rdm.config import model_names, read_config
    from rdm.errors import RDMError
    from rdm.folder import read_folder_config

    own = Path(home or default_home()) / "models"
    rows: list[dict[str, Any]] = []
    for folder in [path.parent for place in (own, SHIPPED) for path in sorted(place.glob("*/unet"))]:
        if any(row["name"] == folder.name for row in rows):
            continue
        try:
            rows.append(_row(folder.name, read_folder_config(folder), str(folder)))
        except RDMError as error:
            rows.append({"name": folder.name, "encoder": None, "neighbours": None, "size": None, "where": str(error)})
    here = {row["name"] for row in rows}
    for name in model_names():
        where = (
            f"Hub: {HUB[name]}" if name in HUB else f"convert its checkpoint: rdmpipe convert model.ckpt {own / name}"
        )
        if name not in here:
            rows.append(_row(name, read_config(name), where))
    return rows


def _row(name: str, config: RDMConfig, where: str) -> dict[str, Any]:
    return {
        "name": name,
        "encoder": config.encoder,
        "neighbours": config.max_neighbours,
        "size": config.default_size,
        "where": where,
    }


def convert_checkpoint(checkpoint: Path, folder: Path, config: str, say: Callable[[str], None]) -> dict[str, Any]:
    """An original checkpoint as a diffusers folder of safetensors. Returns what was loaded and what was left aside.

    `config` is a model's name or the path of a JSON description. Raises ModelError.
    """
    from pipeline.machine import prepare_torchvision

    prepare_torchvision()
    from rdm import RDM
    from rdm.errors import RDMError

    if not checkpoint.is_file():
        raise ModelError(f"no checkpoint at {checkpoint}; give the path of the original release's model.ckpt")
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not an empty folder; give a new one")
    say(f"reading {checkpoint} ({checkpoint.stat().st_size / 1e9:,.2f} GB)")
    try:
        model = RDM.from_compvis(checkpoint, config, dtype=None)
        say(f"writing {folder}")
        model.save_pretrained(folder)
    except RDMError as error:
        raise ModelError(str(error)) from error
    assert model.report is not None
    left = dict(model.report.ignored)
    return {"folder": str(folder), "weights": model.report.weights, "tensors": model.report.loaded, "left aside": left}
