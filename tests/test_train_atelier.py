"""jobs/train_atelier.py and its encoder on a few hundred pictures: draw, train, stop, continue, save, sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import train_atelier, train_atelier_encoder
from rdm import RDM
from tests.rdm_reference import noise, unit

pytestmark = pytest.mark.long  # minutes of training

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_atelier, "CHUNK", 256)
        train_atelier.draw(folder, "named", 1)
        train_atelier.draw(folder, "random", 1)
    train_atelier.draw_held_out(folder, 128)
    return folder


def options(**changes: object) -> train_atelier.Options:
    given = ["batch=8", "warmup=1", *(f"{name}={value}" for name, value in changes.items())]
    return train_atelier.read_options(given, train_atelier.Options)


def test_no_held_out_content_or_family_is_drawn(data: Path) -> None:
    from pipeline.atelier import split_of
    from pipeline.atelier.random_styles import FAMILIES, random_style

    named, random, held = (train_atelier.Source(data, kind) for kind in ("named", "random", "held_out"))
    for source in (named, random):
        contents = torch.load(source.seen[0], weights_only=True)["contents"]
        assert {split_of(content) for content in contents} == {"train"}
    assert {split_of(c) for c in torch.load(held.seen[0], weights_only=True)["contents"]} == {"held_out"}
    kept = [name for name in FAMILIES if name not in train_atelier.HELD_FAMILIES]
    numbers = {int(style.removeprefix("random ")) for style in random.styles}
    assert numbers == {0, 1, 2, 3} and all(random_style(n, kept).family in kept for n in numbers)
    captions = torch.load(random.seen[0], weights_only=True)["captions"]
    assert not any("random" in caption for caption in captions)


@pytest.mark.parametrize("mode", ["latent", "f4"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(data: Path, tmp_path: Path, mode: str) -> None:
    train_atelier.train(data, tmp_path / "whole", options(mode=mode, steps=3))
    train_atelier.train(data, tmp_path / "stopped", options(mode=mode, steps=2))
    train_atelier.train(data, tmp_path / "stopped", options(mode=mode, steps=3))
    whole, stopped = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "stopped"))
    assert whole["step"] == stopped["step"] == 3
    for part in ("network", "average"):
        assert all(torch.equal(value, stopped[part][name]) for name, value in whole[part].items())
    log = (tmp_path / "stopped" / "log.csv").read_text().splitlines()
    assert log[0].endswith("v950,v850,v700,v500,v300,v100") and len(log) == 3


def test_the_saved_model_is_the_average(data: Path, tmp_path: Path) -> None:
    train_atelier.train(data, tmp_path / "run", options(steps=1, prediction="sample", mode="f8"))
    train_atelier.save(tmp_path / "run", tmp_path / "model", "folded-mini")
    model = RDM.from_pretrained(tmp_path / "model")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert model.config.prediction_type == "sample" and model.config.name == "folded-mini"
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(value, state["average"][name].half().float())
    drawn = model.sample(unit(1, 3, 192), x_T=noise(1, 192, 8, 8), steps=2, guidance_scale=2.0)
    assert model.decode(drawn).shape == (1, 3, 64, 64)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown option 'rate'"):
        train_atelier.read_options(["rate=1"], train_atelier.Options)


def test_an_encoder_that_was_stopped_ends_as_one_that_was_not_and_embeds_the_chunks(data: Path, tmp_path: Path) -> None:
    def run(name: str, steps: int) -> None:
        options = train_atelier_encoder.Options(batch=32, warmup=1, steps=steps)
        train_atelier_encoder.train(data, tmp_path / name, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_atelier, "CHUNK", 256)
        train_atelier.draw(data, "named", 2)  # one to train on, one for the figures
    run("whole", 2)
    run("stopped", 1)
    run("stopped", 2)
    whole, stopped = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped["average"][name]) for name, value in whole["average"].items())
    train_atelier_encoder.embed(data, tmp_path / "whole" / "model", tmp_path / "embedded")
    old, new = (train_atelier.Source(folder, "named") for folder in (data, tmp_path / "embedded"))
    assert old.styles == new.styles and old.vectors.shape == new.vectors.shape
    assert not torch.equal(old.vectors, new.vectors) and not torch.equal(old.texts, new.texts)
    rows = torch.arange(3)
    assert torch.equal(old.pictures(rows), new.pictures(rows))
