"""torchvision beside a CPU-only torch: declares the operators that `import torchvision` needs.

The torchvision on PyPI is a CUDA build. Beside a CPU-only torch its compiled part does not load, and `import torchvision` fails
because `torchvision::nms` is missing. Declared operators without an implementation are enough for transforms, open_clip and
diffusers. Reads torchvision's installed files and writes nothing.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []  # the operators exist as long as their library object


@cache
def declare_torchvision_ops() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` if they are missing and cannot be loaded."""
    if torch.version.cuda is not None or torch.version.hip is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for compiled in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return
        except OSError:  # built for CUDA, or for another torch
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
