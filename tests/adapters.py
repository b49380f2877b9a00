"""Small Stable Diffusion 1.5 and SDXL pipelines with random weights, and IP-Adapter files in the published formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.machine import prepare_torchvision

DIM = 16  # of the small test encoder's vectors


def _clip_text(width: int, seed: int, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, hidden_size=width, intermediate_size=2 * width, layer_norm_eps=1e-5,
        num_attention_heads=4, num_hidden_layers=2, pad_token_id=1, vocab_size=260, projection_dim=width,
        hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(seed)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single bytes, without merges."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    names = ["<|startoftext|>", "<pad>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )


def small_pipeline(family: str, folder: Path, seed: int = 0) -> Any:
    """A pipeline of diffusers' own classes with random weights, saved to `folder` as the Hub's copies are."""
    prepare_torchvision()
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    context = 32 if family == "sd15" else 64
    torch.manual_seed(seed)
    sizes: dict[str, Any] = (
        {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
        if family == "sd15"
        else {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2), "projection_class_embeddings_input_dim": 80,
        }
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, sample_size=8, in_channels=4, out_channels=4,
        cross_attention_dim=context, attention_head_dim=(2, 4), norm_num_groups=8, **sizes,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=[16, 32, 32, 32], in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": scheduler, "text_encoder": _clip_text(32, seed + 1),
                             "tokenizer": _tokenizer(folder / "words")}  # fmt: skip
    if family == "sd15":
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        parts |= {"text_encoder_2": _clip_text(32, seed + 2, projection=True), "tokenizer_2": parts["tokenizer"]}
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipe.save_pretrained(folder / "base", safe_serialization=True)
    return pipe


def adapter_tensors(unet: Any, dim: int = DIM, seed: int = 3) -> dict[str, torch.Tensor]:
    """An IP-Adapter with random weights for a denoiser, under the published names."""
    context = unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {
        "image_proj.proj.weight": random(4 * context, dim), "image_proj.proj.bias": random(4 * context),
        "image_proj.norm.weight": 1 + random(context), "image_proj.norm.bias": random(context),
    }  # fmt: skip
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * i + 1}.{part}.weight"] = random(width, context)
    return tensors


def small_adapter_model(folder: Path, family: str, encoder: str, *, more: str = "", size: int = 32) -> Path:
    """A model of the kind ip-adapter in `folder`: description, base and adapter."""
    pipe = small_pipeline(family, folder)
    save_file(adapter_tensors(pipe.unet), folder / "adapter.safetensors")
    (folder / "model.toml").write_text(
        f'kind = "ip-adapter"\nfamily = "{family}"\nbase = "base"\nadapter = "adapter.safetensors"\nencoder = "{encoder}"\n'
        f'dim = {DIM}\nlicence = "none: random weights"\n{more}\n[sampling]\nsteps = 2\nwidth = {size}\nheight = {size}\n'
        "[blocks]\nstyle = { up = { block_1 = [0.0, 1.0, 0.0] } }\n".replace(
            "block_1", "block_1" if family == "sd15" else "block_0"
        )
    )
    return folder
