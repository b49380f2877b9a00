"""A trained encoder on disk, and its vectors and features.

Reads and writes a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads: open_clip_config.json and
open_clip_model.safetensors (fp16).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encoders import OPENAI_MEAN, OPENAI_STD, import_open_clip
from pipeline.errors import ConfigError
from pipeline.storage import Storage
from pipeline.training.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rdm.objectives import Features

    class Tower(nn.Module):
        """The convolutional picture tower of open_clip: a stem and four stages."""

        conv1: nn.Module
        bn1: nn.Module
        act1: nn.Module
        conv2: nn.Module
        bn2: nn.Module
        act2: nn.Module
        conv3: nn.Module
        bn3: nn.Module
        act3: nn.Module
        avgpool: nn.Module
        layer1: nn.Module
        layer2: nn.Module

    class Clip(nn.Module):
        """open_clip's two towers: pictures (B, 3, S, S) and tokens (B, L) to vectors (B, D)."""

        logit_scale: Tensor
        visual: Tower
        encode_image: Callable[[Tensor], Tensor]
        encode_text: Callable[[Tensor], Tensor]

    Tokenizer = Callable[[Sequence[str]], Tensor]


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pictures (B, 3, S, S) as the encoder's input: open_clip's mean subtracted, divided by its standard deviation."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels.float() / 255 - mean) / std


def build_encoder(model: Mapping[str, object], seed: int) -> tuple[Clip, Tokenizer]:
    """open_clip's model for a config, with fresh weights, and its tokenizer. Raises ConfigError without a text_cfg."""
    import torch

    text = model.get("text_cfg")
    if not isinstance(text, Mapping):
        raise ConfigError("[encoder.model] has no table text_cfg: add embed_dim, vision_cfg and text_cfg of open_clip")

    open_clip = import_open_clip()
    torch.manual_seed(seed)
    settings = {key: value for key, value in model.items() if key != "custom_text"}
    network: Clip = (open_clip.CustomTextCLIP if model.get("custom_text") else open_clip.CLIP)(**settings)
    length = int(text.get("context_length", 77))
    return network, open_clip.tokenizer.SimpleTokenizer(context_length=length)


def save_encoder(network: Clip, model: Mapping[str, object], folder: Path) -> None:
    """Write open_clip's folder: the config with preprocessing, and the weights in fp16."""
    import torch
    from safetensors.torch import save_file

    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    preprocess = {
        "mean": list(OPENAI_MEAN),
        "std": list(OPENAI_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": dict(model), "preprocess_cfg": preprocess}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "open_clip_model.part"
    save_file({name: torch.clone(value) for name, value in state.items()}, part, metadata={"format": "pt"})
    part.replace(folder / "open_clip_model.safetensors")
    Storage(str(folder)).write_text("open_clip_config.json", json.dumps(config, indent=2) + "\n")


def load_encoder(folder: Path) -> tuple[Clip, Tokenizer]:
    """The network and tokenizer that `save_encoder` wrote, in fp32 and eval mode."""
    from safetensors.torch import load_file

    if not (folder / "open_clip_config.json").exists():
        raise ConfigError(
            f"{folder} holds no encoder: train it first with `rdmpipe train encoder` on the same TOML file"
        )
    model = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    network, tokenizer = build_encoder(model, 0)
    network.load_state_dict({name: value.float() if value.is_floating_point() else value
                             for name, value in load_file(folder / "open_clip_model.safetensors").items()})  # fmt: skip
    return network.eval().requires_grad_(False), tokenizer


def embed_pictures(network: Clip, pixels: Tensor, device: torch.device) -> Tensor:
    """Unit vectors (N, D) of uint8 pictures."""
    import torch
    from torch.nn import functional as F

    with torch.inference_mode():
        made = [network.encode_image(to_model(part).to(device)).float().cpu() for part in torch.split(pixels, 256)]
    return F.normalize(torch.cat(made), dim=-1).clone()


def embed_texts(network: Clip, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> Tensor:
    """Unit vectors (N, D) of texts."""
    import torch
    from torch.nn import functional as F

    with torch.inference_mode():
        tokens = torch.split(tokenizer(list(texts)), 256)
        made = [network.encode_text(part.to(device)).float().cpu() for part in tokens]
    return F.normalize(torch.cat(made), dim=-1).clone()


def early_features(config: TrainConfig, device: torch.device) -> Features:
    """A function from pictures in [-1, 1] to early activations of the trained convolutional tower.

    These are the activations of each convolution of the stem and of the first two stages. Raises ConfigError for a tower of
    another kind.
    """
    import torch

    network, _ = load_encoder(config.folder() / "encoder" / "model")
    tower = network.to(device).visual
    if not hasattr(tower, "layer1"):
        raise ConfigError(
            "perceptual and texture need an encoder with a convolutional picture tower: give [encoder.model] a vision_cfg with "
            "layers = [1, 1, 1, 1] and train it again, or set both to 0"
        )
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))

    def features(images: Tensor) -> list[Tensor]:
        one = tower.act1(tower.bn1(tower.conv1(((images + 1) / 2 - mean) / std)))
        two = tower.act2(tower.bn2(tower.conv2(one)))
        three = tower.act3(tower.bn3(tower.conv3(two)))
        first = tower.layer1(tower.avgpool(three))
        return [one, two, three, first, tower.layer2(first)]

    return features
