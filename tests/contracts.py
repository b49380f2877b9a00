"""A contract for import-linter: other packages import a package only through its `__init__`.

`make check` runs it (pyproject.toml names it). For example, only modules of `pipeline.index` may import `pipeline.index.exact`;
other packages import the names that `pipeline/index/__init__.pyi` lists from `pipeline.index`. Such a name must exist, and no
module of the package may have the same name, because importing the module would hide it. The same rule applies to the public
module `rdmpipe`, which is read from its source, because import-linter's graph only holds packages.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import grimp
from importlinter import Contract, ContractCheck, fields, output


class SurfaceContract(Contract):
    """`root`: the package whose packages are checked. `facade`: the public module above them."""

    type_name = "surface"
    root = fields.StringField()
    facade = fields.StringField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        root = str(self.root)
        problems: list[str] = []
        for package in sorted(graph.find_children(root)):
            members = {module for module in graph.find_descendants(package) if not module.endswith(".__main__")}
            for module in sorted(members):
                for importer in sorted(graph.find_modules_that_directly_import(module)):
                    if importer != package and not importer.startswith(package + "."):
                        problems.append(f"{importer} imports {module}: import the name from {package}")
            if members:
                problems += _hidden_names(package, members)
        problems += _facade_problems(str(self.facade), root)
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for problem in check.metadata["problems"]:
            output.print_error(f"- {problem}")


def surface_of(package: str) -> list[str]:
    """The names that a package's stub exports."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).with_suffix(".pyi").read_text("utf-8"))
    return [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def _facade_problems(facade: str, root: str) -> list[str]:
    """Imports of the public module that are not `from pipeline.PACKAGE import NAME` with a NAME of the package's surface."""
    found = importlib.util.find_spec(facade)
    assert found is not None and found.origin is not None
    problems = []
    for node in ast.walk(ast.parse(Path(found.origin).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            problems += [f"{facade} imports {name.name}" for name in node.names if name.name.split(".")[0] == root]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root:
            spec = importlib.util.find_spec(node.module)
            assert spec is not None, node.module
            is_package = bool(spec.submodule_search_locations)
            if node.module.count(".") != 1:
                problems.append(f"{facade} imports from {node.module}: import the name from its package")
            elif is_package:
                shown = surface_of(node.module)
                problems += [
                    f"{node.module} does not show {name.name}" for name in node.names if name.name not in shown
                ]
    return problems


def _hidden_names(package: str, members: set[str]) -> list[str]:
    modules = {module.removeprefix(package + ".").split(".")[0] for module in members}
    return [f"{package}.{name}: a module of that name hides it" for name in surface_of(package) if name in modules]
