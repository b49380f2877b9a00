"""A contract for import-linter: other packages import a package through its `__init__` alone.

`make check` runs it (pyproject.toml names it). `pipeline.index.exact` may be imported by modules of `pipeline.index`; everybody
else imports what `pipeline/index/__init__.pyi` lists from `pipeline.index`. Such a name has to be there, and no module of the
package may have the same name, because importing the module would hide it.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import grimp
from importlinter import Contract, ContractCheck, fields, output


class SurfaceContract(Contract):
    """`root`: the package whose packages are checked."""

    type_name = "surface"
    root = fields.StringField()

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
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for problem in check.metadata["problems"]:
            output.print_error(f"- {problem}")


def surface_of(package: str) -> list[str]:
    """The names that a package's stub shows to others."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    tree = ast.parse(Path(found.origin).with_suffix(".pyi").read_text("utf-8"))
    return [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def _hidden_names(package: str, members: set[str]) -> list[str]:
    modules = {module.removeprefix(package + ".").split(".")[0] for module in members}
    return [f"{package}.{name}: a module of that name hides it" for name in surface_of(package) if name in modules]
