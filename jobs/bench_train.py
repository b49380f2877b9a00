"""Throughput of training compared with a bare loop of the same network, and the parts of a step's time.

    python jobs/bench_train.py jobs/train-mini.toml --steps 40 [--threads 1]

The run's earlier parts must be trained (`rdm` reads their models and its cache). Prints one JSON document: pictures a
second of `rdmpipe train`'s loop, of forward, backward and AdamW on fixed tensors of the same shape, and of the loop's
parts; also in CPU time, which a busy machine does not change. Writes only into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.execution import Progress
from pipeline.training import read_train_config
from pipeline.training.config import TrainConfig
from pipeline.training.crew import Crew
from pipeline.training.data import read_pictures, training_rows


def timed(run: Callable[[], Any], times: int) -> tuple[float, float]:
    """Seconds of wall clock and of CPU for one call, the mean of `times` after one to warm up."""
    run()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        run()
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def bench_rdm(config: TrainConfig, steps: int) -> dict[str, Any]:
    from pipeline.training.cache import read_cache
    from pipeline.training.denoiser import build_rdm, draw_context
    from pipeline.training.loop import PartRun
    from rdm.live import Average
    from rdm.objectives import denoising_loss
    from rdm.train import fit

    part = config.rdm
    assert part is not None
    pictures = read_pictures(config.data, config.folder())
    pictures = pictures.take(training_rows(pictures, config.data))
    with Progress() as progress:
        cache = read_cache(PartRun("rdm", config, part.train, progress, Crew("cpu"), False), pictures)
    batch = part.train.batch
    model = build_rdm(config, cache.scale)
    network = model.unet.to(memory_format=torch.channels_last).train()
    draw = torch.Generator().manual_seed(0)

    def step_of(rows: torch.Tensor) -> torch.Tensor:
        noise = torch.randn((batch, *cache.latents.shape[1:]), generator=draw)
        times = torch.randint(1000, (batch,), generator=draw)
        context = draw_context(cache, part, rows, draw)
        latents = (cache.scale * cache.latents[rows]).to(memory_format=torch.channels_last)
        return denoising_loss(network, latents, context, noise, times, model.schedule, snr_limit=part.snr_limit)[0]

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return step_of(torch.randint(len(pictures), (batch,), generator=generator)), {}

    fixed = torch.randn(batch, *cache.latents.shape[1:]).to(memory_format=torch.channels_last)
    context, times = torch.randn(batch, 10, model.config.context_dim), torch.randint(1000, (batch,))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=True)

    def forward() -> torch.Tensor:
        return network(fixed, times, encoder_hidden_states=context).sample.square().mean()  # type: ignore[no-any-return]

    def both() -> None:
        forward().backward()  # type: ignore[no-untyped-call]

    def bare() -> None:
        optimizer.zero_grad(set_to_none=True)
        both()
        optimizer.step()

    average = Average(network, 0.99)
    pieces = {
        "draw": timed(lambda: draw_context(cache, part, torch.randint(len(pictures), (batch,)), draw), steps),
        "forward": timed(lambda: forward().detach(), steps),
        "forward and backward": timed(both, steps),
        "bare loop's step": timed(bare, steps),
        "optimizer": timed(optimizer.step, steps),
        "moving average": timed(lambda: average.update(network, 10), steps),
    }
    with tempfile.TemporaryDirectory() as folder:
        loop = replace(part.train.loop(), steps=steps, save_seconds=1e9, report_steps=steps)
        wall, cpu = time.perf_counter(), time.process_time()
        fit(network, loss, loop, Path(folder))
        pieces["rdmpipe train's step"] = ((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)
    return {
        "batch": batch,
        "parameters": sum(value.numel() for value in network.parameters()),
        "pictures a second": {
            name: round(batch / pieces[name][0], 1) for name in ("bare loop's step", "rdmpipe train's step")
        },
        "pictures a CPU second": {
            name: round(batch / pieces[name][1], 1) for name in ("bare loop's step", "rdmpipe train's step")
        },
        "milliseconds of CPU a step": {name: round(1000 * cpu, 2) for name, (_, cpu) in pieces.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    config = read_train_config(given.job)
    Crew(threads=given.threads).prepare()
    print(json.dumps(bench_rdm(config, given.steps), indent=1))


if __name__ == "__main__":
    main()
