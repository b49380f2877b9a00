"""The memory, state and arithmetic of a denoiser's training, computed on the meta device: no memory is used, no weight is read.

Reads the run's TOML and the description of its model. Builds the real networks at their real widths, passes a worker's part of
a batch forward and backward, spreads the parameters over imagined workers, and plans the state that they would save.
Not counted: workspaces of convolutions, the allocator's fragmentation and the CUDA context, 1 to 3 GiB together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import ConfigError
from pipeline.training.config import TrainConfig
from pipeline.training.denoiser import describe_rdm
from pipeline.training.reporting import count_flops
from pipeline.training.teamwork import shared_layers, spread

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rdm.untyped import UNet


@dataclass(frozen=True)
class Rehearsal:
    """The requirements of a run. Bytes are those of one worker, except for `state`.

    rows            pictures of a pass on a worker; `accumulate` passes make a step
    latent          (C, h, w) of a picture
    weights         fp32 weights, gradients, two moments and the moving average
    gathered        with "fsdp", the whole copy of the largest layer's weights; with "ddp", the bf16 copy
    activations     the peak of a forward and backward pass
    tensors, state  the number of tensors and bytes that all workers save together
    written         bytes of the state that one worker writes; adapters are written by the first worker only
    flops           operations of a picture, forward and backward
    """

    model: str
    parameters: int
    workers: int
    sharding: str
    rows: int
    latent: tuple[int, int, int]
    weights: int
    gathered: int
    activations: int
    tensors: int
    state: int
    written: int
    flops: float

    @property
    def memory(self) -> int:
        """The bytes that a worker needs on its device."""
        return self.weights + self.gathered + self.activations

    def lines(self) -> list[tuple[str, str]]:
        """The numbers for people."""
        whole = self.sharding == "ddp"
        return [
            ("model", f"{self.model}, {self.parameters / 1e6:,.1f} M parameters, latents {self.latent}"),
            ("workers", f"{self.workers}, {self.sharding}: the model is {'whole on each' if whole else 'spread over all'}"),
            ("pass", f"{self.rows} pictures a worker"),
            ("memory of a worker", f"{self.memory / 1e9:.1f} GB, and 1 to 3 GB of the libraries"),
            ("  weights, gradients, moments, average", f"{self.weights / 1e9:.1f} GB"),
            ("  copies of weights in use", f"{self.gathered / 1e9:.1f} GB"),
            ("  activations", f"{self.activations / 1e9:.1f} GB"),
            ("a saved state", f"{self.state / 1e9:.1f} GB, {self.tensors:,} tensors"),
            ("  written by a worker", f"{self.written / 1e9:.2f} GB"),
            ("arithmetic of a picture", f"{self.flops / 1e12:.2f} TFLOP, without what checkpointing computes again"),
        ]  # fmt: skip


def rehearse(config: TrainConfig, workers: int) -> Rehearsal:
    """Rehearse the run's [rdm] on `workers` workers. Raises ConfigError if a pass cannot be divided equally."""
    import torch
    from torch import nn

    from rdm.lora import Adapters
    from rdm.memory import count_training
    from rdm.networks import build

    part = config.rdm
    if part is None:
        raise ConfigError("the run's TOML has no table [rdm]: only the denoiser is rehearsed")
    if part.train.rows % workers:
        raise ConfigError(f"a pass has {part.train.rows} pictures; a multiple of the {workers} workers was expected")
    model = describe_rdm(config, 1.0)
    unet, _ = build(model, "meta")
    rows, tokens = part.train.rows // workers, max(part.counts) + bool(part.p_text)
    latent = (model.latent_channels, *model.latent_size(config.data.size, config.data.size))
    flops = (2 if part.lora else 3) * count_flops(unet, latent, tokens)  # frozen weights need no gradients
    half = part.train.precision == "bf16"
    nn.Module.to(unet, dtype=torch.bfloat16 if half else torch.float32)
    activations = count_training(unet, model, rows, latent[1:], tokens, part.checkpointing)
    nn.Module.to(unet.requires_grad_(True), dtype=torch.float32).zero_grad()
    parameters = sum(value.numel() for value in unet.parameters())
    frozen, trained = (4 * parameters, Adapters(unet, part.lora)) if part.lora else (0, unet)
    if part.distil_guidance:
        frozen = (2 if half else 4) * parameters  # the teacher's
    sizes = _layout(trained, part.sharding, workers, part.train.precision)
    largest = max(sum(value.numel() for value in layer.parameters()) for layer in shared_layers(unet))
    copies = largest if part.sharding == "fsdp" else parameters
    return Rehearsal(
        model.name, parameters, workers, part.sharding, rows, latent, frozen + 5 * 4 * sizes.local,
        (2 if half else 4) * copies if half or part.sharding == "fsdp" else 0, activations, sizes.tensors, sizes.state,
        sizes.written, flops,
    )  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """Trained numbers on one worker, and the tensors and bytes of a state."""

    local: int
    tensors: int
    state: int
    written: int


def _layout(network: nn.Module, sharding: str, workers: int, precision: str) -> _Sizes:
    """Spread a network of the meta device over workers, and plan its state as the first of them would."""
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from rdm.live import Average, Live
    from rdm.sharded import state_of
    from rdm.train import LoopConfig, make_optimizer

    with _imagined(workers):
        if sharding == "fsdp" and workers > 1:
            spread(cast("UNet", network), torch.device("cpu"), workers, precision)
        local = sum(_local(value).numel() for value in network.parameters())
        optimizer = make_optimizer(network, LoopConfig(1))
        for (
            value
        ) in network.parameters():  # as after its first step; a real step on so many imagined tensors takes minutes
            moments = {name: torch.empty_like(value) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[value] = {"step": torch.zeros(()), **moments}
        state = state_of(Live(network, optimizer, Average(network, 0.9)))
        planner = DefaultSavePlanner()
        planner.set_up_planner(cast("Any", state), is_coordinator=True)
        data = [item.tensor_data for item in planner.create_local_plan().items if item.tensor_data is not None]
    written = sum(_bytes(one.chunk.sizes, one.properties.dtype) for one in data)
    whole = sum(_bytes(one.size, one.properties.dtype) for one in data)
    if sharding == "ddp":  # whole tensors, each written by one of the workers
        written = whole // workers
    return _Sizes(local, len(data), whole, written)


def _local(value: Any) -> Any:
    return value.to_local() if hasattr(value, "to_local") else value


def _bytes(size: Sequence[int], kind: torch.dtype) -> int:
    return math.prod(size) * kind.itemsize


@contextmanager
def _imagined(workers: int) -> Iterator[None]:
    """A process group of imagined workers: this process is the first, and nothing is sent."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()
