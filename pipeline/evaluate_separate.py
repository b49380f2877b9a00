"""A style's pictures as a database of their own, to compare with a filter over the mixed one.

Reads: the labelled database's rows and stored pictures. Writes: a folder of picture files with a metadata.csv, and the
database `<labelled>_only_<style>` built from it, with the labelled one's encoder. What is there already is left alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.database import RetrievalDatabase
from pipeline.evaluate_plan import quoted, separate_name

if TYPE_CHECKING:
    from pipeline.evaluate_config import EvaluateConfig
    from pipeline.executor import Backend
    from pipeline.progress import Progress


def build_separate(
    style: str, config: EvaluateConfig, home: str | None, folder: Path, progress: Progress, backend: Backend
) -> str:
    """The separate database's name; built now where it is not published."""
    from pipeline.build import build
    from pipeline.request import BuildRequest
    from pipeline.resolve import resolve_database

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
    from pipeline.resolve import resolve_database
    from pipeline.search import open_search
    from pipeline.thumbnails import picture_files

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
