"""Every step of jobs/paper.toml at reduced width, on stand-in files in the formats of LAION, WikiArt and ArtBench-10."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.evaluation import EvaluateConfig, read_evaluate_config
from tests.encoders import RANDOM
from tests.evaluations import quiet_evaluate, tiny
from tests.generations import save_model
from tests.pictures import csv_of, jpeg, md5, tar_of, wikiart_files
from tests.server import Server, serve

JOB = Path(__file__).resolve().parent.parent / "jobs" / "paper.toml"
STYLES = ("baroque", "ukiyo_e")
ROOT = "artbench-10-imagefolder-split"


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def server(tmp_path: Path, home: Path) -> Iterator[Server]:
    (tmp_path / "served" / "files").mkdir(parents=True)
    with serve(tmp_path / "served") as running:
        yield running


def artbench(server: Server, folder: Path, each: int = 16) -> str:
    """The shipped manifest over an archive and a CSV of ArtBench-10's layout; its views come with the package."""
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    rows = []
    for style in STYLES:
        for i in range(each):
            name = f"artist-{len(rows)}_work-{i}-1900.jpg"
            members.append((f"{ROOT}/train/{style}/{name}", jpeg(len(rows), 40)))
            rows.append({"name": name, "artist": f"artist-{len(rows)}", "url": f"https://uploads.example.org/{name}",
                         "is_public_domain": True, "length": 1000, "width": 800.0, "label": style, "split": "train",
                         "cifar_index": len(rows)})  # fmt: skip
    archive = tar_of(server.folder / "files" / "artbench-10-imagefolder-split.tar", members)
    table = csv_of(server.folder / "files" / "ArtBench-10.csv", rows)
    from pipeline.catalog.manifests import shipped_manifests

    text = shipped_manifests()["artbench"].read_text()
    for line in text.splitlines():
        if line.startswith("md5"):
            text = text.replace(line, f'md5 = "{md5(archive)}"')
        if line.startswith("csv_md5"):
            text = text.replace(line, f'csv_md5 = "{md5(table)}"')
    text = text.replace("expected_rows = 60000", f"expected_rows = {len(rows)}")
    path = folder / "artbench.toml"
    path.write_text(text)
    return str(path)


def laion(folder: Path, count: int = 24) -> str:
    """jobs/laion.toml over a tar in img2dataset's form: the picture, caption and JSON of each row."""
    members: list[tuple[str | tarfile.TarInfo, bytes]] = []
    for i in range(count):
        about = {"url": f"https://example.org/{i}.jpg", "caption": f"a thing {i}", "similarity": 0.3, "key": f"{i:09d}"}
        members.append((f"{i:09d}.jpg", jpeg(1000 + i, 40)))
        members.append((f"{i:09d}.json", json.dumps(about).encode()))
        members.append((f"{i:09d}.txt", about["caption"].encode()))  # type: ignore[attr-defined]
    (folder / "laion").mkdir()
    tar_of(folder / "laion" / "00000.tar", members)
    text = (JOB.parent / "laion.toml").read_text().replace('path = "runs/laion"', f'path = "{folder / "laion"}"')
    (folder / "laion.toml").write_text(text)
    return str(folder / "laion.toml")


def wikiart(server: Server) -> None:
    """The Hub's copy of WikiArt, on a local server."""
    wikiart_files(server.folder / "hub/huggan/wikiart", [jpeg(2000 + i, 40) for i in range(24)], files=2)


def reduced(server: Server, folder: Path) -> EvaluateConfig:
    """The job with small numbers and stand-ins, but with every table and every kind of step."""
    job = read_evaluate_config(JOB)
    targets = {"laion.toml": laion(folder), "artbench": artbench(server, folder), "wikiart": "wikiart"}
    wikiart(server)
    build = tuple(
        replace(entry, target=targets[Path(entry.target).name], base_url=server.url, encoder=RANDOM)
        for entry in job.build
    )  # fmt: skip
    judge = replace(job.style_judge, backbone="squeezenet1_1", pretrained=False)  # its weights cannot be had here
    model = save_model(folder / "model", max_neighbours=20)
    return tiny(replace(job, build=build, any_encoder=True, styles=STYLES, style_judge=judge), model)


@pytest.mark.long
def test_the_papers_experiment_runs_step_by_step_on_stand_ins(server: Server, tmp_path: Path, home: Path) -> None:
    config = reduced(server, tmp_path)
    config = replace(config, tuning=replace(config.tuning, k=(19,)))
    summary = quiet_evaluate(config, tmp_path / "paper", home)
    assert {path.name for path in (home / "databases").iterdir()} >= {"laion", "wikiart", "artbench"}
    assert set(summary["setup"]["databases"]) == {"artbench", "laion", "wikiart", *config.sources.values()}
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "paper" / "pictures.parquet").to_pylist()
    swapped = {row["database"] for row in rows if row["phase"] == "swap"}
    assert swapped == {"wikiart", *(f"artbench-{style}" for style in STYLES)}
    assert {row["database"] for row in rows if row["condition"].startswith("postfix") and row["k"]} == {"laion"}
    assert {row["k"] for row in rows if row["condition"] == "swap" and row["phase"] == "postfix"} == {19}
    assert set(summary["swap"]["without a style"]["guesses"]) == {"wikiart"}
    assert set(summary["postfix"]["as it is"]["swap minus"]) == {
        "postfix", "postfix, neighbours only", "postfix, text only", "no style named"
    }  # fmt: skip
    assert (tmp_path / "paper" / "index.html").stat().st_size > 10_000
