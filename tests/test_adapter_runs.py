"""Runs of small Stable Diffusion models over databases: the same keys, resume, provenance and pages as for every model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import companion_name
from pipeline.errors import BudgetError, ConfigError, ModelError
from pipeline.execution import Backend
from pipeline.generation import find_model, list_models, outline_model
from pipeline.generation.models import check_memory
from pipeline.generation.provenance import read_record
from tests.adapters import small_adapter_model
from tests.builds import folder_of, quiet_build
from tests.encoders import RANDOM
from tests.forked import Forked
from tests.generations import pictures, quiet_generate, results, styles_database

pytestmark = pytest.mark.process

PROMPTS = "prompt,negative\na fox,\nan owl at night,blurry\n"


@dataclass(frozen=True)
class World:
    """A home with the database `styles`, three views of it, and a small SDXL with its adapter."""

    home: Path
    model: str
    views: tuple[str, ...]

    def run(self, prompts: str | Path, **options: Any) -> Any:
        return quiet_generate(prompts, **{"model": self.model, "home": str(self.home), "db": self.views, **options})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDMPIPE_HOME", str(folder / "home"))
        patch.setenv("RDMPIPE_CACHE", str(folder / "cache"))
        views = styles_database(folder / "home", folder, shared)
        small_adapter_model(folder / "home" / "models" / "small-sdxl", "sdxl", RANDOM)
        yield World(folder / "home", "small-sdxl", views)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


def test_a_run_records_what_drew_and_which_neighbours(world: World, prompts: Path, tmp_path: Path) -> None:
    summary = world.run(prompts, out=str(tmp_path / "run"), image_scale=0.8, weighting="similarity", batch=2)
    assert (summary.requested, summary.ok, summary.failed) == (6, 6, 0)
    rows = results(summary).to_pylist()
    assert {(row["image_scale"], row["image_weighting"], row["image_blocks"]) for row in rows} == {
        (0.8, "similarity", "all")
    }
    assert {(row["model"], row["sampler"], row["k"]) for row in rows} == {("small-sdxl", "dpmpp_2m", 3)}
    info = find_model("small-sdxl", str(world.home))
    for row in rows:
        with (tmp_path / "run" / row["file"]).open("rb") as handle:
            record = read_record(handle)
        assert record is not None
        assert record["model_hash"] == row["model_hash"] == info.hash
        assert (record["model_base"], record["model_adapter"]) == ("base", "adapter.safetensors")
        assert len(record["model_adapter_sha256"]) == len(record["model_base_sha256"]) == 64
        assert record["prompting"] == {"scale": 0.8, "weighting": "similarity", "blocks": "all"}
        assert {json.loads(one)["style"] for one in row["neighbour_details"]} == {row["db"].removeprefix("styles-")}
    assert len({path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}) == 6
    assert "image_scale" in (tmp_path / "run" / "index.html").read_text("utf-8")
    again = world.run(prompts, out=str(tmp_path / "run"), image_scale=0.8, weighting="similarity", batch=2)
    assert (again.made, again.ok) == (0, 6)
    other = world.run(prompts, out=str(tmp_path / "other"), image_scale=0.4, weighting="similarity", batch=2)
    keys, others = (set(results(one)["key"].to_pylist()) for one in (summary, other))
    assert len(keys) == 6 and not keys & others, "the scale is part of a picture's key"


def test_text_alone_and_a_picture_prompt_need_no_database(world: World, tmp_path: Path, shared: Path) -> None:
    sketch = shared / "data" / "paintings" / "board1.jpg"
    alone = world.run("a fox", db=(), use="text", out=str(tmp_path / "text"))
    assert results(alone)["encoder"].to_pylist() == [""]
    shown = world.run("a fox", db=(), use="text", image=str(sketch), out=str(tmp_path / "image"))
    assert pictures(alone.out).values() != pictures(shown.out).values()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"text_weight": 2.0}, ConfigError, "--image-scale sets the neighbours' strength"),
        ({"weighting": "meen"}, ConfigError, "did you mean 'mean'"),
        ({"blocks": "styl"}, ConfigError, "did you mean 'style'"),
        ({"k": 99}, ModelError, "takes 0 to 16 neighbours"),
        ({"width": 30}, ModelError, "--width is 30 pixels"),
    ],
)
def test_flags_that_the_model_cannot_use_are_refused(
    world: World, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        world.run("a fox", out=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


def test_an_rdm_takes_no_image_scale_and_no_sampler_of_the_others(world: World, tmp_path: Path) -> None:
    from tests.generations import save_model

    rdm = str(save_model(tmp_path / "rdm"))
    with pytest.raises(ConfigError, match="--image-scale: tiny does not take neighbours as image prompts"):
        world.run("a fox", model=rdm, image_scale=0.5, out=str(tmp_path / "run"))
    with pytest.raises(ModelError, match="--sampler 'euler': tiny takes ddim, plms"):
        world.run("a fox", model=rdm, sampler="euler", out=str(tmp_path / "run"))


def test_a_database_of_another_encoder_is_refused_with_the_command(world: World, tmp_path: Path) -> None:
    other = small_adapter_model(tmp_path / "other", "sd15", "vit-h-14")
    with pytest.raises(
        ModelError,
        match=r"trained with vit-h-14.*`rdmpipe build-index \S+/pictures --encoder vit-h-14 --name styles_vit_h_14",
    ):
        world.run("a fox", model=str(other), out=str(tmp_path / "run"))


def test_the_database_with_the_models_encoder_is_chosen_beside_the_named_one(world: World, tmp_path: Path) -> None:
    other = RANDOM.replace("seed=0", "seed=1")
    assert other != RANDOM
    model = str(small_adapter_model(tmp_path / "other", "sd15", other))
    name = companion_name("styles", other)
    quiet_build(world.home.parent / "pictures", name=name, home=str(world.home), encoder=other, images="thumbnail")
    summary = world.run("a fox", model=model, out=str(tmp_path / "run"))
    assert any(f"come from '{name}'" in warning for warning in summary.warnings)
    rows = results(summary).to_pylist()
    assert [row["db"] for row in rows] == list(world.views), "named as asked for, the view's filter among it"
    for row in rows:
        with (tmp_path / "run" / row["file"]).open("rb") as handle:
            record = read_record(handle)
        assert record is not None and (record["database"], record["encoder_name"]) == (name, other)
        assert {json.loads(one)["style"] for one in row["neighbour_details"]} == {row["db"].removeprefix("styles-")}


def test_a_plus_adapter_sees_the_stored_pictures_of_the_neighbours(world: World, tmp_path: Path, shared: Path) -> None:
    model = str(small_adapter_model(tmp_path / "plus", "sd15"))
    run = world.run("a fox", model=model, out=str(tmp_path / "run"))
    rows = results(run).to_pylist()
    assert run.ok == 3 and len({path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}) == 3
    assert [len(row["neighbour_keys"]) for row in rows] == [3, 3, 3]
    with (tmp_path / "run" / rows[0]["file"]).open("rb") as handle:
        record = read_record(handle)
    assert record is not None and len(record["model_image_encoder_sha256"]) == 64
    assert record["model_image_encoder"] == "tower" and record["encoder_name"] == RANDOM, "the search is the database's"
    sketch = str(shared / "data" / "paintings" / "board1.jpg")
    alone, shown = (
        world.run("a fox", model=model, db=(), use="text", image=image, out=str(tmp_path / f"text{bool(image)}"))
        for image in ("", sketch)
    )
    assert pictures(alone.out).values() != pictures(shown.out).values()
    with pytest.raises(ConfigError, match="--weighting 'mean': expected one of equal, similarity"):
        world.run("a fox", model=model, weighting="mean", out=str(tmp_path / "mean"))


def test_a_plus_adapter_refuses_a_database_without_pictures_with_a_command(world: World, tmp_path: Path) -> None:
    model = str(small_adapter_model(tmp_path / "plus", "sd15"))
    quiet_build(folder_of(tmp_path / "few", 4), name="bare", home=str(world.home), images="drop")
    with pytest.raises(
        ModelError, match=r"keeps no pictures \(--images drop\).*--images thumbnail --name bare_pictures"
    ):
        world.run("a fox", model=model, db=("bare",), out=str(tmp_path / "run"))


def test_models_are_listed_with_licence_and_terms_and_without_their_files(world: World) -> None:
    rows = {row.name: row for row in list_models(str(world.home))}
    assert {"small-sdxl", "sd15-ip-adapter", "sdxl-ip-adapter", "sdxl-ip-adapter-bigg", "rdm-mini"} <= rows.keys()
    assert (rows["sdxl-ip-adapter-bigg"].encoder, rows["sdxl-ip-adapter"].size) == ("vit-bigg-14", 1024)
    assert (rows["flux-ip-adapter"].takes, rows["sd35-ip-adapter"].takes) == ("vit-l-14", "any: takes pictures")
    assert all(row.licence for row in rows.values()), "each says its licence or its terms"
    told = dict(outline_model("sd15-ip-adapter", str(world.home)).lines())
    assert "Open RAIL" in str(told["licence"]) and "restricts uses" in str(told["terms"])
    assert "MIT" in str(dict(outline_model("rdm-mini", str(world.home)).lines())["licence"])
    with pytest.raises(ModelError, match="did you mean 'sd15-ip-adapter'"):
        outline_model("sd15-ip-adaptor", str(world.home))


def test_too_little_memory_is_an_error_before_work(world: World) -> None:
    model = find_model("small-sdxl", str(world.home))
    small, large = (check_memory(model, "fp32", "cpu", 1, {(side, side)}, 1) for side in (32, 64))
    assert large > small > 0
    with pytest.raises(BudgetError, match="smaller --batch"):
        check_memory(model, "fp32", "cpu", 10_000, {(2048, 2048)}, 1)


# ---- workers, killed and resumed


@pytest.mark.parametrize("kind", ["inline", pytest.param("ray", marks=[pytest.mark.cluster, pytest.mark.long])])
def test_a_killed_run_continues_to_the_same_bytes(
    world: World, prompts: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "ray":  # both of its workers import diffusers and transformers as a whole
        request.getfixturevalue("ray_here")
    whole = world.run(prompts, out=str(tmp_path / "whole"), batch=1, n=2, steps=8)
    out = tmp_path / "killed"
    code = (
        "from tests.generations import quiet_generate\n"
        f"quiet_generate({str(prompts)!r}, model={world.model!r}, home={str(world.home)!r}, db={world.views!r}, batch=1, n=2,"
        f" steps=8, out={str(out)!r})\n"
    )
    process = Forked((), code=code)
    deadline = time.monotonic() + 200
    while len(list(out.glob("images/*.png"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = pictures(out)
    assert 3 <= len(there) < 12
    other = {"shard": 2, "backend": Backend("ray", workers=2)} if kind == "ray" else {"shard": 2}
    rest = world.run(prompts, out=str(out), batch=1, n=2, steps=8, **other)
    assert (rest.made, rest.failed) == (12 - len(there), 0)
    assert pictures(out) == pictures(whole.out)
