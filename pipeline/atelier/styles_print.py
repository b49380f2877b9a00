"""Styles of the printing block: ukiyo-e and woodcut."""

from __future__ import annotations

import numpy as np

from pipeline.atelier.opencv import cv2
from pipeline.atelier.plate import Plate
from pipeline.atelier.styles import Array, between, over, style, vivid
from pipeline.atelier.texture import Turn, noise

_PIGMENTS = np.array(
    [
        [0.95, 0.91, 0.80], [0.90, 0.82, 0.64], [0.12, 0.20, 0.34], [0.19, 0.36, 0.55], [0.46, 0.62, 0.70],
        [0.72, 0.80, 0.78], [0.78, 0.25, 0.16], [0.86, 0.56, 0.48], [0.90, 0.74, 0.66], [0.86, 0.50, 0.20],
        [0.88, 0.72, 0.30], [0.36, 0.48, 0.30], [0.58, 0.64, 0.40], [0.44, 0.29, 0.20], [0.66, 0.50, 0.34],
        [0.56, 0.54, 0.52], [0.34, 0.34, 0.36], [0.17, 0.16, 0.18], [0.42, 0.28, 0.44], [0.24, 0.46, 0.44],
    ],
    np.float32,
)  # fmt: skip

_CHROMA = _PIGMENTS - _PIGMENTS.mean(-1, keepdims=True)


def _pigment(colours: Array, keep: float) -> Array:
    """Each colour replaced by the nearest pigment, with a share `keep` of its own colour."""
    weights = np.array([0.9, 1.2, 0.7], np.float32)
    d = (((colours[:, None] - _PIGMENTS[None]) * weights) ** 2).sum(-1)
    chroma = colours - colours.mean(-1, keepdims=True)
    d = d + 3.0 * ((chroma[:, None] - _CHROMA[None]) ** 2).sum(-1)
    return np.asarray(_PIGMENTS[d.argmin(1)] * (1 - keep) + colours * keep)


@style("ukiyo_e", "an ukiyo-e print of {}", "{}, as a Japanese woodblock print", "{}, in the style of ukiyo-e")
def ukiyo_e(plate: Plate) -> Array:
    plate = plate.without_halo()
    size, rng = plate.size, plate.rng
    n = len(plate.paints)
    lit = np.array([p.lit for p in plate.paints], np.float32)
    dark = np.array([p.dark for p in plate.paints], np.float32)
    # Night and storm are printed lighter, because such prints show colour and not darkness
    lift = float(np.clip(np.log(0.52) / np.log(np.clip(lit.mean(), 0.05, 0.9)), 0.55, 1.0))
    lit, dark = vivid(lit**lift, 1.3), vivid(dark**lift, 1.3)
    # One flat colour for each block; a wiped gradient (bokashi) where the drawing blends (sky, water, land)
    blends = np.array([p.blend for p in plate.paints])
    tables = np.zeros((2, 256, 3), np.float32)
    tables[0, 1 : n + 1] = _pigment(np.where(blends[:, None], lit, 0.72 * lit + 0.28 * dark), 0.22)
    tables[1, 1 : n + 1] = np.where(blends[:, None], _pigment(dark, 0.22), tables[0, 1 : n + 1] * 0.80)
    fine = plate.fine
    t = plate.shade
    soft = np.zeros(256, np.float32)
    soft[1 : n + 1] = blends
    bokashi = cv2.LUT(plate.ids, soft)
    t = np.where(bokashi > 0, between(0.05, 0.95, t), between(0.40, 0.46, t))
    planes = []
    for c in range(3):
        a, b = (np.ascontiguousarray(tables[k, :, c]) for k in (0, 1))
        light, shade = cv2.LUT(fine, a), cv2.LUT(fine, b)
        if plate.factor > 1:
            light, shade = (cv2.resize(v, (size, size), interpolation=cv2.INTER_AREA) for v in (light, shade))
        planes.append(shade + (light - shade) * t)
    out = cv2.merge(planes)
    # Dark blue wiped into the top of the sky, as in most prints of landscapes
    at = np.linspace(0, 1, size, dtype=np.float32)
    sky = (plate.map("depth") > 0.985) * (1.0 - between(0.0, 0.26, at))[:, None]
    out = over(out, (0.13, 0.22, 0.38), sky * 0.75)
    lay = Turn(rng, size)
    wood = lay(noise(size, 44, 3), keep_direction=True)
    fibre = lay(noise(size, 150))
    out = out * (1.0 + 0.035 * wood + 0.022 * fibre)[..., None]
    out = over(out, (0.13, 0.12, 0.15), between(0.1, 0.75, plate.outline(0.013, inner=1.25)) * 0.95)
    return _seal(out, rng)


def _seal(out: Array, rng: np.random.Generator) -> Array:
    """The title slip and the artist's seal in a corner."""
    size = out.shape[0]
    left, long = rng.random() < 0.5, float(rng.uniform(0.17, 0.24))
    x = 0.045 if left else 0.955 - 0.062
    u = [round(v * size) for v in (x, x + 0.062, 0.045, 0.045 + long, 0.06 + long, 0.115 + long)]
    slip = (0.93, 0.86, 0.70) if rng.random() < 0.6 else (0.84, 0.62, 0.48)
    cv2.rectangle(out, (u[0], u[2]), (u[1], u[3]), slip, -1)
    cv2.rectangle(out, (u[0], u[2]), (u[1], u[3]), (0.2, 0.17, 0.17), max(1, round(size / 170)))
    marks = rng.random((5, 4))
    for k, (a, b, c, _) in enumerate(marks.tolist()):
        y = u[2] + (u[3] - u[2]) * (k + 0.5) / 5
        w = u[1] - u[0]
        p = (round(u[0] + w * (0.25 + 0.15 * a)), round(y + w * 0.2 * (b - 0.5)))
        q = (round(u[1] - w * 0.25), round(y + w * 0.3 * (c - 0.5)))
        cv2.line(out, p, q, (0.2, 0.17, 0.17), max(1, round(size / 120)))
    cv2.rectangle(out, (u[0], u[4]), (u[1], u[5]), (0.75, 0.20, 0.15), -1)
    return out


@style("woodcut", "a woodcut of {}", "{}, cut in wood and printed in black", "{}, as a linocut print")
def woodcut(plate: Plate) -> Array:
    plate = plate.without_halo()
    size, rng = plate.size, plate.rng
    tone = plate.tone()
    subject = plate.map("subject")
    lay = Turn(rng, size)
    # Cuts follow the surface: stripes across `flow`, wider where it is lighter
    flow = plate.map("flow") + 0.22 * np.sin(plate.map("thing") * 2.4) + 0.25
    bend = lay(noise(size, 4)) * 0.010 + lay(noise(size, 18)) * 0.0022
    at = np.linspace(0, 1, size, dtype=np.float32)
    across = at[:, None] * np.cos(flow) - at[None, :] * np.sin(flow) + bend
    pitch = 1.0 / 23
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * across / pitch)
    cut = 0.06 + 0.88 * between(0.06, 0.88, tone) ** 0.8
    edge = 0.5 * 3.2 / (size * pitch)
    white = between(-edge, edge, cut - wave)
    white = np.where(tone > 0.90, 1.0, np.where(tone < 0.10, 0.0, white))
    lines = between(0.15, 0.7, plate.outline(0.015, inner=0.9))
    # An outline is cut out of black ground and left standing on light ground
    around = cv2.blur(tone, (max(3, size // 16) | 1,) * 2)
    ink = np.maximum(1.0 - white, lines * (around > 0.28))
    ink = ink * (1.0 - 0.9 * lines * (around <= 0.28))
    chips = lay(noise(size, 90)) + 0.6 * lay(noise(size, 30))
    ink = ink * (1.0 - 0.8 * between(2.1, 2.7, chips))
    sheet = np.array([0.94, 0.90, 0.80], np.float32)
    out = np.broadcast_to(sheet, (size, size, 3)) * (1 + 0.012 * lay(noise(size, 160)))[..., None]
    # A second block prints the colour of the subject
    rgb = cv2.blur(plate.rgb, (3, 3))
    peak = rgb.max(-1, keepdims=True)
    spot = np.clip(rgb / np.maximum(peak, 0.25), 0, 1) ** 1.25
    out = out * (1.0 - subject[..., None] * (1.0 - spot) * 0.88)
    return over(out, (0.085, 0.075, 0.08), np.clip(ink, 0, 1) * (1.0 - 0.28 * subject * between(0.2, 0.7, tone)))
