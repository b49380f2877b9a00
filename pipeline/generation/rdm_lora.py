"""The kind `rdm-lora`: an RDM whose attention was trained further with low-rank adapters (`[rdm] lora` of a training run).

Reads: a folder with model.toml (`kind`, `base`, `lora`) and LoRA weights in diffusers' layout, and the base's folder. The
adapters are added to the base's weights when it is loaded, so they cost no time during drawing. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.config import digest, from_mapping, read_toml
from pipeline.errors import ModelError
from pipeline.generation import rdm_model
from pipeline.generation.checksums import checksum
from pipeline.generation.kinds import DESCRIPTION, LoadedModel, ModelInfo


@dataclass(frozen=True)
class LoraModel:
    """The content of model.toml.

    name    the model's own name; empty: that of the base
    base    folder of the RDM (relative to the description), or the name of a model
    lora    the file of LoRA weights, relative to the description
    """

    kind: Literal["rdm-lora"]
    base: str
    lora: str = "pytorch_lora_weights.safetensors"
    name: str = ""


def _read(folder: Path) -> LoraModel:
    return from_mapping(LoraModel, read_toml(folder / DESCRIPTION), str(folder / DESCRIPTION))


def _base(folder: Path, model: LoraModel, name: str) -> ModelInfo:
    """The base, with its hash. Raises ModelError."""
    from pipeline.generation.models import find_model

    beside = folder / model.base
    found = find_model(str(beside) if beside.is_dir() else model.base)
    if found.kind != "rdm":
        raise ModelError(
            f"model {name!r}: its base {model.base!r} is of kind {found.kind!r}, but an RDM was expected: change `base` in "
            f"{folder / DESCRIPTION}"
        )
    return found


def outline(folder: Path, name: str) -> ModelInfo:
    """The facts of the model, without its hash. Raises ModelError."""
    model = _read(folder)
    beside = folder / model.base
    if beside.is_dir():
        return _adapted(rdm_model.outline(beside, name), folder, model, "", "")
    from rdm.config import model_names, read_config

    if model.base not in model_names():
        raise ModelError(
            f"model {name!r}: its base {model.base!r} is not here: write where it is into `base` in {folder / DESCRIPTION}"
        )
    return _adapted(rdm_model.info_of(read_config(model.base)), folder, model, "", "")


def describe(folder: Path, name: str) -> ModelInfo:
    """The facts of the model. Raises ModelError if its base or its weights are missing."""
    model = _read(folder)
    weights = folder / model.lora
    if not weights.is_file():
        raise ModelError(
            f"model {name!r}: {weights} is missing: write the file's name into `lora` in {folder / DESCRIPTION}"
        )
    base, made = _base(folder, model, name), checksum(weights)
    return _adapted(base, folder, model, digest([base.hash, made], 64), made)


def _adapted(base: ModelInfo, folder: Path, model: LoraModel, hash: str, weights: str) -> ModelInfo:
    facts = {**base.facts, "base": model.base, **({"lora_sha256": weights} if weights else {})}
    return replace(
        base, name=model.name or base.name, kind="rdm-lora", folder=str(folder.absolute()), hash=hash, facts=facts,
    )  # fmt: skip


def load(info: ModelInfo, precision: str, device: str, recipe: int = 1) -> LoadedModel:
    """The base with the adapters added, on its device, for pictures of this recipe. Raises ModelError."""
    from rdm import RDM
    from rdm.errors import RDMError
    from rdm.lora import merge, read_lora

    folder = Path(info.folder)
    model = _read(folder)
    base = _base(folder, model, info.name)
    try:
        made = RDM.from_pretrained(base.folder, dtype=None)
        merge(made.unet, read_lora(folder / model.lora))
    except RDMError as error:
        raise ModelError(f"model {info.name!r}: {error}") from error
    return rdm_model.place(made, precision, device, recipe)


def count_bytes(info: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
    """Peak bytes of weights and activations while `batch` pictures are made: those of the base."""
    folder = Path(info.folder)
    base = _base(folder, _read(folder), info.name)
    return rdm_model.count_bytes(base, precision, batch, height, width)
