"""Styles without a name, generated from a number: thousands of looks for training, never named in a caption.

`random_style(seed)` is a pure function: a family (how marks are made) and constants for it, for colour, ground, outline and
border. `render_random(scene, style, size)` draws a scene in it. Whole families can be held out: a model that has never seen
one must take it from its neighbours. Reads and writes nothing. The ten named styles do not use this module and it does not
use theirs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.atelier.compose import compose
from pipeline.atelier.opencv import cv2
from pipeline.atelier.palette import Colour
from pipeline.atelier.plate import Plate, make_plate
from pipeline.atelier.scene import Scene, chance
from pipeline.atelier.styles import Array, between, over, vivid
from pipeline.atelier.texture import Turn, cell_means, cells, noise, paper
from pipeline.errors import ConfigError

_INKS: tuple[Colour, ...] = (
    (0.08, 0.08, 0.09), (0.16, 0.11, 0.08), (0.08, 0.12, 0.26), (0.30, 0.08, 0.10), (0.10, 0.24, 0.18), (0.32, 0.30, 0.32),
    (0.95, 0.94, 0.90), (0.88, 0.78, 0.45), (0.45, 0.20, 0.42),
)  # fmt: skip
_GROUNDS: tuple[Colour, ...] = (
    (0.97, 0.96, 0.92), (0.93, 0.88, 0.76), (0.86, 0.80, 0.70), (0.78, 0.82, 0.86), (0.90, 0.80, 0.80), (0.55, 0.50, 0.44),
    (0.20, 0.20, 0.24), (0.10, 0.14, 0.28), (0.16, 0.26, 0.22), (0.99, 0.99, 0.99),
)  # fmt: skip


@dataclass(frozen=True)
class RandomStyle:
    """The constants of one style. Widths are fractions of the picture's side; all other values are from 0 to 1.

    seed, family    the style's number, and the way in which its marks are made: a key of FAMILIES
    across          marks from side to side; jitter: irregularity of their positions; joint: share of a mark that is its border
    angle           direction of strokes and lines, radians; wander: how much they follow the drawing instead
    colour          "plain", "matrix", "duotone", "palette" or "levels"; strength: share of the own colour that it replaces
    dark, light     colours at the ends of a duotone; matrix: 9 numbers that mix the channels, row by row
    palette         colours, of which each pixel takes the nearest; levels: steps in each channel
    vividness, lift factor of saturation, and exponent of lightness (below 1: lighter)
    ground          colour of the sheet; tooth: visibility of its grain; cover: share of the sheet that is painted
    ink             colour of outlines; line: their width; weight: their opacity (0: none)
    border          "none", "fade" (bare sheet towards the edge) or "frame"; margin: its width
    """

    seed: int
    family: str
    across: int
    jitter: float
    joint: float
    angle: float
    wander: float
    colour: str
    strength: float
    dark: Colour
    light: Colour
    matrix: tuple[float, ...]
    palette: tuple[Colour, ...]
    levels: int
    vividness: float
    lift: float
    ground: Colour
    tooth: float
    cover: float
    ink: Colour
    line: float
    weight: float
    border: str
    margin: float


def random_style(seed: int, families: Sequence[str] | None = None) -> RandomStyle:
    """The style of a number, of one of `families` (default: all). Raises ConfigError for an unknown family."""
    names = tuple(families) if families is not None else tuple(FAMILIES)
    if seed < 0 or not names or set(names) - set(FAMILIES):
        raise ConfigError(
            f"random style {seed} of {', '.join(names) or 'no family'}: a number from 0 and families of "
            f"{', '.join(FAMILIES)} were expected"
        )
    rng = np.random.Generator(np.random.PCG64([seed, 0xA7E1]))
    u = rng.random(16).tolist()
    family = names[int(rng.integers(len(names)))]
    ink, ground = _INKS[int(rng.integers(len(_INKS)))], _GROUNDS[int(rng.integers(len(_GROUNDS)))]
    low, high = _ACROSS[family]
    hues = rng.random((7, 3))
    grey = hues.mean(axis=1, keepdims=True)
    spread = np.linspace(0.08, 0.95, 7)[:, None]  # from dark to light, for every hue
    colours = np.clip(spread + (hues - grey) * (0.3 + 0.9 * u[0]), 0.02, 0.98)
    tuples: list[Colour] = [(float(r), float(g), float(b)) for r, g, b in colours]
    mixing = np.eye(3) * 0.7 + rng.normal(0, 0.22, (3, 3)) + 0.1
    mixing /= np.maximum(mixing.sum(axis=1, keepdims=True), 0.4)
    return RandomStyle(
        seed=seed,
        family=family,
        across=int(low + (high - low) * u[1]),
        jitter=0.05 + 0.9 * u[2],
        joint=u[3],
        angle=float(np.pi * u[4]),
        wander=u[5],
        colour=("plain", "plain", "matrix", "duotone", "palette", "levels")[int(rng.integers(6))],
        strength=0.65 + 0.35 * u[6],
        dark=tuples[0],
        light=tuples[6],
        matrix=tuple(mixing.flatten().tolist()),
        palette=tuple(tuples[: 4 + int(rng.integers(4))]),
        levels=2 + int(rng.integers(4)),
        vividness=0.35 + 1.5 * u[7],
        lift=0.6 + 0.8 * u[8],
        ground=ground,
        tooth=u[9] ** 2,
        cover=0.55 + 0.45 * u[10],
        ink=ink,
        line=0.004 + 0.022 * u[11] ** 2,
        weight=0.0 if u[12] < 0.3 else 0.3 + 0.7 * u[13],
        border=("none", "none", "fade", "frame")[int(rng.integers(4))],
        margin=0.02 + 0.09 * u[14],
    )


def render_random(scene: Scene, style: RandomStyle | int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A scene in a random style, given as a style or as its number: (size, size, 3) uint8 RGB."""
    look = random_style(style) if isinstance(style, int) else style
    rng = chance(scene.seed, scene.content_id, zlib.crc32(f"random {look.seed} {look.family}".encode()))
    plate = make_plate(compose(scene), size, rng)
    out = _bordered(look, plate, _outlined(look, plate, FAMILIES[look.family](look, plate, _coloured(look, plate))))
    if look.tooth > 0.05:
        grain = Turn(rng, size)(paper(size, look.seed % 3))
        out = out * (1 + 0.06 * look.tooth * grain)[..., None]
    return np.asarray(np.clip(out * 255.0 + 0.5, 0, 255).astype(np.uint8))


def _coloured(look: RandomStyle, plate: Plate) -> Array:
    """The plate's colours (size, size, 3) in the style's paints."""
    rgb = vivid(np.clip(plate.rgb, 0, 1) ** look.lift, look.vividness)
    if look.colour == "matrix":
        made = rgb @ np.array(look.matrix, np.float32).reshape(3, 3).T
    elif look.colour == "duotone":
        tone = plate.tone()[..., None]
        made = np.array(look.dark, np.float32) * (1 - tone) + np.array(look.light, np.float32) * tone
    elif look.colour == "palette":
        paints = np.array(look.palette, np.float32)
        tone = plate.tone()[..., None]
        seen = 0.5 * rgb + 0.5 * tone
        far = ((seen[:, :, None] - paints[None, None]) ** 2).sum(-1)
        made = paints[far.argmin(-1)]
    elif look.colour == "levels":
        made = np.round(rgb * look.levels) / look.levels
    else:
        return np.asarray(rgb, np.float32)
    return np.asarray(np.clip(rgb + (made - rgb) * look.strength, 0, 1), np.float32)


def _sheet(look: RandomStyle, size: int) -> Array:
    return np.broadcast_to(np.array(look.ground, np.float32), (size, size, 3))


def _outlined(look: RandomStyle, plate: Plate, out: Array) -> Array:
    if not look.weight:
        return out
    lines = between(0.1, 0.7, plate.outline(look.line, inner=0.4 + look.joint))
    return over(out, look.ink, lines * look.weight)


def _bordered(look: RandomStyle, plate: Plate, out: Array) -> Array:
    if look.border == "none":
        return out
    size = plate.size
    at = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    edge = np.maximum(at[None, :], at[:, None])
    if look.border == "frame":
        return over(out, look.ink if look.joint < 0.5 else look.ground, (edge > 1 - 2 * look.margin).astype(np.float32))
    edge = edge + 0.04 * Turn(plate.rng, size)(noise(size, 12))
    return over(out, look.ground, between(1 - 2.5 * look.margin, 1 - look.margin, edge))


# -- families: each turns the coloured picture (size, size, 3) into marks -----------------------------------------------


def _cells(look: RandomStyle, plate: Plate, *, square: bool) -> tuple[Array, Array, Array]:
    lay = Turn(plate.rng, plate.size)
    jitter = round(look.jitter * (0.4 if square else 1.0), 1)  # few values, so that pavements are cached
    label, edge, centre = cells(plate.size, look.across, jitter, square, look.seed % 2)
    return lay(label), lay(edge), lay(centre)


def _tiles(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    label, edge, _ = _cells(look, plate, square=True)
    return _pavement(look, plate, rgb, label, edge)


def _shards(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    label, edge, _ = _cells(look, plate, square=False)
    return _pavement(look, plate, rgb, label, edge)


def _pavement(look: RandomStyle, plate: Plate, rgb: Array, label: Array, edge: Array) -> Array:
    """Pieces cut by cells and by the drawing, each in one colour, with joints in the colour of the ink."""
    number = look.across * look.across
    paints = len(plate.paints) + 1
    piece = label * paints + plate.ids
    out = cell_means(rgb, piece, number * paints)[piece]
    out = out * plate.rng.normal(1.0, 0.02 + 0.12 * look.tooth, number).astype(np.float32)[label][..., None]
    pixel = look.across / plate.size
    wide = 0.02 + 0.12 * look.joint
    grout = (1.0 - between(wide, wide + 1.7 * pixel, edge)) * (0.25 + 0.7 * look.cover)
    return over(out, look.ink, grout)


def _dots(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """Round marks on the sheet: of one size and the local colour, or of ink, larger in dark places."""
    label, _, centre = _cells(look, plate, square=False)
    number = look.across * look.across
    soft = 0.8 * look.across / plate.size
    if look.wander < 0.5:
        colour = cell_means(rgb, label, number)
        colour = colour + 0.10 * look.tooth * plate.rng.standard_normal((number, 3), np.float32)
        alpha = 1.0 - between(0.30 + 0.25 * look.cover - soft / 2, 0.30 + 0.25 * look.cover + soft / 2, centre)
        under = rgb * look.joint + _sheet(look, plate.size) * (1 - look.joint)
        return over(under, colour[label], alpha)
    dark = cell_means(np.repeat((1 - plate.tone())[..., None], 3, axis=2), label, number)[label][..., 0]
    radius = 0.72 * np.sqrt(np.clip(dark, 0, 1))
    alpha = np.clip((radius - centre) / soft + 0.5, 0, 1)
    return over(_light_ground(look, plate), rgb * 0.6 if look.joint > 0.5 else np.array(look.ink, np.float32), alpha)


def _light_ground(look: RandomStyle, plate: Plate) -> Array:
    """The sheet, with some of the picture's light colours if the style covers much of it."""
    return np.asarray(_sheet(look, plate.size) * np.float32(1.0))


def _hatch(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """Parallel lines, wider in dark places; they follow the surfaces as much as the style sets."""
    size = plate.size
    at = np.linspace(0, 1, size, dtype=np.float32)
    flow = look.angle + look.wander * plate.map("flow") + 0.3 * look.wander * np.sin(plate.map("thing") * 2.4)
    bend = 0.012 * look.jitter * Turn(plate.rng, size)(noise(size, 5))
    across = at[:, None] * np.cos(flow) - at[None, :] * np.sin(flow) + bend
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * across * look.across)
    dark = 0.04 + 0.9 * (1 - plate.tone()) ** look.lift
    edge = 1.6 * look.across / size
    alpha = between(-edge, edge, dark - wave)
    line = rgb * 0.7 if look.joint > 0.6 else np.broadcast_to(np.array(look.ink, np.float32), rgb.shape)
    under = _sheet(look, size)
    if look.joint < 0.35:  # a second block with the picture's colours
        under = under * (1 - 0.7 * look.cover) + np.clip(rgb * 1.15, 0, 1) * 0.7 * look.cover
    return over(np.asarray(under), line, alpha)


def _strokes(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """Short straight strokes of the local colour, along the surfaces or all in one direction."""
    size, rng = plate.size, plate.rng
    source = np.clip(rgb * 255, 0, 255)
    sheet = _sheet(look, size) * 255
    canvas = np.ascontiguousarray(sheet * (1 - look.cover) + source * look.cover).astype(np.uint8)
    run = plate.run
    for across, share in ((look.across, 1.0), (int(look.across * 1.8), 0.55)):
        n = across * across
        at = (np.stack(np.divmod(np.arange(n), across), 1) + rng.random((n, 2))) * (size / across)
        iy, ix = np.minimum(at.astype(np.int32), size - 1).T
        angle = look.angle * (1 - look.wander) + run[iy, ix] * look.wander + rng.normal(0, 0.3 * look.jitter, n)
        reach = size * share * (0.5 + 1.1 * look.strength) / look.across
        dx, dy = reach * np.cos(angle), reach * np.sin(angle)
        paint = source[iy, ix] + rng.normal(0, 4 + 18 * look.tooth, (n, 3))
        rows = np.clip(paint, 0, 255).tolist()
        ends = np.rint(np.stack([at[:, 1] - dx, at[:, 0] - dy, at[:, 1] + dx, at[:, 0] + dy], 1) * 16).astype(np.int32)
        thick = max(1, round(size * share * (0.3 + 0.6 * look.joint) / look.across))
        lines = ends.tolist()
        for k in rng.permutation(n).tolist():
            x0, y0, x1, y1 = lines[k]
            cv2.line(canvas, (x0, y0), (x1, y1), rows[k], thick, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def _wash(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """Thin, flowing paint: soft edges, uneven density, the sheet's colour shining through."""
    size = plate.size
    lay = Turn(plate.rng, size)
    slow, mid = lay(noise(size, 5)), lay(noise(size, 16))
    move = size * 0.012 * look.jitter
    at = np.arange(size, dtype=np.float32)
    out = cv2.remap(
        rgb, at[None, :] + move * mid, at[:, None] + move * np.roll(mid, size // 3, 0), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    wet = cv2.GaussianBlur(out, (0, 0), size * (0.008 + 0.03 * look.wander))
    run = np.clip(0.5 + 0.5 * slow, 0, 1)[..., None] * (1 - 0.6 * plate.map("subject"))[..., None]
    out = out + (wet - out) * run
    load = np.clip(look.cover + 0.12 * slow + 0.10 * look.tooth * mid, 0.2, 1.0)[..., None]
    return np.asarray(_sheet(look, size) * (1 - load) + out * load, np.float32)


def _flat(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """One colour for each paint, like cut paper: a step of shade if the style has one, a shadow under near objects."""
    count = len(plate.paints) + 1
    out = cell_means(rgb, plate.ids, 256)[plate.ids] if count else rgb
    if look.wander > 0.4:
        out = out * (1 - 0.25 * look.joint * (plate.shade < 0.42))[..., None]
    if look.jitter > 0.5:
        step = max(1, round(plate.size * 0.016))
        depth = plate.map("depth")
        shadow = (np.roll(depth, (step, step), (0, 1)) + 0.08 < depth).astype(np.float32)
        out = out * (1 - 0.45 * look.strength * shadow)[..., None]
    return np.asarray(out, np.float32)


def _blocks(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """Square blocks of one colour, plain or with a stud, a stitch or a gap."""
    size = plate.size
    block = max(2, round(size / look.across))
    n = -(-size // block)
    small = cv2.resize(rgb, (n, n), interpolation=cv2.INTER_AREA)
    if look.joint > 0.5:
        small = np.round(small * (look.levels + 2)) / (look.levels + 2)
    out = np.repeat(np.repeat(small, block, 0), block, 1)[:size, :size]
    inside = np.arange(size) % block
    x, y = inside[None, :], inside[:, None]
    if look.wander < 0.25 and block > 2:  # a gap
        out = over(out, look.ground, ((x == 0) | (y == 0)).astype(np.float32) * look.cover)
    elif look.wander < 0.5 and block > 3:  # a stitch: the two diagonals
        out = over(out, look.ground, ((x != y) & (x + y != block - 1)).astype(np.float32) * 0.6 * look.cover)
    elif look.wander < 0.7 and block > 3:  # a stud, lit from the left
        out = out * (1 + 0.22 * (x == 1) - 0.22 * (x == block - 1))[..., None]
    return np.asarray(np.clip(out, 0, 1), np.float32)


def _line(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """A line drawing on the sheet; the subject may be coloured."""
    width = 0.008 + 0.02 * look.joint
    drawn = between(0.08, 0.6, plate.outline(width, inner=0.5 + look.wander))
    under = np.asarray(_sheet(look, plate.size) * (1 - 0.25 * look.strength * (1 - plate.tone()))[..., None])
    if look.cover > 0.7:
        under = over(under, rgb, plate.map("subject") * look.strength)
    ground = sum(look.ground) / 3
    ink = (
        look.ink if abs(sum(look.ink) / 3 - ground) > 0.3 else (0.05, 0.05, 0.06) if ground > 0.5 else (0.95, 0.95, 0.9)
    )
    return over(under, ink, drawn)


def _relief(look: RandomStyle, plate: Plate, rgb: Array) -> Array:
    """A carved plate of one material, lit from one side; some colour may remain on it."""
    size = plate.size
    height = (1 - plate.map("depth")) * 1.5 + 0.6 * plate.shade + 0.5 * plate.map("subject")
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), max(0.6, size / 90))
    step = max(1, round(size / 64))
    dx, dy = round(step * np.cos(2 * look.angle)), round(step * np.sin(2 * look.angle))
    lit = np.clip((height - np.roll(height, (dy or step, dx), (0, 1))) * (1.5 + 2 * look.joint), -0.8, 0.8)
    material = np.array(look.light if look.jitter > 0.5 else look.ground, np.float32) * 0.5 + 0.25
    base = material * (1 - look.wander * 0.6) + rgb * look.wander * 0.6
    return np.asarray(np.clip(base * (1 + 0.6 * lit)[..., None], 0, 1), np.float32)


Family = Callable[[RandomStyle, Plate, Array], Array]

#: The ways in which marks are made. The order determines the meaning of a seed: add at the end only.
FAMILIES: dict[str, Family] = {
    "tiles": _tiles,
    "shards": _shards,
    "dots": _dots,
    "hatch": _hatch,
    "strokes": _strokes,
    "wash": _wash,
    "flat": _flat,
    "blocks": _blocks,
    "line": _line,
    "relief": _relief,
}
_ACROSS: dict[str, tuple[int, int]] = {
    "tiles": (9, 26), "shards": (6, 24), "dots": (12, 30), "hatch": (9, 24), "strokes": (8, 18), "wash": (8, 9),
    "flat": (8, 9), "blocks": (14, 33), "line": (8, 9), "relief": (8, 9),
}  # fmt: skip
