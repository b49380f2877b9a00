"""Training on several workers. Ray Train starts them and makes their process group; pipeline/training/run.py does the work.

Reads what pipeline/training/run.py reads, on every worker: on several nodes the run's folder and its pictures must be on a
shared disk. Only the first worker writes. A worker that dies ends the run; the same command with --resume continues from
the last save.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.errors import JobError
from pipeline.installation import python_path, require
from pipeline.training.config import Part, TrainConfig

if TYPE_CHECKING:
    from pipeline.execution import Progress


def train_on_ray(
    part: Part, config: TrainConfig, progress: Progress, *, workers: int, address: str = "", resume: bool = False
) -> Path:
    """Train one part on `workers` workers, each with a GPU if the cluster has enough. Returns the model's folder.

    The workers share every batch, so that the gradient equals that of a single worker. Raises JobError for a batch that
    cannot be divided equally, and if a worker failed, with its message.
    """
    require("ray", "training on several workers")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipeline.execution import ray_connection

    steps = getattr(config, part)
    if steps is not None and steps.train.rows % workers:
        raise JobError(f"a pass has {steps.train.rows} pictures; a multiple of the {workers} workers was expected")
    with ray_connection(address, {"PYTHONPATH": python_path()}):
        gpu = ray.cluster_resources().get("GPU", 0) >= workers and config.device != "cpu"
        trainer = TorchTrainer(
            _work,
            train_loop_config={"part": part, "config": config, "directory": str(Path.cwd()), "resume": resume},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            run_config=RunConfig(storage_path=str((config.folder() / "ray").absolute()), name=part),
        )
        progress.say(f"{part}: {workers} workers, {'each with a GPU' if gpu else 'on CPUs'}")
        try:
            result = trainer.fit()
        except ray.exceptions.RayError as error:
            raise JobError(f"training {part} on Ray failed: {error}; fix the cause and resume with --resume") from error
    if result.error is not None:
        raise JobError(f"training {part} on Ray failed: {result.error}; fix the cause and resume with --resume")
    return config.folder() / part / "model"


class _Order(TypedDict):
    """The order that a worker receives."""

    part: Part
    config: TrainConfig
    directory: str
    resume: bool


def _work(given: _Order) -> None:
    """One worker: the function of a single process, with the worker's rank in the crew."""
    import ray.train

    from pipeline.execution import Progress
    from pipeline.training.crew import Crew
    from pipeline.training.run import train

    os.chdir(given["directory"])
    place = ray.train.get_context()
    config = given["config"]
    device = config.device
    if device == "auto":
        import ray.train.torch

        device = str(ray.train.torch.get_device())
    crew = Crew(device, config.threads, place.get_world_rank(), place.get_world_size())
    with Progress("text") as progress:
        train(given["part"], config, progress, resume=given["resume"], crew=crew)
