"""The fields that a foreign description of a network may have, checked before they become arguments of diffusers' constructors.

Reads and writes nothing. A value is a number, a flag, a word, null, or a list of those (nested at most two levels), within
limits: a description must not name a class, a file or code, nor need more than any known model does. diffusers
decides whether the fields make a network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rdm.errors import ConfigError, nearest

# Parameters of diffusers' UNet2DConditionModel.
UNET_FIELDS = frozenset((
    "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift",
    "down_block_types", "mid_block_type", "up_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "dropout", "act_fn", "norm_num_groups",
    "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
    "encoder_hid_dim", "encoder_hid_dim_type", "attention_head_dim", "num_attention_heads", "dual_cross_attention",
    "use_linear_projection", "class_embed_type", "addition_embed_type", "addition_time_embed_dim", "num_class_embeds",
    "upcast_attention", "resnet_time_scale_shift", "resnet_skip_time_act", "resnet_out_scale_factor",
    "time_embedding_type", "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim",
    "conv_in_kernel", "conv_out_kernel", "projection_class_embeddings_input_dim", "attention_type",
    "class_embeddings_concat", "mid_block_only_cross_attention", "cross_attention_norm", "addition_embed_type_num_heads",
))  # fmt: skip

# Parameters of diffusers' AutoencoderKL and VQModel and of rdm.folded.Folded, and the class's name.
FIRST_STAGE_FIELDS = frozenset((
    "_class_name", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "act_fn", "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor",
    "latents_mean", "latents_std", "force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
    "num_vq_embeddings", "vq_embed_dim", "norm_type", "lookup_from_codebook", "factor",
))  # fmt: skip

LARGEST = 1_000_000  # largest whole number

LONGEST = 64  # largest number of entries in a list


def check_network(part: str, table: object, known: frozenset[str]) -> None:
    """Raise ConfigError for a field that is not known or whose value is out of bounds."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{part} is a {type(table).__name__}; a table was expected")
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{part}: unknown key {key!r}{nearest(str(key), sorted(known))}")
        if not _plain(value, 2):
            raise ConfigError(
                f"{part}: {key} is {str(value)[:80]!r}; expected a number up to {LARGEST:,}, a word, true or false, or "
                "a list of those"
            )


def _plain(value: object, depth: int) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_]{0,64}", value) is not None
    if not isinstance(value, list | tuple) or not depth or len(value) > LONGEST:
        return False
    return all(_plain(item, depth - 1) for item in value)
