"""Resizing of 8-bit RGB pixels with antialias. Reads and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize(pixels: NDArray[Any], width: int, height: int, interpolation: str) -> NDArray[Any]:
    """(H, W, 3) uint8 resized with antialias, as Pillow does it up to rounding; in the calling thread alone."""
    import torch

    values = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last, which has the quick kernel
    made = torch.nn.functional.interpolate(values, size=(height, width), mode=interpolation, antialias=True)
    found: NDArray[Any] = made[0].permute(1, 2, 0).contiguous().numpy()
    return found
