"""This installation: its version, its optional packages, the files that ship with it, and the PYTHONPATH with which another
process imports the same code.

Every path to the project's own files is computed here, so that modules can move. Reads package metadata; writes nothing.
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
    "cloud": ("obstore",),
    "hf": ("transformers",),
    "lance": ("lance",),
    "mlflow": ("mlflow",),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "sd": ("transformers", "peft"),
    "serve": ("starlette", "uvicorn"),
    "urls": ("img2dataset",),
    "wandb": ("wandb",),
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
    """Raise ConfigError if a module of an extra is not installed; the message gives the pip command.

    `purpose` begins the message, for example `fetching a list of URLs`. Nothing is imported, so this is fast enough to
    call before any work starts.
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
    """PYTHONPATH for a child process: the folder that holds this `pipeline`, then the present PYTHONPATH."""
    return os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
