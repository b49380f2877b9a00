"""Models' descriptions: by name, by file, in the original's form or ours; wrong ones are refused with the fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rdm import RDM, RDMConfig
from rdm.config import model_names, read_config
from rdm.errors import ConfigError, RequestError
from tests.rdm_reference import noise, tiny_config, tiny_model, tiny_vq_config, unit


def test_published_models_say_how_they_want_to_be_conditioned() -> None:
    assert model_names() == ["rdm-768", "rdm-imagenet"]
    large, small = read_config("rdm-768"), read_config("rdm-imagenet")
    assert (large.encoder, large.context_dim, large.context_norm) == ("vit-l-14", 768, "unit")
    assert (large.max_neighbours, large.default_k, large.scale_factor) == (20, 19, 0.22765929)
    assert (large.latent_channels, large.downsample_factor, large.default_size) == (16, 16, 768)
    assert (small.encoder, small.context_dim, small.context_norm) == ("vit-b-32", 512, "raw")
    assert (small.default_k, small.latent_channels, small.downsample_factor) == (3, 3, 4)
    assert small.beta_end == 0.0195


def test_a_description_is_read_from_a_dict_a_file_or_itself(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config()))
    config = read_config(path)
    assert config == read_config(tiny_config()) == read_config(str(path)) == read_config(config)
    assert read_config(config.to_dict()) == config


def test_a_model_built_from_diffusers_arguments_is_fresh_and_trainable() -> None:
    """Sixty-four pixels, f4, another encoder's width: as in a small model that a user trains."""
    config = {
        "name": "mini", "encoder": "own-clip", "default_size": 64, "max_neighbours": 20, "scale_factor": 0.9,
        "unet": {
            "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "cross_attention_dim": 10,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [2, 4],
        },
        "first_stage": {
            "_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 64], "latent_channels": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        },
    }  # fmt: skip
    model = RDM.from_config(config)
    assert (model.config.image_factor, model.config.context_dim) == (4, 10)
    latents = model.sample(unit(2, 21, 10), steps=2, sampler="unipc")
    assert latents.shape == (2, 4, 16, 16)
    images = model.decode(latents)
    assert images.shape == (2, 3, 64, 64)
    target = model.encode(images.clamp(-1, 1)) * model.config.scale_factor
    eps = model.unet(target, torch.tensor([5, 900]), encoder_hidden_states=unit(2, 3, 10)).sample
    eps.square().mean().backward()
    assert all(p.grad is not None for p in model.unet.parameters())


def test_any_latent_size_is_taken_and_pictures_must_be_multiples_of_the_factor() -> None:
    model = tiny_model()
    assert model.sample(unit(1, 2, 12), steps=2, height=36, width=44).shape == (1, 4, 9, 11)
    with pytest.raises(ConfigError, match="height is 30 pixels; tiny wants a multiple of 4, such as 28"):
        model.sample(unit(1, 2, 12), steps=2, height=30)
    with pytest.raises(ConfigError, match="multiple of 4"):
        model.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(RequestError, match=r"\(1, 1, 32, 32\); \(B, 3, H, W\) was expected"):
        model.encode(torch.zeros(1, 1, 32, 32))


def test_half_precision_leaves_the_first_stage_in_single() -> None:
    model = RDM.from_config(tiny_config()).to("cpu", torch.bfloat16)
    assert (model.dtype, model.first_stage.dtype) == (torch.bfloat16, torch.float32)
    latents = model.sample(unit(1, 2, 12), x_T=noise(1, 4, 8, 8), steps=2)
    assert latents.dtype == torch.float32 and bool(torch.isfinite(latents).all())
    assert model.to(first_stage_dtype=torch.bfloat16).decode(latents).dtype == torch.float32


def _change(path: str, value: Any) -> dict[str, Any]:
    config = tiny_config()
    *sections, key = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    return config


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("rdm-786", "did you mean 'rdm-768'"),
        (_change("scale_facto", 1.0), "did you mean 'scale_factor'"),
        (_change("unet.contextdim", 3), "did you mean 'context_dim'"),
        (_change("unet.in_channels", 3), "all must be the same"),
        (_change("unet.channel_mult", None), "unet lacks channel_mult"),
        (_change("ddconfig.ch", None), "ddconfig lacks ch"),
        (_change("unet.use_scale_shift_norm", True), "only False is supported"),
        (_change("unet.num_head_channels", None), "num_head_channels"),
        (_change("model_channels", 64), "make them agree"),
        (_change("n_embed", 16), "double_z"),
        (_change("context_norm", "unitary"), "'unit' or 'raw'"),
        (_change("default_k", 7), r"0\.\.6"),
        (_change("linear_start", 0.5), "betas"),
        (_change("default_size", 30), "multiple of 4"),
        (_change("unet.channel_mult", "1, 2"), "unet.channel_mult is '1, 2'; a list of whole numbers"),
        (_change("unet.model_channels", "32"), "unet.model_channels is '32'; a whole number"),
        (_change("ddconfig.ch_mult", [1, "2"]), "ddconfig.ch_mult"),
        (_change("unet.num_head_channels", 64), "more than the 32 channels"),
        (_change("unet", "small"), "unet is 'small'"),
        (_change("scale_factor", "big"), "scale_factor is 'big'; a number"),
        (_change("linear_end", "0.015"), "beta_end is '0.015'; a number"),
        (_change("default_k", 2.5), "default_k"),
        ({"name": "x"}, "wants 'unet'"),
        ({"unet": {}, "first_stage": {}}, "lacks in_channels"),
    ],
)
def test_a_wrong_description_is_refused_with_the_fix(config: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_config(config)


def test_networks_that_are_not_an_rdms_are_refused() -> None:
    config = read_config(tiny_config()).to_dict()
    config["unet"]["down_block_types"] = ["AttnDownBlock2D", "DownBlock2D"]
    with pytest.raises(ConfigError, match="AttnDownBlock2D"):
        RDM.from_config(config)
    config = read_config(tiny_vq_config()).to_dict()
    config["first_stage"]["_class_name"] = "AutoencoderTiny"
    with pytest.raises(ConfigError, match="AutoencoderTiny"):
        RDM.from_config(RDMConfig(**config))
    config["first_stage"] |= {"_class_name": "VQModel", "codebook": 3}
    with pytest.raises(ConfigError, match="codebook"):
        RDM.from_config(config)


@pytest.mark.process
def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, rdm, rdm.config; assert 'torch' not in sys.modules; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)
