"""CONTRIBUTING's drawing of the packages, compared with import-linter's layers, the folder and the packages' surfaces."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.contracts import surface_of

REPO = Path(__file__).parent.parent
TEXT = (REPO / "CONTRIBUTING.md").read_text("utf-8")


def test_the_drawing_has_the_rows_that_import_linter_holds() -> None:
    drawing = re.search(r"```text\n(.*?)```", TEXT, re.S)
    assert drawing is not None
    rows = re.findall(r"^ +(\d+)   (.+)$", drawing[1], re.M)
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert [row for _, row in rows] == layers
    assert [int(number) for number, _ in rows] == list(reversed(range(len(layers))))
    drawn = {name for _, row in rows for name in row.split(" | ")}
    there = {
        path.stem for path in (REPO / "pipeline").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert drawn == there - {"__init__"}


def test_the_table_names_every_package_and_what_it_shows() -> None:
    table = {
        package: re.findall(r"`(\w+)`", shown)
        for package, shown in re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \|$", TEXT, re.M)
    }
    packages = {path.parent.name for path in (REPO / "pipeline").glob("*/__init__.pyi")}
    assert table.keys() == packages - {"pages"}  # described with the modules of its row
    for package, shown in table.items():
        assert shown and set(shown) <= set(surface_of(f"pipeline.{package}")), package


def test_paths_that_are_named_exist() -> None:
    """Files in CONTRIBUTING's walks and recipes, `building/choice.py` as well as `pipeline/sources/base.py`."""
    named = set(re.findall(r"`([a-z_]+/[\w/]+\.(?:py|toml|md|pyi))`", TEXT))
    missing = [path for path in named if not (REPO / path).exists() and not (REPO / "pipeline" / path).exists()]
    assert named and not missing
