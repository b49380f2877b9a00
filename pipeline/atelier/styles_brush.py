"""Styles of brush, chalk and dot: pointillism, impasto, watercolour, charcoal."""

from __future__ import annotations

import numpy as np

from pipeline.atelier.opencv import cv2
from pipeline.atelier.plate import Plate
from pipeline.atelier.styles import Array, between, over, style, vivid
from pipeline.atelier.texture import Turn, cell_means, cells, noise, paper


@style(
    "pointillism",
    "a pointillist painting of {}",
    "{}, painted in dots of pure colour",
    "{}, in the style of pointillism",
)
def pointillism(plate: Plate) -> Array:
    size, rng = plate.size, plate.rng
    rgb = vivid(plate.rgb, 1.45)
    out = rgb * 0.60 + np.array([0.93, 0.90, 0.82], np.float32) * 0.40
    for across, radius in ((20, 0.60), (32, 0.47)):
        lay = Turn(rng, size)
        label, _, centre = cells(size, across, 0.65, variant=across)
        label, centre = lay(label), lay(centre)
        count = across * across
        colour = cell_means(rgb, np.where(centre < 0.35, label, count), count + 1)[:count]
        # Divided colour: each dot is a purer tint, and the mean of several dots is the wanted colour
        shift = rng.standard_normal((count, 4), np.float32)
        colour = colour + 0.085 * (shift[:, :3] - shift[:, :3].mean(axis=1, keepdims=True)) + 0.04 * shift[:, 3:]
        soft = 0.8 * across / size
        alpha = 1.0 - between(radius - soft / 2, radius + soft / 2, centre)
        out = over(out, colour[label], alpha)
    return out


@style("impasto", "an impasto oil painting of {}", "{}, in thick oil paint", "{}, painted with a palette knife")
def impasto(plate: Plate) -> Array:
    size, rng = plate.size, plate.rng
    rgb = vivid(plate.rgb, 1.25)
    canvas = np.empty((size, size, 4), np.uint8)
    canvas[..., :3] = np.clip(rgb * 235, 0, 255)
    canvas[..., 3] = 90
    run = plate.run
    source = np.clip(rgb * 255, 0, 255)
    detail = cv2.blur(plate.outline(0.03), (3, 3))
    for across, length, width in ((11, 0.130, 0.058), (20, 0.080, 0.030)):
        n = across * across
        at = (np.stack(np.divmod(np.arange(n), across), 1) + rng.random((n, 2))) * (size / across)
        iy, ix = np.minimum(at.astype(np.int32), size - 1).T
        a = run[iy, ix] + rng.normal(0, 0.18, n)
        # Short strokes where there is detail
        small = np.where(detail[iy, ix] > 0.2, 0.5, 1.0)
        reach = size * length * small * rng.uniform(0.7, 1.2, n) / 2
        dx, dy = reach * np.cos(a), reach * np.sin(a)
        colour = source[iy, ix] * (1 + rng.normal(0, 0.07, (n, 1))) + rng.normal(0, 7, (n, 3))
        rows = np.concatenate([np.clip(colour, 0, 255), rng.uniform(90, 255, (n, 1))], axis=1).tolist()
        ends = np.rint(np.stack([at[:, 1] - dx, at[:, 0] - dy, at[:, 1] + dx, at[:, 0] + dy], 1) * 16).astype(np.int32)
        thick = (
            np.maximum(1, np.rint(size * width * (0.35 + 0.65 * small) * rng.uniform(0.7, 1.2, n)))
            .astype(np.int32)
            .tolist()
        )
        order = rng.permutation(n).tolist()
        lines = ends.tolist()
        for k in order:
            x0, y0, x1, y1 = lines[k]
            cv2.line(canvas, (x0, y0), (x1, y1), rows[k], thick[k], cv2.LINE_AA, 4)
    # Bristles: noise stretched along the direction of the brush, then lit from the upper left as a relief
    grain = Turn(rng, size)(noise(size, 72))
    bristles = _drawn_out(grain, run, size * 0.03)
    height = canvas[..., 3].astype(np.float32) / 255 * 0.8 + min(0.30, 0.08 + size / 2000) * bristles
    height = cv2.GaussianBlur(height, (0, 0), size / 160) if size > 96 else height
    step = max(1, round(size / 128))
    relief = height - np.roll(height, (step, step), axis=(0, 1))
    out = canvas[..., :3].astype(np.float32) / 255
    out = out * (1 + 0.42 * np.clip(relief, -0.7, 0.7))[..., None]
    return np.asarray(out + 0.10 * np.clip(relief - 0.25, 0, 1)[..., None])


def _drawn_out(texture: Array, angle: Array, reach: float) -> Array:
    """Line integral convolution (Cabral and Leedom 1993) in three doubling passes along a field of directions."""
    size = texture.shape[0]
    at = np.arange(size, dtype=np.float32)
    gx, gy = np.meshgrid(at, at)
    c, s = np.cos(angle), np.sin(angle)
    out = texture
    for k in (0.25, 0.5, 1.0):
        out = 0.5 * (
            cv2.remap(out, gx + c * reach * k, gy + s * reach * k, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            + cv2.remap(out, gx - c * reach * k, gy - s * reach * k, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return np.asarray(out / max(1e-6, float(out.std())))


def warped(image: Array, dx: Array, dy: Array) -> Array:
    """The image displaced by (dx, dy) pixels."""
    size = image.shape[0]
    at = np.arange(size, dtype=np.float32)
    return np.asarray(
        cv2.remap(image, at[None, :] + dx, at[:, None] + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    )


@style("watercolour", "a watercolour of {}", "{}, in watercolour on rough paper", "a watercolour sketch of {}")
def watercolour(plate: Plate) -> Array:
    size, rng = plate.size, plate.rng
    lay = Turn(rng, size)
    slow, mid = lay(noise(size, 5)), lay(noise(size, 14))
    tooth = lay(paper(size))
    dx, dy = size * 0.006 * mid, size * 0.006 * np.roll(mid, size // 3, axis=0)
    rgb = warped(plate.rgb, dx, dy) ** (0.78 if plate.light.lamps else 0.95)
    wet = cv2.GaussianBlur(rgb, (0, 0), size / 36)
    bleed = (between(0.0, 1.3, slow) * (0.8 - 0.55 * plate.map("subject")))[..., None]
    rgb = rgb + (wet - rgb) * bleed
    pigment = 1.0 - vivid(rgb, 1.15)
    # Pigment collects at the edge of a wash and in the grain of the paper
    soft = cv2.GaussianBlur(rgb, (0, 0), size / 48)
    rim = np.clip(soft.mean(-1) - rgb.mean(-1), 0, 0.3) * 1.6
    load = 0.80 + 0.16 * slow + 0.07 * mid + 0.075 * tooth + rim
    pigment = pigment * np.clip(load, 0.15, 1.4)[..., None] * 0.92
    # The sheet stays bare towards its edges
    at = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    border = np.maximum(at[None, :], at[:, None]) + 0.035 * mid + 0.02 * tooth
    pigment = pigment * (1.0 - between(0.90, 0.955, border))[..., None]
    out = np.array([0.985, 0.975, 0.945], np.float32) - pigment * np.array([0.97, 0.97, 0.95], np.float32)
    pencil = warped(plate.outline(0.006, inner=0.8), dx * 0.7, dy * 0.7) * np.clip(0.55 + 0.25 * tooth, 0.1, 1)
    return np.asarray(over(out, (0.30, 0.28, 0.32), pencil * 0.55) + (0.012 * tooth)[..., None])


@style("charcoal", "a charcoal drawing of {}", "{}, drawn in charcoal and chalk", "a charcoal sketch of {}")
def charcoal(plate: Plate) -> Array:
    size, rng = plate.size, plate.rng
    lay = Turn(rng, size)
    tooth, mid = lay(paper(size)), lay(noise(size, 10))
    tone = plate.tone()
    tone = 0.7 * tone + 0.3 * cv2.GaussianBlur(tone, (0, 0), size / 30)
    # Slanting strokes of the stick's side; they show in the middle tones
    grain = np.ascontiguousarray(lay(noise(size, 60), keep_direction=True))
    slant = np.full((size, size), -0.9 if rng.random() < 0.5 else -2.2, np.float32)
    hatch = _drawn_out(grain, slant, size * 0.06)
    # Distant objects stay pale, so that near ones stand out
    dark = (1.0 - tone) ** 1.15 * (0.95 - 0.45 * between(0.4, 1.0, plate.map("depth")))
    dark = dark + (0.10 * hatch + 0.14 * tooth) * (0.25 + between(0.0, 0.5, dark)) * (1.15 - dark)
    wobble = size * 0.006
    lines = np.maximum(
        warped(plate.outline(0.016, inner=0.9), wobble * mid, wobble * np.roll(mid, size // 2, 0)),
        0.7 * warped(plate.outline(0.009, inner=0.6), wobble * 1.8 * np.roll(mid, size // 3, 1), -wobble * 1.6 * mid),
    )
    dark = np.maximum(dark, lines * np.clip(0.80 + 0.22 * tooth, 0.2, 1))
    at = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    border = np.maximum(at[None, :], at[:, None]) + 0.05 * mid + 0.02 * hatch
    dark = np.clip(dark * (1.0 - between(0.86, 0.99, border)), 0, 0.96)
    sheet = np.array([[0.93, 0.90, 0.84], [0.86, 0.82, 0.75], [0.90, 0.90, 0.88]], np.float32)[int(rng.integers(3))]
    out = sheet * (1 - dark[..., None]) + np.array([0.09, 0.085, 0.085], np.float32) * dark[..., None]
    # A little coloured chalk on the subject
    rgb = plate.rgb
    chroma = rgb - rgb.mean(-1, keepdims=True)
    rubbed = cv2.GaussianBlur(plate.map("subject"), (0, 0), size / 90) * np.clip(0.62 + 0.22 * tooth, 0, 1)
    out = out + chroma * (0.62 * rubbed * (1 - 0.45 * dark))[..., None]
    chalk = between(0.86, 1.0, tone) * np.clip(0.4 + 0.35 * tooth, 0, 1) * 0.6
    return over(out, (0.985, 0.98, 0.96), chalk)
