"""The pictures of an evaluation, made by the code of `rdmpipe generate` and read as tensors; and databases of one style.

Writes below the evaluation's folder: pictures/ and pictures_neighbours/ (runs without a gallery), separate/<style> (a folder of
picture files with a metadata.csv), and the database `<labelled>_only_<style>` built from that with the labelled one's encoder.
Existing pictures (by key) and databases (by name) are not made again, and trials with equal pictures share a file.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.database import RetrievalDatabase
from pipeline.errors import ModelError
from pipeline.evaluation.plan import Trial, quoted, separate_name
from pipeline.training import decode_picture

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluation.config import EvaluateConfig
    from pipeline.execution import Backend, Progress


@dataclass(frozen=True)
class Run:
    """The folder, machine and backend of an evaluation; of these only `device` changes results, in the last digits."""

    config: EvaluateConfig
    folder: Path
    home: str | None
    progress: Progress
    backend: Backend
    device: str = "auto"
    shared_judges: Path | None = None

    @property
    def judges(self) -> Path:
        """The folder of the judges' trainings: the evaluation's own, or one that several models share."""
        return self.shared_judges or self.folder / "judges"


@dataclass(frozen=True)
class Made:
    """A trial's picture: key, file below the evaluation's folder, and its neighbours' keys and checksums, nearest first."""

    key: str
    file: str
    neighbours: tuple[int, ...]
    checksums: tuple[str, ...]


def make_pictures(run: Run, trials: Sequence[Trial], name: str) -> list[Made]:
    """The picture of every trial, in order. Raises what generation raises; a picture that failed is a ModelError."""
    made: dict[int, Made] = {}
    for only, folder in ((False, "pictures"), (True, "pictures_neighbours")):
        numbers = [i for i, trial in enumerate(trials) if trial.neighbours_only == only]
        if numbers:
            rows = _generate(run, [trials[i] for i in numbers], f"{name}-{folder}", folder)
            made.update(zip(numbers, rows, strict=True))
    return [made[i] for i in range(len(trials))]


def _generate(run: Run, trials: Sequence[Trial], name: str, folder: str) -> list[Made]:
    """Pictures of trials that all use the prompt or all leave it out."""
    from pipeline.generation import GenerateConfig, generate

    config, settings = run.config, run.config.sampling
    request = GenerateConfig(
        prompts=tuple(trial.row(i, settings.sampler, settings.steps) for i, trial in enumerate(trials)),
        db=(config.database,),
        model=config.model,
        home=run.home,
        out=str(run.folder / folder),
        run=name,
        use="neighbours" if trials[0].neighbours_only else "both",
        batch=settings.batch,
        shard=8 * settings.batch,
        device=run.device,
        precision=settings.precision,
        any_encoder=config.any_encoder,
        gallery=False,
    )
    summary = generate(request, run.progress, run.backend)
    if summary.failed:
        raise ModelError(
            f"{summary.failed} picture(s) of {name} could not be made: {run.folder / folder / 'results.parquet'} says why. Run "
            "the same command again to try them again"
        )
    table = summary.table(["key", "file", "neighbour_keys", "neighbour_sha256"]).to_pylist()
    return [
        Made(row["key"], f"{folder}/{row['file']}", tuple(row["neighbour_keys"]), tuple(row["neighbour_sha256"]))
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


# ---- databases of one style


def build_separate(run: Run, style: str) -> str:
    """The name of the style's own database, which is built now if it is not published."""
    from pipeline.building import BuildRequest, build
    from pipeline.catalog import resolve_database

    config, folder = run.config, run.folder / "separate" / style
    name = separate_name(config.database, style)
    if RetrievalDatabase(name, run.home).exists():
        return name
    selection = resolve_database(config.database, run.home)
    write_pictures(style, config, run.home, folder)
    build(
        BuildRequest(target=str(folder), name=name, home=run.home, encoder=selection.version.encoder.name,
                     images="thumbnail", backend=run.backend),
        run.progress,
    )  # fmt: skip
    return name


def write_pictures(style: str, config: EvaluateConfig, home: str | None, folder: Path) -> int:
    """Write the style's stored pictures as files named by key, and metadata.csv. Returns how many there are."""
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
