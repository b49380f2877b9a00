"""`--precision auto`: chosen by the machine when a database or a run begins, recorded, and kept from then on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import machine
from pipeline.building import BuildRequest
from pipeline.building.request import settle
from pipeline.encoders import Encoder, load_encoder, load_recorded
from pipeline.errors import BudgetError, ConfigError
from pipeline.execution import Backend
from pipeline.generation import GenerateConfig, find_model
from pipeline.generation import computing as computing_module
from pipeline.generation.computing import (
    Computing,
    Machine,
    choose_machine,
    keep_computing,
    read_computing,
    settle_machine,
)
from pipeline.storage import Storage
from tests.builds import folder_of, quiet_build
from tests.encoders import RANDOM


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose processor is faster in bf16."""
    monkeypatch.setattr(machine, "cpu_precision", lambda: "bf16")


def test_a_new_database_takes_the_machines_precision_and_an_old_one_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, home = folder_of(tmp_path / "pictures", 2), str(tmp_path / "home")
    quiet_build(folder, home=home, stages=("download",))  # begun on another machine, which chose fp32
    monkeypatch.setattr(machine, "cpu_precision", lambda: "bf16")
    assert settle(BuildRequest(str(folder), home=home, encoder=RANDOM))[1].precision == "fp32"
    assert settle(BuildRequest(str(folder), home=home, encoder=RANDOM, precision="auto"))[1].precision == "fp32"
    new = BuildRequest(str(folder), name="new", home=home, encoder=RANDOM, precision="auto", device="cpu")
    assert settle(new)[1].precision == "bf16"


def test_a_bf16_database_is_searched_by_text_and_by_picture(tmp_path: Path, bf16: None) -> None:
    from pipeline.catalog import resolve_database
    from pipeline.retrieval import open_search

    home = str(tmp_path / "home")
    quiet_build(folder_of(tmp_path / "pictures", 6), name="art", home=home, device="cpu", threads=1)
    selection = resolve_database("art", home)
    record = selection.version.encoder
    assert record.precision == "bf16"
    own, exact = load_recorded(record, "cpu"), load_encoder(record.name, "cpu", "fp32", record.preprocess)
    with open_search(selection.database, selection.version, threads=1) as searcher:
        texts = ["a harbour", "a fox"]
        assert (own.encode_texts(texts) * exact.encode_texts(texts)).sum(axis=1) == pytest.approx(1.0, abs=1e-3)
        keys = searcher.keys[:]
        stored = searcher.vectors(keys)[0]
        assert searcher.search(stored, 1).keys[:, 0].tolist() == list(keys)


def test_a_build_in_one_process_loads_its_encoder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def counted(*arguments: str) -> Encoder:
        loads.append(arguments)
        return load_encoder(*arguments)

    for module in ("builder", "embed"):
        monkeypatch.setattr(f"pipeline.building.{module}.load_encoder", counted)
    quiet_build(folder_of(tmp_path / "pictures", 2), home=str(tmp_path / "home"), threads=1)
    assert len(loads) == 1


def test_a_new_run_takes_the_machines_precision_and_keeps_it(tmp_path: Path, bf16: None) -> None:
    model, storage = find_model("rdm-mini"), Storage(str(tmp_path))
    config = GenerateConfig("a fox", device="cpu")
    kept = read_computing(storage, model)
    chosen = choose_machine(config, model, kept)
    assert (chosen.precision, chosen.recipe, chosen.threads) == ("bf16", 2, 1)
    keep_computing(storage, chosen, config, kept)
    assert read_computing(storage, model) == Computing(2, "bf16", "cpu")
    machine.cpu_precision = lambda: "fp32"  # type: ignore[assignment]  # another processor; the fixture puts it back
    assert choose_machine(config, model, read_computing(storage, model)).precision == "bf16"
    assert choose_machine(GenerateConfig("a fox", device="cpu", precision="fp32"), model, kept).precision == "fp32"


@pytest.mark.parametrize("file", ["plan/0123.json", "images/a-fox-0-0123.png"])
def test_a_run_of_an_older_release_keeps_its_recipe_and_fp32(
    tmp_path: Path, bf16: None, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing_module, "check_memory", lambda *_: 1)
    model, storage = find_model("rdm-mini"), Storage(str(tmp_path))
    storage.write_text(file, "[]")
    config = GenerateConfig("a fox", device="cpu")
    kept = read_computing(storage, model)
    chosen = choose_machine(config, model, kept)
    settled, _ = settle_machine(chosen, config, Backend(), model, {(64, 64)}, 100)
    assert (settled.precision, settled.recipe, settled.batch, settled.workers, settled.threads) == ("fp32", 1, 1, 1, 1)
    keep_computing(storage, chosen, config, kept)
    assert not storage.exists("computing.json")


def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "computing.json").write_text('{"recipe"')
    with pytest.raises(ConfigError, match="is damaged: expected recipe"):
        read_computing(Storage(str(tmp_path)), find_model("rdm-mini"))


@pytest.mark.parametrize(
    ("pictures", "side", "asked", "asked_workers", "batch", "workers"),
    [
        (100, 64, 0, 0, 16, 4),
        (8, 64, 0, 0, 2, 4),
        (1, 64, 0, 0, 1, 1),
        (100, 128, 0, 0, 4, 4),
        (3, 512, 0, 0, 1, 3),
        (100, 64, 5, 0, 5, 4),
        (100, 64, 0, 1, 16, 1),
    ],
)
def test_batch_and_workers_follow_size_number_and_cores(
    monkeypatch: pytest.MonkeyPatch, pictures: int, side: int, asked: int, asked_workers: int, batch: int, workers: int
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(computing_module, "check_memory", lambda *_: 1)
    config, model = GenerateConfig("a fox", device="cpu", batch=asked), find_model("rdm-mini")
    backend = Backend(workers=asked_workers)
    made, _ = settle_machine(Machine("cpu", "fp32", 2, 1), config, backend, model, {(side, side)}, pictures)
    assert (made.batch, made.workers) == (batch, workers)


def test_fewer_pictures_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(model: object, precision: str, device: str, pictures: int, sizes: object, workers: int) -> int:
        if pictures > 3:
            raise BudgetError("too little memory")
        return pictures

    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(computing_module, "check_memory", short)
    model, chosen = find_model("rdm-mini"), Machine("cpu", "fp32", 2, 1)
    made, need = settle_machine(chosen, GenerateConfig("x", device="cpu"), Backend(), model, {(64, 64)}, 100)
    assert (made.batch, made.workers, need) == (1, 3, 3)
    with pytest.raises(BudgetError):
        settle_machine(chosen, GenerateConfig("x", device="cpu", batch=16), Backend(), model, {(64, 64)}, 100)
