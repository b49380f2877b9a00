"""How the workers of a run share a denoiser: whole on each (DDP), or spread over all (FSDP2).

Reads and writes no files. `Shared.forward` is the network to call; the network that was given stays the one whose parameters
are optimised and saved. With several workers the state is saved by all of them together (rdm/sharded.py); with `local_steps`
above 1 each worker has weights of its own in between, and the first worker saves its own as one file.
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
    """A denoiser that several workers train: what is called, and how rdm.train.fit exchanges gradients and saves."""

    forward: UNet
    team: Team


def share(unet: UNet, crew: Crew, part: DenoiserConfig, folder: Path) -> Shared:
    """Share a denoiser between the workers of a crew. Spreads its parameters where `part` asks for "fsdp"."""
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
    """The layers that are gathered one at a time: residual blocks and attention. The rest of a denoiser is small."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [layer for block in blocks for layer in (*block.resnets, *getattr(block, "attentions", ()))]


def spread(unet: UNet, device: torch.device, workers: int, precision: str) -> None:
    """Spread the parameters of a denoiser over all workers, a residual or attention layer at a time (FSDP2).

    Each layer is gathered before it computes, in bf16 where `precision` says so, and freed after it; gradients are summed in
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
    """The context of a pass: gradients are summed over the workers in the last pass of a step alone."""

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
