"""`generate` on real pictures with a small model: what is made and what is not made again; the same key is the same picture."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.catalog import resolve_database
from pipeline.errors import BudgetError, ConfigError, DatabaseError, FilterError, ModelError, PromptError
from pipeline.execution import Backend, Progress
from pipeline.generation import GenerateConfig, Sampling, find_model, generate, list_models
from pipeline.generation.models import check_memory, default_model
from pipeline.generation.painter import Rendering, painter
from pipeline.generation.provenance import read_record
from pipeline.generation.rdm_model import LoadedRDM
from pipeline.generation.requests import Neighbourhood, PictureRequest
from pipeline.generation.run import run_name
from pipeline.retrieval import open_search
from tests.forked import Forked
from tests.generations import pictures, quiet_generate, results, save_model, styles_database

pytestmark = pytest.mark.process

PROMPTS = 'prompt,mood\na fox,calm\nan owl at night,\n"a house, red",grim\n'
LEVELS, SHARE = 2, 0.02  # another thread count: at most 2 of 255 levels, in at most 2% of all values


@dataclass(frozen=True)
class World:
    """A home with the database `styles`, three views of it, and a model; shared by the tests, which write to other folders."""

    home: Path
    model: str
    views: tuple[str, ...]

    def run(self, prompts: str | Path, **options: Any) -> Any:
        return quiet_generate(prompts, **{"model": self.model, "home": str(self.home), "db": self.views, **options})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDMPIPE_HOME", str(folder / "home"))
        patch.setenv("RDMPIPE_CACHE", str(folder / "cache"))
        views = styles_database(folder / "home", folder, shared)
        yield World(folder / "home", str(save_model(folder / "model")), views)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


def listed(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path


def pixels(out: str | Path, file: str) -> Any:
    with Image.open(Path(out) / file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_every_prompt_gets_a_picture_from_every_database(world: World, prompts: Path, tmp_path: Path) -> None:
    summary = world.run(prompts, out=str(tmp_path / "run"), n=2, seed=5)
    assert (summary.requested, summary.ok, summary.failed, summary.made) == (18, 18, 0, 18)
    table = results(summary)
    rows = table.to_pylist()
    assert [(row["row"], row["db"], row["copy"], row["seed"]) for row in rows[:4]] == [
        (2, "styles-noto", 0, 5), (2, "styles-noto", 1, 6), (2, "styles-openmoji", 0, 5), (2, "styles-openmoji", 1, 6),
    ]  # fmt: skip
    assert [row["mood"] for row in rows[::6]] == ["calm", "", "grim"]
    assert {row["status"] for row in rows} == {"ok"} and all(row["seconds"] > 0 for row in rows)
    version = resolve_database("styles", str(world.home)).version
    for row in rows:
        with (tmp_path / "run" / row["file"]).open("rb") as handle:
            record = read_record(handle)
        assert record is not None
        with Image.open(tmp_path / "run" / row["file"]) as image:
            assert image.size == (32, 32) == (row["width"], row["height"])
            assert image.text["prompt"] == row["prompt"] and image.text["seed"] == str(row["seed"])  # type: ignore[attr-defined]
        for name in ("key", "prompt", "seed", "k", "sampler", "steps", "scale", "eta", "use", "encoder", "model_hash"):
            assert record[name] == row[name], name
        assert record["database"] == "styles" and record["database_version"] == row["db_version"] == version.id
        assert [n["key"] for n in record["neighbours"]] == row["neighbour_keys"] and len(row["neighbour_keys"]) == 3
        style = row["db"].removeprefix("styles-")
        assert {json.loads(details)["style"] for details in row["neighbour_details"]} == {style}
        assert all(row["neighbour_licences"]) and all(row["neighbour_sha256"]) and all(row["neighbour_captions"])
    assert (tmp_path / "run" / "index.html").is_file() and (tmp_path / "run" / "contact.png").is_file()
    assert len({path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}) == 18, "pictures all differ"


def test_neighbours_are_those_of_an_exact_cosine_search(world: World, tmp_path: Path) -> None:
    summary = world.run("a red house", db=("styles",), where="style <> 'noto'", k=5, out=str(tmp_path / "run"))
    (row,) = results(summary).to_pylist()
    selection = resolve_database("styles", str(world.home))
    from pipeline.encoders import load_recorded

    query = load_recorded(selection.version.encoder, "cpu").encode_texts(["a red house"])[0].astype(np.float64)
    with open_search(selection.database, selection.version) as searcher:
        keys = np.asarray(searcher.keys)
        vectors, _ = searcher.vectors(keys)
        styles = np.asarray(searcher.metadata(keys, ["style"])["style"].to_pylist())
    scores = np.where(styles != "noto", vectors.astype(np.float64) @ query, -np.inf)
    best = np.argsort(-scores, kind="stable")[:5]
    assert row["neighbour_keys"] == keys[best].tolist()
    assert row["neighbour_scores"] == pytest.approx(scores[best].tolist(), abs=1e-6)


def test_finished_pictures_are_never_made_again(world: World, prompts: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    first = world.run(prompts, out=out)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "images").iterdir()}
    again = world.run(prompts, out=out)
    assert (again.made, again.ok) == (0, 9)
    prompts.write_text('prompt\nnew on top\na fox\nan owl at night\n"a house, red"\n')
    grown = world.run(prompts, out=out, batch=2)
    assert (grown.requested, grown.made) == (12, 3)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "images").iterdir()}
    assert {name: now[name] for name in times} == times and first.made == 9
    (tmp_path / "run" / results(grown)["file"][0].as_py()).unlink()
    assert world.run(prompts, out=out, batch=2).made == 1, "a picture that was thrown away is made again, and only it"


def test_what_another_run_of_the_home_finished_is_copied(world: World, prompts: Path) -> None:
    first = world.run(prompts, run="one", scale=3.0)
    second = world.run(prompts, run="two", scale=3.0, n=2)
    assert (second.copied, second.made, second.requested) == (9, 9, 18)
    assert pictures(first.out).items() <= pictures(second.out).items()


def test_equal_keys_share_a_file_and_every_request_has_its_row(world: World, tmp_path: Path) -> None:
    path = listed(tmp_path, "prompt,id,k,seed,n\na fox,first,,,2\na fox,second,,1,\na fox,alone,0,,\n")
    summary = world.run(path, out=str(tmp_path / "run"))
    rows = results(summary).to_pylist()
    # 2 copies x 3 views, then seed 1 again x 3 views (shared with the second copies), then one without any database
    assert (summary.requested, summary.pictures, len(rows)) == (10, 7, 10)
    assert rows[1]["file"] == rows[6]["file"] and (rows[1]["id"], rows[6]["id"]) == ("first", "second")
    assert (rows[9]["db"], rows[9]["use"], rows[9]["neighbour_keys"]) == ("", "text", [])


def test_shards_batches_and_workers_do_not_change_a_byte_and_threads_hardly_a_pixel(
    world: World, prompts: Path, tmp_path: Path
) -> None:
    runs = {
        name: world.run(prompts, out=str(tmp_path / name), n=2, **options)
        for name, options in {
            "one": {"shard": 1, "batch": 1}, "many": {"shard": 100}, "batched": {"batch": 4}, "threads": {"threads": 2},
        }.items()
    }  # fmt: skip
    expected = pictures(runs["one"].out)
    assert pictures(runs["many"].out) == pictures(runs["batched"].out) == expected and len(expected) == 18
    assert pictures(runs["threads"].out).keys() == expected.keys(), "threads are no part of a key"
    for file in expected:
        difference = np.abs(pixels(tmp_path / "one", f"images/{file}") - pixels(tmp_path / "threads", f"images/{file}"))
        assert difference.max() <= LEVELS and (difference > 0).mean() <= SHARE


@pytest.mark.cluster
def test_ray_with_two_workers_makes_the_same_bytes(world: World, prompts: Path, tmp_path: Path, ray_here: None) -> None:
    inline = world.run(prompts, out=str(tmp_path / "inline"), batch=2)
    ray = world.run(prompts, out=str(tmp_path / "ray"), batch=2, shard=2, backend=Backend("ray", workers=2))
    assert (ray.made, ray.failed) == (9, 0)
    assert pictures(ray.out) == pictures(inline.out)
    same = [name for name in results(ray).column_names if name != "seconds"]
    assert results(ray).select(same).equals(results(inline).select(same))


# ---- killed and interrupted


def started(world: World, prompts: Path, out: Path, **options: Any) -> Forked:
    """A run in a separate process, slow enough to be stopped before its end."""
    config = {"prompts": str(prompts), "model": world.model, "home": str(world.home), "db": world.views, "k": 3,
              "threads": 1, "out": str(out), **options}  # fmt: skip
    steps = config.pop("steps")
    code = (
        "from pipeline.execution import Progress\nfrom pipeline.generation import GenerateConfig, Sampling, generate\n"
        f"print(generate(GenerateConfig(**{config!r}, sampling=Sampling(steps={steps})), Progress()).made)"
    )
    return Forked((), code=code)


def wait_for_pictures(process: Forked, out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("images/*.png"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not come to its pictures"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_continues_and_ends_with_the_same_pictures(
    world: World, prompts: Path, tmp_path: Path, how: signal.Signals
) -> None:
    whole = world.run(prompts, out=str(tmp_path / "whole"), steps=30, batch=2)
    out = tmp_path / "stopped"
    process = started(world, prompts, out, steps=30, batch=2)
    wait_for_pictures(process, out, 3)
    os.killpg(process.pid, how)
    _, said = process.communicate(timeout=60)
    there = pictures(out)
    assert process.returncode != 0 and 3 <= len(there) < 9
    if how is signal.SIGINT:
        assert "of 9 pictures are finished" in said and "Run the same command again" in said
    rest = world.run(prompts, out=str(out), steps=30, batch=2)
    assert rest.made == 9 - len(there) and rest.failed == 0
    assert pictures(out) == pictures(whole.out)
    assert there.items() <= pictures(out).items(), "what was finished was left alone"
    assert not list(out.rglob("*.part"))


# ---- what a row can ask for


def test_a_row_beats_the_flags_and_its_databases_replace_the_list(world: World, tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        "prompt,db,seed,n,k,steps,scale,sampler,width,height,negative,where\n"
        "a fox,,,,,,,,,,,\n"
        "an owl,\"styles-noto, styles@\",9,2,1,3,2.5,plms,48,16,blur,caption like 'a%'\n",
    )
    rows = results(world.run(path, out=str(tmp_path / "run"), scale=4.0)).to_pylist()
    assert [row["db"] for row in rows] == [*world.views, "styles-noto", "styles-noto", "styles@", "styles@"]
    assert {(row["k"], row["steps"], row["scale"], row["sampler"]) for row in rows[:3]} == {(3, 2, 4.0, "ddim")}
    asked = {(row["k"], row["steps"], row["scale"], row["sampler"], row["negative"]) for row in rows[3:]}
    assert asked == {(1, 3, 2.5, "plms", "blur")}
    assert [row["seed"] for row in rows[3:]] == [9, 10, 9, 10]
    assert pixels(tmp_path / "run", rows[3]["file"]).shape == (16, 48, 3)
    assert all(row["neighbour_captions"][0].startswith("a") for row in rows[3:])
    assert "noto" in rows[3]["where"] and "noto" not in rows[5]["where"]


def test_what_the_prompt_and_neighbours_weigh_changes_the_picture(world: World, tmp_path: Path, shared: Path) -> None:
    sketch = shared / "data" / "paintings" / "board1.jpg"
    path = listed(
        tmp_path,
        f"prompt,image,negative,id\na fox,,,text\na fox,,blur,negative\na fox,{sketch},,image\n,{sketch},,wordless\n",
    )
    made: dict[str, list[dict[str, Any]]] = {}
    for use, options in {
        "both": {}, "neighbours": {"use": "neighbours"}, "text": {"use": "text"}, "weight": {"text_weight": 3.0},
    }.items():  # fmt: skip
        made[use] = results(world.run(path, out=str(tmp_path / use), db=("styles",), **options)).to_pylist()
    shown = {(use, row["id"]): pixels(tmp_path / use, row["file"]) for use, rows in made.items() for row in rows}
    apart = [("both", "text"), ("both", "negative"), ("both", "image"), ("neighbours", "text"), ("neighbours", "image"),
             ("text", "text"), ("text", "image"), ("weight", "text"), ("weight", "image")]  # fmt: skip
    for i, one in enumerate(apart):
        for other in apart[:i]:
            assert (shown[one] != shown[other]).any(), (one, other)
    # A picture in place of the text: what the text says no longer counts, for neighbours or for the denoiser.
    assert (shown["both", "image"] == shown["both", "wordless"]).all()
    assert made["both"][0]["neighbour_keys"] != made["both"][2]["neighbour_keys"]
    assert made["neighbours"][0]["neighbour_keys"] == made["both"][0]["neighbour_keys"]
    assert (tmp_path / "both" / "inputs" / made["both"][2]["image"]).read_bytes() == sketch.read_bytes()


def test_a_prompt_and_columns_of_any_length_and_name_come_through(world: World, tmp_path: Path) -> None:
    long = "a fox " * 200_000
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": long, "key": "k", "row_key": "r", "row_row_key": "s"}) + "\n")
    summary = world.run(path, db=(), use="text", out=str(tmp_path / "run"))
    (row,) = results(summary).to_pylist()
    assert (row["status"], row["prompt"]) == ("ok", long.strip())
    assert [value for name, value in row.items() if name.startswith("row_")] != []
    assert {"k", "r", "s"} <= {value for value in row.values() if isinstance(value, str)}


def test_text_alone_needs_no_database(world: World, tmp_path: Path) -> None:
    summary = world.run("a fox", db=(), use="text", out=str(tmp_path / "run"))
    assert summary.ok == 1 and results(summary)["db_version"].to_pylist() == [""]
    with pytest.raises(PromptError, match="no database: give --db"):
        world.run("a fox", db=(), out=str(tmp_path / "other"))


def test_a_filter_with_fewer_matches_gives_fewer_neighbours_and_says_so(world: World, tmp_path: Path) -> None:
    with_two = resolve_database("styles", str(world.home))
    with open_search(with_two.database, with_two.version) as searcher:
        first = searcher.metadata(searcher.keys[:2], ["sha256"])["sha256"].to_pylist()
    where = "sha256 in ('" + "', '".join(first) + "')"
    path = listed(tmp_path, f'prompt,where\na fox,\na fox,"{where}"\n')
    rows = results(world.run(path, db=("styles",), out=str(tmp_path / "run"), batch=2)).to_pylist()
    assert [len(row["neighbour_keys"]) for row in rows] == [3, 2]
    assert "only 2 of 3 neighbours" in rows[1]["note"] and "only" not in rows[0]["note"]
    alone = world.run(path, db=("styles",), out=str(tmp_path / "alone"), batch=1)
    for row in rows:  # batched with a longer row, the shorter one is masked, not padded with zeros that count
        difference = np.abs(pixels(tmp_path / "run", row["file"]) - pixels(alone.out, row["file"]))
        assert difference.max() <= LEVELS


def test_a_pinned_version_is_the_same_picture_as_the_current_one(world: World, tmp_path: Path) -> None:
    version = resolve_database("styles", str(world.home)).version.id
    summary = world.run("a fox", db=("styles-noto", f"styles-noto@{version}"), out=str(tmp_path / "run"))
    assert (summary.requested, summary.pictures) == (2, 1)


def test_a_model_that_takes_raw_vectors_gets_stored_vector_times_norm(world: World, tmp_path: Path) -> None:
    model = save_model(tmp_path / "raw", context_norm="raw")
    selection = resolve_database("styles", str(world.home))
    picture = PictureRequest(
        "a fox", "", "", "both", 1.0, 0, Neighbourhood("styles", selection.version.id), 2,
        Sampling("ddim", 2, 1.0, 0.0, 32, 32),
    )  # fmt: skip
    rendering = Rendering(str(tmp_path), str(world.home), find_model(str(model)), "fp32", "cpu", 1)
    with painter(rendering) as made, open_search(selection.database, selection.version) as searcher:
        near = made.near({"key": picture})["key"]
        assert isinstance(made.model, LoadedRDM)
        tokens = made.model.context([picture], [near]).tokens[0].numpy()
        vectors, norms = searcher.vectors([record["key"] for record in near.records])
        encoder = next(iter(made.encoders.values()))
        _, prompt_norm = encoder.text_vectors(["a fox"])
    np.testing.assert_allclose(tokens[1:], vectors * norms[:, None], rtol=1e-6)
    assert abs(norms - 1).min() > 1e-3, "the stored norms say something"
    np.testing.assert_allclose(np.linalg.norm(tokens[0]), prompt_norm[0], rtol=1e-5)


# ---- checks before work


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"db": ("stiles",)}, DatabaseError, "did you mean 'styles'"),
        ({"model": "no-such"}, ModelError, "no model 'no-such'"),
        ({"k": 7}, ModelError, "takes 0 to 6 neighbours"),
        ({"width": 30}, ModelError, "--width is 30 pixels"),
        ({"steps": 0}, ConfigError, "--steps 0"),
        ({"sampler": "dimm"}, ConfigError, "did you mean 'ddim'"),
        ({"eta": 2.0}, ConfigError, "--eta 2.0"),
        ({"use": "nothing"}, ConfigError, "--use 'nothing'"),
        ({"k": 0, "use": "neighbours"}, ConfigError, "nothing would be left"),
        ({"where": "stile = 'x'"}, FilterError, "did you mean 'style'"),
        ({"where": "style = 'cubist'"}, FilterError, "no picture of database"),
        ({"image": "absent.png"}, ConfigError, "absent.png"),
        ({"precision": "fp8"}, ConfigError, "fp32, fp16 or bf16"),
        ({"device": "gpu"}, ConfigError, "--device 'gpu'"),
        ({"text_weight": 0.0}, ConfigError, "--use neighbours"),
    ],
)  # fmt: skip
def test_a_flag_that_cannot_be_used_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        world.run("a fox", out=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_be_used_are_named_together_and_can_be_skipped(world: World, tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        "prompt,db,k,width,where,image,sampler\nfine,,,,,,\na,stiles,,,,,\nb,,9,,,,\nc,,,30,,,\n"
        "d,,,,nope = 1,,\ne,,,,,gone.png,\nf,,,,,,dimm\n",
    )
    with pytest.raises(PromptError, match="6 of 7 row") as caught:
        world.run(path, out=str(tmp_path / "run"))
    for line, says in [(3, "stiles"), (4, "0 to 6"), (5, "30 pixels"), (6, "nope"), (7, "gone.png"), (8, "dimm")]:
        assert any(f"line {line}: " in text and says in text for text in str(caught.value).splitlines()), line
    assert not (tmp_path / "run").exists()
    summary = world.run(path, out=str(tmp_path / "run"), skip_bad=True)
    assert (summary.requested, summary.ok, summary.skipped_rows) == (3, 3, 6)
    assert any("6 row(s)" in warning for warning in summary.warnings)


def test_a_database_of_another_encoder_is_refused_with_the_fix(world: World, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", encoder="vit-l-14")
    with pytest.raises(ModelError, match=r"trained with vit-l-14.*--encoder vit-l-14.*--any-encoder"):
        world.run("a fox", model=str(other), out=str(tmp_path / "run"))
    assert world.run("a fox", model=str(other), any_encoder=True, out=str(tmp_path / "run")).ok == 3
    from rdm import RDM
    from tests.rdm_reference import lively, tiny_config

    lively(RDM.from_config(tiny_config())).save_pretrained(tmp_path / "wider")
    with pytest.raises(ModelError, match=r"vectors of 16 numbers.*takes 12"):
        world.run("a fox", model=str(tmp_path / "wider"), any_encoder=True, out=str(tmp_path / "run"))


def test_without_a_model_the_one_trained_with_the_databases_encoder_is_taken(world: World, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model by name takes the vectors of encoder random:.*--model.*rdm-768"):
        world.run("a fox", model="", out=str(tmp_path / "none"))
    own = world.home / "models" / "tiny"
    own.parent.mkdir()
    own.symlink_to(world.model)
    try:
        assert "tiny" in [row.name for row in list_models(str(world.home))]
        summary = world.run("a fox", model="", out=str(tmp_path / "run"))
        said = world.run("a fox", model=world.model, out=str(tmp_path / "said"))
        path = listed(tmp_path, f"prompt,db\na,stiles\nb,{world.views[0]}\n")
        skipped = world.run(path, model="", db=(), skip_bad=True, out=str(tmp_path / "skipped"))
    finally:
        own.unlink()
        own.parent.rmdir()
    assert pictures(summary.out) == pictures(said.out) and summary.ok == 3
    assert (skipped.ok, skipped.skipped_rows) == (1, 1), "a row that names no database is that row's error"
    assert (default_model("vit-l-14"), default_model("vit-b-32")) == ("rdm-768", "rdm-imagenet")


def test_too_little_memory_is_an_error_before_work(world: World) -> None:
    model = find_model(world.model)
    need = check_memory(model, "fp32", "cpu", 1, {(32, 32)}, 1)
    assert check_memory(model, "fp32", "cpu", 4, {(32, 32), (64, 64)}, 1) > need > 0
    with pytest.raises(BudgetError, match="smaller --batch"):
        check_memory(model, "fp32", "cpu", 100_000, {(1024, 1024)}, 1)


def test_a_picture_with_non_finite_values_is_a_failed_row_and_is_tried_again(world: World, tmp_path: Path) -> None:
    from rdm import RDM

    broken = RDM.from_pretrained(world.model)
    broken.unet.conv_out.bias.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    for _ in range(2):
        said = io.StringIO()
        config = GenerateConfig("a fox", db=world.views, model=str(tmp_path / "broken"), home=str(world.home), k=2,
                                sampling=Sampling(steps=1), out=str(tmp_path / "run"))  # fmt: skip
        summary = generate(config, Progress(stream=said))
        assert (summary.requested, summary.ok, summary.failed) == (3, 0, 3)
        assert re.search(r"generate: (\d)/\1 shards", said.getvalue())
        rows = results(summary).to_pylist()
        assert {row["status"] for row in rows} == {"failed"} and rows[0]["error"].startswith("not_finite")
        assert not list((tmp_path / "run" / "images").glob("*")) and (tmp_path / "run" / "index.html").is_file()


def test_a_run_is_named_after_its_prompts_and_flags() -> None:
    named = GenerateConfig("lists/My prompts.csv", db=("a",))
    assert run_name(named).startswith("my-prompts-")
    same = [GenerateConfig("lists/My prompts.csv", db=("a",), n=9, batch=4, device="cpu", threads=3, home="/x")]
    other = [GenerateConfig("lists/My prompts.csv", db=("b",)), GenerateConfig("other/My prompts.csv", db=("a",)),
             GenerateConfig("lists/My prompts.csv", db=("a",), sampling=Sampling(scale=3.0))]  # fmt: skip
    assert {run_name(config) for config in same} == {run_name(named)}
    assert run_name(named) not in {run_name(config) for config in other}
    assert run_name(GenerateConfig("A castle, by the sea!")).startswith("a-castle-by-the-sea-")
