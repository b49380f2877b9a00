"""Run the cells of the notebook docs/guides/tour.ipynb, keep their output, and make a page of it.

    python docs/notebook.py docs/guides/tour.ipynb      # in an empty RDMPIPE_HOME: runs the cells and saves their output

tests/test_docs.py runs the cells, docs/conf.py makes the page. Cells are run in this process, one after another, as
Jupyter runs them; printed text and the value of a cell's last expression are kept. Pictures are
kept as JPEG, because the notebook is in the repository.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import TypeAlias

Cell: TypeAlias = dict[str, object]


def read(path: Path) -> list[Cell]:
    """The cells of a notebook."""
    cells: list[Cell] = json.loads(path.read_text("utf-8"))["cells"]
    return cells


def source(cell: Cell) -> str:
    """A cell's text, which the format keeps as one text or as lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)  # type: ignore[arg-type]


def run(cells: list[Cell], names: dict[str, object]) -> list[Cell]:
    """The cells with their output in `outputs`. names: the variables, which the cells change."""
    made: list[Cell] = []
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            made.append(cell)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _value_of(source(cell), f"cell {number}", names)
        outputs: list[Cell] = []
        if printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
        if value is not None:
            outputs.append({"output_type": "display_data", "metadata": {}, "data": _shown(value)})
        made.append({**cell, "outputs": outputs})
    return made


def _value_of(code: str, name: str, names: dict[str, object]) -> object:
    """Run a cell and return the value of its last statement, if that is an expression."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if isinstance(last, ast.Expr) else None


def _shown(value: object) -> dict[str, str]:
    """The forms of a value that Jupyter shows, by media type."""
    text = repr(value)
    shown = {"text/plain": "<a picture>" if " at 0x" in text else text}  # addresses differ from run to run
    as_png = getattr(value, "_repr_png_", None)
    if as_png is not None:
        shown["image/jpeg"] = base64.b64encode(_jpeg(as_png())).decode()
    return shown


def _jpeg(png: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(out, "JPEG", quality=82, optimize=True)
    return out.getvalue()


def write(path: Path, cells: list[Cell]) -> None:
    """Write the notebook (format 4.5)."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = {"cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}
    path.write_text(
        json.dumps({**made, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )


def page(path: Path) -> str:
    """The notebook as a Markdown page, with its pictures inside."""
    parts = []
    for cell in read(path):
        text = source(cell).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):  # type: ignore[attr-defined]
            data = output.get("data", {})
            if "image/jpeg" in data:
                parts.append(f'<img alt="what the cell shows" src="data:image/jpeg;base64,{data["image/jpeg"]}">')
            else:
                shown = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{shown.rstrip()}\n```")
    parts.append(f"This page is a notebook: {{download}}`{path.name}`.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    place: Path = parser.parse_args().notebook
    write(place, run(read(place), {}))
