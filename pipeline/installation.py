"""This installation: its version, its optional packages, the files that ship with it, and the PYTHONPATH that leads another
process to the same code.

Every path to the project's own files is made here, so that modules can move. Reads package metadata; writes nothing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "atelier": ("cv2",),
    "hf": ("transformers",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "sd": ("transformers", "peft"),
    "serve": ("starlette", "uvicorn"),
    "urls": ("img2dataset",),
}
"""The optional parts of an installation, each with the modules that it needs (pyproject.toml names their packages)."""

_PACKAGE = Path(str(resources.files("pipeline")))


def version() -> str:
    """The installed version of rdmpipe; `source` for a checkout that is on the path but not installed."""
    try:
        return metadata.version("rdmpipe")
    except metadata.PackageNotFoundError:
        return "source"


def require(extra: str, purpose: str) -> None:
    """Raise ConfigError where a module of an extra is not installed; the message names the pip command.

    `purpose` begins the message, as in `fetching a list of URLs`. Nothing is imported, so this is cheap enough to call before
    any work starts.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{purpose} needs {' and '.join(missing)}, which is not installed here. Run: pip install 'rdmpipe[{extra}]'"
        )


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
