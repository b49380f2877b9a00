"""The parts of a training state: the network, its optimizer and the moving average of its weights.

Reads and writes nothing; rdm/train.py and rdm/sharded.py save it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn


class State(TypedDict):
    """The content of state.pt. `step` is the number of finished steps."""

    step: int
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, object]


class Average:
    """The exponential moving average of a network's parameters. Buffers of whole numbers are copied."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = {name: value.detach() for name, value in network.state_dict().items()}
        floats = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_([_own(self.shadow[n]) for n in floats], [_own(live[n]) for n in floats], 1 - decay)
        for name in live.keys() - set(floats):
            self.shadow[name].copy_(live[name])


@dataclass(frozen=True)
class Live:
    """The parts of a state: a network in training, its optimizer and the moving average of its weights."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    smooth: Average


def _own(value: Tensor) -> Tensor:
    """This worker's part of a tensor. (For an operation on a list of spread tensors, torch needs milliseconds for each.)"""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part
