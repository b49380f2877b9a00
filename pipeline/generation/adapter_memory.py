"""The memory that ip-adapter models need, computed on the meta device from their configs: nothing is downloaded or run.

Reads: a base's configs, the shapes of an adapter's tensors. Writes nothing. Not counted: the CUDA context, workspaces of
convolutions and the allocator's fragmentation, together 1 to 2 GiB; a vision tower's activations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.generation.adapter_families import quiet
from pipeline.generation.adapter_files import Shapes, place_of
from pipeline.generation.kinds import torch_dtype
from pipeline.machine import import_whole

if TYPE_CHECKING:
    import torch

Network: TypeAlias = Any  # one of diffusers' networks, which have no types

TEXT_TOKENS = {"UNet2DConditionModel": 77, "FluxTransformer2DModel": 512, "SD3Transformer2DModel": 77 + 256}

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Adapted:
    """The facts about a base and its adapter that determine memory. `patches`: (patches a picture, width of one); None:
    vectors."""

    base: Path
    adapter: Shapes
    images: int  # image prompts of a picture
    patches: tuple[int, int] | None = None


def count_pipeline(what: Adapted, precision: str, batch: int, size: tuple[int, int]) -> int:
    """Peak bytes of weights and activations while `batch` pictures of (height, width) pixels are made."""
    import torch

    from rdm.memory import peak_bytes

    dtype = torch_dtype(precision)
    denoiser, vae = meta_denoiser(what.base, what.adapter), _meta(what.base / "vae")
    upcast = precision != "fp32" and getattr(vae.config, "force_upcast", False)
    torch.nn.Module.to(denoiser, dtype=dtype)  # not diffusers' method, which warns of modules that these networks lack
    torch.nn.Module.to(vae, dtype=torch.float32 if upcast else dtype)
    text = sum(_text_parameters(what.base)) * torch.empty(0, dtype=dtype).element_size()
    latent = (vae.config.latent_channels, size[0] // 8, size[1] // 8)

    def denoise() -> None:
        denoiser(**_inputs(denoiser, what, dtype, batch, latent))

    def decode() -> None:
        vae.decode(torch.empty(1, *latent, device="meta", dtype=next(vae.parameters()).dtype))

    return _bytes(denoiser) + _bytes(vae) + text + max(peak_bytes(denoiser, denoise), peak_bytes(vae, decode))


def _inputs(
    denoiser: Network, what: Adapted, dtype: torch.dtype, batch: int, latent: tuple[int, int, int]
) -> dict[str, object]:
    """The inputs of the denoiser for `batch` guided pictures; Flux and SD 3 draw one at a time."""
    import torch

    config, kind = denoiser.config, type(denoiser).__name__

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def prompts(rows: int) -> list[torch.Tensor]:
        features = what.patches or (_taken(what.adapter),)
        return [empty(rows, what.images, *features)]

    tokens = TEXT_TOKENS[kind]
    if kind == "FluxTransformer2DModel":
        places = latent[1] // 2 * (latent[2] // 2)
        return {
            "hidden_states": empty(1, places, config.in_channels), "timestep": empty(1),
            "guidance": empty(1) if config.guidance_embeds else None,
            "pooled_projections": empty(1, config.pooled_projection_dim),
            "encoder_hidden_states": empty(1, tokens, config.joint_attention_dim),
            "txt_ids": empty(tokens, 3), "img_ids": empty(places, 3),
            "joint_attention_kwargs": {"ip_adapter_image_embeds": prompts(1)},
        }  # fmt: skip
    if kind == "SD3Transformer2DModel":
        return {
            "hidden_states": empty(2, *latent), "timestep": empty(2),
            "pooled_projections": empty(2, config.pooled_projection_dim),
            "encoder_hidden_states": empty(2, tokens, config.joint_attention_dim),
            "joint_attention_kwargs": {"ip_adapter_image_embeds": prompts(2)[0].flatten(1, 2)},
        }  # fmt: skip
    rows = 2 * batch
    added: dict[str, object] = {"image_embeds": prompts(rows)}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added |= {"text_embeds": empty(rows, pooled), "time_ids": empty(rows, 6)}
    return {
        "sample": empty(rows, *latent), "timestep": empty(1),
        "encoder_hidden_states": empty(rows, tokens, config.cross_attention_dim), "added_cond_kwargs": added,
    }  # fmt: skip


def _taken(adapter: Shapes) -> int:
    """The length of a vector that the adapter takes."""
    return next(shape[1] for key, shape in adapter.items() if place_of(key) == ("image_proj", "proj.weight"))


def meta_denoiser(base: Path, adapter: Shapes) -> Network:
    """A base's denoiser with an adapter of these shapes, on the meta device. diffusers' loader checks names and shapes."""
    import torch

    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, shape in adapter.items():
        table, name = place_of(key)
        state[table][name] = torch.empty(shape, device="meta")
    part = "unet" if (base / "unet").is_dir() else "transformer"
    denoiser = _meta(base / part)
    one = type(denoiser).__name__ == "SD3Transformer2DModel"  # takes a single adapter
    with torch.device("meta"), quiet():
        denoiser._load_ip_adapter_weights(state if one else [state], low_cpu_mem_usage=False)
    return denoiser


def _meta(folder: Path) -> Network:
    """A network of diffusers on the meta device, of the class that its config names."""
    import torch

    import_whole("accelerate", "peft", "transformers", "diffusers")
    import diffusers

    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    kind = getattr(diffusers, named)
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def _bytes(network: torch.nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in network.parameters())


def _text_parameters(base: Path) -> list[int]:
    """The number of parameters of each text encoder."""
    import torch

    import_whole("transformers")
    import transformers

    counts = []
    for part in TEXT_ENCODERS:
        if not (base / part / "config.json").is_file():
            continue
        found = json.loads((base / part / "config.json").read_text(encoding="utf-8"))
        if found.get("model_type") == "t5":
            config, kind = transformers.T5Config, transformers.T5EncoderModel
        else:
            config, kind = transformers.CLIPTextConfig, transformers.CLIPTextModelWithProjection
        with torch.device("meta"):
            counts.append(sum(one.numel() for one in kind(config.from_pretrained(base / part)).parameters()))
    return counts
