"""Runs for tests: small databases of style pictures, a small model with random weights, and a generate() in this process."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution import Backend, Progress
from pipeline.generation import GenerateConfig, GenerateSummary, PromptRow, Sampling, generate
from pipeline.generation.sampling import SETTINGS
from rdm import RDM
from tests.builds import quiet_build
from tests.encoders import RANDOM
from tests.rdm_reference import lively, tiny_config


def save_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A small model with random weights that takes the small encoder's vectors (16 numbers, 32 x 32 pixels)."""
    config = tiny_config(**{"encoder": RANDOM, **changes})
    config["unet"]["context_dim"] = 16
    lively(RDM.from_config(config), seed).save_pretrained(folder)
    return folder


def style_pictures(folder: Path, shared: Path, styles: tuple[str, ...], each: int) -> Path:
    """Pictures of everyday things in several drawing styles, with a metadata.csv: style, caption, licence, title."""
    import csv

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file_name", "style", "caption", "licence", "title"])
        for style in styles:
            table = pq.read_table(shared / "data" / "styles" / f"{style}.parquet").slice(0, each)
            for row in table.to_pylist():
                name = f"{style}-{row['id']}.png".replace("/", "_")
                (folder / name).write_bytes(row["png"])
                writer.writerow([name, style.replace("-", "_"), row["caption"], row["license"], row["caption"].title()])
    return folder


def add_view(home: Path, base: str, slug: str, where: str) -> str:
    """A view of a published database in this home."""
    folder = home / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{base}-{slug}"
    (folder / f"{name}.toml").write_text(f'name = "{name}"\nbase = "{base}"\nwhere = "{where}"\n', encoding="utf-8")
    return name


def styles_database(home: Path, folder: Path, shared: Path, each: int = 12) -> tuple[str, ...]:
    """A database `styles` of three styles, and the names of its three views."""
    styles = ("noto", "openmoji", "twemoji")
    quiet_build(style_pictures(folder / "pictures", shared, styles, each), name="styles", images="thumbnail")
    return tuple(add_view(home, "styles", style, f"style = '{style}'") for style in styles)


def quiet_generate(prompts: str | Path | tuple[PromptRow, ...], **options: Any) -> GenerateSummary:
    """generate() in this process on one thread, with few steps by default."""
    backend = options.pop("backend", Backend())
    settings = {"steps": 2, "threads": 1, "k": 3, **options}
    sampling = Sampling(**{name: settings.pop(name) for name in SETTINGS if name in settings})
    given = prompts if isinstance(prompts, tuple) else str(prompts)
    return generate(
        GenerateConfig(prompts=given, sampling=sampling, **settings), Progress(stream=io.StringIO()), backend
    )


def results(summary: GenerateSummary) -> pa.Table:
    return pq.read_table(Path(summary.out) / "results.parquet")


def pictures(out: str | Path) -> dict[str, str]:
    """sha256 of every picture of a run, by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(out, "images").glob("*.png"))
    }
