"""The gain in speed of few steps at equal quality: UniPC and DPM-Solver++(2M) compared with DDIM with 50 steps, on a
trained model.

    python jobs/bench_few_steps.py --db styles --model rdm-mini-2 [--home HOME] [--count 64] [--json FILE]

Draws every prompt with its neighbours from the database, by every sampler, from the same noise. Two measures of the decoded
pictures:

    distance    root mean square over pixels in [-1, 1] to UniPC with --limit-steps (250) steps from the same noise, which
                represents the exact solution; mean over pictures
    kid         kernel distance (arXiv 1801.01401) to real pictures of the database, on the image features of the database's own
                encoder, unit rows times the root of their length; `kid_error` is the standard deviation of its difference to
                DDIM 50 over 200 resamplings of the prompts

A sampler has equal quality if its distance is at most that of DDIM 50 and its kid at most that of DDIM 50 plus two such
errors. The ratio is the seconds of DDIM 50 divided by those of the fastest such sampler. With untrained weights the figures are
meaningless. Seconds are CPU seconds of this process on one thread (wall clock on a GPU), without and with decoding.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.catalog import resolve_database
from pipeline.database import picture_files
from pipeline.encoders import Encoder, load_recorded, unit_rows
from pipeline.evaluation.statistics import kid
from pipeline.generation import find_model
from pipeline.images import decode
from pipeline.retrieval import open_search
from rdm import RDM
from rdm.conditioning import Context, assemble

ROOT = Path(__file__).resolve().parent.parent
BASE = ("ddim", 50)
CHOICES = (BASE, ("ddim", 25), ("ddim", 10), *((s, n) for s in ("dpmpp_2m", "unipc") for n in (15, 12, 10, 8)))
DRAWS = 200


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def features(encoder: Encoder, pictures: list[Any]) -> Any:
    """(n, D) of RGB pictures: unit rows times sqrt(D), so that the kernel's x.y / D is their cosine."""
    parts = [encoder.encode_images(np.stack([encoder.prepare(p) for p in pictures[i : i + 32]]))
             for i in range(0, len(pictures), 32)]  # fmt: skip
    unit, _ = unit_rows(np.concatenate(parts))
    return unit * np.sqrt(unit.shape[1])


def draw(
    model: RDM, context: Context, noise: Tensor, choice: tuple[str, int], args: argparse.Namespace
) -> tuple[Tensor, float, float]:
    """Pictures (n, 3, H, W) in [-1, 1], and the seconds of sampling and of decoding."""
    sampler, steps = choice
    made, sampling, decoding = [], 0.0, 0.0
    for i in range(0, len(noise), args.batch):
        tokens, x = context.tokens[i : i + args.batch], noise[i : i + args.batch]
        mask = None if context.mask is None else context.mask[i : i + args.batch]
        start = clock(model.device)
        latents = model.sample(tokens, mask=mask, x_T=x, steps=steps, sampler=sampler, guidance_scale=args.scale)
        between = clock(model.device)
        made.append(model.decode(latents).clamp(-1, 1).cpu())
        sampling, decoding = sampling + between - start, decoding + clock(model.device) - between
    return torch.cat(made), sampling, decoding


def measure(drawn: dict[tuple[str, int], Any], limit: Tensor, real: Any, encoder: Encoder) -> list[dict[str, Any]]:
    """A row of figures for every sampler, DDIM 50 first."""
    vectors = {choice: features(encoder, rgb(images)) for choice, (images, _, _) in drawn.items()}
    generator = np.random.default_rng(0)
    count = len(limit)
    again = [generator.choice(count, count, replace=True) for _ in range(DRAWS)]
    # A repeated picture would be compared with itself in the unbiased sum, so each resampling keeps distinct ones.
    again = [np.unique(rows) for rows in again]
    base = [kid(vectors[BASE][rows], real) for rows in again]
    rows = []
    for choice, (images, sampling, decoding) in drawn.items():
        others = [kid(vectors[choice][some], real) for some in again]
        rows.append({
            "sampler": choice[0], "steps": choice[1],
            "distance": float((images - limit).square().flatten(1).mean(1).sqrt().mean()),
            "kid": kid(vectors[choice], real), "kid_error": float(np.std(np.subtract(others, base))),
            "sampling_seconds": sampling, "seconds": sampling + decoding,
        })  # fmt: skip
    return rows


def rgb(images: Tensor) -> list[Any]:
    """(H, W, 3) uint8 of each picture."""
    return list((images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--db", required=True)
    parser.add_argument("--model", default="rdm-mini-2", help="a model's name or folder")
    parser.add_argument("--home")
    parser.add_argument("--prompts", type=Path, default=ROOT / "pipeline" / "assets" / "prompts.txt")
    parser.add_argument("--count", type=int, default=64, help="prompts, from the list's beginning")
    parser.add_argument("--real", type=int, default=1000, help="real pictures, spread over the database")
    parser.add_argument("-k", type=int, help="neighbours [default: the model's]")
    parser.add_argument("--scale", type=float, help="guidance scale [default: the model's]")
    parser.add_argument("--limit-steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the document here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    info = find_model(args.model, args.home)
    model = RDM.from_pretrained(info.folder)
    if torch.cuda.is_available():
        model.to("cuda")
    args.scale = model.config.default_guidance if args.scale is None else args.scale
    k = model.config.default_k if args.k is None else args.k
    prompts = [line for line in args.prompts.read_text("utf-8").splitlines() if line.strip()][: args.count]
    selection = resolve_database(args.db, args.home)
    encoder = load_recorded(selection.version.encoder, "cpu")
    queries, norms = encoder.text_vectors(prompts)
    with open_search(selection.database, selection.version, threads=args.threads) as searcher:
        found = searcher.search(queries, k, selection.where).keys
        near = [searcher.vectors(keys) for keys in found]
        every = np.asarray(searcher.keys)
    taken = queries * norms[:, None] if model.config.context_norm == "raw" else queries
    context = assemble(
        model.config, torch.from_numpy(taken), [torch.from_numpy(v) for v, _ in near],
        norms=[torch.from_numpy(n) for _, n in near],
    )  # fmt: skip
    size = model.config.latent_size(model.config.default_size, model.config.default_size)
    shape = (len(prompts), model.config.latent_channels, *size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    context = Context(context.tokens.to(model.device), None if context.mask is None else context.mask.to(model.device))
    stored = picture_files(selection.database, every[:: max(1, len(every) // args.real)][: args.real])
    side = model.config.default_size  # real pictures as small as the drawn ones, because features depend on sharpness
    real = features(encoder, [np.array(decode(data).image.resize((side, side))) for data in stored.values()])
    limit, *_ = draw(model, context, noise, ("unipc", args.limit_steps), args)
    drawn = {choice: draw(model, context, noise, choice, args) for choice in CHOICES}
    rows = measure(drawn, limit, real, encoder)
    base = rows[0]
    for row in rows:
        row["speed"] = base["seconds"] / row["seconds"]
        row["sampling_speed"] = base["sampling_seconds"] / row["sampling_seconds"]
        row["equal"] = row["distance"] <= base["distance"] and row["kid"] <= base["kid"] + 2 * row["kid_error"]
    equal = max((row for row in rows if row["equal"]), key=lambda row: row["speed"])
    document = {
        "model": info.config.name, "model_hash": info.hash[:16], "database": args.db, "version": selection.version.id,
        "features": selection.version.encoder.id, "prompts": len(prompts), "real_pictures": len(stored), "k": k,
        "scale": args.scale, "limit": f"unipc, {args.limit_steps} steps", "device": str(model.device),
        "samplers": rows, "fastest_at_equal_quality": equal,
    }  # fmt: skip
    text = json.dumps(document, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
