"""This installation: its version, the files that ship with it, and the PYTHONPATH that leads another process to the same code.

Every path to the project's own files is made here, so that modules can move. Reads package metadata; writes nothing.
"""

from __future__ import annotations

import os
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

_PACKAGE = Path(str(resources.files("pipeline")))


def version() -> str:
    """The installed version of rdmpipe; `source` for a checkout that is on the path but not installed."""
    try:
        return metadata.version("rdmpipe")
    except metadata.PackageNotFoundError:
        return "source"


def asset(*parts: str) -> Path:
    """A file or folder in pipeline/assets, which ships inside the package."""
    return _PACKAGE.joinpath("assets", *parts)


def data_folder(kind: Literal["manifests", "jobs"]) -> Path:
    """The folder of the TOML files that come with the package: `pipeline.manifests` or `pipeline.jobs`."""
    try:
        return Path(str(resources.files(f"pipeline.{kind}")))
    except ModuleNotFoundError:  # a checkout that is on the path but not installed
        return _PACKAGE.parent / kind


def python_path() -> str:
    """PYTHONPATH for a process of ours: the folder that holds this `pipeline`, then what PYTHONPATH says now."""
    return os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
