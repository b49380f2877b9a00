"""Foreign checkpoints, model descriptions and .npz files: an RdmpipeError, or tensors; no crash, no bomb."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import parse_json
from pipeline.encoders.weights import read_state
from pipeline.errors import EncoderError, SourceError
from pipeline.exchange.npz import read_parts
from rdm.config import model_names, read_config
from rdm.errors import CheckpointError, ConfigError
from rdm.pickles import load_tensors
from tests.attempts import tried

DEEP = b"\x80\x02}X\x01\x00\x00\x00a" + b")" + b"\x85" * 2_000_000 + b"s."  # {"a": ((((...))))}


def torch_zip(path: Path, pickled: bytes) -> Path:
    """A file of torch.save's form that contains another pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    return path


def saved(path: Path, value: object, **options: bool) -> bytes:
    torch.save(value, path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("place", ["zip", "plain"])
def test_two_million_nested_tuples_are_an_error_and_not_a_crash(place: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.ckpt"
    if place == "zip":
        torch_zip(path, DEEP)
    else:
        head = saved(tmp_path / "legacy.ckpt", {}, _use_new_zipfile_serialization=False)
        third = head.index(b"}q\x00.") if b"}q\x00." in head else head.index(b"}.")
        path.write_bytes(head[:third] + DEEP.removeprefix(b"\x80\x02"))
    with pytest.raises(CheckpointError, match="nests more than"):
        load_tensors(path)
    with pytest.raises(EncoderError, match="nests more than"):
        read_state(path.rename(tmp_path / "deep.pt"))


def test_deep_values_behind_the_memo_and_in_lists_are_found(tmp_path: Path) -> None:
    memo = b"\x80\x02)" + b"".join(b"q\x01h\x01\x86" for _ in range(3000)) + b"."
    grown = b"\x80\x02]" + b"]" * 3000 + b"a" * 3000 + b"."
    for pickled in (memo, grown):
        with pytest.raises(CheckpointError, match="nests more than"):
            load_tensors(torch_zip(tmp_path / "x.ckpt", pickled))


@pytest.mark.parametrize("zipped", [True, False])
def test_long_flat_checkpoints_are_read(zipped: bool, tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.full((2,), float(i)) for i in range(3000)}
    saved(
        tmp_path / "flat.ckpt",
        {"state_dict": state, "notes": list(range(50_000))},
        _use_new_zipfile_serialization=zipped,
    )
    found = load_tensors(tmp_path / "flat.ckpt")
    assert torch.equal(found["state_dict"]["layer.7"], state["layer.7"])


def test_files_that_are_no_checkpoint_are_errors(tmp_path: Path) -> None:
    import tarfile

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    texts = {
        "text": b"hello", "empty": b"", "str": pickle.dumps("x" * 50), "zeros": bytes(4096), "tar": tar.getvalue(),
        "cut": saved(tmp_path / "good.ckpt", {"a": torch.ones(9)})[:-70], "zip": b"PK\x05\x06" + bytes(18),
        "stop": b"\x80\x02.",
        "html": b"<!doctype html><p>sign in", "protocol": b"\x80\xff\x85\x85.",
    }  # fmt: skip
    for name, data in texts.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_tensors(path)
        with pytest.raises(EncoderError):
            read_state(path)
    torch_zip(tmp_path / "top.pt", pickle.dumps("a text at the top", 2))
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("top", "link", "loop", "folder"):
        with pytest.raises(CheckpointError):
            load_tensors(tmp_path / f"{name}.pt")
        with pytest.raises(EncoderError):
            read_state(tmp_path / f"{name}.pt")


def test_checkpoints_changed_by_chance_are_tensors_or_an_error(tmp_path: Path) -> None:
    chance = random.Random(3)
    for zipped in (True, False):
        whole = saved(
            tmp_path / "good.ckpt", {"a": torch.ones(9), "b": [1, "x", (2, 3)]}, _use_new_zipfile_serialization=zipped
        )
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(chance.randrange(1, 5)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path = tmp_path / "changed.ckpt"
            path.write_bytes(data[: chance.randrange(len(data)) if chance.random() < 0.2 else None])
            try:
                assert isinstance(load_tensors(path), dict)
            except CheckpointError as error:
                assert str(path) in str(error)
    tried(120)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "trust_remote_code", True), ("unet", "act_fn", "a;b"), ("unet", "block_out_channels", [10**12, 320, 640, 640]),
        ("unet", "norm_eps", float("inf")), ("unet", "dropout", {"a": 1}), ("unet", "attention_head_dim", [[[1]]]),
        ("first_stage", "block_out_channels", list(range(1, 200))), ("first_stage", "custom_pipeline", "x"),
    ],
)  # fmt: skip
def test_a_field_of_a_description_that_is_not_allowed_is_named(part: str, key: str, value: object) -> None:
    table = read_config(model_names()[0]).to_dict()
    with pytest.raises(ConfigError, match=key):
        read_config({**table, part: {**table[part], key: value}})


def test_every_shipped_description_is_allowed_and_odd_numbers_are_not(tmp_path: Path) -> None:
    for name in model_names():
        assert read_config(read_config(name).to_dict()) == read_config(name)
    table = read_config(model_names()[0]).to_dict()
    for change in ({"train_steps": 10**12}, {"name": 7}, {"encoder": ["x"]}, {"max_neighbours": 10**9}, {"unet": []}):
        with pytest.raises(ConfigError):
            read_config({**table, **change})
    for text in ("[" * 100_000, '{"name": ' + "1" * 5000 + "}", "\xff"):
        (tmp_path / "model.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError):
            read_config(tmp_path / "model.json")


def test_json_that_is_nested_too_deeply_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, b"[" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


def npy(array: np.ndarray, shape: str = "") -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    data = out.getvalue()
    return data.replace(repr(array.shape).encode(), shape.encode().ljust(len(repr(array.shape)))) if shape else data


def npz(path: Path, members: Mapping[str, bytes | Callable[[], bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data if isinstance(data, bytes) else data())
    return path


VECTORS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "members",
    [
        {"embedding.npy": lambda: npy(np.zeros((10_000, 4096), np.float32))},
        {"embedding.npy": npy(VECTORS), "huge.npy": lambda: npy(np.zeros(60 << 20, np.uint8))},
        {"embedding.npy": npy(VECTORS), "README.txt": b"hello"},
        {"embedding.npy": npy(VECTORS), "odd.npy": b"\x93NUMPY\x01\x00v\x00{'descr': (((((((" + b" " * 100},
        {"embedding.npy": npy(VECTORS, "(9, 400)")},
        {"embedding.npy": npy(np.array([{"a": 1}], object))},
        {"embedding.npy": npy(VECTORS)[:-4]},
        {"embedding.npy": npy(VECTORS), "number.npy": npy(np.array(7))},
        {"embedding.npy": b""},
        {},
    ],
)
def test_an_invalid_npz_and_a_bomb_are_source_errors(
    members: dict[str, bytes | Callable[[], bytes]], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"x\.npz"):
        list(read_parts(npz(tmp_path / "x.npz", members)))


def test_npz_files_of_every_method_and_changed_by_chance(tmp_path: Path) -> None:
    chance = random.Random(9)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = npz(tmp_path / "x.npz", {"embedding.npy": npy(VECTORS), "id.npy": npy(np.arange(10))}, method)
        (part,) = read_parts(path)
        assert np.array_equal(part.vectors, VECTORS)
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data)
            try:
                list(read_parts(path))
            except SourceError as error:
                assert "x.npz" in str(error)
    tried(160)


def test_a_webdataset_row_whose_json_is_nested_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from pipeline.sources import Manifest, SourceOptions, open_source
    from pipeline.sources.manifest import SourceSpec
    from tests.test_hostile_tars import END, block, padded

    monkeypatch.setenv("RDMPIPE_CACHE", str(tmp_path / "cache"))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    parts = []
    for key, text in (
        ("0", json.dumps({"caption": "a"})),
        ("1", "[" * 50_000),
        ("2", '{"a":' * 50_000),
        ("3", "1" * 5000),
    ):
        for suffix, data in (("png", picture.getvalue()), ("json", text.encode())):
            parts.append(block(f"{key}.{suffix}".encode(), len(data)) + padded(data))
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + END)
    manifest = Manifest(
        name="x", title="x", source=SourceSpec(kind="webdataset", path=str(tmp_path / "a.tar")), licence="x", terms="x",
        opt_out="x",
    )  # fmt: skip
    source = open_source(manifest, SourceOptions())
    samples = [sample for spec in source.plan() for sample in source.read(spec.spec)]
    assert [(sample.error or "ok").partition(":")[0] for sample in samples] == ["ok"] + ["bad_metadata"] * 3


# ---- what a training run saves


class Command:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def saved_state(folder: Path, value: object) -> Path:
    """A state that workers share, with `value` where a number stands."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"average": {"weight": torch.ones(2)}, "value": value}, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_shared_state_runs_nothing_that_is_pickled_in_it(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import state_dict_loader

    from rdm.sharded import read_part
    from rdm.statefiles import StatePlanner, StateReader

    good = saved_state(tmp_path / "good", 0.5)
    assert torch.equal(read_part(good, "average")["weight"], torch.ones(2))
    read = {"value": 0.0}
    state_dict_loader.load(read, storage_reader=StateReader(good), planner=StatePlanner(), no_dist=True)
    assert read == {"value": 0.5}

    described = saved_state(tmp_path / "described", 0.5)
    (described / ".metadata").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match="open is no part of a state's description"):
        read_part(described, "average")

    held = saved_state(tmp_path / "held", Command(tmp_path / "ran"))
    (tmp_path / "ran").unlink(missing_ok=True)  # saving makes a copy of the value, and with it the file
    with pytest.raises(BaseException, match=r"(?s)Weights only load failed"):
        state_dict_loader.load({"value": 0.0}, storage_reader=StateReader(held), planner=StatePlanner(), no_dist=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("noted", ["{", "[1]", "[" * 100_000, '{"unet.r": 4, "unet.lora_alpha": 8}'])
def test_adapters_with_hostile_metadata_are_a_checkpoint_error(tmp_path: Path, noted: str) -> None:
    from safetensors.torch import save_file

    from rdm.lora import read_lora

    save_file({"unet.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "l.safetensors", {"lora_adapter_metadata": noted})
    with pytest.raises(CheckpointError, match="lora"):
        read_lora(tmp_path / "l.safetensors")
