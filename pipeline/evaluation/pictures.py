"""Pictures of trials: made by `rdmpipe generate`'s own code, read back as tensors.

Writes below the evaluation's folder: trials/<name>.jsonl (prompt lists), pictures/ and pictures_neighbours/ (runs without a
gallery). Pictures have keys: what is there is not made again, and trials that want equal pictures share a file.

A style's pictures as a database of their own, to compare with a filter over the mixed one.

Reads: the labelled database's rows and stored pictures. Writes: a folder of picture files with a metadata.csv, and the
database `<labelled>_only_<style>` built from it, with the labelled one's encoder. What is there already is left alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.database import RetrievalDatabase
from pipeline.errors import ModelError
from pipeline.evaluation.plan import Trial, quoted, separate_name
from pipeline.training import decode_picture

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluation.config import EvaluateConfig
    from pipeline.execution import Backend, Progress


@dataclass(frozen=True)
class Made:
    """A trial's picture: key, file below the evaluation's folder, its neighbours' keys and checksums, nearest first."""

    key: str
    file: str
    neighbours: tuple[int, ...]
    checksums: tuple[str, ...]


def make_pictures(
    trials: Sequence[Trial], name: str, folder: Path, config: EvaluateConfig, home: str | None, model: str,
    progress: Progress, backend: Backend, device: str = "auto",
) -> list[Made]:  # fmt: skip
    """The picture of every trial, in order. Raises what generation raises; a picture that failed is an error."""
    made: dict[int, Made] = {}
    for only, run in ((False, "pictures"), (True, "pictures_neighbours")):
        numbers = [i for i, trial in enumerate(trials) if trial.neighbours_only == only]
        if numbers:
            rows = _generate([trials[i] for i in numbers], f"{name}-{run}", run, folder, config, home, model, only,
                             progress, backend, device)  # fmt: skip
            made.update(zip(numbers, rows, strict=True))
    return [made[i] for i in range(len(trials))]


def _generate(
    trials: Sequence[Trial], name: str, run: str, folder: Path, config: EvaluateConfig, home: str | None, model: str,
    only: bool, progress: Progress, backend: Backend, device: str,
) -> list[Made]:  # fmt: skip
    import pyarrow.parquet as pq

    from pipeline.generation import GenerateConfig, generate

    sampling = config.sampling
    prompts = folder / "trials" / f"{name}.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps(trial.row(i, sampling.sampler, sampling.steps)) for i, trial in enumerate(trials))
    prompts.write_text("\n".join(rows) + "\n", encoding="utf-8")
    summary = generate(
        GenerateConfig(
            prompts=str(prompts), db=(config.database,), model=model, home=home, out=str(folder / run), run=name,
            use="neighbours" if only else "both", batch=sampling.batch, shard=8 * sampling.batch, device=device,
            precision=sampling.precision, any_encoder=config.any_encoder, gallery=False,  # type: ignore[arg-type]
        ),
        progress,
        backend,
    )  # fmt: skip
    if summary.failed:
        raise ModelError(
            f"{summary.failed} picture(s) of {name} could not be made: {folder / run / 'results.parquet'} says why. Run the "
            "same command again to try them again"
        )
    columns = ["key", "file", "neighbour_keys", "neighbour_sha256"]
    table: list[dict[str, Any]] = pq.read_table(folder / run / "results.parquet", columns=columns).to_pylist()
    return [
        Made(row["key"], f"{run}/{row['file']}", tuple(row["neighbour_keys"]), tuple(row["neighbour_sha256"]))
        for row in table
    ]


def read_made(folder: Path, made: Sequence[Made], size: int) -> Tensor:
    """The pictures (n, 3, size, size) uint8; equal files are read once."""
    import torch

    files = list(dict.fromkeys(one.file for one in made))
    with ThreadPoolExecutor(2) as pool:
        pixels = dict(
            zip(files, pool.map(lambda file: decode_picture((folder / file).read_bytes(), size), files), strict=True)
        )
    return torch.stack([pixels[one.file] for one in made])


def build_separate(
    style: str, config: EvaluateConfig, home: str | None, folder: Path, progress: Progress, backend: Backend
) -> str:
    """The separate database's name; built now where it is not published."""
    from pipeline.building import BuildRequest, build
    from pipeline.catalog import resolve_database

    name = separate_name(config.database, style)
    if RetrievalDatabase(name, home).exists():
        return name
    selection = resolve_database(config.database, home)
    write_pictures(style, config, home, folder)
    build(
        BuildRequest(target=str(folder), name=name, home=home, encoder=selection.version.encoder.name, images="thumbnail",
                     backend=backend),
        progress,
    )  # fmt: skip
    return name


def write_pictures(style: str, config: EvaluateConfig, home: str | None, folder: Path) -> int:
    """The style's stored pictures as files named by key, and metadata.csv; how many."""
    from pipeline.catalog import resolve_database
    from pipeline.database import picture_files
    from pipeline.retrieval import open_search

    selection = resolve_database(config.database, home)
    with open_search(selection.database, selection.version, selection.where, threads=1) as searcher:
        places = searcher.matching(f"{config.style} = {quoted(style)}")
        assert places is not None  # a filter was given
        keys = [int(key) for key in searcher.keys[places]]
        names = [name for name in (config.caption, config.style) if name in searcher.columns]
        rows = searcher.metadata(keys, names).to_pylist()
    files = picture_files(selection.database, keys, originals=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file_name", *names])
        for key, row in zip(keys, rows, strict=True):
            if key in files:
                (folder / f"{key:012d}.png").write_bytes(files[key])
                writer.writerow([f"{key:012d}.png", *(row[name] for name in names)])
    return len(files)
