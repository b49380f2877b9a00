"""Recipe 2 on a CPU: a picture's pixels do not depend on its batch: its size, its place, what else is in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pipeline.generation import find_model, load_model, rdm_model
from pipeline.generation.kinds import Given
from pipeline.generation.rdm_model import UNIFORM
from pipeline.generation.requests import NEIGHBOURS, PictureRequest
from pipeline.generation.sampling import Sampling
from tests.generations import save_model

pytestmark = pytest.mark.process

if TYPE_CHECKING:
    from pipeline.generation import LoadedModel

PICTURE = PictureRequest(
    prompt="a fox", negative="", image="", use="both", text_weight=1.0, seed=0, source=None, k=3,
    sampling=Sampling("ddim", 2, 2.0, 0.0, 32, 32),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    info = find_model(str(save_model(tmp_path_factory.mktemp("model"))))
    return load_model(info, "fp32", "cpu", UNIFORM)


def given(seed: int, neighbours: int, dim: int = 16) -> Given:
    numbers = np.random.default_rng(seed).normal(size=(neighbours + 1, dim)).astype(np.float32)
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return Given(numbers[0], 1.0, numbers[1:], np.ones(neighbours, np.float32), ())


# Pictures of one batch that differ in what they are made from: other seeds, fewer neighbours, a weight, no prompt.
MIXED = [
    *((replace(PICTURE, seed=seed), given(seed, 3)) for seed in range(4)),
    (replace(PICTURE, seed=4), given(4, 1)),
    (replace(PICTURE, seed=5, text_weight=2.0), given(5, 3)),
    (replace(PICTURE, seed=6, use=NEIGHBOURS), given(6, 4)),
]


def painted(model: LoadedModel, which: list[int], mixed: list[tuple[PictureRequest, Given]] = MIXED) -> list[bytes]:
    made = model.paint([mixed[i][0] for i in which], [mixed[i][1] for i in which])
    return [pixels.tobytes() for pixels in made if pixels is not None]


def test_a_picture_has_the_same_pixels_alone_and_in_every_batch(model: LoadedModel) -> None:
    alone = [painted(model, [i])[0] for i in range(7)]
    assert len(set(alone)) == 7
    for order in ([0, 1], [1, 0], [3, 6, 0, 5, 2, 4, 1], [4, 5, 6], [0, 1, 2, 3, 0, 1, 2, 3, 0]):
        assert painted(model, order) == [alone[i] for i in order]


def test_large_pictures_are_computed_one_at_a_time(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdm_model, "LARGE", 32 * 32 - 1)
    alone = [painted(model, [i])[0] for i in (0, 1)]
    assert painted(model, [1, 0]) == alone[::-1]


def test_the_shipped_model_gives_the_same_pixels_in_batches_of_two_and_three() -> None:
    info = find_model("rdm-mini")
    model = load_model(info, "fp32", "cpu", UNIFORM)
    sampling = replace(info.sampling, steps=1)
    mixed = [(replace(PICTURE, seed=seed, k=8, sampling=sampling), given(seed, 8, info.dim)) for seed in range(3)]
    together = painted(model, [2, 0, 1], mixed)
    assert painted(model, [0, 1], mixed) == together[1:] and painted(model, [2], mixed) == together[:1]


def test_recipe_one_computes_a_batch_as_it_is(tmp_path: Path) -> None:
    info = find_model(str(save_model(tmp_path)))
    model = load_model(info, "fp32", "cpu", 1)
    assert info.recipe == UNIFORM and len(painted(model, [0, 4, 5])) == 3
