"""Pictures per second of the RDM: ours compared with a direct implementation of the published sampling, same weights, one run.

    python jobs/bench_sampling.py                         reduced width, on this machine; a few minutes on two cores
    python jobs/bench_sampling.py --model rdm-768/        trained weights instead of random ones
    python jobs/bench_sampling.py --full                  full-size rdm-768 with random weights at 768 px: measured on a
                                                          GPU; without one, only its memory is computed

Prints a report, writes nothing. The implementation follows the published script: diffusers' UNet with attention as matrix
product, softmax, matrix product; both branches of guidance as one batch, zeros for the null context; DDIM in Python; the
decoder on the whole batch. With random weights the distances between samplers can only be compared with each other; quality
needs trained weights.

On a CPU the clock is the CPU time of the process on one thread, which equals the wall clock of an idle machine; on a GPU it is
the wall clock.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rdm import RDM
from rdm.config import read_config
from rdm.memory import count_memory
from rdm.networks import diffusers

GIB = 2**30


def reduced(width: int, first_stage_width: int) -> RDM:
    """The 768-pixel model's architecture at another width, with random weights."""
    channels = {"unet": (1, 2, 3, 4), "first_stage": (1, 1, 2, 2, 4)}
    config = read_config("rdm-768").to_dict()
    config["name"] = f"rdm-768 at width {width}"
    config["unet"] |= {
        "block_out_channels": [width * m for m in channels["unet"]],
        "attention_head_dim": [width * m // 32 for m in channels["unet"]],
    }
    config["first_stage"]["block_out_channels"] = [first_stage_width * m for m in channels["first_stage"]]
    torch.manual_seed(0)
    return RDM.from_config(config)


def best(work: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, Any]:
    return min((seconds(work, device) for _ in range(repeats)), key=lambda run: run[0])


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result


def plain_attention(model: RDM, *, fused: bool) -> None:
    """diffusers' attention as in the published code (matrix products and a softmax), or fused."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    processor = AttnProcessor2_0() if fused else AttnProcessor()
    model.unet.set_attn_processor(processor)
    model.first_stage.set_attn_processor(processor)


@torch.no_grad()
def published_sampling(model: RDM, context: Tensor, x: Tensor, steps: int, scale: float) -> Tensor:
    """The published loop: DDIM with eta 0, one doubled batch a step."""
    both = torch.cat([torch.zeros_like(context), context]).to(model.dtype)
    times = [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
    alphas = model.schedule.alphas_cumprod.tolist()
    for t, t_next in zip(times, [*times[1:], 0], strict=True):
        batch = torch.cat([x, x]).to(model.dtype)
        eps_null, eps = model.unet(batch, t, encoder_hidden_states=both).sample.float().chunk(2)
        eps = eps_null + scale * (eps - eps_null)
        x0 = (x - (1 - alphas[t]) ** 0.5 * eps) / alphas[t] ** 0.5
        x = alphas[t_next] ** 0.5 * x0 + (1 - alphas[t_next]) ** 0.5 * eps
    return x


@torch.no_grad()
def published_decoding(model: RDM, latents: Tensor) -> Tensor:
    return model.first_stage.decode(latents / model.config.scale_factor).sample


def inputs(model: RDM, batch: int, size: int, neighbours: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(batch, 1 + neighbours, model.config.context_dim, generator=generator)
    shape = (batch, model.config.latent_channels, *model.config.latent_size(size, size))
    context = torch.nn.functional.normalize(context, dim=-1)
    return context.to(model.device), torch.randn(shape, generator=generator).to(model.device)


def against_the_transcription(model: RDM, args: argparse.Namespace) -> None:
    context, x = inputs(model, args.batch, args.size, args.neighbours)
    print(f"\n== {args.size} px, batch {args.batch}, DDIM {args.steps} steps, scale 5, {args.neighbours} neighbours")
    print(f"{'':34}{'sample s':>10}{'decode s':>10}{'pictures/s':>12}{'speed':>8}{'largest difference':>20}")
    rows: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]] = {
        "published, transcribed": (
            lambda: published_sampling(model, context, x, args.steps, 5.0),
            lambda z: published_decoding(model, z),
        ),
        "the same with fused attention": (
            lambda: published_sampling(model, context, x, args.steps, 5.0),
            lambda z: published_decoding(model, z),
        ),
        "ours": (lambda: model.sample(context, x_T=x, steps=args.steps), model.decode),
    }
    first: tuple[float, Tensor] | None = None
    for name, (sample, decode) in rows.items():
        plain_attention(model, fused=name != "published, transcribed")
        warm = model.steps(context, x_T=x, steps=2) if name == "ours" else None
        next(warm) if warm is not None else published_sampling(model, context, x, 1, 5.0)
        sampling, latents = best(sample, model.device, args.repeats)
        decoding, _ = best(partial(decode, latents), model.device, args.repeats)
        total = sampling + decoding
        first = first or (total, latents)
        difference = float((latents - first[1]).abs().max() / first[1].abs().max())
        print(
            f"{name:34}{sampling:10.2f}{decoding:10.2f}{args.batch / total:12.4f}{first[0] / total:7.2f}x{difference:20.1e}"
        )


GROUPS = {
    "convolution": ("conv",), "attention": ("attention", "softmax", "bmm"), "matrix product": ("addmm", "mm"),
    "normalisation": ("norm",), "pointwise": ("gelu", "silu", "mul", "add", "div", "sub"), "copying": ("copy", "cat"),
}  # fmt: skip


def where_time_goes(model: RDM, args: argparse.Namespace) -> None:
    context, x = inputs(model, args.batch, args.size, args.neighbours)
    model.sample(context, x_T=x, steps=1)
    with torch.profiler.profile() as profile:
        latents = model.sample(context, x_T=x, steps=2)
    print("\n== where our sampling's time goes (operators' own CPU time)")
    shares = dict.fromkeys((*GROUPS, "other"), 0.0)
    for event in profile.key_averages():
        group = next((g for g, words in GROUPS.items() if any(word in event.key for word in words)), "other")
        shares[group] += event.self_cpu_time_total
    total = sum(shares.values())
    print("   ".join(f"{group} {share / total:.0%}" for group, share in shares.items() if share))
    del latents


def few_steps(model: RDM, args: argparse.Namespace) -> None:
    context, x = inputs(model, 1, args.quality_size, args.neighbours)
    limit = model.sample(context, x_T=x, steps=args.limit_steps, sampler="unipc")
    print(
        f"\n== few-step samplers at {args.quality_size} px, batch 1; distance (rms) to UniPC with {args.limit_steps} steps"
    )
    scale = float(limit.square().mean().sqrt())
    for sampler, counts in {
        "ddim": (50, 20),
        "plms": (50, 20),
        "dpmpp_2m": (20, 15, 10, 8),
        "unipc": (20, 15, 10, 8),
    }.items():
        for steps in counts:
            taken, latents = seconds(lambda: model.sample(context, x_T=x, steps=steps, sampler=sampler), model.device)  # noqa: B023
            distance = float((latents - limit).square().mean().sqrt()) / scale
            if (sampler, steps) == ("ddim", 50):
                base = taken
            print(f"{sampler:10}{steps:4} steps{taken:9.2f} s{base / taken:7.2f}x of DDIM 50   distance {distance:.4f}")


def full_size(args: argparse.Namespace) -> None:
    config = read_config("rdm-768")
    print("\n== rdm-768, full size: memory counted (GiB; not counted: workspaces, fragmentation, CUDA context, 1 to 2)")
    for dtype in (torch.float16, torch.float32):
        for batch in (1, 4, 8):
            count = count_memory(config, batch=batch, dtype=dtype)
            parts = (count.weights, count.denoiser, count.decoder, count.peak)
            print("{:16} batch {}: weights {:.2f}, denoiser {:.2f}, decoder {:.2f}, peak {:.2f}".format(
                str(dtype), batch, *(part / GIB for part in parts)))  # fmt: skip
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    model = RDM.from_config(config, device="cuda")
    for dtype in (torch.float32, torch.float16):
        model.to("cuda", dtype)
        for batch in (1, 4, 8):
            context, x = inputs(model, batch, 768, 19)
            model.decode(model.sample(context, x_T=x, steps=2))  # kernels are chosen on first use
            torch.cuda.reset_peak_memory_stats()
            sampling, latents = seconds(lambda: model.sample(context, x_T=x, steps=args.steps), model.device)  # noqa: B023
            decoding, images = seconds(lambda: model.decode(latents), model.device)  # noqa: B023
            peak = torch.cuda.max_memory_allocated() / GIB
            print(f"{dtype!s:16} batch {batch}: {(sampling + decoding) / batch:.2f} s a picture ({args.steps} steps "
                  f"{sampling:.2f} s, decoding {decoding:.2f} s), peak {peak:.2f} GiB, "
                  f"finite {bool(torch.isfinite(images).all())}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full-size rdm-768 at 768 px")
    parser.add_argument("--model", help="folder of a saved model, instead of random weights")
    parser.add_argument("--width", type=int, default=64, help="model channels (full size: 448)")
    parser.add_argument("--first-stage-width", type=int, default=32, help="first-stage channels (full size: 128)")
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--neighbours", type=int, default=19)
    parser.add_argument("--repeats", type=int, default=1, help="number of repetitions; the best counts")
    parser.add_argument("--quality-size", type=int, default=256, help="size of the few-step comparison")
    parser.add_argument("--limit-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, diffusers {diffusers().__version__}, {torch.get_num_threads()} threads, {where}")
    if args.full:
        full_size(args)
        return
    model = RDM.from_pretrained(args.model) if args.model else reduced(args.width, args.first_stage_width)
    if torch.cuda.is_available():
        model.to("cuda")
    print(f"{model.config.name}: {sum(p.numel() for p in model.unet.parameters()):,} parameters in the denoiser")
    against_the_transcription(model, args)
    where_time_goes(model, args)
    few_steps(model, args)


if __name__ == "__main__":
    main()
