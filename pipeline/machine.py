"""This machine: the number of usable cores, the torch device, and torchvision beside a CPU-only torch.

Reads the scheduler's CPU affinity, OMP_NUM_THREADS and what torch reports. Writes nothing. The functions that need torch
import it when they are called.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType


def cores() -> int:
    """The number of cores this process may use: OMP_NUM_THREADS if it is set, else the CPU affinity, else all cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device(name: str = "auto") -> str:
    """The torch device for a `--device` value: `auto` is the GPU if there is one, else the CPU.

    Raises ConfigError for a name that torch does not know and for a GPU that this machine does not have.
    """
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


def prepare_torchvision() -> None:
    """Make `import torchvision` work beside a CPU-only torch. Does nothing if torchvision is already imported."""
    if "torchvision" in sys.modules:
        return
    from rdm.torchvision_ops import declare_torchvision_ops

    declare_torchvision_ops()


def import_without(library: str, *absent: str) -> ModuleType:
    """A copy of a library, imported as if the packages `absent` were not installed (see rdm/imports.py)."""
    from rdm.imports import import_apart

    prepare_torchvision()
    return import_apart((library,), absent)[0]


def import_whole(*libraries: str) -> None:
    """Import those of these libraries that are installed; safe while another thread runs `import_without` (see
    rdm/imports.py)."""
    from rdm import imports

    prepare_torchvision()
    imports.import_whole(*libraries)
