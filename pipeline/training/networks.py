"""The frozen networks for training a denoiser: an encoder and a first stage, the run's own or named ones.

Reads the run's `encoder/model` and `autoencoder/model`, or what [rdm] names: an encoder by a name for `--encoder`, and a first
stage or a whole model as a folder or Hub id. Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.encoders import load_encoder as load_named
from pipeline.errors import ConfigError
from pipeline.storage import sha256_file
from pipeline.training.config import DenoiserConfig, TrainConfig
from pipeline.training.trained import embed_pictures, embed_texts, load_encoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.encoders import Encoder
    from pipeline.training.trained import Clip, Tokenizer
    from rdm.untyped import FirstStage, JsonObject

_BATCH = 64  # pictures that a network takes at once


class Embedder(Protocol):
    """Pictures and texts into unit vectors of one space. `identity` changes whenever the vectors would."""

    @property
    def identity(self) -> str: ...

    def pictures(self, pixels: Tensor) -> Tensor:
        """(N, D) unit vectors of pictures (N, 3, S, S) uint8."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit vectors of N texts."""
        ...


@dataclass(frozen=True)
class OwnEmbedder:
    """The encoder that this run trained."""

    network: Clip
    tokenizer: Tokenizer
    device: torch.device
    identity: str

    def pictures(self, pixels: Tensor) -> Tensor:
        return embed_pictures(self.network, pixels, self.device)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return embed_texts(self.network, self.tokenizer, texts, self.device)


@dataclass(frozen=True)
class NamedEmbedder:
    """An encoder by name, with the preparation and normalisation of a database's vectors."""

    encoder: Encoder

    @property
    def identity(self) -> str:
        return self.encoder.record.id

    def pictures(self, pixels: Tensor) -> Tensor:
        import numpy as np
        import torch

        made = []
        for group in torch.split(pixels, _BATCH):
            made.append(self.encoder.picture_vectors(list(group.permute(0, 2, 3, 1).numpy()))[0])
        return torch.from_numpy(np.concatenate(made))

    def texts(self, texts: Sequence[str]) -> Tensor:
        import torch

        return torch.from_numpy(self.encoder.encode_texts(texts))


def choose_embedder(config: TrainConfig, name: str, device: torch.device) -> Embedder:
    """The run's own encoder if it was trained, else the encoder called `name`.

    Raises ConfigError if the run's TOML has a table [encoder] that was not trained, EncoderError for an unknown name.
    """
    folder = config.folder() / "encoder" / "model"
    weights = folder / "open_clip_model.safetensors"
    if weights.exists():
        network, tokenizer = load_encoder(folder)
        network.to(device)
        return OwnEmbedder(network, tokenizer, device, sha256_file(weights))
    if config.encoder is not None:
        raise ConfigError(
            f"{folder} holds no encoder: train it first with `rdmpipe train encoder` on the same TOML file"
        )
    return NamedEmbedder(load_named(name, str(device)))


def choose_first_stage(config: TrainConfig, part: DenoiserConfig) -> str:
    """The folder or Hub id of the first stage: the named one, else the run's own, else that of a saved `base`.

    Raises ConfigError if there is none.
    """
    own = config.folder() / "autoencoder" / "model"
    if part.first_stage:
        return part.first_stage
    if (own / "config.json").exists():
        return str(own)
    if is_saved_model(part.base):
        return part.base
    raise ConfigError(
        f"{own} holds no first stage: train it first with `rdmpipe train autoencoder` on the same TOML file, or name one: "
        '[rdm] first_stage = "FOLDER or owner/name"'
    )


def is_saved_model(base: str) -> bool:
    """Whether `base` is the folder of a saved model with weights, and not the name of a description."""
    return bool(base) and (Path(base) / "unet").is_dir()


def load_first_stage(place: str | Path) -> FirstStage:
    """A first stage in fp32 and eval mode, from a folder that diffusers saved or from a saved model.

    Raises ConfigError for a folder of another network, CheckpointError for a path that does not exist.
    """
    from rdm import RDM
    from rdm.networks import FIRST_STAGES, diffusers

    described = Path(place) / "config.json"
    if described.exists():
        kind = str(json.loads(described.read_text()).get("_class_name"))
        if kind not in FIRST_STAGES:
            raise ConfigError(f"{place} holds a {kind}; a first stage ({', '.join(FIRST_STAGES)}) was expected")
        network: FirstStage = getattr(diffusers(), kind).from_pretrained(place, low_cpu_mem_usage=False)
    else:
        network = RDM.from_pretrained(place, dtype=None).first_stage
    return network.float().eval().requires_grad_(False)


def describe_first_stage(place: str) -> JsonObject:
    """The arguments of a first stage and its `_class_name`, without its weights. Places as `load_first_stage` takes them."""
    from rdm.folder import find_folder, read_folder_config

    described = Path(place) / "config.json"
    if not described.exists():
        return dict(read_folder_config(find_folder(place)).first_stage)
    content = json.loads(described.read_text())
    arguments = {key: value for key, value in content.items() if not key.startswith("_")}
    return {**arguments, "_class_name": content.get("_class_name", "AutoencoderKL")}


def encode_pictures(first_stage: FirstStage, pixels: Tensor, device: torch.device) -> Tensor:
    """Latents (N, C, h, w), float32, unscaled, of pictures (N, 3, S, S) uint8: the mean of the posterior."""
    import torch

    from pipeline.training.autoencoder import to_model
    from rdm.networks import at_once

    made = []
    with torch.inference_mode():
        for group in torch.split(pixels, min(_BATCH, at_once(pixels.shape[-1] * pixels.shape[-2]))):
            encoded = first_stage.encode(to_model(group).to(device))
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            made.append(latents.float().cpu())
    return torch.cat(made).clone()
