"""Original checkpoints: strict loading, a report of unused entries, and no pickled code is run."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rdm import RDM
from rdm.checkpoint import denoiser_entries, first_stage_entries
from rdm.compvis import ema_key
from rdm.errors import CheckpointError
from rdm.pickles import Placeholder, load_tensors
from tests.rdm_reference import lively, noise, reference_config, reference_model, tiny_config, tiny_model, unit


def original_state(model: RDM, *, ema: RDM | None = None) -> dict[str, Tensor]:
    """The model's weights under the original's names, as in its release."""
    names = [*denoiser_entries(model.unet, model.config), *first_stage_entries(model.first_stage, model.config)]
    own = {**model.unet.state_dict(), **model.first_stage.state_dict()}
    state = {e.original: own[e.name].detach().clone().reshape(e.original_shape) for e in names}
    if ema is not None:
        averages = ema.unet.state_dict()
        for entry in denoiser_entries(model.unet, model.config):
            state[ema_key(entry.original)] = averages[entry.name].detach().clone()
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return state


def load(path: Path, content: Any) -> RDM:
    torch.save(content, path)
    return RDM.from_compvis(path, tiny_config())


def test_live_weights_are_loaded_where_there_are_no_averages(tmp_path: Path) -> None:
    model = load(tmp_path / "live.ckpt", {"state_dict": original_state(tiny_model())})
    assert model.report is not None and model.report.weights == "live"
    assert model.weights_hash() == tiny_model().weights_hash()


def test_averages_are_preferred_to_live_weights(tmp_path: Path) -> None:
    live = lively(RDM.from_config(tiny_config()), seed=3)
    live.first_stage = tiny_model().first_stage
    model = load(tmp_path / "ema.ckpt", {"state_dict": original_state(live, ema=tiny_model())})
    assert model.report is not None and model.report.weights == "ema"
    assert model.report.ignored["live weights"] == len(model.unet.state_dict())
    assert model.weights_hash() == tiny_model().weights_hash()


def test_a_bare_state_dict_and_a_half_precision_one_load(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in original_state(tiny_model()).items()}
    model = load(tmp_path / "bare.ckpt", half)
    assert model.dtype == torch.float32
    kept = RDM.from_compvis(tmp_path / "bare.ckpt", tiny_config(), dtype=None)
    assert kept.dtype == torch.float16


def test_known_unused_entries_are_reported(tmp_path: Path) -> None:
    state = original_state(tiny_model())
    state |= {
        "betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000), "logvar": torch.zeros(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(1),
        "cond_stage_model.transformer.weight": torch.zeros(2), "unconditional_guidance_vex": torch.zeros(12),
        "scale_factor": torch.tensor(0.5),
    }  # fmt: skip
    content = {"state_dict": state, "optimizer_states": [{"state": {}}], "epoch": 3, "global_step": 10, "callbacks": {}}
    report = load(tmp_path / "full.ckpt", content).report
    assert report is not None
    assert report.ignored == {
        "schedule buffers": 3, "training loss": 2, "conditioning encoder": 1, "unused learned null vector": 1,
        "scale factor": 1, "optimizer state": 1,
    }  # fmt: skip
    assert "2 training loss" in str(report)


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != key}


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
QUANT = "first_stage_model.post_quant_conv.bias"


@pytest.mark.parametrize("key", [CONV_IN, QUANT])
def test_a_missing_weight_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"lacks 1 of .*{key}"):
        load(tmp_path / "x.ckpt", {"state_dict": _without(original_state(tiny_model()), key)})


def test_a_missing_average_is_named_even_where_the_live_weight_is_there(tmp_path: Path) -> None:
    state = _without(original_state(tiny_model(), ema=tiny_model()), ema_key(CONV_IN))
    with pytest.raises(CheckpointError, match=ema_key(CONV_IN)):
        load(tmp_path / "x.ckpt", {"state_dict": state})


@pytest.mark.parametrize("key", ["model.diffusion_model.label_emb.weight", "model_ema.extra", "perceptual.net"])
def test_an_unknown_weight_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        load(tmp_path / "x.ckpt", {"state_dict": {**original_state(tiny_model()), key: torch.zeros(1)}})


def test_an_unknown_entry_beside_the_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="adapters"):
        load(tmp_path / "x.ckpt", {"state_dict": original_state(tiny_model()), "adapters": {}})


def test_names_that_are_no_text_and_a_scale_that_is_no_number_are_named(tmp_path: Path) -> None:
    state: dict[Any, Tensor] = {**original_state(tiny_model()), 3: torch.zeros(1)}
    with pytest.raises(CheckpointError, match="names of weights are not strings: 3"):
        load(tmp_path / "x.ckpt", {"state_dict": state})
    with pytest.raises(CheckpointError, match=r"scale_factor has shape \(2,\)"):
        load(tmp_path / "x.ckpt", {**original_state(tiny_model()), "scale_factor": torch.zeros(2)})


@pytest.mark.parametrize("value", [torch.zeros(32, 4, 3, 5), torch.zeros(36, 32), torch.zeros(32, 4, 3, 3).long()])
def test_a_misshapen_weight_is_named(tmp_path: Path, value: Tensor) -> None:
    with pytest.raises(CheckpointError, match=CONV_IN):
        load(tmp_path / "x.ckpt", {"state_dict": {**original_state(tiny_model()), CONV_IN: value}})


def test_another_scale_factor_than_the_descriptions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"scale_factor 0\.25.*0\.5"):
        load(tmp_path / "x.ckpt", {**original_state(tiny_model()), "scale_factor": torch.tensor(0.25)})


class Touch:
    """Pickles as a call that creates a file, as a malicious checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Callback(collections.UserDict[str, int]):
    """A stand-in for an object of a training framework, with its own state."""


def test_nothing_pickled_in_a_checkpoint_runs(tmp_path: Path) -> None:
    trap, path = tmp_path / "trapped", tmp_path / "bad.ckpt"
    content = {"state_dict": original_state(tiny_model()), "callbacks": Touch(trap)}
    model = load(path, content)
    assert not trap.exists()
    assert model.weights_hash() == tiny_model().weights_hash()
    torch.load(path, weights_only=False)  # the trap works
    assert trap.exists()


def test_a_trap_in_place_of_a_weight_is_named_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    with pytest.raises(CheckpointError, match=CONV_IN):
        load(tmp_path / "bad.ckpt", {"state_dict": {**original_state(tiny_model()), CONV_IN: Touch(trap)}})
    assert not trap.exists()


def test_objects_of_a_training_framework_become_placeholders(tmp_path: Path) -> None:
    state = collections.OrderedDict(original_state(tiny_model()))
    content = {"state_dict": state, "callbacks": {"best": Callback(a=1), "path": Path("x")}, "hyper_parameters": {1, 2},
               "hparams_type": Callback}  # fmt: skip
    model = load(tmp_path / "lightning.ckpt", content)
    assert model.weights_hash() == tiny_model().weights_hash()
    assert isinstance(load_tensors(tmp_path / "lightning.ckpt")["callbacks"]["best"], Placeholder)
    content["state_dict"] = collections.defaultdict(list, state)
    assert load(tmp_path / "default.ckpt", content).weights_hash() == tiny_model().weights_hash()


def test_the_old_file_format_is_read_only_as_plain_weights(tmp_path: Path) -> None:
    path, trap = tmp_path / "old.ckpt", tmp_path / "trapped"
    torch.save({"state_dict": original_state(tiny_model())}, path, _use_new_zipfile_serialization=False)
    assert RDM.from_compvis(path, tiny_config()).weights_hash() == tiny_model().weights_hash()
    torch.save({"state_dict": {}, "callbacks": Touch(trap)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="save it again"):
        RDM.from_compvis(path, tiny_config())
    assert not trap.exists()


def _write(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": {}}))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "program":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "cut":
        torch.save({"state_dict": original_state(tiny_model())}, path)
        path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["absent", "text", "empty", "pickle", "zip", "program", "list", "cut"])
def test_what_is_no_checkpoint_is_an_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.ckpt"
    _write(path, kind)
    with pytest.raises(CheckpointError, match=r"model\.ckpt"):
        RDM.from_compvis(path, tiny_config())


def test_weights_in_their_own_precision_stay_mapped_and_are_not_copied(tmp_path: Path) -> None:
    """The parameters are the file's pages: there is no second copy in memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped where")
    path = tmp_path / "live.ckpt"
    model = load(path, {"state_dict": original_state(tiny_model())})
    lines = [line.split() for line in maps.read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(edge, 16) for edge in line[0].split("-")) for line in lines]
    for network in (model.unet, model.first_stage):
        for name, value in network.state_dict().items():
            assert any(low <= value.data_ptr() < high for low, high in ranges), name


def test_the_released_checkpoint_loads_with_its_averages(shared: Path) -> None:
    report = reference_model(shared).report
    assert report is not None
    assert (report.weights, report.loaded) == ("ema", 1030)
    assert report.ignored == {"EMA counters": 2, "live weights": 688, "schedule buffers": 12}


def test_a_wrong_description_of_the_checkpoint_is_an_error(shared: Path) -> None:
    config = reference_config(shared)
    config["unet"]["context_dim"] = 512
    with pytest.raises(CheckpointError, match=r"attn2.*\(32, 768\), not \(32, 512\)"):
        RDM.from_compvis(shared / "reference" / "rdm" / "model.ckpt", config)


def test_equal_weights_have_equal_hashes_and_a_changed_number_another(tmp_path: Path) -> None:
    model = load(tmp_path / "a.ckpt", {"state_dict": original_state(tiny_model())})
    before = model.weights_hash()
    model.unet.to(memory_format=torch.channels_last)  # another layout of the same numbers
    assert model.weights_hash() == before
    with torch.no_grad():
        model.first_stage.post_quant_conv.bias[0] += 1e-3
    assert model.weights_hash() != before
    model.denoise(noise(1, 4, 8, 8), 5, unit(1, 2, 12))
