"""A prepared database: its files, the continuation of a stopped preparation, and training that streams from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.config import from_mapping
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, DatabaseError, EncoderError
from pipeline.execution import Backend, Progress, StageFailed
from pipeline.maintenance import PurgeRequest, purge
from pipeline.training import Prepared, PrepareRequest, preparing, train
from pipeline.training import prepare as prepare_database
from pipeline.training.config import TrainConfig
from pipeline.training.crew import Crew
from pipeline.training.denoiser import prepared_batch
from pipeline.training.streaming import nearest_present, open_prepared
from rdm import RDM
from rdm.train import draw, read_average
from tests.builds import folder_of, manifest_of, quiet_build
from tests.encoders import RANDOM
from tests.generations import save_model
from tests.test_train import process_as_it_was as process_as_it_was

pytestmark = pytest.mark.process


def database_of(folder: Path, count: int = 25, name: str = "mine", **options: object) -> RetrievalDatabase:
    folder_of(folder / name, count)
    quiet_build(manifest_of(folder / f"{name}.toml", folder / name, name=name, **options), images="keep")  # type: ignore[arg-type]
    return RetrievalDatabase(name)


def request_of(folder: Path, **changes: object) -> PrepareRequest:
    model = folder / "model"
    if not model.exists():
        save_model(model)
    return PrepareRequest("mine", str(model), size=32, neighbours=3, device="cpu", **changes)  # type: ignore[arg-type]


def files_of(database: RetrievalDatabase, prepared: Prepared) -> dict[str, bytes]:
    storage = database.storage
    return {name: storage.read_bytes(f"{prepared.folder}/{name}") for name in storage.list(prepared.folder)}


def array(database: RetrievalDatabase, prepared: Prepared, shard: int, name: str) -> np.ndarray:
    return np.load(database.storage.full(f"{prepared.folder}/{shard:06d}.{name}.npy"))


def test_a_preparation_holds_latents_captions_and_the_nearest_other_rows(tmp_path: Path, home: Path) -> None:
    from pipeline.retrieval import open_search

    database = database_of(tmp_path)
    made = prepare_database(request_of(tmp_path, where="caption <> 'picture number 4'"), Progress(), Backend())
    assert (made.rows, made.shards, made.latent, made.dim) == (24, (0, 1, 2), (4, 8, 8), 16)
    receipt = json.loads(database.storage.read_bytes(f"{made.folder}/000000.json"))
    assert (receipt["ok"], receipt["filtered"], receipt["reasons"]) == (9, 1, {"where": 1})
    keys = array(database, made, 0, "keys")
    assert keys.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    model = RDM.from_pretrained(tmp_path / "model")
    from PIL import Image

    pixels = Image.open(tmp_path / "mine" / "0007.png").convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = torch.from_numpy(array(database, made, 0, "latents").astype(np.float32))[6]
    torch.testing.assert_close(found, model.encode(image)[0], atol=2e-3, rtol=2e-3)
    with open_search(database, database.version()) as searcher:
        vectors = searcher.index.vectors.astype(np.float32)
        likeness = vectors[keys] @ vectors.T
        likeness[np.arange(len(keys)), keys] = -2
        near = array(database, made, 0, "neighbours")
        best = np.sort(likeness, axis=1)[:, :-4:-1]
        places = searcher.ordinals(near.ravel()).reshape(near.shape)
        np.testing.assert_allclose(np.take_along_axis(likeness, places, 1), best, atol=1e-3)
    assert not (near == keys[:, None]).any()
    norms = np.linalg.norm(array(database, made, 0, "texts").astype(np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-2)


def test_a_stopped_preparation_continues_to_the_same_files(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = database_of(tmp_path)
    request, encode = request_of(tmp_path), preparing.encode_pictures
    calls: list[int] = []

    def broken(first_stage: object, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 3:  # the first is the test of the size
            raise RuntimeError("the machine is gone")
        return encode(first_stage, pixels, device)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "encode_pictures", broken)
    with pytest.raises(StageFailed, match="the machine is gone"):
        prepare_database(request, Progress(), Backend(retries=0, max_failures=1))
    monkeypatch.setattr(preparing, "encode_pictures", encode)
    counted: list[int] = []
    monkeypatch.setattr(preparing, "_texts", lambda *given, made=preparing._texts: (counted.append(1), made(*given))[1])
    made = prepare_database(request, Progress(), Backend())
    assert len(counted) == 2  # shards 1 and 2; 0 was done
    first = files_of(database, made)
    for name in first:
        database.storage.remove(f"{made.folder}/{name}")
    assert files_of(database, prepare_database(request, Progress(), Backend())) == first


def test_neighbours_come_from_another_database_of_the_same_encoder_alone(tmp_path: Path, home: Path) -> None:
    database, other = database_of(tmp_path, 12), database_of(tmp_path, 20, "other")
    made = prepare_database(request_of(tmp_path, neighbours_from="other"), Progress(), Backend())
    assert made.neighbours_from == f"other@{other.version().id}"
    near = array(database, made, 0, "neighbours")
    assert near[:, 0].tolist() == list(range(10))  # the pictures are the same, and not left out
    database_of(tmp_path, 12, "third", encoder=RANDOM.replace("seed=0", "seed=1"))
    with pytest.raises(EncoderError, match="neighbours need one encoder"):
        prepare_database(request_of(tmp_path, neighbours_from="third"), Progress(), Backend())
    with pytest.raises(ConfigError, match=r"'mine' has 12 rows, but 12 neighbours"):
        prepare_database(replace(request_of(tmp_path), neighbours=12), Progress(), Backend())


def test_every_epoch_reads_each_row_once_and_removed_rows_never(tmp_path: Path, home: Path) -> None:
    database_of(tmp_path, 30)
    prepare_database(request_of(tmp_path), Progress(), Backend())
    rows = open_prepared("mine", 0.0)
    epochs = [[tuple(place) for place in rows.places(epoch, 30, 5).tolist()] for epoch in (0, 1)]
    assert [len(set(epoch)) for epoch in epochs] == [30, 30] and epochs[0] != epochs[1]
    by_fives = [tuple(place) for index in range(12) for place in rows.places(index, 5, 5).tolist()]
    assert by_fives == epochs[0] + epochs[1]  # a position says it all, whatever came before
    held = open_prepared("mine", 0.3)
    assert len(held) + len(held.held_out_places()) == 30 and 0 < len(held) < 30
    purge(PurgeRequest("mine", where="caption = 'picture number 3'"))
    left = open_prepared("mine", 0.0)
    assert len(left) == 29
    places = left.places(0, 29, 0)
    unit = left.neighbours(places, 3, False)
    assert unit.shape == (29, 3, 16)  # of rows that had the removed one as well
    left.raw = True
    norms = left.neighbours(places, 3, False).norm(dim=2)
    torch.testing.assert_close(left.neighbours(places, 3, False), unit * norms[..., None], atol=2e-3, rtol=2e-3)
    assert not torch.allclose(norms, torch.ones(()), atol=0.05)


def test_a_neighbour_that_was_removed_is_replaced_by_the_next() -> None:
    keys = np.array([[7, 3, 9], [1, 7, 2]])
    found = nearest_present(keys, keys != 7, 2)
    assert found.tolist() == [[3, 9], [1, 2]]
    assert nearest_present(keys, keys != 7, 3).tolist() == [[3, 9, 3], [1, 2, 1]]
    with pytest.raises(DatabaseError, match=r"no neighbour left.*train prepare"):
        nearest_present(keys, keys < 3, 1)


def run_of(folder: Path, name: str, steps: int = 4, **rdm: object) -> TrainConfig:
    table = {
        "run": str(folder / name),
        "threads": 1,
        "device": "cpu",
        "data": {"prepared": "mine", "size": 32, "held_out_contents": 0.2},
        "rdm": {
            "name": "small", "base": str(folder / "model"), "encoder": RANDOM, "neighbours": 3, "counts": [1, 2, 3],
            "default_k": 2, "p_text": 0.5,
            "train": {"steps": steps, "batch": 4, "report_steps": 1, "warmup": 0, "decay": 0.0}, **rdm,
        },
    }  # fmt: skip
    return from_mapping(TrainConfig, table, "run.toml")


@pytest.fixture(scope="module")
def rows_to_read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a home with a prepared database that tests only read."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDMPIPE_HOME", str(folder / "home"))
        patch.setenv("RDMPIPE_CACHE", str(folder / "cache"))
        database_of(folder)
        prepare_database(request_of(folder), Progress(), Backend())
    return folder


@pytest.fixture
def prepared(rows_to_read: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDMPIPE_HOME", str(rows_to_read / "home"))
    monkeypatch.setenv("RDMPIPE_CACHE", str(rows_to_read / "cache"))
    return rows_to_read


def test_a_resumed_run_on_prepared_rows_ends_where_an_unbroken_one_does(prepared: Path) -> None:
    model = train("rdm", run_of(prepared, "whole"), Progress())
    train("rdm", run_of(prepared, "broken", steps=2), Progress())
    train("rdm", run_of(prepared, "broken"), Progress(), resume=True)
    (_, one), (_, other) = (read_average(prepared / name / "rdm") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    figures = json.loads((prepared / "whole" / "rdm" / "figures.json").read_text())
    assert list(figures) == ["step", "t=100", "t=300", "t=500", "t=700", "t=950"]
    assert all(0 < figures[name] < 10 for name in list(figures)[1:])
    assert RDM.from_pretrained(model).config.encoder == RANDOM


def test_activations_computed_again_give_the_same_training(prepared: Path) -> None:
    for name, again in (("plain", False), ("again", True)):
        train("rdm", run_of(prepared, name, steps=2, checkpointing=again), Progress())
    (_, one), (_, other) = (read_average(prepared / name / "rdm") for name in ("plain", "again"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_two_workers_together_have_the_batch_of_one(prepared: Path) -> None:
    rows, part = open_prepared("mine", 0.0), run_of(prepared, "run").rdm
    assert part is not None
    whole, *halves = (prepared_batch(rows, part, 1000, Crew("cpu", 1, rank, size), 3, draw(0, 3))
                      for rank, size in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
    for all_rows, first, second in zip(*(batch[:4] for batch in (whole, *halves)), strict=True):
        assert torch.equal(all_rows[0::2], first) and torch.equal(all_rows[1::2], second)


def test_a_recipe_that_asks_for_what_was_not_prepared_is_refused(tmp_path: Path, home: Path) -> None:
    database_of(tmp_path, 12)
    with pytest.raises(ConfigError, match=r"names 0 preparations.*rdmpipe train prepare mine"):
        train("rdm", run_of(tmp_path, "run"), Progress())
    prepare_database(request_of(tmp_path), Progress(), Backend())
    for changed, says in (
        ({"encoder": "mini"}, r"\[rdm\] encoder is 'mini', but mine/.* was prepared with"),
        ({"neighbours": 9}, r"\[rdm\] neighbours is 9, but .* with 3"),
        ({"p_own_style": 0.5}, r"p_own_style is 0\.5"),
    ):
        with pytest.raises(ConfigError, match=says):
            train("rdm", run_of(tmp_path, "other", **changed), Progress())


def test_a_first_stage_may_be_named_like_a_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.training
    from pipeline.cli.app import app
    from pipeline.installation import asset

    given: list[str] = []

    def kept(request: PrepareRequest, *_: object) -> None:
        given.append(request.first_stage)
        raise ConfigError("far enough")

    monkeypatch.setattr(pipeline.training, "prepare", kept)
    for name in ("rdm-mini", "owner/name"):
        CliRunner().invoke(app, ["train", "prepare", "mine", "--first-stage", name, "--backend", "inline"])
    assert given == [str(asset("models") / "rdm-mini"), "owner/name"]
    done = CliRunner().invoke(app, ["train", "prepare", "mine", "--first-stage", "rdm-minni"])
    assert "did you mean 'rdm-mini'" in done.output
