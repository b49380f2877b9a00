"""Surfaces that styles share: paper, smooth noise, cells. Pure functions of their arguments, kept in small caches.

Every texture is tileable. A style shifts, turns and mirrors one texture into as many as it needs (`Turn`), so that the
texture of a picture costs a few microseconds at 64 px. A texture's arguments are its seed; there is no global state.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pipeline.atelier.opencv import cv2
from pipeline.atelier.palette import Array


@lru_cache(maxsize=48)
def noise(size: int, detail: int, across: int = 0, variant: int = 0) -> Array:
    """Smooth tileable noise, (size, size) float32 with mean 0 and deviation 1, read-only.

    `detail` is the number of features from top to bottom, `across` from left to right (the same if 0).
    """
    across = across or detail
    rng = np.random.Generator(np.random.PCG64([detail, across, variant, 7]))
    # The resize would thin out a grid that is finer than the picture, so pixels are the finest grain.
    rows, columns = min(detail, size), min(across, size)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    pad = 2
    wide = np.pad(grid, pad, mode="wrap")
    ky, kx = size / rows, size / columns
    matrix = np.array([[1 / kx, 0, pad - 0.5 + 0.5 / kx], [0, 1 / ky, pad - 0.5 + 0.5 / ky]])
    out = cv2.warpAffine(
        wide, matrix, (size, size), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    out = (out - out.mean()) / max(1e-6, float(out.std()))
    out.setflags(write=False)
    return np.asarray(out)


@lru_cache(maxsize=12)
def paper(size: int, variant: int = 0) -> Array:
    """The grain of drawing paper: noise of several sizes, (size, size) with mean 0 and deviation 1, read-only."""
    out = noise(size, 190, variant=variant) + 0.8 * noise(size, 110, variant=variant + 1)
    out = out + 0.25 * noise(size, 40, variant=variant + 2) + 0.45 * noise(size, 380, variant=variant + 3)
    out = (out / out.std()).astype(np.float32)
    out.setflags(write=False)
    return np.asarray(out)


@lru_cache(maxsize=16)
def cells(
    size: int, across: int, jitter: float = 0.8, square: bool = False, variant: int = 0
) -> tuple[Array, Array, Array]:
    """A tileable pavement of about `across` x `across` cells around jittered grid points.

    Returns (label, edge, centre), each (size, size). `label` is the number of the cell, from 0 to across^2 - 1 (int32).
    `edge` is the distance to the nearest other cell, 0 on the border, and `centre` the distance to the cell's own point
    (both float32, in cell widths). With `square` the cells are squares, each turned by a small angle.
    """
    rng = np.random.Generator(np.random.PCG64([across, variant, int(square), int(100 * jitter)]))
    offset = (rng.random((across, across, 2)) - 0.5) * jitter
    turn = (rng.random((across, across)) - 0.5) * 0.5
    at = (np.arange(size, dtype=np.float32) + 0.5) * (across / size)
    gy, gx = np.meshgrid(at, at, indexing="ij")
    iy, ix = gy.astype(np.int32), gx.astype(np.int32)
    best = np.full((size, size), 9.0, np.float32)
    second = best.copy()
    label = np.zeros((size, size), np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cy, cx = iy + dy, ix + dx
            wy, wx = cy % across, cx % across
            place = offset[wy, wx]
            vy = gy - (cy + 0.5 + place[..., 0]).astype(np.float32)
            vx = gx - (cx + 0.5 + place[..., 1]).astype(np.float32)
            if square:
                a = turn[wy, wx].astype(np.float32)
                c, s = np.cos(a), np.sin(a)
                distance = np.maximum(np.abs(c * vx + s * vy), np.abs(c * vy - s * vx))
            else:
                distance = np.sqrt(vx * vx + vy * vy)
            nearer = distance < best
            second = np.where(nearer, best, np.minimum(second, distance))
            label = np.where(nearer, wy * across + wx, label)
            best = np.where(nearer, distance, best)
    edge = (second - best).astype(np.float32)
    for out in (label, edge, best):
        out.setflags(write=False)
    return label, edge, best


class Turn:
    """One way to lay a tileable texture: a random shift, turn and mirror."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        draw = rng.integers(0, 1 << 30, 3).tolist()
        self.down, self.right, self.kind = draw[0] % size, draw[1] % size, draw[2] % 8

    def __call__(self, texture: Array, *, keep_direction: bool = False) -> Array:
        out = np.roll(texture, (self.down, self.right), axis=(0, 1))
        if self.kind & 1:
            out = out[:, ::-1]
        if self.kind & 2:
            out = out[::-1]
        if self.kind & 4 and not keep_direction:
            out = out.T
        return np.ascontiguousarray(out)


def cell_means(image: Array, label: Array, count: int) -> Array:
    """The mean colour of every label: (count, 3) float32, from an (H, W, 3) image and (H, W) labels below `count`."""
    flat = label.ravel()
    number = np.maximum(np.bincount(flat, minlength=count), 1)
    sums = [np.bincount(flat, weights=image[..., c].ravel(), minlength=count) / number for c in range(3)]
    return np.asarray(np.stack(sums, axis=1), np.float32)
