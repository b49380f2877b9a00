"""The root modules of the package: intervals and this machine."""

from __future__ import annotations

import os
import sys

import pytest

from pipeline import machine
from pipeline.errors import ConfigError
from pipeline.intervals import wilson


def test_without_a_driver_there_is_no_gpu_and_torch_is_not_imported_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(machine, "_may_have_gpu", lambda: False)
    assert machine.device("auto") == "cpu" and "torch" not in sys.modules


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (1.0, 200, 0.98115, 1.0),  # worked by hand from the formula
        (0.95, 200, 0.91042, 0.97263),
        (0.5, 10, 0.23659, 0.76341),
        (0.0, 10, 0.0, 0.27753),
        (0.8, 10, 0.49016, 0.94332),
        (1.0, 10, 0.72247, 1.0),
        (0.0, 0, 0.0, 1.0),  # no trial says nothing
    ],
)
def test_the_interval_is_wilsons(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=3e-5)


def test_cores_follow_the_affinity_and_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert machine.cores() == len(allowed)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert machine.cores() == 7
    for nonsense in ("", "0", "-1", "two"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert machine.cores() == len(allowed)


def test_a_device_is_one_that_torch_knows_and_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.device("auto") == machine.device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        machine.device("cuda")
    with pytest.raises(ConfigError, match="not one that torch knows"):
        machine.device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.device("auto") == "cuda" and machine.device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match=r"has 2 GPU\(s\); use cuda:0 to cuda:1"):
        machine.device("cuda:2")


@pytest.mark.parametrize(
    ("flags", "gain", "precision"),
    [
        ("fpu avx2 avx512f", 9.0, "fp32"),  # no instructions
        ("avx512f avx512_bf16", 1.8, "bf16"),
        ("amx_tile amx_bf16", 4.0, "bf16"),
        ("avx512f avx512_bf16", 1.1, "fp32"),  # instructions that do not help here
    ],
)
def test_a_processor_computes_in_bf16_if_it_can_and_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, flags: str, gain: float, precision: str
) -> None:
    machine.cpu_precision.cache_clear()
    monkeypatch.setattr(machine, "_cpuinfo", lambda: f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "bf16_gain", lambda: gain)
    assert machine.cpu_precision() == machine.encoder_precision("cpu") == precision
    machine.cpu_precision.cache_clear()
    assert machine.encoder_precision("cuda:1") == "fp16"


def test_the_gain_of_bf16_is_measured() -> None:
    assert 0 < machine.bf16_gain() < 1000
