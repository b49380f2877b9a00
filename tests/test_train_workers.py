"""Several workers: DDP, FSDP2 and states that they save together, against one worker; adapters; trackers; reports.

Workers that average in another order than one worker's sum differ by rounding. "Equal" below means: the distance between the
two runs' weights is at most a share of the distance that training moved them, EQUAL after a few steps and EQUAL_LATER after
fifty (0.0018 was measured), and reported losses agree to a relative 1e-5.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.execution import Backend, Progress
from pipeline.training import Steps, train, train_on_ray
from pipeline.training import prepare as prepare_database
from pipeline.training.config import DenoiserConfig, TrainConfig
from pipeline.training.crew import Crew
from pipeline.training.teamwork import rebuild, share
from rdm import RDM
from rdm.errors import CheckpointError
from rdm.objectives import denoising_loss
from rdm.sharded import saved_states
from rdm.train import LoopConfig, fit, has_state, read_average, read_curve
from tests.forked import preloaded_processes
from tests.rdm_reference import lively, tiny_config
from tests.test_train import JOBS
from tests.test_train import process_as_it_was as process_as_it_was
from tests.test_train_prepared import database_of, request_of, run_of

pytestmark = pytest.mark.process

STEPS = Steps(4, 4, learning_rate=1e-3, warmup=0, decay=0.0, accumulate=2, report_steps=1, save_seconds=0.0)
PART = DenoiserConfig("tiny", STEPS, base="tiny", checkpointing=True)
EQUAL, EQUAL_LATER = 1e-3, 5e-3


def train_to(step: int, crew: Crew, folder: Path, sharding: Literal["ddp", "fsdp"] = "ddp") -> RDM:
    """Train a tiny denoiser on this worker's rows of a batch, from the newest state of the folder."""
    model = lively(RDM.from_config(tiny_config()))
    model.unet.enable_gradient_checkpointing()
    part = replace(PART, sharding=sharding)
    shared = share(model.unet, crew, part, folder)
    size = (model.config.latent_channels, 8, 8)

    def loss(index: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        latents, noise = (torch.randn((2, *size), generator=generator) for _ in range(2))
        context = torch.randn(2, 3, model.config.context_dim, generator=generator)
        times = torch.randint(1000, (2,), generator=generator)
        return denoising_loss(
            shared.forward, *(crew.mine(rows) for rows in (latents, context, noise, times)), model.schedule
        )

    def on_save(saved: int, network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        whole = rebuild(model.config, weights, torch.device("cpu"))
        assert all(value.shape == other.shape and type(other) is not type(network) for value, other in zip(
            whole.state_dict().values(), weights.values(), strict=True))  # fmt: skip

    config = LoopConfig(**{name: getattr(replace(STEPS, steps=step), name) for name in LoopConfig.__dataclass_fields__})
    fit(model.unet, loss, config, folder, resume=True, team=shared.team, on_save=on_save)
    return model


def work(rank: int, port: int, folder: Path) -> None:
    """One of two workers: FSDP2 from the state of a single worker, then DDP from the state of FSDP2."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    crew = Crew.of_environment("cpu", 1)
    train_to(2, crew, folder, "fsdp")
    train_to(3, crew, folder, "ddp")
    torch.distributed.destroy_process_group()


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(torch.stack([(one[name].float() - other[name].float()).norm() for name in one]).norm())


def test_one_worker_two_of_fsdp_two_of_ddp_and_one_again_end_where_one_does(tmp_path: Path) -> None:
    from tests.cluster import free_port

    together, whole = tmp_path / "together", tmp_path / "whole"
    start = lively(RDM.from_config(tiny_config())).unet.state_dict()
    train_to(4, Crew("cpu", 1), whole)
    train_to(1, Crew("cpu", 1), together)
    assert read_average(together)[0] == 1
    preloaded_processes()
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        work, (free_port(), together), nprocs=2, start_method="forkserver"
    )
    assert [path.name for path in (together / "state").iterdir()] == ["000000003"]  # older ones are removed
    assert read_average(together)[0] == 3
    train_to(4, Crew("cpu", 1), together)
    (_, one), (step, other) = (read_average(folder) for folder in (whole, together))
    assert step == 4
    assert apart(one, other) < EQUAL * apart(one, start)
    curves = [[row["loss"] for row in read_curve(folder / "curve.csv")] for folder in (whole, together)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    (together / "state.pt").unlink()
    assert has_state(together)
    wide = RDM.from_config(tiny_config(unet={**tiny_config()["unet"], "model_channels": 64}))
    with pytest.raises(CheckpointError, match=r"state/000000003 does not fit this network"):
        fit(wide.unet, lambda index, generator: (torch.zeros(()), {}), LoopConfig(4), together, resume=True)


def thin_run(folder: Path, name: str, steps: int, save: float) -> TrainConfig:
    """A thin denoiser, trained as at full size: prepared rows, accumulation, checkpointing, states of all workers."""
    loop = {
        "steps": steps,
        "batch": 8,
        "accumulate": 2,
        "report_steps": 10,
        "warmup": 5,
        "decay": 0.0,
        "save_seconds": save,
    }
    return run_of(folder, name, checkpointing=True, train=loop)


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_fifty_steps_of_two_ray_workers_killed_and_resumed_equal_those_of_one(
    tmp_path: Path, home: Path, ray_here: None
) -> None:
    """A worker process is killed in the middle: all start again from the last save, and give the result of one worker."""
    database_of(tmp_path)
    prepare_database(request_of(tmp_path), Progress(), Backend())
    start = RDM.from_pretrained(tmp_path / "model").unet.state_dict()
    one, two = thin_run(tmp_path, "one", 50, 1e9), thin_run(tmp_path, "two", 50, 0.0)
    train("rdm", one, Progress())
    said = io.StringIO()
    killed = threading.Thread(target=kill_a_worker, args=(two.folder() / "rdm",))
    killed.start()
    train_on_ray("rdm", two, Progress(stream=said), workers=2)
    killed.join()
    assert "a worker was lost" in said.getvalue() and "holds step" in said.getvalue()
    (step, mine), (_, theirs) = (read_average(config.folder() / "rdm") for config in (one, two))
    assert step == 50
    assert apart(mine, theirs) < EQUAL_LATER * apart(mine, start)
    curves = [[row["error"] for row in read_curve(config.folder() / "rdm" / "curve.csv")] for config in (one, two)]
    assert len(curves[0]) == 5 and curves[0] == pytest.approx(curves[1], rel=1e-5)


def kill_a_worker(part: Path) -> None:
    """Wait until a state of some steps exists, and kill one of the training processes."""
    until = time.monotonic() + 400
    while time.monotonic() < until:
        states = saved_states(part)
        if states and int(states[-1].name) >= 10:
            break
        time.sleep(0.05)
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if b"RayTrainWorker" in (path / "cmdline").read_bytes():
                    os.kill(int(path.name), signal.SIGKILL)
                    return


# ---- what is lost on a cluster


def test_a_workers_own_error_ends_a_run_and_a_lost_worker_does_not() -> None:
    from pipeline.errors import ModelError
    from pipeline.training.ray import RESTARTS, Losses, own_error

    class Failed(Exception):
        def __init__(self, *failures: Exception) -> None:
            self.worker_failures = dict(enumerate(failures))

    gone, own = RuntimeError("connection closed"), ModelError("the loss is not finite at step 7")
    assert own_error(Failed(gone, own)) is own
    assert own_error(Failed(gone, gone)) is None
    losses = Losses("step 10")
    for state in ("step 10", "step 10", "step 20", "step 20", "step 20", "step 20"):
        losses = losses.add(state)
    assert losses.count == RESTARTS + 1  # a save between them starts the count again


def test_work_beside_the_training_runs_in_a_thread_and_its_error_is_raised_at_the_next_save() -> None:
    from pipeline.training.loop import Aside

    gate, done = threading.Event(), list[int]()
    aside = Aside(threaded=True)
    aside.run(lambda: done.append(gate.wait()))  # a sheet that takes long: training goes on
    assert aside.busy and not done
    gate.set()
    aside.finish()
    assert not aside.busy and done == [True]
    aside.run(lambda: done[7])
    with pytest.raises(IndexError):
        aside.finish()
    aside.close()


# ---- rehearsal


@pytest.mark.parametrize(("recipe", "sharding", "workers", "parameters", "latent", "flops"), [
    ("train-rdm-768.toml", "fsdp", 32, 1_335_480_400, (16, 48, 48), 2.086e12),
    ("train-rdm-imagenet.toml", "ddp", 8, 400_920_579, (3, 64, 64), 0.626e12),
])  # fmt: skip
def test_a_full_size_recipe_is_rehearsed_at_its_real_widths(
    recipe: str, sharding: str, workers: int, parameters: int, latent: tuple[int, ...], flops: float
) -> None:
    """A forward and backward pass, the spreading of FSDP2 and the plan of a state, without using memory."""
    from pipeline.training import read_train_config, rehearse

    config = read_train_config(JOBS / recipe)
    assert config.rdm is not None
    found = rehearse(replace(config, rdm=replace(config.rdm, sharding=sharding)), workers)  # type: ignore[arg-type]
    assert (found.parameters, found.latent) == (parameters, latent)
    assert found.flops == pytest.approx(flops, rel=1e-3)
    # Weights, average and two moments, and a step for each of the optimizer's tensors; each worker writes its share.
    assert found.state == pytest.approx(16 * parameters, rel=1e-5)
    assert found.written == pytest.approx(found.state / workers, rel=1e-3)
    own = parameters if sharding == "ddp" else parameters / workers
    assert found.weights == pytest.approx(20 * own, rel=1e-3)
    assert 1e9 < found.activations < 4e9 and found.memory < 12e9


# ---- adapters


def test_adapters_begin_at_zero_and_merging_them_gives_the_same_denoiser(tmp_path: Path) -> None:
    from rdm.lora import FILE, Adapters, merge, read_lora, save_lora

    plain, adapted = (lively(RDM.from_config(tiny_config())).unet for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    given = (torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([3, 700]), torch.randn(2, 3, 16, generator=draw))
    width = tiny_config()["unet"]["context_dim"]
    x, t, context = given[0][:, : plain.conv_in.in_channels], given[1], torch.randn(2, 3, width, generator=draw)
    adapters = Adapters(adapted, 2)
    with torch.no_grad():
        before = plain(x, t, encoder_hidden_states=context).sample
        assert torch.equal(adapted(x, t, encoder_hidden_states=context).sample, before)
        for pair in adapters.pairs:
            pair.lora_B.normal_(generator=draw)
        changed = adapted(x, t, encoder_hidden_states=context).sample
        assert not torch.allclose(changed, before, atol=1e-2)
        save_lora(adapters.weights(), tmp_path)
        merge(plain, read_lora(tmp_path / FILE))
        torch.testing.assert_close(plain(x, t, encoder_hidden_states=context).sample, changed, atol=2e-2, rtol=2e-2)
    assert sum(value.requires_grad for value in adapted.parameters()) == 0
    wide = lively(RDM.from_config(tiny_config(unet={**tiny_config()["unet"], "model_channels": 64}))).unet
    with pytest.raises(CheckpointError, match=r"the LoRA of .* numbers; .* were expected"):
        merge(wide, read_lora(tmp_path / FILE))


def test_adapters_are_trained_saved_and_drawn_with_while_their_base_stays(tmp_path: Path, home: Path) -> None:
    from pipeline.generation import find_model, load_model
    from rdm.lora import FILE, merge, read_lora

    database_of(tmp_path, 12)
    prepare_database(request_of(tmp_path), Progress(), Backend())
    folder = train("rdm", run_of(tmp_path, "run", steps=3, lora=2), Progress())
    assert sorted(path.name for path in folder.iterdir()) == ["model.toml", FILE]
    step, weights = read_average(folder.parent)
    base = RDM.from_pretrained(tmp_path / "model")
    assert step == 3 and sum(value.numel() for value in weights.values()) < 0.1 * sum(
        value.numel() for value in base.unet.parameters()
    )
    info, plain = find_model(str(folder)), find_model(str(tmp_path / "model"))
    assert (info.kind, info.name, info.encoder) == ("rdm-lora", "small", plain.encoder) and info.hash != plain.hash
    drawn = load_model(info, "fp32", "cpu").model  # type: ignore[attr-defined]
    merge(base.unet, read_lora(folder / FILE))
    assert all(torch.equal(one, other) for one, other in zip(
        drawn.unet.state_dict().values(), base.unet.state_dict().values(), strict=True))  # fmt: skip
    with pytest.raises(ConfigError, match=r"lora = 2 adapts the weights of a saved model.*--base"):
        train("rdm", run_of(tmp_path, "other", lora=2, base="rdm-768"), Progress())


@pytest.mark.long
def test_diffusers_reads_the_adapters_and_adds_the_same(tmp_path: Path) -> None:
    from pipeline.machine import prepare_torchvision

    prepare_torchvision()  # peft imports it
    pytest.importorskip("peft")
    import diffusers

    from rdm.lora import FILE, Adapters, save_lora

    unet = lively(RDM.from_config(tiny_config())).unet
    adapters = Adapters(unet, 2)
    with torch.no_grad():
        for pair in adapters.pairs:
            pair.lora_B.normal_(generator=torch.Generator().manual_seed(0))
    save_lora(adapters.weights(), tmp_path)
    whole = diffusers.UNet2DConditionModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
    whole.load_state_dict(dict(unet.state_dict()))
    whole.load_lora_adapter(str(tmp_path), weight_name=FILE, prefix="unet")
    x, t = torch.randn(2, unet.conv_in.in_channels, 8, 8), torch.tensor([3, 700])
    context = torch.randn(2, 3, tiny_config()["unet"]["context_dim"])
    with torch.no_grad():
        mine, theirs = (network.eval()(x, t, encoder_hidden_states=context).sample for network in (unet, whole))
    torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=2e-2)


# ---- reports and trackers


def records(data: bytes) -> list[bytes]:
    """The messages of a TensorBoard file, after a check of their checksums."""
    from pipeline.training.tracking import crc32c

    def fits(part: bytes, mark: bytes) -> bool:
        value = struct.unpack("<I", mark)[0] - 0xA282EAD8 & 0xFFFFFFFF
        return (value >> 17 | value << 15) & 0xFFFFFFFF == crc32c(part)

    found = []
    while data:
        size = struct.unpack("<Q", data[:8])[0]
        assert fits(data[:8], data[8:12]) and fits(data[12 : 12 + size], data[12 + size : 16 + size])
        found.append(data[12 : 12 + size])
        data = data[16 + size :]
    return found


def test_event_files_are_tensorboards(tmp_path: Path) -> None:
    from pipeline.training.tracking import EventFile, crc32c

    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    file = EventFile(tmp_path)
    file.start(101)
    file.log(300, {"loss": 0.5})
    file.close()
    version, start, scalar = (event[9:] for event in records(next(tmp_path.iterdir()).read_bytes()))
    assert version == b"\x1a\x0dbrain.Event:2"
    assert start == b"\x10\x65\x3a\x02\x08\x01"  # step 101, SessionLog START
    assert scalar == b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 0.5)


def test_a_report_has_speed_wait_and_share_of_the_peak_and_goes_to_every_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from pipeline.training.reporting import Reporter, Work
    from pipeline.training.tracking import open_trackers
    from rdm.train import Report

    logged: list[tuple[str, int, dict[str, float]]] = []
    run = SimpleNamespace(log=lambda values, step: logged.append(("wandb", step, values)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run, __spec__=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(
        set_experiment=lambda name: None, start_run=lambda run_name: None, log_dict=lambda values, name: None,
        log_metrics=lambda values, step: logged.append(("mlflow", step, values)), end_run=lambda: None,
        __spec__=SimpleNamespace()))  # fmt: skip
    said = io.StringIO()
    with Progress(stream=said) as progress:
        reporter = Reporter(progress, "rdm", 64, open_trackers(("wandb", "mlflow"), tmp_path, {}), Work(1e9, 1e11))
        reporter.report(Report(50, 100, 10, {"loss": 0.25, "wait": 0.5}, 1e-4, 20.0))
        reporter.close()
    assert "step 50/100, loss 0.25, 32 pictures/s, 25% of the time waiting for data, 32% of peak" in said.getvalue()
    figures = {"loss": 0.25, "rate": 1e-4, "pictures/s": 32.0, "waiting": 0.25, "of peak": 0.32}
    assert logged == [("wandb", 50, figures), ("mlflow", 50, figures)]


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlflow.*pip install 'rdmpipe\[mlflow\]'"):
        train("rdm", replace(run_of(tmp_path, "run"), track=("mlflow",)), Progress())
