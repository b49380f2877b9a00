"""Charts and picture grids of an evaluation's report as text: inline SVG, and PNG inside the page. Writes nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.pages.html import html_text

if TYPE_CHECKING:
    from torch import Tensor

# Group -> name -> a mean with its interval: value, low, high, each from 0 to 1.
Groups = Mapping[str, Mapping[str, Mapping[str, float]]]

COLOURS = ("#2b6a99", "#b5542b", "#5b8c3a", "#8a5a9e", "#6b6b6b", "#b08a1e")


def dots(groups: Groups, label: str, width: int = 680) -> str:
    """Means with intervals on one axis from 0 to 1: group -> name -> an Estimate's table; one line for each name."""
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    left, right, line = 210, 60, 20
    height = 34 + sum(26 + line * len(found) for found in groups.values())
    span = width - left - right
    parts = [_axis(left, span, height, label)]
    top = 30
    for group, found in groups.items():
        parts.append(f'<text x="4" y="{top + 12}" class="g">{html_text(group)}</text>')
        top += 22
        for name, one in found.items():
            y = top + line // 2
            low, high, value = (left + span * min(1.0, max(0.0, float(one[k]))) for k in ("low", "high", "value"))
            parts.append(
                f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{html_text(name)}</text>'
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour[name]}" stroke-width="3"/>'
                f'<circle cx="{value:.1f}" cy="{y}" r="5" fill="{colour[name]}"/>'
                f'<text x="{left + span + 8}" y="{y + 4}">{float(one["value"]):.2f}</text>'
            )
            top += line
        top += 4
    return _svg(width, height, parts, label)


def _axis(left: int, span: int, height: int, label: str) -> str:
    marks = "".join(
        f'<line x1="{left + span * i / 4:.1f}" x2="{left + span * i / 4:.1f}" y1="22" y2="{height}" class="a"/>'
        f'<text x="{left + span * i / 4:.1f}" y="16" text-anchor="middle">{i / 4:g}</text>'
        for i in range(5)
    )
    return f'<text x="4" y="16" class="s">{html_text(label)}</text>{marks}'


def lines(series: Groups, label: str, width: int = 330, height: int = 230) -> str:
    """Means with intervals over a setting, 0 to 1 upwards: series -> setting -> an Estimate's table; settings evenly spaced."""
    settings = list(dict.fromkeys(at for found in series.values() for at in found))
    left, top, bottom = 34, 26, 40
    step = (width - left - 20) / max(1, len(settings) - 1)
    rise = height - top - bottom

    def y(value: float) -> float:
        return top + rise * (1 - min(1.0, max(0.0, value)))

    parts = [
        f'<line x1="{left}" x2="{width - 12}" y1="{y(i / 4):.1f}" y2="{y(i / 4):.1f}" class="a"/>'
        f'<text x="{left - 6}" y="{y(i / 4) + 4:.1f}" text-anchor="end">{i / 4:g}</text>'
        for i in range(5)
    ]
    parts += [
        f'<text x="{left + 6 + step * i:.1f}" y="{height - bottom + 16}" text-anchor="middle">{html_text(at)}</text>'
        for i, at in enumerate(settings)
    ]
    for i, (name, found) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [(left + 6 + step * settings.index(at), one) for at, one in found.items()]
        path = " ".join(f"{x:.1f},{y(float(one['value'])):.1f}" for x, one in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, one in places:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(float(one["low"])):.1f}" y2="{y(float(one["high"])):.1f}" '
                f'stroke="{colour}"/><circle cx="{x:.1f}" cy="{y(float(one["value"])):.1f}" r="3.5" fill="{colour}"/>'
            )
        parts.append(f'<text x="{left + 6 + 150 * i}" y="{height - 6}" style="fill: {colour}">{html_text(name)}</text>')
    parts.append(f'<text x="4" y="14" class="s">{html_text(label)}</text>')
    return _svg(width, height, parts, label)


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html_text(label)}">{"".join(parts)}</svg>'
    )


def picture_table(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]], side: int = 72, corner: str = ""
) -> str:
    """A grid: a heading above each column, a text before each row, pictures (3, S, S) uint8 or None."""
    heads = "".join(f"<th>{html_text(name)}</th>" for name in columns)
    body = "".join(
        f'<tr><th class="c">{html_text(name)}</th>'
        + "".join(f"<td>{_image(one, side)}</td>" for one in pictures)
        + "</tr>"
        for name, pictures in rows
    )
    return f'<div class="scroll"><table class="grid"><tr><th>{html_text(corner)}</th>{heads}</tr>{body}</table></div>'


def _image(picture: Tensor | None, side: int) -> str:
    if picture is None:
        return ""
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    if image.width > 2 * side:
        image.thumbnail((2 * side, 2 * side))
    image.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img width="{side}" height="{side}" alt="" src="data:image/png;base64,{data}">'


def heat(table: Sequence[Sequence[float]], names: Sequence[str], across: Sequence[str]) -> str:
    """A table of counts, each row normalised to sum 1; higher values are darker."""
    heads = "".join(f'<th class="n">{html_text(name)}</th>' for name in across)
    body = []
    for name, row in zip(names, table, strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td class="n" style="background:rgba(43,106,153,{0.75 * value / total:.2f})">{value / total:.2f}</td>'
            for value in row
        )
        body.append(f"<tr><th>{html_text(name)}</th>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th>truth \\ judged</th>{heads}</tr>{"".join(body)}</table></div>'
