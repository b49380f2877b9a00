"""Training on several workers. Ray Train starts them and makes their process group; pipeline/training/run.py does the work.

Reads what pipeline/training/run.py reads, on every worker: on several nodes the run's folder and its pictures must be on a
shared disk. If a worker or its node is lost, all workers start again from the last save; an RdmpipeError ends the run,
because it would occur again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.config import default_home
from pipeline.errors import ConfigError, JobError, RdmpipeError
from pipeline.installation import python_path, require
from pipeline.training.config import Part, TrainConfig

if TYPE_CHECKING:
    from pipeline.execution import Progress

RESTARTS = 3  # the run ends after this many losses without a save between them


def train_on_ray(
    part: Part, config: TrainConfig, progress: Progress, *, workers: int, address: str = "", resume: bool = False
) -> Path:
    """Train one part on `workers` workers, each with a GPU if the cluster has enough. Returns the model's folder.

    The workers share every batch, so that the gradient equals that of a single worker. Raises JobError for a batch that
    cannot be divided equally, and if workers are lost again and again; ConfigError if the folder holds a run and `resume` is
    not set; a worker's own error.
    """
    require("ray", "training on several workers")
    import ray
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.execution import ray_connection
    from rdm.train import describe_state, has_state

    steps, folder = getattr(config, part), config.folder() / part
    if steps is not None and steps.train.rows % workers:
        raise JobError(f"a pass has {steps.train.rows} pictures; a multiple of the {workers} workers was expected")
    if not resume and has_state(folder):
        raise ConfigError(f"{folder} already holds a run: resume it with --resume, or name another folder in `run`")
    home = str(Path(default_home()).absolute())
    with ray_connection(address, {"PYTHONPATH": python_path()}):
        gpu = ray.cluster_resources().get("GPU", 0) >= workers and config.device != "cpu"
        progress.say(f"{part}: {workers} workers, {'each with a GPU' if gpu else 'on CPUs'}")
        losses = Losses(describe_state(folder))
        while True:
            trainer = TorchTrainer(
                _work,
                # The folder was checked above: a state that exists when workers start again is this run's.
                train_loop_config={"part": part, "config": config, "directory": str(Path.cwd()), "home": home},
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
                run_config=RunConfig(storage_path=str((config.folder() / "ray").absolute()), name=part),
            )
            try:
                trainer.fit()
                return folder / "model"
            except (ray.exceptions.RayError, TrainingFailedError) as error:
                own = own_error(error)
                if own is not None:
                    raise own from error
                state = describe_state(folder)
                losses = losses.add(state)
                if losses.count > RESTARTS:
                    raise JobError(
                        f"training {part} on Ray failed {losses.count} times without a save between: {_cause(error)}; fix the "
                        "cause and resume with --resume"
                    ) from error
                progress.say(f"{part}: a worker was lost ({_cause(error)}); all start again: {state or 'from step 0'}")


@dataclass(frozen=True)
class Losses:
    """The number of losses since the last save. `state` describes that save."""

    state: str
    count: int = 0

    def add(self, state: str) -> Losses:
        return Losses(state, self.count + 1 if state == self.state else 1)


def own_error(error: BaseException) -> RdmpipeError | None:
    """The RdmpipeError that a worker raised, if Ray reports one: it would occur again in another attempt."""
    failures = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, RdmpipeError):
            return cause
    return None


def _cause(error: BaseException) -> str:
    """The last line of Ray's message, which names the cause; the traceback is in Ray's own log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Order(TypedDict):
    """The order that a worker receives."""

    part: Part
    config: TrainConfig
    directory: str
    home: str


def _work(given: _Order) -> None:
    """One worker: the function of a single process, with the worker's rank in the crew."""
    import ray.train

    from pipeline.execution import Progress
    from pipeline.training.crew import Crew
    from pipeline.training.run import train

    os.chdir(given["directory"])
    os.environ["RDMPIPE_HOME"] = given["home"]
    place = ray.train.get_context()
    config = given["config"]
    device = config.device
    if device == "auto":
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    crew = Crew(device, config.threads, place.get_world_rank(), place.get_world_size())
    with Progress("text") as progress:
        train(given["part"], config, progress, resume=True, crew=crew)
