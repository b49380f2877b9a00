"""Input of training: databases of any form and named networks; and refusals with the fix."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pipeline.catalog import resolve_database
from pipeline.config import from_mapping
from pipeline.errors import ConfigError, ModelError, SourceError
from pipeline.execution import Progress
from pipeline.maintenance import PurgeRequest, purge
from pipeline.training import train
from pipeline.training.config import TrainConfig, recipe
from pipeline.training.data import DataConfig, read_pictures, training_rows
from rdm import RDM
from rdm.errors import DivergedError
from rdm.train import LoopConfig, draw, fit, read_average, read_curve
from tests.builds import folder_of, manifest_of, picture, quiet_build
from tests.encoders import RANDOM
from tests.generations import quiet_generate, save_model
from tests.test_train import process_as_it_was as process_as_it_was

pytestmark = pytest.mark.process

LOOP = LoopConfig(steps=12, learning_rate=0.1, warmup=0, decay=0.0, report_steps=4, save_seconds=0.0)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    network = nn.Linear(3, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = network(torch.randn(4, 3, generator=generator)).square().mean()
        return value * (math.nan if step == 6 else 1.0), {}

    with pytest.raises(DivergedError, match=r"at step 7 of 12; .*state\.pt holds step 6.*--resume"):
        fit(network, loss, LOOP, tmp_path)
    step, weights = read_average(tmp_path)
    assert step == 6
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert [row["step"] for row in read_curve(tmp_path / "curve.csv")] == [4.0]


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (network.weight * (0.0 if step == 2 else 1.0)).abs().sqrt().sum(), {}  # the slope at 0 is infinite

    with pytest.raises(DivergedError, match=r"at step 3 of 12; .*holds step 2"):
        fit(network, loss, LOOP, tmp_path)


def test_accumulated_passes_make_one_step_with_their_mean_gradient(tmp_path: Path) -> None:
    network = nn.Linear(3, 1, bias=False)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (network(torch.randn(1, 3, generator=generator))).sum(), {}

    fit(network, loss, LoopConfig(steps=1, accumulate=2, clip=1e9), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["optimizer"]["state"][0]
    generator = draw(0, 0)
    drawn = torch.stack([torch.randn(1, 3, generator=generator) for _ in range(2)])
    torch.testing.assert_close(state["exp_avg"] / 0.1, drawn.mean(dim=0))


def run_of(folder: Path, data: dict[str, object], **rdm: object) -> TrainConfig:
    """A run of the denoiser of a saved small model."""
    table = {
        "run": str(folder),
        "threads": 1,
        "device": "cpu",
        "data": {"size": 32, "held_out_contents": 0.0, **data},
        "rdm": {
            "name": "small", "encoder": RANDOM, "neighbours": 3, "counts": [1, 2, 3], "default_k": 2,
            "train": {"steps": 2, "batch": 4, "report_steps": 1, "warmup": 0}, **rdm,
        },
    }  # fmt: skip
    return from_mapping(TrainConfig, table, "run.toml")


@pytest.fixture
def quiet() -> Progress:
    return Progress()


def test_a_changed_network_is_refused_on_resume_and_a_changed_rate_is_not(tmp_path: Path, quiet: Progress) -> None:
    before = run_of(tmp_path / "run", {}, base="rdm-768")
    folder = tmp_path / "run" / "rdm"
    folder.mkdir(parents=True)
    (folder / "state.pt").touch()
    (folder / "config.json").write_text(json.dumps([{"from_step": 0, "recipe": recipe(before, "rdm")}]))
    with pytest.raises(
        ConfigError, match=r"\[rdm\] base is \"rdm-imagenet\", but this run was trained with \"rdm-768\""
    ):
        train("rdm", run_of(tmp_path / "run", {}, base="rdm-imagenet"), quiet, resume=True)
    with pytest.raises(ConfigError, match=r"\[data\] size is 64, but this run was trained with 32"):
        train("rdm", run_of(tmp_path / "run", {"size": 64}, base="rdm-768"), quiet, resume=True)
    slower = run_of(tmp_path / "run", {}, base="rdm-768", train={"steps": 2, "batch": 4, "learning_rate": 1e-5})
    with pytest.raises(ConfigError, match="holds no first stage"):  # it gets as far as the networks
        train("rdm", slower, quiet, resume=True)


def test_a_recipe_of_the_first_release_has_no_key_that_it_did_not_know(tmp_path: Path) -> None:
    made = recipe(run_of(tmp_path, {}, base="rdm-768"), "rdm")
    assert not {"where", "content"} & made["data"].keys() and "first_stage" not in made["rdm"]
    train_table = made["rdm"]["train"]
    assert isinstance(train_table, dict) and "accumulate" not in train_table


def collection(path: Path, captions: list[str]) -> str:
    rows = [{"caption": caption, "style": "plain", "png": picture(i), "base_hexcode": str(i), "license": "CC0"}
            for i, caption in enumerate(captions)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_pictures_without_captions_are_refused_where_captions_are_needed(tmp_path: Path, quiet: Progress) -> None:
    data: dict[str, object] = {"parquet": [collection(tmp_path / "c.parquet", ["a cat", "", "a dog", " "])]}
    base = str(save_model(tmp_path / "model"))
    with pytest.raises(SourceError, match=r"2 of 4 pictures have no caption, which p_text = 0\.5 needs"):
        train("rdm", run_of(tmp_path / "run", data, base=base, p_text=0.5), quiet)


def test_a_run_without_a_picture_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no picture"):
        read_pictures(DataConfig())
    config = DataConfig(parquet=(collection(tmp_path / "c.parquet", ["a", "b"]),), held_out_styles=("plain",), size=16)
    with pytest.raises(ConfigError, match="all 2 pictures are held out"):
        training_rows(read_pictures(config), config)


def test_networks_that_do_not_fit_are_named_with_their_sizes(tmp_path: Path, quiet: Progress) -> None:
    data: dict[str, object] = {"parquet": [collection(tmp_path / "c.parquet", ["a", "b", "c", "d", "e"])]}
    base = str(save_model(tmp_path / "model"))
    with pytest.raises(ConfigError, match="vectors of 192 numbers; the denoiser takes 16"):
        train("rdm", run_of(tmp_path / "one", data, base=base, encoder="mini"), quiet)
    with pytest.raises(ConfigError, match=r"no first stage: .*first_stage = "):
        train("rdm", run_of(tmp_path / "two", data, base="rdm-768"), quiet)


@pytest.mark.parametrize("images", ["keep", "thumbnail"])
def test_a_saved_model_trains_on_a_database_without_styles_whose_removed_rows_are_left_out(
    tmp_path: Path, home: Path, quiet: Progress, images: str
) -> None:
    folder = folder_of(tmp_path / "pictures", 12)
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text(
        "\n".join(f"{line.split(',')[0]},{line.split(',')[2]}" for line in lines) + "\n"
    )
    quiet_build(manifest_of(tmp_path / "mine.toml", folder), images=images)
    config = DataConfig(databases=("mine",), size=32, held_out_contents=0.0)
    every = read_pictures(config)
    assert every.captions == tuple(f"picture number {i}" for i in range(12))
    assert set(every.styles) == {""} and len(set(every.contents)) == 12
    purge(PurgeRequest("mine", where="caption = 'picture number 3'"))
    assert resolve_database("mine").version.counts["ok"] == 11
    assert read_pictures(config).captions == every.captions[:3] + every.captions[4:]
    some = read_pictures(DataConfig(databases=("mine",), where="caption LIKE '%1%'", size=32))
    assert some.captions == ("picture number 1", "picture number 10", "picture number 11")
    model = save_model(tmp_path / "model")
    made = train("rdm", run_of(tmp_path / "run", {"databases": ["mine"]}, base=str(model), p_text=0.5), quiet)
    trained, before = RDM.from_pretrained(made), RDM.from_pretrained(model)
    assert trained.config.scale_factor == before.config.scale_factor == 0.5
    near = (trained.unet.conv_in.weight - before.unet.conv_in.weight).abs().max()
    assert 0 < near < 0.05  # two steps from where the saved model was, not from fresh weights


def test_a_database_that_kept_no_pictures_of_that_size_says_how_to_build_it(tmp_path: Path, home: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 3)
    quiet_build(manifest_of(tmp_path / "mine.toml", folder), images="thumbnail")
    with pytest.raises(SourceError, match=r"pictures of 256 pixels.*build-index mine --images keep"):
        read_pictures(DataConfig(databases=("mine",), size=512))
    quiet_build(manifest_of(tmp_path / "none.toml", folder, name="none"), images="drop")
    with pytest.raises(SourceError, match="keeps no pictures"):
        read_pictures(DataConfig(databases=("none",), size=32))


def test_training_and_evaluation_hold_out_the_same_contents_of_a_database(tmp_path: Path, home: Path) -> None:
    from pipeline.evaluation.config import EvaluateConfig
    from pipeline.evaluation.data import read_labelled

    quiet_build(manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 6)), images="keep")
    evaluated = read_labelled("mine", from_mapping(EvaluateConfig, {"database": "mine"}, "e.toml"), None)
    trained = read_pictures(DataConfig(databases=("mine",), size=32))
    assert trained.contents == evaluated.pictures.contents


def test_the_guidance_of_a_model_is_distilled_into_one_pass_and_drawn_with(tmp_path: Path, quiet: Progress) -> None:
    data: dict[str, object] = {"parquet": [collection(tmp_path / "c.parquet", ["a cat", "a cow", "a dog", "a hen"])]}
    base = str(save_model(tmp_path / "teacher"))
    settings: dict[str, object] = {"base": base, "distil_guidance": [1, 4], "p_null": 0}
    made = train("rdm", run_of(tmp_path / "run", data, **settings), quiet)
    model = RDM.from_pretrained(tmp_path / "run" / "rdm" / "model")
    assert model.config.guidance_range == (1.0, 4.0), made
    options: dict[str, object] = {"model": str(tmp_path / "run" / "rdm" / "model"), "use": "text", "gallery": False}
    assert quiet_generate("a cat", out=str(tmp_path / "drawn"), scale=2.0, **options).ok == 1
    with pytest.raises(ModelError, match=r"--scale is 5; small was distilled for scales from 1 to 4"):
        quiet_generate("a cat", out=str(tmp_path / "refused"), scale=5.0, **options)
    with pytest.raises(ModelError, match="takes no negative prompt"):
        quiet_generate("a cat", out=str(tmp_path / "refused"), negative="rain", **options)
    again = run_of(tmp_path / "again", data, base=str(tmp_path / "run" / "rdm" / "model"))
    with pytest.raises(ConfigError, match="has distilled guidance, which this training would unlearn"):
        train("rdm", again, quiet)


def test_settings_that_distillation_does_not_take_are_refused(tmp_path: Path, quiet: Progress) -> None:
    for settings, message in (
        ({"distil_guidance": [4]}, "smallest and the largest scale"),
        ({"distil_guidance": [1, 4], "p_null": 0.1}, "set lora, snr_limit and p_null to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_of(tmp_path / "run", {}, base="rdm-768", **settings)
    data: dict[str, object] = {"parquet": [collection(tmp_path / "c.parquet", ["a cat", "a dog", "a cow", "a hen"])]}
    named = run_of(
        tmp_path / "run",
        data,
        base="rdm-768",
        distil_guidance=[1, 4],
        p_null=0,
        first_stage=str(save_model(tmp_path / "m")),
    )
    with pytest.raises(ConfigError, match="distil_guidance needs a saved model"):
        train("rdm", named, quiet)
