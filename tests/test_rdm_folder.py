"""Saved models: from_pretrained reads what save_pretrained and diffusers write."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rdm import RDM
from rdm.errors import CheckpointError, ConfigError
from rdm.folder import read_folder_config
from rdm.networks import diffusers
from tests.rdm_reference import lively, noise, tiny_config, tiny_model, tiny_vq_config, unit


def vq_model() -> RDM:
    return lively(RDM.from_config(tiny_vq_config()))


@pytest.mark.parametrize("make", [tiny_model, vq_model])
def test_a_saved_model_is_the_same_model(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "model")
    again = RDM.from_pretrained(tmp_path / "model")
    assert again.weights_hash() == model.weights_hash()
    plain = {f.name for f in dataclasses.fields(model.config)} - {"unet", "first_stage"}
    assert all(getattr(again.config, name) == getattr(model.config, name) for name in plain)
    x, context = noise(1, model.config.latent_channels, 8, 8), unit(1, 3, 12)
    assert torch.equal(again.sample(context, x_T=x, steps=2), model.sample(context, x_T=x, steps=2))
    assert torch.equal(again.decode(x), model.decode(x))


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny_model().save_pretrained(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [str(p) for p in files] == [
        "model_index.json", "pipeline.py", "rdm.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in files)
    assert len({(tmp_path / "a" / p).stat().st_mode for p in files}) == 1, "whoever may read one may read all"
    with pytest.raises(CheckpointError, match="is a file"):
        tiny_model().save_pretrained(tmp_path / "a" / "rdm.json")


def test_a_model_can_be_saved_over_the_folder_it_was_loaded_from(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = RDM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.rglob("*.json") if str(tmp_path) in path.read_text()], "no machine's folders"
    assert model.weights_hash() == RDM.from_pretrained(tmp_path).weights_hash() == tiny_model().weights_hash()


def test_another_models_first_stage_does_not_stay_beside_the_new_one(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = vq_model()
    model.save_pretrained(tmp_path)
    assert RDM.from_pretrained(tmp_path).weights_hash() == model.weights_hash()
    (tmp_path / "vae").mkdir()
    with pytest.raises(CheckpointError, match="both vae/ and vqvae/"):
        RDM.from_pretrained(tmp_path)


def test_a_model_in_another_memory_layout_is_saved_all_the_same(tmp_path: Path) -> None:
    model = lively(RDM.from_config(tiny_config()))
    model.unet.to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    assert RDM.from_pretrained(tmp_path).weights_hash() == tiny_model().weights_hash()


def hub_copy(folder: Path, *, safe: bool) -> None:
    """The files that diffusers' pipelines save: model_index.json and parts, some of which rdm does not read."""
    model = tiny_model()
    model.unet.save_pretrained(folder / "unet", safe_serialization=safe)
    model.first_stage.save_pretrained(folder / "vae", safe_serialization=safe)
    diffusers().PNDMScheduler(beta_start=0.0015, beta_end=0.015, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    for part in ("clip", "tokenizer", "feature_extractor"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("not for us")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "RDMPipeline"}))


@pytest.mark.parametrize("safe", [True, False])
def test_the_hubs_layout_opens_without_our_description(tmp_path: Path, safe: bool) -> None:
    hub_copy(tmp_path, safe=safe)
    model = RDM.from_pretrained(tmp_path)
    assert model.weights_hash() == tiny_model().weights_hash()
    assert (model.config.scale_factor, model.config.beta_start, model.config.beta_end) == (0.5, 0.0015, 0.015)
    assert model.config.name == tmp_path.name


def test_autoencoders_of_early_diffusers_are_read(tmp_path: Path) -> None:
    """Their attention weights had other names."""
    hub_copy(tmp_path, safe=False)
    path = tmp_path / "vae" / "diffusion_pytorch_model.bin"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in torch.load(path).items():
        for new, early in names.items():
            key = key.replace(f".{new}.", f".{early}.")
        old[key] = value
    assert any("proj_attn" in key for key in old)
    torch.save(old, path)
    assert RDM.from_pretrained(tmp_path).weights_hash() == tiny_model().weights_hash()


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    hub_copy(tmp_path, safe=True)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_model().unet.save_pretrained(tmp_path / "unet", max_shard_size="200KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert RDM.from_pretrained(tmp_path).weights_hash() == tiny_model().weights_hash()


def test_a_copy_of_the_published_model_gets_the_published_description(tmp_path: Path) -> None:
    """Early copies name neither the scaling factor nor the right number of heads, and would load wrongly without an error."""
    published = RDM.from_config("rdm-768", device="meta").config
    unet = {**published.unet, "attention_head_dim": 8, "_class_name": "UNet2DConditionModel"}
    vae = {key: value for key, value in published.first_stage.items() if key != "scaling_factor"}
    for part, content in (("unet", unet), ("vae", vae)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(content))
    assert read_folder_config(tmp_path) == published


def test_a_folder_whose_scale_nobody_knows_is_refused(tmp_path: Path) -> None:
    hub_copy(tmp_path, safe=True)
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scaling_factor"}))
    with pytest.raises(ConfigError, match="lacks scaling_factor"):
        RDM.from_pretrained(tmp_path)


def _break(folder: Path, how: str) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "no autoencoder":
        (folder / "vae").rename(folder / "elsewhere")
    elif how == "other weights":
        RDM.from_config(tiny_vq_config()).unet.save_pretrained(folder / "unet2")
        (folder / "unet2" / weights.name).replace(weights)
    elif how == "no description":
        (folder / "unet" / "config.json").unlink()


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("no weights", "unet has no weights"),
        ("cut weights", "cannot be read"),
        ("no autoencoder", "neither vae/ nor vqvae/"),
        ("other weights", r"conv_in\.weight has shape|conv_out"),
        ("no description", r"unet/config\.json is missing"),
    ],
)
def test_a_broken_folder_is_an_error_that_names_the_part(tmp_path: Path, how: str, complaint: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(CheckpointError, match=complaint):
        RDM.from_pretrained(tmp_path)


def test_pickled_weights_of_a_folder_run_nothing(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trapped"),)

    hub_copy(tmp_path, safe=False)
    torch.save({"conv_in.weight": Touch()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no tensors: conv_in\.weight"):
        RDM.from_pretrained(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no folder at rdm-76"):
        RDM.from_pretrained("rdm-76")


def test_a_checkpoint_in_place_of_a_folder_is_refused_with_what_reads_it(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(CheckpointError, match="from_compvis"):
        RDM.from_pretrained(tmp_path / "model.ckpt")
