"""Processor time of a picture with `generate`'s choices: the former default, ours, and diffusers; same weights, one run.

    python -m jobs.bench_generate [--model rdm-mini-2] [--batch 16] [--steps 50] [--rounds 5] [--json]

Rounds alternate between the rows; medians. One thread, processor time of the process, sampling and decoding: on an idle machine
it is the wall time of one worker. `generate` has one worker for each core. The row `diffusers` samples with diffusers' own UNet
and decoder in a batch of the same size, as jobs/bench_sampling.py does; nothing is searched, encoded or written in any row. The
row in bf16 is there if the processor has instructions for it. Prints a table or JSON, writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from jobs.bench_sampling import inputs, plain_attention, published_decoding, published_sampling
from pipeline import machine
from pipeline.generation import find_model
from rdm import RDM


def load(folder: str, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> RDM:
    model = RDM.from_pretrained(folder, dtype=None)
    return model.to("cpu", dtype, first_stage_dtype=torch.float32, channels_last=channels_last)


def ours(model: RDM, batch: int, steps: int) -> Callable[[], int]:
    """A function that makes `batch` pictures, and returns their number."""
    config = model.config
    context, x = inputs(model, batch, config.default_size, config.default_k)

    def make() -> int:
        model.decode(model.sample(context, x_T=x, steps=steps, guidance_scale=config.default_guidance))
        return batch

    return make


def diffusers_alone(model: RDM, batch: int, steps: int) -> Callable[[], int]:
    config = model.config
    context, x = inputs(model, batch, config.default_size, config.default_k)
    plain_attention(model, fused=True)

    def make() -> int:
        published_decoding(model, published_sampling(model, context, x, steps, config.default_guidance))
        return batch

    return make


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Processor time of a picture: the former default, ours, and diffusers."
    )
    parser.add_argument("--model", default="rdm-mini-2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = find_model(args.model).folder
    rows = {
        "batch 1, the former default": ours(load(folder), 1, args.steps),
        f"batch {args.batch}, the former layout": ours(load(folder), args.batch, args.steps),
        f"batch {args.batch}, ours": ours(load(folder, channels_last=True), args.batch, args.steps),
        f"diffusers, batch {args.batch}": diffusers_alone(load(folder), args.batch, args.steps),
    }
    if machine.cpu_precision() == "bf16":
        lower = load(folder, torch.bfloat16, channels_last=True)
        rows[f"batch {args.batch}, ours, bf16"] = ours(lower, args.batch, args.steps)
    taken: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(args.rounds + 1):
        for name, make in rows.items():
            start = time.process_time()
            pictures = make()
            if number:  # the first round chooses kernels
                taken[name].append(1000 * (time.process_time() - start) / pictures)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    before = medians["batch 1, the former default"]
    told = {
        "what": "processor time of a picture", "model": args.model, "steps": args.steps, "rounds": args.rounds,
        "processor": platform.processor() or platform.machine(), "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "rows": {name: {"ms": round(ms), "times_as_fast": round(before / ms, 2)} for name, ms in medians.items()},
    }  # fmt: skip
    if args.json:
        print(json.dumps(told))
        return
    print(f"{args.model}, DDIM {args.steps}, one thread, torch {torch.__version__}, load {told['load']}")
    print(f"{'':34}{'ms a picture':>14}{'times as fast':>15}")
    for name, ms in medians.items():
        print(f"{name:34}{ms:14.0f}{before / ms:15.2f}")


if __name__ == "__main__":
    main()
