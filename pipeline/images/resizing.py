"""Resizing of 8-bit RGB pixels with antialias. Reads and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def resize(pixels: NDArray[np.uint8], width: int, height: int, interpolation: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 resized with antialias, equal to Pillow's result up to rounding. Uses the calling thread only.

    interpolation: bilinear or bicubic.
    """
    import torch

    values = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last: torch has a fast kernel for it
    made = torch.nn.functional.interpolate(values, size=(height, width), mode=interpolation, antialias=True)
    found: NDArray[np.uint8] = made[0].permute(1, 2, 0).contiguous().numpy()
    return found
