"""Small Stable Diffusion 1.5 and SDXL pipelines with random weights, and IP-Adapter files in the published formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def _letters(folder: Path) -> Any:
    """A T5 tokenizer of single letters."""
    from transformers import T5Tokenizer

    letters = [(chr(code), -3.0) for code in range(97, 123)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)


def _t5(width: int, seed: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    return T5EncoderModel(T5Config(d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=32)).eval()


def _vae(channels: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[16, 32, 32, 32], in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, **more,
    )  # fmt: skip


def small_pipeline(family: str, folder: Path, seed: int = 0) -> Any:
    """A pipeline of diffusers' own classes with random weights, saved to `folder` as the Hub's copies are."""
    prepare_torchvision()
    torch.manual_seed(seed)
    made = {"flux": _flux, "sd3": _sd3}.get(family, _unet)(family, folder, seed)
    made.save_pretrained(folder / "base", safe_serialization=True)
    return made


def _flux(_: str, folder: Path, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae = _vae(2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, _clip_text(32, seed + 1), _tokenizer(folder / "words"), _t5(32, seed + 2),
        _letters(folder), transformer,
    )  # fmt: skip


def _sd3(_: str, folder: Path, seed: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=4, qk_norm="rms_norm",
    )  # fmt: skip
    words = _tokenizer(folder / "words")
    vae = _vae(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, _clip_text(32, seed + 1, projection=True), words,
        _clip_text(32, seed + 2, projection=True), words, _t5(64, seed + 3), _letters(folder),
    )  # fmt: skip


def _unet(family: str, folder: Path, seed: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    context = 32 if family == "sd15" else 64
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
    vae = _vae(4)
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
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    parts |= {"text_encoder_2": _clip_text(32, seed + 2, projection=True), "tokenizer_2": parts["tokenizer"]}
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


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


def plus_tensors(unet: Any, patch: int, seed: int = 3, width: int = 32, queries: int = 4) -> dict[str, torch.Tensor]:
    """A `plus` adapter with random weights: the same keys of the denoiser, and a resampler in place of the projection."""
    context = unet.config.cross_attention_dim
    tensors = {key: value for key, value in adapter_tensors(unet, seed=seed).items() if key.startswith("ip_adapter.")}
    generator = torch.Generator().manual_seed(seed)
    shapes = plus_shapes(patch, context, width, queries, heads=1)
    return tensors | {
        key: torch.randn(shape, generator=generator) * 0.2 + key.endswith(("norm1.weight", "norm2.weight"))
        for key, shape in shapes.items()
    }


def plus_shapes(patch: int, context: int, width: int, queries: int, heads: int) -> dict[str, tuple[int, ...]]:
    """The published names and shapes of a `plus` adapter's resampler."""
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, queries, width), "proj_in.weight": (width, patch), "proj_in.bias": (width,),
        "proj_out.weight": (context, width), "proj_out.bias": (context,),
        "norm_out.weight": (context,), "norm_out.bias": (context,),
    }  # fmt: skip
    for i in range(4):
        for norm in ("norm1", "norm2"):
            shapes |= {f"layers.{i}.0.{norm}.weight": (width,), f"layers.{i}.0.{norm}.bias": (width,)}
        shapes |= {
            f"layers.{i}.0.to_q.weight": (64 * heads, width), f"layers.{i}.0.to_kv.weight": (128 * heads, width),
            f"layers.{i}.0.to_out.weight": (width, 64 * heads),
            f"layers.{i}.1.0.weight": (width,), f"layers.{i}.1.0.bias": (width,),
            f"layers.{i}.1.1.weight": (4 * width, width), f"layers.{i}.1.3.weight": (width, 4 * width),
        }  # fmt: skip
    return {f"image_proj.{key}": shape for key, shape in shapes.items()}


def flux_shapes(dim: int, context: int, attention: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of XLabs' adapter for Flux, as published."""
    shapes: dict[str, tuple[int, ...]] = {
        "ip_adapter_proj_model.proj.weight": (4 * context, dim), "ip_adapter_proj_model.proj.bias": (4 * context,),
        "ip_adapter_proj_model.norm.weight": (context,), "ip_adapter_proj_model.norm.bias": (context,),
    }  # fmt: skip
    for i in range(layers):
        for part in ("k", "v"):
            name = f"double_blocks.{i}.processor.ip_adapter_double_stream_{part}_proj"
            shapes |= {f"{name}.weight": (attention, context), f"{name}.bias": (attention,)}
    return shapes


def sd3_shapes(
    patch: int, attention: int, head: int, layers: int, width: int, queries: int, heads: int, time: int
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of InstantX's adapter for SD 3.5 in diffusers' names, as published."""
    prepare_torchvision()
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    with torch.device("meta"):
        resampler = IPAdapterTimeImageProjection(
            patch, attention, width, heads=heads, num_queries=queries, timestep_in_dim=time
        )
        layer = SD3IPAdapterJointAttnProcessor2_0(attention, attention, head, width)
    shapes = {f"image_proj.{key}": tuple(value.shape) for key, value in resampler.state_dict().items()}
    for i in range(layers):
        shapes |= {f"ip_adapter.{i}.{key}": tuple(value.shape) for key, value in layer.state_dict().items()}
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * 0.2 + float("norm" in key and key.endswith("weight"))
        for key, shape in shapes.items()
    }


def small_tower(folder: Path, kind: str = "clip", width: int = 32) -> Path:
    """A vision tower with random weights in transformers' format: CLIP's or SigLIP's, 32 pixels, patches of 8."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    prepare_torchvision()
    sizes = {"hidden_size": width, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4,
             "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(7)
    if kind == "clip":
        CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=DIM)).save_pretrained(folder)
    else:
        SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)
        SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def small_adapter_model(
    folder: Path, family: str, encoder: str = "", *, more: str = "", size: int = 32, dim: int = DIM
) -> Path:
    """A model of the kind ip-adapter in `folder`: description, base and adapter; without an encoder one that takes patches."""
    pipe = small_pipeline(family, folder)
    takes = f'encoder = "{encoder}"\ndim = {dim}\n' if encoder else 'image_encoder = "tower"\n'
    blocks = {
        "sd15": "style = { up = { block_1 = [0.0, 1.0, 0.0] } }",
        "sdxl": "style = { up = { block_0 = [0.0, 1.0, 0.0] } }",
        "flux": "style = [0.0, 1.0]",
        "sd3": "",
    }
    if not encoder:
        small_tower(folder / "tower", "siglip" if family == "sd3" else "clip")
    if family == "flux":
        tensors = random_tensors(flux_shapes(dim, 32, 32, 2))
    elif family == "sd3":
        tensors = random_tensors(sd3_shapes(32, 32, 8, 2, 32, 4, 1, 16))
    else:
        tensors = adapter_tensors(pipe.unet, dim) if encoder else plus_tensors(pipe.unet, 32)
    save_file(tensors, folder / "adapter.safetensors")
    (folder / "model.toml").write_text(
        f'kind = "ip-adapter"\nfamily = "{family}"\nbase = "base"\nadapter = "adapter.safetensors"\n{takes}'
        f'licence = "none: random weights"\n{more}\n[sampling]\nsteps = 2\nwidth = {size}\nheight = {size}\n'
        f"[blocks]\n{blocks[family]}\n"
    )
    return folder
