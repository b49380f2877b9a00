"""An encoder that needs no training: the principal components of picture patches as weights of an AutoencoderKL.

A learned encoder takes long to reach the quality of this linear one. The principal components of the f x f patches (f is the
downsampling factor) are put into the convolutions. Strided convolutions gather 2 x 2 neighbours, residual branches are set
to zero, and constant channels, far larger than the rest, prevent the last normalisation from changing the others. The result
is the linear map with a relative error of about 1/900. Changes only the given network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdm.errors import ConfigError
from rdm.untyped import FirstStage, ResidualBlock

_LOUD = 30.0  # value of the constant channels, in units of the latents


def _components(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), the first `count` principal directions (count, d) and their standard deviations, of rows (n, d)."""
    mean = rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T.double()))
    order = values.argsort(descending=True)[:count]
    return mean, vectors[:, order].T.to(rows.dtype), values[order].clamp(min=1e-12).sqrt().to(rows.dtype)


def _silence(block: ResidualBlock) -> None:
    """Reduce a residual block to its shortcut. The branch can still be trained."""
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    if block.conv_shortcut is not None:
        nn.init.zeros_(block.conv_shortcut.weight)
        nn.init.zeros_(block.conv_shortcut.bias)


@torch.no_grad()
def start_as_patches(autoencoder: FirstStage, images: Tensor, *, noise: float = 0.15) -> None:
    """Set the encoder so that its mean is the principal components of the patches and its deviation is `noise`.

    The components are computed from images (N, 3, H, W) in [-1, 1]. The scale of a component is the square root of its standard
    deviation, a compromise between unchanged and equal scales; the standard deviation of all latents together is 1.
    Raises ConfigError unless the network has one residual block a level, two different widths at the deepest levels, at
    least twice the latent channels plus two there, no attention, and one normalisation group.
    """
    encoder, count = autoencoder.encoder, int(autoencoder.config.latent_channels)
    widths = list(autoencoder.config.block_out_channels)
    if (
        autoencoder.config.norm_num_groups != 1 or autoencoder.config.layers_per_block != 1
        or autoencoder.config.mid_block_add_attention or widths[-1] == widths[-2] or widths[-1] < 2 * count + 2
    ):  # fmt: skip
        raise ConfigError(
            "patches = true needs norm_num_groups = 1, layers_per_block = 1, mid_block_add_attention = false, and a last "
            f"entry of block_out_channels that differs from the one before and is at least {2 * count + 2}"
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
    assert last.conv_shortcut is not None  # because the widths differ
    for j in range(count):  # each latent and its negative: silu(a) - silu(-a) = a
        last.conv_shortcut.weight[j, j, 0, 0] = 1
        last.conv_shortcut.weight[count + j, j, 0, 0] = -1
    rest = widths[-1] - 2 * count
    rest -= rest % 2
    last.conv_shortcut.bias[2 * count : 2 * count + rest : 2] = _LOUD
    last.conv_shortcut.bias[2 * count + 1 : 2 * count + rest : 2] = -_LOUD
    for inner in encoder.mid_block.resnets:
        _silence(inner)
    nn.init.ones_(encoder.conv_norm_out.weight)
    nn.init.zeros_(encoder.conv_norm_out.bias)
    loud = (_LOUD**2 * rest / widths[-1] + 2 * count / widths[-1]) ** 0.5  # the divisor of the normalisation
    nn.init.zeros_(encoder.conv_out.weight)
    nn.init.zeros_(encoder.conv_out.bias)
    for j in range(count):
        encoder.conv_out.weight[j, j, 1, 1] = loud
        encoder.conv_out.weight[j, count + j, 1, 1] = -loud
    encoder.conv_out.bias[count:] = 2 * torch.log(torch.tensor(noise))
    nn.init.zeros_(autoencoder.quant_conv.bias)
    autoencoder.quant_conv.weight.copy_(torch.eye(2 * count)[:, :, None, None])


def _pass(block: ResidualBlock, count: int) -> None:
    """Make the shortcut of a block whose width changes keep the first `count` channels."""
    if block.conv_shortcut is not None:
        for channel in range(count):
            block.conv_shortcut.weight[channel, channel, 0, 0] = 1
