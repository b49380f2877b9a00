"""Translation of the original code's configuration and weight names to those of diffusers.

Reads and writes nothing. The names come from the original's UNetModel and Autoencoder, as listed for the full-size model;
the sizes come from its YAML configurations. Only names change, and the shape of 1x1 convolutions that diffusers stores as
matrices; the values of the weights never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rdm.errors import ConfigError, is_number, nearest

if TYPE_CHECKING:
    from rdm.untyped import JsonObject

DENOISER = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
EMA = "model_ema."

_UNET_SIZES = ("in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks",
               "channel_mult", "context_dim")  # fmt: skip
_UNET_FIXED = {"use_scale_shift_norm": False, "resblock_updown": False, "use_spatial_transformer": True,
               "conv_resample": True, "dims": 2, "num_classes": None, "n_embed": None, "dropout": 0}  # fmt: skip
_UNET_MOOT = ("use_checkpoint", "use_fp16", "legacy", "num_heads_upsample")  # without effect on weights and results
_AUTOENCODER = ("double_z", "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks",
                "attn_resolutions", "dropout")  # fmt: skip
_LISTS = ("channel_mult", "attention_resolutions", "ch_mult", "attn_resolutions")
_TOP = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "train_steps"}
_OURS = ("name", "scale_factor", "context_norm", "null_context", "encoder", "max_neighbours", "default_k",
         "default_size", "default_guidance")  # fmt: skip


def translate_config(content: JsonObject) -> JsonObject:
    """The fields of RDMConfig for a description with the original's `unet` and `ddconfig` sections.

    Raises ConfigError for an unknown or missing key, a wrong value, or a network that diffusers cannot build.
    """
    known = ("unet", "ddconfig", "model_channels", "first_stage_ch", "embed_dim", "n_embed", *_TOP, *_OURS)
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in a description with ddconfig{nearest(key, known)}")
    for section in ("unet", "ddconfig"):
        if not isinstance(content.get(section), Mapping):
            raise ConfigError(f"{section} is {content.get(section)!r}; an object with the network's sizes was expected")
    if not is_number(content.get("scale_factor", 1.0)):
        raise ConfigError(f"scale_factor is {content['scale_factor']!r}; a number was expected")
    unet, autoencoder = dict(content["unet"]), dict(content["ddconfig"])
    for section, key, copy in (("unet", "model_channels", "model_channels"), ("ddconfig", "ch", "first_stage_ch")):
        inner = (unet if section == "unet" else autoencoder).get(key)
        if copy in content and content[copy] != inner:
            raise ConfigError(f"{copy} is {content[copy]} but {section}.{key} is {inner}: make them agree")
    ours = {key: content[key] for key in _OURS if key in content}
    ours |= {new: content[old] for old, new in _TOP.items() if old in content}
    ours["unet"] = _translate_unet(unet)
    ours["first_stage"] = _translate_autoencoder(
        autoencoder, content.get("embed_dim"), content.get("n_embed"), float(content.get("scale_factor", 1.0))
    )
    factor = 2 ** (len(autoencoder["ch_mult"]) - 1)
    ours.setdefault("default_size", int(ours["unet"]["sample_size"] or 32) * factor)
    return ours


def _check(section: str, content: JsonObject, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in content]
    if missing:
        raise ConfigError(f"{section} lacks {', '.join(missing)}")
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {section}{nearest(key, known)}")
    for key in needed:
        value = content[key]
        numbers = value if key in _LISTS and isinstance(value, list | tuple) else [None if key in _LISTS else value]
        if key != "double_z" and not all(isinstance(number, int) for number in numbers):
            wanted = "a list of whole numbers" if key in _LISTS else "a whole number"
            raise ConfigError(f"{section}.{key} is {value!r}; {wanted} was expected")


def _translate_unet(unet: JsonObject) -> JsonObject:
    heads_keys = ("num_head_channels", "num_heads")
    _check("unet", unet, _UNET_SIZES,
           (*_UNET_SIZES, *_UNET_FIXED, *_UNET_MOOT, *heads_keys, "image_size", "transformer_depth"))  # fmt: skip
    for key, only in _UNET_FIXED.items():
        if unet.get(key, only) != only:
            raise ConfigError(f"unet.{key} is {unet[key]!r}; only {only!r} is supported")
    widths = [int(unet["model_channels"]) * int(factor) for factor in unet["channel_mult"]]
    attention = [2**level in unet["attention_resolutions"] for level in range(len(widths))]
    if unet.get("num_head_channels", -1) > 0:
        heads = [width // int(unet["num_head_channels"]) for width in widths]
    elif unet.get("num_heads", -1) > 0:
        heads = [int(unet["num_heads"])] * len(widths)
    else:
        raise ConfigError("unet lacks num_head_channels (channels of a head) and num_heads: give one of them")
    if 0 in heads:
        raise ConfigError(
            f"unet.num_head_channels is {unet['num_head_channels']}, more than the {min(widths)} channels there are"
        )
    return {
        "sample_size": unet.get("image_size"),
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": unet["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
        "cross_attention_dim": unet["context_dim"],
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "transformer_layers_per_block": unet.get("transformer_depth", 1),
    }


def _translate_autoencoder(
    dd: JsonObject, embed_dim: int | None, n_embed: int | None, scale_factor: float
) -> JsonObject:
    _check("ddconfig", dd, tuple(key for key in _AUTOENCODER if key != "dropout"), _AUTOENCODER)
    if bool(dd["double_z"]) == (n_embed is not None):
        raise ConfigError(
            "ddconfig.double_z must be true for a KL first stage (without n_embed) and false for a VQ one (with n_embed)"
        )
    if dd.get("dropout", 0) or (n_embed is None and (embed_dim or dd["z_channels"]) != dd["z_channels"]):
        raise ConfigError("ddconfig: dropout must be 0, and embed_dim of a KL first stage must equal z_channels")
    widths = [int(dd["ch"]) * int(factor) for factor in dd["ch_mult"]]
    attention = [int(dd["resolution"]) // 2**level in dd["attn_resolutions"] for level in range(len(widths))]
    shared = {
        "in_channels": dd["in_channels"],
        "out_channels": dd["out_ch"],
        "block_out_channels": widths,
        "layers_per_block": dd["num_res_blocks"],
        "latent_channels": dd["z_channels"],
        "sample_size": dd["resolution"],
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attention)],
        "scaling_factor": scale_factor,
    }
    if n_embed is None:
        return {"_class_name": "AutoencoderKL", **shared}
    return {"_class_name": "VQModel", **shared, "num_vq_embeddings": n_embed,
            "vq_embed_dim": embed_dim or dd["z_channels"]}  # fmt: skip


_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
           "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET_ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
              "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_AUTOENCODER_INNER = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
                      "to_out.0": "proj_out"}  # fmt: skip


def unet_key(key: str, unet: Mapping[str, object]) -> str:
    """The original's name (below `model.diffusion_model.`) of diffusers' UNet weight `key`."""
    head, _, leaf = key.rpartition(".")
    if head in _UNET_ENDS:
        return f"{_UNET_ENDS[head]}.{leaf}"
    parts = key.split(".")
    layers, up_blocks = unet["layers_per_block"], unet["up_block_types"]
    assert isinstance(layers, int) and isinstance(up_blocks, list | tuple)
    if parts[0] == "mid_block":
        slot = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return f"middle_block.{slot}." + _inner(parts[1], parts[3:])
    block, kind, j = int(parts[1]), parts[2], int(parts[3])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{leaf}"
        place = f"input_blocks.{1 + block * (layers + 1) + j}"
    else:
        place = f"output_blocks.{block * (layers + 1) + (layers if kind == 'upsamplers' else j)}"
        if kind == "upsamplers":
            slot = 2 if up_blocks[block].startswith("CrossAttn") else 1
            return f"{place}.{slot}.conv.{leaf}"
    return f"{place}.{1 if kind == 'attentions' else 0}." + _inner(kind, parts[4:])


def _inner(kind: str, rest: list[str]) -> str:
    if kind == "resnets":
        return ".".join([_RESNET[rest[0]], *rest[1:]])
    return ".".join(rest)  # the names inside a transformer are the same


def first_stage_key(key: str, first_stage: Mapping[str, object]) -> str:
    """The original's name (below `first_stage_model.`) of diffusers' autoencoder weight `key`."""
    parts = key.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return key  # quant_conv, post_quant_conv, quantize.embedding
    if parts[1] in ("conv_in", "conv_out"):
        return key
    if parts[1] == "conv_norm_out":
        return f"{parts[0]}.norm_out.{parts[2]}"
    if parts[1] == "mid_block":
        place = f"mid.attn_{int(parts[3]) + 1}" if parts[2] == "attentions" else f"mid.block_{int(parts[3]) + 1}"
        rest = parts[4:]
    else:
        widths = first_stage["block_out_channels"]
        assert isinstance(widths, list | tuple)
        levels = len(widths)
        block = int(parts[2])
        level = block if parts[1] == "down_blocks" else levels - 1 - block  # the original counts from the outer level
        kind = {"resnets": f"block.{parts[4]}", "attentions": f"attn.{parts[4]}", "downsamplers": "downsample",
                "upsamplers": "upsample"}[parts[3]]  # fmt: skip
        place = f"{'down' if parts[1] == 'down_blocks' else 'up'}.{level}.{kind}"
        rest = parts[5:]
    inner = ".".join(rest[:-1])
    return f"{parts[0]}.{place}.{_AUTOENCODER_INNER.get(inner, inner)}.{rest[-1]}"


def ema_key(key: str) -> str:
    """The original's name of the moving average of denoiser weight `key` (which has the prefix `model.`)."""
    return EMA + key.removeprefix("model.").replace(".", "")
