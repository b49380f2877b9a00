"""Embedding rate compared with the bare forward pass of the same model on the same pictures.

    python jobs/bench_embed.py PICTURES [--encoder random:ViT-B-32?seed=0] [--pictures 120] [--rounds 3]

PICTURES is a folder of image files, or a Parquet file with image bytes in a column `png`, `image` or `jpg`. `reference`
is the bare forward pass: prepared, normalised tensors in memory, the same batch size and threads. `ours` is the embed stage
as a build runs it: reading the tar, decoding, hashing, preparing, the model, writing the shard. Rounds alternate between the
two, so that other load on the machine affects both; the ratio is the median of the rounds' ratios. The ratio of processor time
(all threads) is also given, because other work on the machine makes clock time unreliable. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine
from pipeline.building import EmbedConfig
from pipeline.building.download import DownloadConfig, download_stage, read_images
from pipeline.building.embed import Timing, embed_shard
from pipeline.catalog.manifests import manifest_for_path
from pipeline.database import RetrievalDatabase
from pipeline.encoders import Encoder, load_encoder, to_numpy
from pipeline.execution import Shard
from pipeline.execution.stage import run_shard_once
from pipeline.images import DRAFT_SIDE, decode
from pipeline.sources import open_source


def picture_bytes(source: Path) -> list[bytes]:
    """The picture files of a folder (by name), or of a Parquet file's image column."""
    if source.is_dir():
        kinds = {".jpg", ".jpeg", ".png", ".webp"}
        return [path.read_bytes() for path in sorted(source.iterdir()) if path.suffix.lower() in kinds]
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    name = next(name for name in ("png", "image", "jpg") if name in table.column_names)
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in table[name].to_pylist()]


def one_shard(home: Path, files: list[bytes], count: int) -> tuple[RetrievalDatabase, Shard]:
    """A database whose only shard holds `count` pictures; the files are repeated."""
    folder = home / "pictures"
    folder.mkdir()
    for i, data in enumerate(itertools.islice(itertools.cycle(files), count)):
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        (folder / f"{i:05d}{suffix}").write_bytes(data)
    manifest = manifest_for_path(folder)
    db = RetrievalDatabase(manifest.name, str(home))
    source = open_source(manifest)
    (spec,) = source.plan()
    shard = Shard(0, spec.rows, spec.fingerprint, spec.spec)
    stage = download_stage(db, DownloadConfig(manifest, source.columns()))
    run_shard_once(stage, stage.setup, shard)
    return db, shard


def bare_batches(db: RetrievalDatabase, encoder: Encoder, size: int) -> list[Any]:
    """The shard's pictures as normalised tensors of (B, 3, S, S) on the encoder's device."""
    import torch

    arrays = [
        encoder.prepare(decode(data, DRAFT_SIDE if encoder.preprocess.side else 0).image)
        for _, data in read_images(db, 0)
        if data is not None
    ]
    mean, std = (np.array(values, np.float32) for values in (encoder.preprocess.mean, encoder.preprocess.std))
    batches = []
    for start in range(0, len(arrays), size):
        pixels = np.stack(arrays[start : start + size])
        values = pixels.astype(np.float32) / 255.0 if pixels.dtype == np.uint8 else pixels
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[encoder.record.precision]
        made = torch.from_numpy((values - mean) / std).permute(0, 3, 1, 2).contiguous()
        batches.append(made.to(encoder.device, dtype))
    return batches


def bare_seconds(encoder: Encoder, batches: list[Any]) -> tuple[float, float]:
    """Wall and processor seconds of only the model."""
    import torch

    visual: Any = encoder.model.visual
    start, start_cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for batch in batches:
            made = visual(batch)
        to_numpy(made)  # waits for a GPU
    return time.perf_counter() - start, time.process_time() - start_cpu


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    auto = args.precision == "auto"
    config = EmbedConfig(
        args.encoder,
        precision=machine.encoder_precision(machine.device(args.device)) if auto else args.precision,
        preprocess=args.preprocess,
        images=args.images,
        device=args.device,
        batch=args.batch,
        torch_threads=args.torch_threads,
        decode_threads=args.decode_threads,
    ).for_machine()
    torch.set_num_threads(config.torch_threads)
    torch.set_flush_denormal(True)
    encoder = load_encoder(args.encoder, config.device, config.precision, config.preprocess)
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        db, shard = one_shard(Path(scratch), picture_bytes(args.source), args.pictures)
        batches = bare_batches(db, encoder, config.batch)
        count = sum(len(batch) for batch in batches)
        bare_seconds(encoder, batches[:2])
        for _ in range(args.rounds):
            bare, bare_cpu = bare_seconds(encoder, batches)
            told: list[Timing] = []
            start_cpu = time.process_time()
            embed_shard(db, config, encoder, shard, told.append)
            rounds.append((bare, told[0], bare_cpu / (time.process_time() - start_cpu)))
    middle = sorted(rounds, key=lambda each: each[0] / each[1].total)[len(rounds) // 2][1]
    return {
        "what": "embedding against the bare forward pass",
        "encoder": args.encoder,
        "precision": config.precision,
        "preprocess": config.preprocess,
        "images": config.images,
        "source": args.source.name,
        "pictures": count,
        "batch": config.batch,
        "torch_threads": config.torch_threads,
        "decode_threads": config.decode_threads,
        "device": torch.cuda.get_device_name() if encoder.device.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "ours_per_s": round(count / statistics.median(timing.total for _, timing, _ in rounds), 2),
        "reference_per_s": round(count / statistics.median(bare for bare, _, _ in rounds), 2),
        "ratio": round(statistics.median(bare / timing.total for bare, timing, _ in rounds), 3),
        "ratios": [round(bare / timing.total, 3) for bare, timing, _ in rounds],
        "ratio_of_processor_time": round(statistics.median(cpu for _, _, cpu in rounds), 3),
        "where_the_time_goes": {
            name: round(value, 3) for name, value in dataclasses.asdict(middle).items() if isinstance(value, float)
        },
        "notes": list(encoder.notes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding rate against the bare forward pass.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--encoder", default="random:ViT-B-32?seed=0")
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "fp16", "bf16"])
    parser.add_argument("--preprocess", default="openclip")
    parser.add_argument("--images", default="keep", choices=["keep", "thumbnail", "drop"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--decode-threads", type=int, default=0)
    args = parser.parse_args()
    json.dump(measure(args), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
