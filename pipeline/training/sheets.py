"""Contact sheets and curves of a training run, as PNG files.

Writes the given file, completely or not at all. Draws with Pillow, so that no plotting library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def sheet(pictures: Tensor, path: Path, columns: int = 16) -> None:
    """Write pictures (N, 3, S, S) in [0, 1] in rows of `columns`, two pixels apart."""
    import torch
    from PIL import Image

    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    ground = torch.full((channels, rows * (height + 2), columns * (width + 2)), 0.5)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        ground[:, y * (height + 2) : y * (height + 2) + height, x * (width + 2) : x * (width + 2) + width] = picture
    array = (ground.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    _write_png(Image.fromarray(array), path)


def _write_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.png")
    image.save(part)
    part.replace(path)


def curve_picture(curve: Path, path: Path, names: Sequence[str], size: tuple[int, int] = (720, 260)) -> None:
    """Write one panel for each name: the value over the steps, its range and its last value."""
    from PIL import Image, ImageDraw

    from rdm.train import read_curve

    rows = read_curve(curve)
    width, height = size
    image = Image.new("RGB", (width, height * len(names)), "white")
    pen = ImageDraw.Draw(image)
    for panel, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        top = panel * height
        pen.rectangle((60, top + 20, width - 20, top + height - 30), outline="#999999")
        pen.text((64, top + 4), name, fill="black")
        if len(points) < 2:
            continue
        values = sorted(value for _, value in points)
        low, high = (
            values[0],
            values[min(len(values) - 1, int(0.98 * len(values)))],
        )  # the first steps are often far above the rest
        span, last = max(high - low, 1e-9), max(points[-1][0], 1)
        line = [
            (60 + (width - 80) * step / last, top + height - 30 - (height - 50) * min(1.0, (value - low) / span))
            for step, value in points
        ]  # fmt: skip
        pen.line(line, fill="#1f5fa8", width=2)
        pen.text((4, top + 20), f"{high:.3g}", fill="black")
        pen.text((4, top + height - 42), f"{low:.3g}", fill="black")
        pen.text((width - 150, top + 4), f"last {points[-1][1]:.4g}", fill="#1f5fa8")
        pen.text((60, top + height - 26), f"step {int(points[0][0])} to {int(last)}", fill="black")
    _write_png(image, path)
