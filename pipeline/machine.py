"""This machine: usable cores, torch's device, the faster precision of a CPU, and torchvision beside a CPU-only torch.

Reads the scheduler's CPU affinity, OMP_NUM_THREADS, /proc/cpuinfo and what torch reports. Writes nothing. The functions that
need torch import it when they are called.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal


def cores() -> int:
    """The number of cores this process may use: OMP_NUM_THREADS if it is set, else the CPU affinity, else all cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cpu_precision() -> Literal["fp32", "bf16"]:
    """The faster of fp32 and bf16 for networks on this processor: bf16 if it has such instructions and they prove faster."""
    return "bf16" if bf16_instructions(_cpuinfo()) and bf16_gain() >= _WORTH_IT else "fp32"


def encoder_precision(device: str) -> Literal["fp32", "fp16", "bf16"]:
    """The precision that `auto` means for encoders on a device: fp16 on a GPU, `cpu_precision` on a CPU."""
    return "fp16" if device.startswith("cuda") else cpu_precision()


_WORTH_IT = 1.5  # AMX gives 4 and more, AVX-512 BF16 about 2; emulation less than 1


def bf16_instructions(cpuinfo: str) -> bool:
    """Whether the flags of /proc/cpuinfo name instructions that multiply bf16 matrices."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def bf16_gain() -> float:
    """The speed of a matrix product in bf16 on this machine, divided by that in fp32. Takes a few hundredths of a second.

    The best of several measurements of this thread's processor time, so that other work on the machine has little influence.
    """
    import torch

    def best(dtype: torch.dtype) -> float:
        a, b = (torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype))
        taken = []
        for _ in range(8):
            start = time.thread_time()
            a @ b
            taken.append(time.thread_time() - start)
        return min(taken[2:])

    with torch.inference_mode():
        return best(torch.float32) / max(best(torch.bfloat16), 1e-9)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def device(name: str = "auto") -> str:
    """The torch device for a `--device` value: `auto` is the GPU if there is one, else the CPU.

    Raises ConfigError for a name that torch does not know and for a GPU that this machine does not have.
    """
    if name == "auto" and "torch" not in sys.modules and not _may_have_gpu():
        return "cpu"  # importing torch takes seconds
    import torch

    from pipeline.errors import ConfigError

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not one that torch knows: use auto, cpu, cuda or cuda:1") from error
    if wanted.type == "cuda" and not gpus:
        raise ConfigError(f"--device {name!r}: torch {torch.__version__} sees no GPU on this machine; use --device cpu")
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        raise ConfigError(f"--device {name!r}: this machine has {gpus} GPU(s); use cuda:0 to cuda:{gpus - 1}")
    return name


def _may_have_gpu() -> bool:
    """False only if torch cannot find a GPU, because there is no driver for one."""
    if sys.platform == "darwin":
        return False
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():  # AMD's driver
        return True
    try:
        ctypes.CDLL("libcuda.so.1")  # NVIDIA's driver
    except OSError:
        return False
    return True


def prepare_torchvision() -> None:
    """Make `import torchvision` work beside a CPU-only torch. Does nothing if torchvision is already imported."""
    if "torchvision" in sys.modules:
        return
    from rdm.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()


def import_without(library: str, *absent: str, plain: Mapping[str, Sequence[str]] | None = None) -> ModuleType:
    """A copy of a library, imported as if the packages `absent` were not installed (see rdm/imports.py, also for `plain`)."""
    from rdm.imports import import_apart

    prepare_torchvision()
    return import_apart((library,), absent, plain)[0]


class _NoPandas:
    """A finder that finds pandas absent."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)


def arrow_without_pandas() -> None:
    """Let pyarrow find pandas absent, in a process that converts nothing to pandas.

    The first `pyarrow.array` imports pandas if it is installed, which takes half a second of processor time.
    """
    import pyarrow as pa

    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


def import_whole(*libraries: str) -> None:
    """Import those of these libraries that are installed; safe while another thread runs `import_without` (see
    rdm/imports.py)."""
    from rdm import imports

    prepare_torchvision()
    imports.import_whole(*libraries)
