"""Training: every part learns, a killed run resumes to the same curve, several workers equal one, the full-size recipe fits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.execution import Progress
from pipeline.training import read_train_config, train
from pipeline.training.config import TrainConfig
from rdm.train import read_average, read_curve
from tests.forked import Forked

pytestmark = pytest.mark.process

JOBS = Path(__file__).resolve().parent.parent / "jobs"
SMALL = """
run = "{run}"
threads = 1
device = "cpu"

[data]
atelier = 16
size = 64

[encoder]
[encoder.model]
embed_dim = 32
vision_cfg = {{ {vision} }}
text_cfg = {{ context_length = 24, vocab_size = 49408, width = 32, heads = 2, layers = 1 }}
[encoder.train]
steps = {steps}
batch = 16
learning_rate = 2e-3
warmup = 2
decay = 0.0
report_steps = 1
save_seconds = {save}

[autoencoder]
crop = 32
texture = {texture}
[autoencoder.model]
block_out_channels = [8, 16, 16]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4
mid_block_add_attention = false
[autoencoder.train]
steps = {steps}
batch = 8
learning_rate = 2e-3
warmup = 2
decay = 0.0
report_steps = 1
save_seconds = {save}

[rdm]
name = "tiny"
neighbours = 4
counts = [1, 2, 4]
p_text = 0.5
default_k = 2
[rdm.model]
sample_size = 16
in_channels = 4
out_channels = 4
block_out_channels = [16, 32]
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
cross_attention_dim = 32
attention_head_dim = [1, 2]
norm_num_groups = 8
[rdm.train]
steps = {steps}
batch = 8
learning_rate = 2e-3
warmup = 2
decay = 0.0
report_steps = 1
save_seconds = {save}
"""


TRANSFORMER = "image_size = 64, patch_size = 16, width = 32, layers = 1, head_width = 16"
CONVOLUTIONS = "image_size = 64, layers = [1, 1, 1, 1], width = 8, head_width = 32"


def write_run(
    folder: Path, name: str, steps: int = 30, save: float = 100.0, texture: float = 0.0, vision: str = TRANSFORMER
) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(SMALL.format(run=folder / name, steps=steps, save=save, texture=texture, vision=vision))
    return path


def losses(run: Path, part: str) -> list[float]:
    return [row["loss"] for row in read_curve(run / part / "curve.csv")]


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Restore the process's thread count and denormals, which training changes. Sheets are drawn in three steps."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.keeping.SHEET_STEPS", 3)
        yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of all three parts, some tens of steps each."""
    config = read_train_config(write_run(tmp_path_factory.mktemp("train"), "run", texture=0.1, vision=CONVOLUTIONS))
    with Progress() as progress:
        for part in ("encoder", "autoencoder", "rdm"):
            train(part, config, progress)  # type: ignore[arg-type]
    return config


@pytest.mark.parametrize("part", ["encoder", "autoencoder", "rdm"])
def test_a_few_steps_lower_the_loss(trained: TrainConfig, part: str) -> None:
    found = losses(trained.folder(), part)
    assert len(found) == 30
    assert sum(found[-5:]) < 0.95 * sum(found[:5])


def test_a_run_leaves_models_curves_sheets_and_hashes_that_plain_libraries_read(trained: TrainConfig) -> None:
    import json

    from pipeline.encoders import import_open_clip
    from pipeline.storage import sha256_file
    from rdm import RDM

    run = trained.folder()
    for part, sheets in (("encoder", 0), ("autoencoder", 1), ("rdm", 1)):
        assert (run / part / "curve.png").stat().st_size > 0
        assert len(list((run / part / "sheets").glob("*.png"))) == sheets if sheets else True
        assert json.loads((run / part / "config.json").read_text())[0]["from_step"] == 0
    assert list(json.loads((run / "rdm" / "figures.json").read_text()))[1:] == [
        f"t={t}" for t in (100, 300, 500, 700, 950)
    ]
    assert list((run / "rdm" / "tensorboard").iterdir())
    hashes = json.loads((run / "weights.json").read_text())
    assert len(hashes) == 4
    assert all(sha256_file(run / path) == digest for path, digest in hashes.items())
    model = RDM.from_pretrained(run / "rdm" / "model")
    assert model.decode(model.sample(torch.randn(1, 2, 32), steps=2)).shape == (1, 3, 64, 64)
    open_clip = import_open_clip()
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{run / 'encoder' / 'model'}")
    from PIL import Image

    vector = network.encode_image(preprocess(Image.new("RGB", (64, 64), "red"))[None])
    assert vector.shape == (1, 32)


def test_a_trained_part_is_not_trained_over_without_resume(trained: TrainConfig) -> None:
    with Progress() as progress, pytest.raises(ConfigError, match="--resume"):
        train("encoder", trained, progress)


def test_texture_wants_an_encoder_of_convolutions(tmp_path: Path) -> None:
    config = read_train_config(write_run(tmp_path, "run", steps=1, texture=0.1))
    with Progress() as progress:
        train("encoder", config, progress)
        with pytest.raises(ConfigError, match=r"\[encoder.model\]"):
            train("autoencoder", config, progress)


def test_a_killed_training_resumes_to_the_same_curve(tmp_path: Path) -> None:
    whole, killed = (write_run(tmp_path, name, steps=8, save=0.0) for name in ("whole", "killed"))

    def started(*arguments: str) -> Forked:
        return Forked(
            ("train", "autoencoder", *arguments), module="pipeline.cli", env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def run(*arguments: str) -> None:
        process = started(*arguments)
        _, said = process.communicate(240)
        assert process.returncode == 0, said

    run(str(whole))
    process = started(str(killed))
    curve = tmp_path / "killed" / "autoencoder" / "curve.csv"
    until = time.monotonic() + 200
    while len(read_curve(curve)) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(read_curve(curve)) < 8
    run(str(killed), "--resume")
    assert losses(tmp_path / "killed", "autoencoder") == losses(tmp_path / "whole", "autoencoder")
    (_, one), (_, other) = (read_average(tmp_path / name / "autoencoder") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def first_gradients(run: Path, part: str) -> dict[int, torch.Tensor]:
    """The (clipped) gradient of a one-step run, by parameter: AdamW's first moment is a tenth of it."""
    state = torch.load(run / part / "state.pt", weights_only=True)["optimizer"]["state"]
    return {number: values["exp_avg"] / 0.1 for number, values in state.items()}


@pytest.mark.cluster
def test_two_ray_workers_have_the_gradient_of_one_with_the_whole_batch(tmp_path: Path, ray_here: None) -> None:
    from pipeline.training import train_on_ray

    one, two = (read_train_config(write_run(tmp_path, name, steps=1)) for name in ("one", "two"))
    with Progress() as progress:
        train("encoder", one, progress)
        train_on_ray("encoder", two, progress, workers=2)
    mine, theirs = (first_gradients(config.folder(), "encoder") for config in (one, two))
    assert mine.keys() == theirs.keys()
    size = torch.stack([value.norm() for value in mine.values()]).norm()
    apart = torch.stack([(theirs[number] - value).norm() for number, value in mine.items()]).norm()
    assert apart < 1e-4 * size


def test_texture_compares_how_much_there_is_of_what_and_not_where() -> None:
    from types import SimpleNamespace

    import numpy as np

    from rdm.objectives import autoencoder_loss

    images, other = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def loss(restored: torch.Tensor, texture: float) -> float:
        latent = SimpleNamespace(
            latent_dist=SimpleNamespace(mean=images, std=0 * images, var=1 + 0 * images, logvar=0 * images)
        )
        network = SimpleNamespace(encode=lambda _: latent, decode=lambda _: SimpleNamespace(sample=restored))
        features = lambda x: [x, 2 * x + 1]  # noqa: E731
        return float(autoencoder_loss(network, images, images, kl=0.0, features=features, texture=texture)[0])

    mirrored = images.flip(-1).flip(-2)
    assert loss(mirrored, 2.0) == pytest.approx(loss(mirrored, 0.0), abs=1e-6)
    wanted, found = ([np.cov(one.reshape(3, 64).numpy(), bias=True) for one in batch] for batch in (images, other))
    apart = np.mean([((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(found, wanted, strict=True)])
    assert loss(other, 2.0) - loss(other, 0.0) == pytest.approx(2 * apart, rel=1e-4)


def test_a_picture_is_no_neighbour_of_itself_and_neighbours_are_the_nearest(tmp_path: Path) -> None:
    import numpy as np

    from pipeline.index import SearchIndex
    from pipeline.training.cache import nearest_others

    drawn = F.normalize(torch.randn(700, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    np.save(tmp_path / "vectors.npy", drawn.half().numpy())
    index = SearchIndex(tmp_path / "vectors.npy")
    likeness = (drawn.half().double() @ drawn.half().double().T).fill_diagonal_(-2)
    torch.testing.assert_close(likeness.gather(1, nearest_others(index, 5)), likeness.topk(5).values, atol=1e-6, rtol=0)
    groups = torch.arange(700) % 3
    groups[:4] = 3  # a group of four: three others, again and again
    own = likeness.masked_fill(groups[:, None] != groups, -2)
    found = nearest_others(index, 5, groups)
    torch.testing.assert_close(own.gather(1, found)[4:], own.topk(5).values[4:], atol=1e-6, rtol=0)
    assert torch.equal(found[:4, 3:], found[:4, :2]) and all(len(set(row)) == 3 for row in found[:4].tolist())
    index.close()


def test_a_caption_is_true_of_every_picture_that_it_names() -> None:
    from pipeline.training.encoder import BOTH, CONTENT, STYLE, positives

    contents, styles = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    found = positives(contents, styles, torch.tensor([CONTENT, BOTH, STYLE]))
    assert found.tolist() == [[True, True, False], [False, True, False], [True, False, True]]


def test_the_loss_is_clips_where_each_caption_is_true_of_one_picture() -> None:
    from pipeline.training.encoder import contrastive_loss

    draw = torch.Generator().manual_seed(1)
    images, texts = (F.normalize(torch.randn(8, 16, generator=draw), dim=1) for _ in range(2))
    logits, rows = 20 * texts @ images.T, torch.arange(8)
    clip = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    found = contrastive_loss(images, texts, torch.tensor(20.0), torch.eye(8).bool())
    torch.testing.assert_close(found, clip)


def test_every_word_of_a_held_out_caption_is_read_elsewhere(shared: Path) -> None:
    from pipeline.training import caption_words, held_out_contents
    from pipeline.training.data import DataConfig, read_pictures, training_rows

    config = DataConfig(parquet=(str(shared / "data/styles/twemoji.parquet"), str(shared / "data/styles/unifont.parquet")),
                        held_out_styles=("unifont",), size=16)  # fmt: skip
    pictures = read_pictures(config)
    held = held_out_contents(pictures, 0.1)
    rows = training_rows(pictures, config)
    assert len(held) == pytest.approx(0.1 * len(set(pictures.contents)), abs=1)
    assert not {pictures.contents[i] for i in rows} & held
    assert {pictures.styles[i] for i in rows} == {"twemoji"}
    known = {word for i, content in enumerate(pictures.contents) if content not in held
             for word in caption_words(pictures.captions[i]) + caption_words(pictures.tags[i])}  # fmt: skip
    missing = {word for i, content in enumerate(pictures.contents) if content in held
               for word in caption_words(pictures.captions[i])} - known  # fmt: skip
    assert not missing


def test_dropped_rows_are_the_null_context_and_as_many_as_asked() -> None:
    from pipeline.training import Steps
    from pipeline.training.cache import Cache
    from pipeline.training.config import DenoiserConfig
    from pipeline.training.denoiser import draw_context

    count = 4000
    cache = Cache(torch.zeros(count, 4, 2, 2), torch.ones(count, 8), torch.ones(count, 3, 8),
                  *torch.zeros(2, count, 4, dtype=torch.long), 1.0)  # fmt: skip
    part = DenoiserConfig("x", Steps(1, 1), model={"a": 1}, neighbours=4, counts=(3,), p_null=0.1)
    context = draw_context(cache, part, torch.arange(count), torch.Generator().manual_seed(0))
    gone = (context == 0).all(dim=2).all(dim=1)
    assert context.shape == (count, 3, 8)
    assert 0.08 < float(gone.float().mean()) < 0.12
    assert bool((context[~gone] == 1).all())


def test_a_misspelt_key_of_a_run_is_named() -> None:
    from pipeline.config import from_mapping

    table: dict[str, Any] = {
        "run": "x",
        "data": {},
        "rdm": {"name": "x", "train": {"steps": 1, "batch": 1, "lerning": 1}},
    }
    with pytest.raises(ConfigError, match="lerning"):
        from_mapping(TrainConfig, table, "run.toml")
