"""A denoiser that several workers share: whole on each worker (DDP), or spread over all (FSDP2).

Reads and writes no files. `Shared.forward` is the network to call; the parameters of the given network are optimised and
saved. Several workers save the state together (rdm/sharded.py); with `local_steps` above 1, each worker has its own weights
in between, and the first worker saves its own as one file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.training.config import DenoiserConfig
    from pipeline.training.crew import Crew
    from rdm.config import RDMConfig
    from rdm.train import Team
    from rdm.untyped import UNet


@dataclass(frozen=True)
class Shared:
    """A denoiser that several workers train: the network to call, and how rdm.train.fit exchanges gradients and saves."""

    forward: UNet
    team: Team


def share(unet: UNet, crew: Crew, part: DenoiserConfig, folder: Path) -> Shared:
    """Share a denoiser between the workers of a crew. Spreads its parameters if `part` says "fsdp"."""
    from rdm.sharded import ShardedStore
    from rdm.train import Team

    alone = Team(crew.average, writes=crew.first)
    if crew.size == 1 or part.train.local_steps > 1 or part.lora:
        return Shared(unet, alone)
    import torch.distributed as dist

    device = crew.torch_device()
    exchange: Callable[[bool], AbstractContextManager[object]]
    if part.sharding == "fsdp":
        spread(unet, device, crew.size, part.train.precision)
        forward, exchange = unet, _Spread(unet)
    else:
        from torch.nn.parallel import DistributedDataParallel

        whole = DistributedDataParallel(unet, broadcast_buffers=False, gradient_as_bucket_view=True)
        forward, exchange = cast("UNet", whole), lambda last: nullcontext() if last else whole.no_sync()
    store = ShardedStore(folder, dist.new_group(backend="gloo"), device)
    return Shared(forward, Team(crew.average, exchange, store, crew.first))


def shared_layers(unet: UNet) -> list[nn.Module]:
    """The layers that are gathered one at a time: residual and attention layers. The rest of a denoiser is small."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [layer for block in blocks for layer in (*block.resnets, *getattr(block, "attentions", ()))]


def spread(unet: UNet, device: torch.device, workers: int, precision: str) -> None:
    """Spread the parameters of a denoiser over all workers, a residual or attention layer at a time (FSDP2).

    Each layer is gathered before it computes (in bf16 if `precision` says so) and freed afterwards; gradients are summed in
    fp32. Needs the default process group.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (workers,))
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32)
    inner = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for layer in shared_layers(unet):
        fully_shard(layer, mesh=mesh, mp_policy=inner)
    fully_shard(unet, mesh=mesh, mp_policy=policy)


@dataclass(frozen=True)
class _Spread:
    """The context of a pass: gradients are summed over the workers only in the last pass of a step."""

    unet: UNet

    def __call__(self, last: bool) -> AbstractContextManager[object]:
        self.unet.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()


def rebuild(config: RDMConfig, weights: Mapping[str, Tensor], device: torch.device) -> UNet:
    """A whole denoiser with these weights, in eval mode, without gradients."""
    from rdm.networks import build

    unet, _ = build(config, "meta")
    unet.load_state_dict(dict(weights), assign=True)
    unet.to(device)
    return unet.requires_grad_(False)
