"""Builds for tests: small folders of real pictures, a request with a tiny encoder, and a comparison of two homes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.building import BuildRequest, build
from pipeline.building.request import BuildSummary
from pipeline.execution import Backend, Progress
from tests.encoders import RANDOM
from tests.forked import Forked

REPO = Path(__file__).parent.parent


def picture(seed: int, size: int = 48, kind: str = "PNG") -> bytes:
    """A picture that differs from those of other seeds in more than its colour."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def folder_of(path: Path, count: int, first: int = 0) -> Path:
    """`count` pictures and a metadata.csv with a style and a caption for each."""
    path.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,style,caption"]
    for i in range(first, first + count):
        (path / f"{i:04d}.png").write_bytes(picture(i))
        lines.append(f"{i:04d}.png,{'even' if i % 2 == 0 else 'odd'},picture number {i}")
    (path / "metadata.csv").write_text("\n".join(lines) + "\n")
    return path


def manifest_of(path: Path, folder: Path, name: str = "mine", shard_rows: int = 10, encoder: str = RANDOM) -> str:
    """A manifest of a folder with small shards."""
    path.write_text(
        f'name = "{name}"\ntitle = "Mine"\nlicence = "CC0-1.0"\nterms = "none"\nopt_out = "none"\n'
        f'encoder = "{encoder}"\n[source]\nkind = "folder"\npath = "{folder}"\nshard_rows = {shard_rows}\n'
    )
    return str(path)


def quiet_build(target: str | Path, **options: Any) -> BuildSummary:
    """A build in this process, with the tiny encoder unless the target is a manifest that names its own."""
    if not str(target).endswith(".toml"):
        options.setdefault("encoder", RANDOM)
    options.setdefault("backend", Backend())
    return build(BuildRequest(target=str(target), **options), Progress(stream=io.StringIO()))


def command(*arguments: str | Path, home: Path, wait: bool = True, **environment: str) -> Forked:
    """`rdmpipe ARGUMENTS` as a separate process."""
    env = {**os.environ, "RDMPIPE_HOME": str(home), "PYTHONPATH": str(REPO), **environment}
    process = Forked(tuple(map(str, arguments)), module="pipeline.cli", env=env)
    if wait:
        process.wait(timeout=240)
    return process


def last_json(process: Forked) -> Any:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


def contents(home: Path, name: str = "mine") -> dict[str, bytes]:
    """The files of a published database, by path: they have to be identical after a crash.

    What a killed worker left in the scratch folder is not: the next build clears it.
    """
    root = home / "databases" / name
    left_out = {"lease", "nonce", "progress.json", "failures.json"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.name not in left_out
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
