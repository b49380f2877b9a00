"""One of the workers that train together: its device, its rows of a batch, and the averaging of gradients.

Reads RANK, WORLD_SIZE and LOCAL_RANK if torchrun has set them; writes nothing. A crew of one needs no process group. A
larger one uses the default group of torch.distributed, made by Ray Train (pipeline/training/ray.py) or from torchrun's
variables. Each worker takes every `size`-th row of the same global batch, so that the gradient of the crew equals that of a
single worker with all rows. pipeline/training/teamwork.py has DDP and FSDP2 for the denoiser, whose forward pass is one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Crew:
    """Worker `rank` of `size`. device "auto" is the GPU if there is one; threads 0 leaves the number of threads as it is."""

    device: str = "auto"
    threads: int = 0
    rank: int = 0
    size: int = 1

    @staticmethod
    def of_environment(device: str, threads: int) -> Crew:
        """This process's rank from torchrun's variables, after joining the process group; a crew of one without the
        variables."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return Crew(device, threads)
        import torch
        import torch.distributed as dist

        gpu = device != "cpu" and torch.cuda.is_available()
        dist.init_process_group("nccl" if gpu else "gloo")
        if gpu:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return Crew(device, threads, dist.get_rank(), size)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def prepare(self) -> None:
        """Set the number of threads, and flush denormal numbers, which can slow a CPU down more than tenfold."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)

    def torch_device(self) -> torch.device:
        import torch

        return torch.device(machine.device(self.device))

    def mine(self, rows: Tensor) -> Tensor:
        """This worker's rows of a global batch."""
        return rows[self.rank :: self.size]

    @property
    def average(self) -> Callable[[Sequence[Tensor]], None] | None:
        """A function that replaces tensors by their mean over all workers; None for a crew of one."""
        return None if self.size == 1 else self._average

    def _average(self, gradients: Sequence[Tensor]) -> None:
        import torch
        import torch.distributed as dist

        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])  # one message instead of hundreds
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all workers, (B / size, D) each, as (B, D) in the order of the global batch.

        Gradients flow back to the worker that made a row. Every worker computes the same loss of the same global batch; the
        backward pass sums their gradients, and `average` divides the sum, so that the result equals that of one worker.
        """
        if self.size == 1:
            return rows
        import torch
        from torch.distributed.nn.functional import all_gather

        parts = all_gather(rows)  # type: ignore[no-untyped-call]
        return torch.stack(list(parts), dim=1).flatten(0, 1)
