"""This machine: how many cores this process may use, which device torch uses, and torchvision beside a CPU-only torch.

PyPI's torchvision is a CUDA build whose operators do not load beside a CPU-only torch, and `import torchvision` then fails on a
missing `torchvision::nms`. Declaring the operators suffices for transforms, open_clip and diffusers. Reads and writes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def cores() -> int:
    """Cores this process may use, as OMP_NUM_THREADS or the scheduler say."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


_declared: list[Any] = []  # torch.library objects; their operators live as long as they do


def prepare_torchvision() -> None:
    """Make `import torchvision` work beside a CPU-only torch. Does nothing where torchvision's own operators load."""
    if _declared or "torchvision" in sys.modules:
        return
    import torch
    from torch.library import Library

    if torch.version.cuda or torch.version.hip:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    for library in Path(spec.submodule_search_locations[0]).glob("_C*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            return
        except OSError:  # built for CUDA, or for another torch
            continue
    fragment: Any = Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(fragment)
