"""Charts and picture grids of an evaluation's report: inline SVG, and PNG inside the page.

Positions are computed here. The templates dots.svg, lines.svg, heat.html and picture_table.html draw them. Writes nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.pages.templates import render

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import Tensor

# Group -> name -> a mean with its interval: value, low, high, each from 0 to 1.
Groups = Mapping[str, Mapping[str, Mapping[str, float]]]

COLOURS = ("#2b6a99", "#b5542b", "#5b8c3a", "#8a5a9e", "#6b6b6b", "#b08a1e")


def dots(groups: Groups, label: str, width: int = 680) -> Markup:
    """Means with intervals on one axis from 0 to 1: group -> name -> an Estimate's table; one line for each name."""
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    left, right, line = 210, 60, 20
    span = width - left - right
    drawn: list[dict[str, object]] = []
    top = 30
    for group, found in groups.items():
        marks: list[dict[str, object]] = []
        drawn.append({"name": group, "y": top + 12, "marks": marks})
        top += 22
        for name, one in found.items():
            low, high, x = (left + span * _clipped(one[k]) for k in ("low", "high", "value"))
            mark = {"name": name, "colour": colour[name], "value": float(one["value"])}
            marks.append({**mark, "low": low, "high": high, "x": x, "y": top + line // 2})
            top += line
        top += 4
    height = 34 + sum(26 + line * len(found) for found in groups.values())
    return render("dots.svg", width=width, height=height, left=left, span=span, label=label, groups=drawn)


def lines(series: Groups, label: str, width: int = 330, height: int = 230) -> Markup:
    """Means with intervals over a setting, 0 to 1 upwards: series -> setting -> an Estimate's table; settings evenly spaced."""
    settings = list(dict.fromkeys(at for found in series.values() for at in found))
    left, top, bottom = 34, 26, height - 40
    step = (width - left - 20) / max(1, len(settings) - 1)
    across = {at: left + 6 + step * i for i, at in enumerate(settings)}

    def y(value: float) -> float:
        return top + (bottom - top) * (1 - _clipped(value))

    drawn = [
        {
            "name": name,
            "colour": COLOURS[i % len(COLOURS)],
            "marks": [
                {"x": across[at], "y": y(one["value"]), "low": y(one["low"]), "high": y(one["high"])}
                for at, one in found.items()
            ],
        }
        for i, (name, found) in enumerate(series.items())
    ]
    scale = [(y(i / 4), f"{i / 4:g}") for i in range(5)]
    places = [(x, at) for at, x in across.items()]
    return render("lines.svg", width=width, height=height, left=left, bottom=bottom, label=label, scale=scale,
                  settings=places, series=drawn)  # fmt: skip


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, float(value)))


def picture_table(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]], side: int = 72, corner: str = ""
) -> Markup:
    """A grid: a heading above each column, a text before each row, pictures (3, S, S) uint8 or None."""
    encoded = [(name, [_png(one, side) for one in pictures]) for name, pictures in rows]
    return render("picture_table.html", columns=columns, rows=encoded, side=side, corner=corner)


def _png(picture: Tensor | None, side: int) -> str:
    """A picture as PNG in base64, at most twice as wide as it is shown; empty if there is none."""
    if picture is None:
        return ""
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    if image.width > 2 * side:
        image.thumbnail((2 * side, 2 * side))
    image.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def heat(table: Sequence[Sequence[float]], names: Sequence[str], across: Sequence[str]) -> Markup:
    """A table of counts, each row normalised to sum 1; higher values are darker."""
    shares = [[value / (sum(row) or 1) for value in row] for row in table]
    return render("heat.html", across=across, rows=list(zip(names, shares, strict=True)))
