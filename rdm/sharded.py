"""The state of a training run that several workers save together, each its part, during training.

Reads and writes `state/<step>/` in a run's folder, in the layout of torch.distributed.checkpoint. A folder is complete when
its `.metadata` exists, which is written last; older ones are removed then. Any number of workers can read it, and so can one
worker without a process group. Nothing pickled is run (rdm/statefiles.py). The finished model is in another folder and holds
only tensors.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rdm.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from rdm.live import Live, State

FOLDER = "state"

_COMPLETE = ".metadata"


def folder_of(folder: Path, step: int) -> Path:
    """The folder of a step's state."""
    return folder / FOLDER / f"{step:09d}"


def saved_states(folder: Path) -> list[Path]:
    """The folders of the complete states of a run, oldest first."""
    return sorted(path.parent for path in (folder / FOLDER).glob(f"*/{_COMPLETE}"))


def is_spread(network: nn.Module) -> bool:
    """Whether the parameters are spread over several workers."""
    return any(hasattr(value, "full_tensor") for value in network.parameters())


class ShardedStore:
    """A rdm.train.Store: every worker writes its part, in a thread. All workers call each method together.

    `group` is a process group of CPUs that nothing else uses, because the writing threads communicate through it.
    """

    def __init__(self, folder: Path, group: ProcessGroup, device: torch.device) -> None:
        self.folder, self.group, self.device = folder, group, device
        self.first = torch.distributed.get_rank(group) == 0
        self.pending: Future[object] | None = None

    def due(self, wanted: bool, reported: bool) -> bool:
        """The decision of the first worker, exchanged when a report makes the workers wait for each other anyway."""
        if not reported:
            return False
        answer = torch.tensor(float(wanted), device=self.device)
        torch.distributed.broadcast(answer, 0)
        return bool(answer)

    def save(self, step: int, live: Live) -> None:
        """Copy the state to the CPU and return; a thread writes it. Waits for an earlier save that still runs."""
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.close()
        # It returns when the tensors are copied, so that training may change them.
        started = async_save(state_of(live), checkpoint_id=folder_of(self.folder, step), process_group=self.group)
        self.pending = cast("Future[object]", started)
        if self.first:
            self.pending.add_done_callback(lambda done: None if done.exception() else self._remove_older(step))

    def whole(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        made = {}
        for name, value in weights.items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value
            if self.first:
                made[name] = full
        return made

    def kept(self) -> str:
        self.close()
        states = saved_states(self.folder)
        return f"{states[-1]} holds step {int(states[-1].name)}" if states else ""

    def close(self) -> None:
        """Return when the last save is complete. Raises CheckpointError if it failed."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            pending.result()
        except (OSError, RuntimeError, CheckpointException) as error:
            raise CheckpointError(
                f"{self.folder / FOLDER} could not be written: {error}. Free some space, and continue with --resume"
            ) from error

    def _remove_older(self, step: int) -> None:
        for path in (self.folder / FOLDER).iterdir():
            if path.name != folder_of(self.folder, step).name:
                shutil.rmtree(path, ignore_errors=True)


def state_of(live: Live) -> dict[str, dict[str, Any]]:
    """The state by names of parameters, as torch.distributed.checkpoint takes it. The tensors are the live ones."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    network, optimizer = get_state_dict(live.network, live.optimizer)
    return {"network": network, "optimizer": dict[str, Any](optimizer), "average": live.smooth.shadow}


def load(path: Path, live: Live) -> None:
    """Load a complete state into this worker's part of the network."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict

    from rdm.statefiles import StatePlanner, StateReader

    state = state_of(live)
    alone = not torch.distributed.is_initialized()
    try:
        state_dict_loader.load(state, storage_reader=StateReader(path), planner=StatePlanner(), no_dist=alone)
    except CheckpointException as error:  # which is a BaseException
        raise RuntimeError(str(error)) from error
    set_state_dict(
        live.network,
        live.optimizer,
        model_state_dict=state["network"],
        optim_state_dict=state["optimizer"],
    )


def load_whole(state: State, live: Live) -> None:
    """Load a state.pt into a network whose parameters are spread over several workers."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    from torch.distributed.tensor import DTensor, distribute_tensor

    names = {id(value): name for name, value in live.network.named_parameters()}
    order = [names[id(value)] for group in live.optimizer.param_groups for value in group["params"]]
    kept = cast("dict[str, Any]", state["optimizer"])
    optimizer: dict[str, Any] = {
        "state": {order[number]: values for number, values in kept["state"].items()},
        "param_groups": [
            {**group, "params": [order[number] for number in group["params"]]} for group in kept["param_groups"]
        ],
    }
    set_state_dict(
        live.network, live.optimizer, model_state_dict=dict[str, Any](state["network"]), optim_state_dict=optimizer,
        options=StateDictOptions(full_state_dict=True),
    )  # fmt: skip
    with torch.no_grad():
        for name, value in live.smooth.shadow.items():
            full = state["average"][name]
            if isinstance(value, DTensor):
                value.copy_(distribute_tensor(full.to(value.device), value.device_mesh, value.placements))
            else:
                value.copy_(full)


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part of a state ("network", "average"), whole, on the CPU, without a process group.

    Raises CheckpointError for a damaged or hostile state.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from rdm.statefiles import StatePlanner, StateReader

    reader = StateReader(path)
    try:
        found = reader.read_metadata().state_dict_metadata
    except (pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path} is not a training state: {error}. Name another folder in `run`") from error
    values = {
        name.removeprefix(f"{part}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if name.startswith(f"{part}.") and isinstance(entry, TensorStorageMetadata)
    }
    state_dict_loader.load({part: values}, storage_reader=reader, planner=StatePlanner(), no_dist=True)
    return values
