"""An encoder of our own on disk, and what training and evaluation ask of it.

Reads and writes a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads: open_clip_config.json and
open_clip_model.safetensors (fp16).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.encoders import OPENAI_MEAN, OPENAI_STD, import_open_clip
from pipeline.errors import ConfigError
from pipeline.storage import Storage
from pipeline.training.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def to_model(pixels: Tensor) -> Tensor:
    """uint8 pictures (B, 3, S, S) as the encoder takes them, with open_clip's mean and standard deviation."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels.float() / 255 - mean) / std


def build_encoder(model: Mapping[str, Any], seed: int) -> tuple[nn.Module, Any]:
    """open_clip's model of a config with fresh weights, and its tokenizer."""
    import torch

    open_clip = import_open_clip()
    torch.manual_seed(seed)
    settings = {key: value for key, value in model.items() if key != "custom_text"}
    network = (open_clip.CustomTextCLIP if model.get("custom_text") else open_clip.CLIP)(**settings)
    length = int(model["text_cfg"].get("context_length", 77))
    return network, open_clip.tokenizer.SimpleTokenizer(context_length=length)


def save_encoder(network: nn.Module, model: Mapping[str, Any], folder: Path) -> None:
    """open_clip's folder: config with preprocessing, and fp16 weights without the buffers that are not saved."""
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


def load_encoder(folder: Path) -> tuple[nn.Module, Any]:
    """The network and tokenizer that `save_encoder` wrote, in fp32 and eval mode."""
    from safetensors.torch import load_file

    model = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    network, tokenizer = build_encoder(model, 0)
    network.load_state_dict({name: value.float() if value.is_floating_point() else value
                             for name, value in load_file(folder / "open_clip_model.safetensors").items()})  # fmt: skip
    return network.eval().requires_grad_(False), tokenizer


def embed_pictures(network: nn.Module, pixels: Tensor, device: torch.device) -> Tensor:
    """Unit vectors (N, D) of uint8 pictures."""
    import torch
    from torch.nn import functional as F

    net: Any = network
    with torch.inference_mode():
        made = [net.encode_image(to_model(part).to(device)).float().cpu() for part in torch.split(pixels, 256)]
    return F.normalize(torch.cat(made), dim=-1).clone()


def embed_texts(network: nn.Module, tokenizer: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Unit vectors (N, D) of texts."""
    import torch
    from torch.nn import functional as F

    net: Any = network
    with torch.inference_mode():
        tokens = torch.split(tokenizer(list(texts)), 256)
        made = [net.encode_text(part.to(device)).float().cpu() for part in tokens]
    return F.normalize(torch.cat(made), dim=-1).clone()


def early_features(config: TrainConfig, device: torch.device) -> Any:
    """A function from pictures in [-1, 1] to the activations of the trained convolutional tower's stem, convolution by
    convolution, and of its first two stages."""
    import torch

    network, _ = load_encoder(config.folder() / "encoder" / "model")
    tower: Any = network.to(device).visual
    if not hasattr(tower, "layer1"):
        raise ConfigError(
            "perceptual and texture compare the activations of a convolutional tower: give [encoder.model] a vision_cfg with "
            "layers = [1, 1, 1, 1], or set both to 0"
        )
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))

    def features(images: Tensor) -> list[Tensor]:
        one = tower.act1(tower.bn1(tower.conv1(((images + 1) / 2 - mean) / std)))
        two = tower.act2(tower.bn2(tower.conv2(one)))
        three = tower.act3(tower.bn3(tower.conv3(two)))
        first = tower.layer1(tower.avgpool(three))
        return [one, two, three, first, tower.layer2(first)]

    return features
