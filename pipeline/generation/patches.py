"""A vision tower that turns pictures into patches, which `plus` adapters and SD 3's take in place of one vector a picture.

Reads: a folder in transformers' format, and picture files from a database. Writes nothing. A database holds no
patches (257 vectors a picture), so a run computes them from the neighbours' stored pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ModelError
from pipeline.images import DRAFT_SIDE, decode
from pipeline.machine import import_whole

if TYPE_CHECKING:
    import torch
    from PIL import Image

TOWERS = {  # model_type in config.json: transformers' classes of the network and of its input
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPImageProcessor"),
    "clip": ("CLIPVisionModelWithProjection", "CLIPImageProcessor"),  # both towers; the vision tower is read
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessor"),
    "siglip": ("SiglipVisionModel", "SiglipImageProcessor"),
}


class _Batch(Protocol):
    pixel_values: torch.Tensor


class _Processor(Protocol):
    """The part of transformers' image processors that is used here."""

    def __call__(self, images: Sequence[Image.Image], return_tensors: str) -> _Batch: ...


@dataclass(frozen=True)
class PatchTower:
    """A loaded vision tower on its device."""

    network: Any  # one of transformers' models, which have no types here
    processor: _Processor

    def patches(self, pictures: Sequence[bytes]) -> torch.Tensor:
        """(m, P, D): the second to last hidden states of m encoded pictures, with which the adapters were trained."""
        images = [decode(data, DRAFT_SIDE).image for data in pictures]
        return self._hidden(self.processor(images, return_tensors="pt").pixel_values)

    def blank(self) -> torch.Tensor:
        """(P, D): the unconditional input of guidance. CLIP's adapters were trained with the patches of a picture of
        zeros, SigLIP's with zeros."""
        import torch

        config = self.network.config
        zeros = torch.zeros(1, 3, config.image_size, config.image_size)
        hidden = self._hidden(zeros)[0]
        return torch.zeros_like(hidden) if config.model_type == "siglip_vision_model" else hidden

    def _hidden(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        weight = next(self.network.parameters())
        with torch.inference_mode():
            found: torch.Tensor = self.network(
                pixels.to(weight.device, weight.dtype), output_hidden_states=True
            ).hidden_states[-2]
        return found


def patch_width(folder: Path, name: str) -> int:
    """The width of a patch of the tower in this folder. Raises ModelError."""
    return _number(_config(folder, name), "hidden_size")


def patch_count(folder: Path, name: str) -> int:
    """The number of patches of a picture, including CLIP's class token. Raises ModelError."""
    config = _config(folder, name)
    places = (_number(config, "image_size") // _number(config, "patch_size")) ** 2
    return places + str(config["model_type"]).startswith("clip")


def count_numbers(folder: Path, name: str) -> int:
    """The number of the tower's parameters, counted on the meta device. Raises ModelError."""
    import torch

    import_whole("transformers")
    import transformers

    kind = getattr(transformers, TOWERS[str(_config(folder, name)["model_type"])][0])
    with torch.device("meta"):
        tower = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    return sum(one.numel() for one in tower.parameters())


def _number(config: dict[str, object], key: str) -> int:
    """A setting of the vision tower, which is in a nested table in a config of both towers."""
    vision = config.get("vision_config", config)
    assert isinstance(vision, dict)
    return int(vision[key])


def load_tower(folder: Path, precision: torch.dtype, device: torch.device, name: str) -> PatchTower:
    """The tower in this folder. Raises ModelError."""
    import_whole("transformers")
    import transformers

    network, processor = TOWERS[str(_config(folder, name)["model_type"])]
    tower = getattr(transformers, network).from_pretrained(
        folder, dtype=precision, use_safetensors=True, local_files_only=True
    )
    if (folder / "preprocessor_config.json").is_file():
        inputs = getattr(transformers, processor).from_pretrained(folder, local_files_only=True)
    else:  # as diffusers does for a tower without one; h94's folder has none
        side = tower.config.image_size
        inputs = getattr(transformers, processor)(size=side, crop_size=side)
    return PatchTower(tower.to(device).eval().requires_grad_(False), inputs)


def _config(folder: Path, name: str) -> dict[str, object]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {folder}/config.json cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("model_type") not in TOWERS:
        raise ModelError(
            f"model {name!r}: {folder} is no vision tower that is known: model_type is one of {', '.join(TOWERS)}"
        )
    return found
