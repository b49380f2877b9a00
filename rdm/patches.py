"""An encoder that needs no training: the principal components of picture patches, written into AutoencoderKL's own weights.

A learned encoder takes long to reach what a linear one has at once. The f x f patches' components (f the downsampling
factor) are put into the convolutions: strided ones gather 2 x 2 neighbours, residual branches are silenced, and the last
normalisation is made harmless by constant channels that outweigh the rest. What comes out is the linear map up to the
float's precision times 1/900. Reads and writes nothing but the network it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdm.errors import ConfigError

_LOUD = 30.0  # of the constant channels, in units of the latents


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), the first `count` principal directions (count, d) and their standard deviations, of rows (n, d)."""
    mean = rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T.double()))
    order = values.argsort(descending=True)[:count]
    return mean, vectors[:, order].T.to(rows.dtype), values[order].clamp(min=1e-12).sqrt().to(rows.dtype)


def _silence(block: Any) -> None:
    """Make a residual block its shortcut; the branch can still learn."""
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    if block.conv_shortcut is not None:
        nn.init.zeros_(block.conv_shortcut.weight)
        nn.init.zeros_(block.conv_shortcut.bias)


@torch.no_grad()
def start_as_patches(autoencoder: Any, images: Tensor, *, noise: float = 0.15) -> None:
    """Set the encoder's half so that its mean is the patches' principal components, its spread `noise`, everywhere.

    images (N, 3, H, W) in [-1, 1] are what the components are of. A component's scale is the square root of its standard
    deviation (between leaving them as they are and making them equal), the latents' overall deviation is 1. Raises
    ConfigError for a network without room: one residual block a level, widths that differ at the deepest level, twice
    the latent channels plus two there, no attention, and one normalisation group.
    """
    encoder, count = autoencoder.encoder, int(autoencoder.config.latent_channels)
    widths = list(autoencoder.config.block_out_channels)
    if (
        autoencoder.config.norm_num_groups != 1 or autoencoder.config.layers_per_block != 1
        or autoencoder.config.mid_block_add_attention or widths[-1] == widths[-2] or widths[-1] < 2 * count + 2
    ):  # fmt: skip
        raise ConfigError(
            "an encoder of patches wants one norm group, one block a level, no attention, and wide levels"
        )
    nn.init.zeros_(encoder.conv_in.weight)
    nn.init.zeros_(encoder.conv_in.bias)
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
    made = images
    for level, block in enumerate(encoder.down_blocks[:-1]):
        _silence(block.resnets[0])
        _pass(block.resnets[0], made.shape[1])
        conv = block.downsamplers[0].conv
        wide = F.pixel_unshuffle(made, 2)  # channels in the order (channel, row, column)
        room = count if level == len(widths) - 2 else widths[level]
        if wide.shape[1] <= room:
            turn, shift = torch.eye(wide.shape[1], device=wide.device), torch.zeros(wide.shape[1], device=wide.device)
        else:
            mean, turn, spread = _components(wide.permute(0, 2, 3, 1).flatten(0, 2), room)
            if level == len(widths) - 2:
                turn = turn / spread.sqrt()[:, None]
                turn = turn / spread.mean().sqrt()  # variances of spread_j / mean(spread): 1 on average
            shift = -turn @ mean
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        conv.weight[: len(turn), : made.shape[1], :2, :2] = turn.view(len(turn), made.shape[1], 2, 2)
        conv.bias[: len(turn)] = shift
        made = torch.einsum("kd,ndhw->nkhw", turn, wide) + shift[None, :, None, None]
    last = encoder.down_blocks[-1].resnets[0]
    _silence(last)
    for j in range(count):  # each latent and its negative: silu(a) - silu(-a) = a
        last.conv_shortcut.weight[j, j, 0, 0] = 1
        last.conv_shortcut.weight[count + j, j, 0, 0] = -1
    rest = widths[-1] - 2 * count
    rest -= rest % 2
    last.conv_shortcut.bias[2 * count : 2 * count + rest : 2] = _LOUD
    last.conv_shortcut.bias[2 * count + 1 : 2 * count + rest : 2] = -_LOUD
    for block in encoder.mid_block.resnets:
        _silence(block)
    nn.init.ones_(encoder.conv_norm_out.weight)
    nn.init.zeros_(encoder.conv_norm_out.bias)
    loud = (_LOUD**2 * rest / widths[-1] + 2 * count / widths[-1]) ** 0.5  # what the normalisation divides by
    nn.init.zeros_(encoder.conv_out.weight)
    nn.init.zeros_(encoder.conv_out.bias)
    for j in range(count):
        encoder.conv_out.weight[j, j, 1, 1] = loud
        encoder.conv_out.weight[j, count + j, 1, 1] = -loud
    encoder.conv_out.bias[count:] = 2 * torch.log(torch.tensor(noise))
    nn.init.zeros_(autoencoder.quant_conv.bias)
    autoencoder.quant_conv.weight.copy_(torch.eye(2 * count)[:, :, None, None])


def _pass(block: Any, count: int) -> None:
    """Carry the first `count` channels through a silenced block whose width changes."""
    if block.conv_shortcut is not None:
        for channel in range(count):
            block.conv_shortcut.weight[channel, channel, 0, 0] = 1
