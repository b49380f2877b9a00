"""Styles made of adjacent pieces: mosaic, stained glass, cubist facets, pixel art."""

from __future__ import annotations

import numpy as np

from pipeline.atelier.opencv import cv2
from pipeline.atelier.plate import Plate
from pipeline.atelier.styles import Array, between, over, style, vivid
from pipeline.atelier.styles_brush import warped
from pipeline.atelier.texture import Turn, cell_means, cells, noise


def _pieces(plate: Plate, label: Array, across: int, rgb: Array) -> tuple[Array, Array]:
    """Pieces cut by cells and by the drawing: (number of the piece of each pixel (H, W), mean colours (n, 3))."""
    paints = len(plate.paints) + 1
    piece = label * paints + plate.ids
    return piece, cell_means(rgb, piece, across * across * paints)


@style("mosaic", "a mosaic of {}", "{}, as a Roman mosaic", "{}, made of small coloured tiles")
def mosaic(plate: Plate) -> Array:
    size, rng, across = plate.size, plate.rng, 21
    lay = Turn(rng, size)
    label, edge, _ = cells(size, across, 0.28, True, int(rng.integers(2)))
    label, edge = lay(label), lay(edge)
    piece, colour = _pieces(plate, label, across, np.clip(vivid(plate.rgb, 1.45) * 1.08, 0, 1))
    colour = np.round(colour * 14) / 14  # stone has a limited number of colours
    worn = rng.normal(1.0, 0.085, across * across).astype(np.float32)[label]
    out = colour[piece] * worn[..., None]
    step = max(1, round(size / 200))
    bevel = np.clip(edge, 0, 0.3)
    out = out * (1 + 0.9 * (bevel - np.roll(bevel, (step, step), (0, 1))))[..., None]
    out = out * (1 + 0.035 * lay(noise(size, 128)))[..., None]
    pixel = across / size
    # Joints are a smaller share of a tile that is only a few pixels wide
    grout = (1.0 - between(0.07, 0.07 + 1.8 * pixel, edge)) * (0.42 + 0.45 * min(1.0, 0.06 / pixel))
    grout = np.maximum(grout, between(0.25, 0.8, plate.outline(0.010, inner=0.25)) * 0.7)
    lime = (0.34, 0.32, 0.31) if plate.light.lamps else (0.38, 0.34, 0.30)
    return over(out, lime, grout)


@style("stained_glass", "a stained-glass window of {}", "{}, in stained glass", "{}, as a stained-glass window")
def stained_glass(plate: Plate) -> Array:
    size, rng, across = plate.size, plate.rng, 8
    lay = Turn(rng, size)
    label, edge, _ = cells(size, across, 0.95, False, int(rng.integers(4)))
    label, edge = lay(label), lay(edge)
    flat = vivid(plate.flat()[None], 1.9)[0] ** 0.85
    cast = rng.normal(1.0, 0.16, across * across).astype(np.float32)[label]
    out = flat[plate.ids] * cast[..., None]
    out = out * (0.70 + 0.42 * plate.shade)[..., None]
    # Light from behind: brightest in the middle, with the streaks and bubbles of old glass
    at = np.linspace(-1, 1, size, dtype=np.float32)
    glow = 1.28 - 0.32 * (at[None, :] ** 2 + at[:, None] ** 2)
    streak = 0.06 * lay(noise(size, 9, 26)) + 0.035 * lay(noise(size, 70))
    out = np.clip(out * (glow + streak)[..., None], 0, 1)
    out = out + 0.10 * cv2.GaussianBlur(out, (0, 0), size / 40)
    pixel = across / size
    behind = 1.0 - plate.map("subject")
    came = (1.0 - between(0.05, 0.05 + 1.6 * pixel, edge)) * behind
    lead = np.maximum(came, between(0.12, 0.6, plate.outline(0.022, inner=0.55)))
    rim = between(0.955, 0.97, np.maximum(np.abs(at)[None, :], np.abs(at)[:, None]))
    lead = np.maximum(lead, rim)
    shine = 0.10 * np.clip(lead - np.roll(lead, (1, 1), (0, 1)), 0, 1)
    return np.asarray(over(out, (0.055, 0.055, 0.07), lead) + shine[..., None])


@style("cubist", "a cubist painting of {}", "{}, in cubist facets", "{}, in the style of cubism")
def cubist(plate: Plate) -> Array:
    size, rng = plate.size, plate.rng
    at = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    x, y = at[None, :], at[:, None]
    code = np.zeros((size, size), np.uint8)
    crease = np.full((size, size), 9.0, np.float32)
    nearest = np.zeros((size, size), np.float32)
    for k in range(7):
        a = (k + float(rng.uniform(-0.35, 0.35))) * np.pi / 7 * 3
        side = np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y - np.float32(rng.uniform(-0.30, 0.30))
        code += (side > 0).astype(np.uint8) * np.uint8(1 << k)
        closer = np.abs(side) < np.abs(crease)
        crease = np.where(closer, side, crease)
    nearest = np.abs(crease)
    move = rng.normal(0.0, 0.026 * size, (2, 256)).astype(np.float32)
    spin = rng.normal(0.0, 0.10, 256).astype(np.float32)
    turn = cv2.LUT(code, spin)
    dx = cv2.LUT(code, move[0]) - turn * y * size
    dy = cv2.LUT(code, move[1]) + turn * x * size
    lines = plate.outline(0.011, inner=0.8)
    out = warped(over(vivid(plate.rgb**0.9, 1.25), (0.12, 0.09, 0.08), lines * 0.8), dx, dy)
    # A palette of earths and slate, one per facet, and a shadow along one side of every crease
    earths = np.array(
        [[0.72, 0.56, 0.36], [0.50, 0.38, 0.28], [0.44, 0.48, 0.52], [0.80, 0.74, 0.60], [0.40, 0.44, 0.36]], np.float32
    )
    tone = earths[rng.integers(0, 5, 256)]
    out = out * 0.78 + tone[code] * 0.22
    slope = np.where(crease > 0, 1.0, -1.0) * np.exp(-nearest / 0.085)
    out = out * (1.03 + 0.27 * slope + cv2.LUT(code, rng.normal(0, 0.07, 256).astype(np.float32)))[..., None]
    out = over(out, (0.14, 0.11, 0.10), (1.0 - between(0.002, 0.002 + 1.4 / size, nearest)) * 0.5)
    lay = Turn(rng, size)
    weave = 1 + 0.045 * lay(noise(size, 36, 110)) + 0.03 * lay(noise(size, 110, 36))
    return np.asarray(out * weave[..., None])


_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16.0 - 0.46875


@style("pixel_art", "pixel art of {}", "{}, as pixel art", "{}, in the style of an old video game")
def pixel_art(plate: Plate) -> Array:
    size = plate.size
    block = max(2, round(size / 40))
    n = -(-size // block)
    at = np.minimum(np.arange(n) * block + block // 2, size - 1)
    rgb = vivid(plate.rgb, 1.3)
    # Sampled at points and not averaged, for hard edges
    small = cv2.blur(rgb, (block, block))[at][:, at] * 0.6 + rgb[at][:, at] * 0.4
    ids = plate.ids[at][:, at]
    tile = np.tile(_BAYER, (n // 4 + 1, n // 4 + 1))[:n, :n, None]
    levels = 5.0
    small = np.clip((small - 0.5) * 1.12 + 0.5, 0, 1)
    small = np.clip(np.round(small * levels + 0.36 * tile), 0, levels) / levels
    subject = cv2.LUT(ids, plate.table("subject")) > 0
    inside = cv2.erode(subject.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    rim = subject & ~inside
    small = np.where(rim[..., None], small * 0.35, small)
    return np.repeat(np.repeat(small, block, 0), block, 1)[:size, :size]
