"""The program of `jobs/gpu.sh`: each part runs in a separate process with a time limit; then one JSON file and one page
are written.

    python jobs/gpu.py --out FOLDER [--tiny] [--parts sampling,training,faiss,embedding] [--minutes 10]

Weights are random, because times and memory do not depend on them. A part writes its figures after every measurement, so
that a part that runs out of time keeps its figures. `sampling` and `training` need only torch, diffusers and safetensors.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30
SHARES = {
    "sampling": 42,
    "training": 14,
    "faiss": 18,
    "embedding": 22,
}  # of the time; what a part leaves goes to the next ones
GRACE_S = 15.0  # for a part to start, and to end its last measurement
PACKAGES = ("torch", "diffusers", "safetensors", "numpy", "faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12",
            "open_clip_torch", "duckdb", "pyarrow", "rdmpipe")  # fmt: skip


@dataclass
class Notes:
    """The rows of a part, which are written to its file whenever one is added."""

    path: Path
    until: float  # time.monotonic()
    tiny: bool
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, **row: object) -> None:
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows))

    def has_time(self, seconds: float = 5.0) -> bool:
        return time.monotonic() + seconds < self.until


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def clock(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, the mean of `times`, everything on the GPU included."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


# ---- the parts


def versions() -> dict[str, object]:
    found: dict[str, object] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if importlib.util.find_spec("torch"):
        import torch

        found["cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            found |= {
                "card": card.name,
                "card GiB": round(card.total_memory / GIB, 1),
                "cudnn": torch.backends.cudnn.version(),
            }
    return found


def tiny_description() -> dict[str, object]:
    """The 768-pixel model's architecture, as narrow as its norms allow."""
    from rdm.config import read_config

    config = read_config("rdm-768").to_dict()
    config["name"] = "rdm-768, narrow"
    config["unet"] |= {
        "block_out_channels": [32, 32, 32, 64],
        "attention_head_dim": [1, 1, 1, 2],
        "layers_per_block": 1,
    }
    config["first_stage"] |= {"block_out_channels": [32, 32, 32, 32, 32], "layers_per_block": 1}
    return config


def sampling(notes: Notes) -> None:
    """Seconds a step and a picture, and peak memory: precisions, batches, compiled or not; distance of precisions from fp32."""
    import torch

    from rdm import RDM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = RDM.from_config(tiny_description() if notes.tiny else "rdm-768", device=device)
    size, batches, steps = (64, (1,), 2) if notes.tiny else (768, (1, 4, 8), 10)
    generator = torch.Generator().manual_seed(1)
    context = torch.nn.functional.normalize(
        torch.randn(max(batches), 20, model.config.context_dim, generator=generator), dim=-1
    )
    noise = torch.randn(
        max(batches), model.config.latent_channels, *model.config.latent_size(size, size), generator=generator
    )
    reference = None
    cases = [(dtype, batch, False) for dtype in (torch.float32, torch.float16, torch.bfloat16) for batch in batches]
    if not notes.tiny:  # compiling takes minutes on a CPU
        cases += [(torch.float16, 1, True), (torch.bfloat16, max(batches), True)]
    for dtype, batch, compiled in cases:
        if not notes.has_time(90 if compiled else 15):
            notes.add(dtype=str(dtype), batch=batch, compiled=compiled, error="no time left")
            continue
        try:
            model.to(device, dtype)
            if compiled:
                model.compile()
            given, start = context[:batch].to(device), noise[:batch].to(device)
            first = clock(lambda: model.decode(model.sample(given, x_T=start, steps=2)))  # noqa: B023  # chooses kernels
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            made: list[torch.Tensor] = []
            step_s = clock(lambda: made.append(model.sample(given, x_T=start, steps=steps))) / steps  # noqa: B023
            decode_s = clock(lambda: made.append(model.decode(made[0])))  # noqa: B023
            latents = made[0].float().cpu()
            if reference is None:
                reference = latents
            distance = float((latents[:1] - reference[:1]).norm() / reference[:1].norm())
            notes.add(
                dtype=str(dtype).removeprefix("torch."), batch=batch, compiled=compiled, pixels=size,
                seconds_a_step=rounded(step_s), seconds_to_decode=rounded(decode_s), seconds_at_first=rounded(first),
                seconds_a_picture_of_50_steps=rounded((50 * step_s + decode_s) / batch),
                peak_gib=rounded(torch.cuda.max_memory_allocated() / GIB) if device == "cuda" else None,
                distance_from_fp32=rounded(distance), finite=bool(torch.isfinite(made[1]).all()),
            )  # fmt: skip
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            notes.add(dtype=str(dtype).removeprefix("torch."), batch=batch, compiled=compiled, error="out of memory")


def training(notes: Notes) -> None:
    """Steps a second of the shipped recipe (jobs/train-rdm-768.toml) on one GPU: bf16, 8 pictures a pass, 4 passes a step."""
    import torch

    from rdm import RDM
    from rdm.objectives import denoising_loss
    from rdm.train import LoopConfig, Team, fit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RDM.from_config(tiny_description() if notes.tiny else "rdm-768", device=device)
    size, rows, steps, accumulate = (256, 2, 1, 1) if notes.tiny else (768, 8, 4, 4)  # smaller maps have groups of one
    shape = (rows, model.config.latent_channels, *model.config.latent_size(size, size))
    network = model.unet.train()
    for checkpointing in (True, False):
        if not notes.has_time(20):
            notes.add(pixels=size, batch=rows * accumulate, checkpointing=checkpointing, error="no time left")
            continue
        if checkpointing:
            network.enable_gradient_checkpointing()
        else:
            network.disable_gradient_checkpointing()

        def loss(index: int, draw: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            latents, noise = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
            context = torch.randn(rows, 20, model.config.context_dim, generator=draw).to(device)
            times = torch.randint(1000, (rows,), generator=draw).to(device)
            return denoising_loss(network, latents, context, noise, times, model.schedule)

        def run(count: int) -> None:
            config = LoopConfig(
                steps=count,
                learning_rate=1e-6,
                accumulate=accumulate,
                precision="bf16",
                report_steps=count,
                save_seconds=1e9,
            )
            with tempfile.TemporaryDirectory() as folder:
                fit(network, loss, config, Path(folder), team=Team(writes=False))

        try:
            run(1)  # chooses kernels
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = clock(lambda: run(steps)) / steps
            notes.add(
                pixels=size, batch=rows * accumulate, precision="bf16", checkpointing=checkpointing,
                steps_a_second=rounded(1 / seconds), pictures_a_second=rounded(rows * accumulate / seconds),
                peak_gib=rounded(torch.cuda.max_memory_allocated() / GIB) if device == "cuda" else None,
            )  # fmt: skip
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            notes.add(pixels=size, batch=rows * accumulate, checkpointing=checkpointing, error="out of memory")


def faiss(notes: Notes) -> None:
    """Training, adding, exact neighbours and searches of a batch: a GPU against the CPU, and how far results agree."""
    import faiss
    import numpy as np

    from pipeline.index.gpu import assigner, open_gpu, training_on

    rows, dim, lists, many = (5_000, 32, 64, 200) if notes.tiny else (500_000, 768, 1024, 1000)
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((lists, dim), np.float32)
    vectors = centres[generator.integers(lists, size=rows)] + 0.5 * generator.standard_normal((rows, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, k = vectors[:many] + np.float32(0.01), 19
    gpu = open_gpu("auto")
    notes.add(what="installed", faiss=faiss.__version__, gpus=faiss.get_num_gpus(), rows=rows, dim=dim)
    few = queries[: max(1, many // 10)]
    cpu_s = clock(lambda: faiss.knn(few, vectors, k, faiss.METRIC_INNER_PRODUCT)) / len(few)
    row = {"what": "exact neighbours", "cpu ms a query": rounded(1000 * cpu_s)}
    if gpu is not None:
        gpu.top(few, vectors[:1000], k)
        row["gpu ms a query"] = rounded(1000 * clock(lambda: gpu.top(queries, vectors, k)) / many)
        _, mine = gpu.top(few, vectors, k)
        _, theirs = faiss.knn(few, vectors, k, faiss.METRIC_INNER_PRODUCT)
        row["agreement"] = rounded(agreement(mine, theirs))
    notes.add(**row)
    made = {}
    for name, helper in (("cpu", None), ("gpu", gpu)):
        if name == "gpu" and gpu is None:
            continue
        index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        with training_on(helper, index):
            train_s = clock(lambda: index.train(vectors[: 64 * lists]))  # noqa: B023
        add = assigner(helper, index)
        ids = np.arange(rows, dtype=np.int64)

        def fill() -> None:
            for start in range(0, rows, 2048):
                part = slice(start, start + 2048)
                if add is None:  # noqa: B023
                    index.add(vectors[part])  # noqa: B023
                else:
                    add.add(vectors[part], ids[part])  # noqa: B023

        add_s = clock(fill)
        index.nprobe = 16
        searched = index if helper is None else helper.copy(index)
        params = faiss.SearchParametersIVF(nprobe=16)
        searched.search(queries[:10], k, params=params)
        search_s = clock(lambda: searched.search(queries, k, params=params)) / many  # noqa: B023
        made[name] = searched.search(queries, k, params=params)[1]
        notes.add(
            what=f"IVF{lists},SQ8 on the {name}", train_s=rounded(train_s), add_s=rounded(add_s),
            search_ms=rounded(1000 * search_s),
        )  # fmt: skip
    if len(made) == 2:
        notes.add(what="results of both", agreement=rounded(agreement(made["gpu"], made["cpu"])))


def agreement(mine: object, theirs: object) -> float:
    """The share of the same rows in two arrays (Q, k)."""
    pairs = zip(mine.tolist(), theirs.tolist(), strict=True)  # type: ignore[attr-defined]
    shared = [len(set(a) & set(b)) / len(a) for a, b in pairs]
    return sum(shared) / len(shared)


def embedding(notes: Notes) -> None:
    """The embed stage of a build against the bare forward pass, on drawn JPEGs: ViT-L-14 and ViT-B-32, precisions."""
    import numpy as np
    import torch
    from PIL import Image

    bench = importlib.import_module("bench_embed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(8 if notes.tiny else 200):
            coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(Path(scratch) / f"{number}.jpg")
        names = ("ViT-B-32",) if notes.tiny else ("ViT-L-14", "ViT-B-32")
        for name in names:
            for precision in ("fp32",) if notes.tiny else ("fp16", "bf16"):
                if not notes.has_time(20):
                    notes.add(encoder=name, precision=precision, error="no time left")
                    continue
                given = argparse.Namespace(
                    source=Path(scratch), encoder=f"random:{name}?seed=0", precision=precision, preprocess="openclip",
                    images="keep", device=device, pictures=16 if notes.tiny else 2000 if name == "ViT-L-14" else 4000,
                    rounds=1 if notes.tiny else 2, batch=0, torch_threads=0, decode_threads=0,
                )  # fmt: skip
                found = bench.measure(given)
                kept = ("pictures", "batch", "reference_per_s", "ours_per_s", "ratio", "where_the_time_goes")
                notes.add(encoder=name, precision=precision, **{key: found[key] for key in kept})


PARTS: dict[str, Callable[[Notes], None]] = {
    "sampling": sampling, "training": training, "faiss": faiss, "embedding": embedding,
}  # fmt: skip


# ---- all of them


def run_part(name: str, out: Path, seconds: float, tiny: bool) -> dict[str, object]:
    """The rows of a part and how it ended. It runs in a separate process and is ended when its time is over."""
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--out", str(out), "--part", name, "--seconds", str(seconds)]
    start = time.monotonic()
    try:
        done = subprocess.run(command + ["--tiny"] * tiny, capture_output=True, text=True, timeout=seconds + GRACE_S)
        ended = "ok" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        ended = f"out of time: stopped after {seconds + GRACE_S:.0f} s, with what it had measured"
    rows = json.loads(path.read_text()) if path.exists() else []
    path.unlink(missing_ok=True)
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), "rows": rows}


def page(found: dict[str, object]) -> str:
    """The figures as Markdown: a table for each part."""
    machine: dict[str, object] = found["machine"]  # type: ignore[assignment]
    card = machine.get("card") or "no GPU"
    lines = [
        f"# {card}",
        "",
        f"`bash jobs/gpu.sh{' --tiny' if found['tiny'] else ''}`, {found['seconds']} s. Random weights.",
        "",
    ]
    if found["tiny"]:
        lines += ["This is a rehearsal at tiny size: it shows that the job runs, and measures nothing.", ""]
    lines += table([{"what": name, "version": value} for name, value in machine.items()])
    parts: dict[str, dict[str, object]] = found["parts"]  # type: ignore[assignment]
    for name, part in parts.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{(PARTS[name].__doc__ or '').strip()} ({part['ended']}, {part['seconds']} s)",
            "",
        ]
        lines += table(part["rows"])  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def table(rows: list[dict[str, object]]) -> list[str]:
    """Rows as a Markdown table; tables inside a row are left to the JSON file."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict)))
    if not names:
        return ["No figures."]
    body = ["| " + " | ".join("" if row.get(name) is None else str(row[name]) for name in names) + " |" for row in rows]
    return ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|", *body]


def chosen(text: str) -> Iterator[str]:
    for name in text.split(","):
        if name not in PARTS:
            raise SystemExit(f"--parts {name}: expected some of {', '.join(PARTS)}")
        yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at tiny size, on any machine")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part:
        PARTS[given.part](Notes(given.out / f"{given.part}.json", time.monotonic() + given.seconds, given.tiny))
        return
    start = time.monotonic()
    found: dict[str, object] = {"tiny": given.tiny, "machine": versions(), "parts": {}}
    names = list(chosen(given.parts))
    for i, name in enumerate(names):
        left = 60 * given.minutes - (time.monotonic() - start)
        share = left * SHARES[name] / sum(SHARES[later] for later in names[i:])
        found["parts"][name] = run_part(name, given.out, max(1.0, share - GRACE_S), given.tiny)  # type: ignore[index]
        found["seconds"] = round(time.monotonic() - start, 1)
        print(name, found["parts"][name]["ended"], flush=True)  # type: ignore[index]
        (given.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
        (given.out / "gpu.md").write_text(page(found))
    print(given.out / "gpu.md")


if __name__ == "__main__":
    main()
