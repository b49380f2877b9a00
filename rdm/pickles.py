"""Reads tensors out of a torch checkpoint without running anything that is pickled in it.

Reads: one `.ckpt`/`.pt`/`.bin` file, memory-mapped where its format allows. Writes nothing. First as plain weights
(torch's own `weights_only`); where the file also pickles objects of its training framework, those become inert
placeholders: nothing is imported, called or constructed for them.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rdm.errors import CheckpointError

_ALLOWED = {
    ("collections", "defaultdict"): lambda *of: {},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class Placeholder:
    """Stands for an object that was not unpickled. Takes whatever state the pickle holds and forgets it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Placeholder:
        return Placeholder()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), Placeholder)


def _refuse(*args: object, **kwargs: object) -> Any:
    raise CheckpointError("only the zip format of torch.save is read with placeholders")


# What torch.load wants of a `pickle_module`.
_RESTRICTED: Any = SimpleNamespace(__name__="rdm.pickles", Unpickler=_Unpickler, load=_refuse)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """The checkpoint's top-level dict; objects other than tensors and plain containers are placeholders.

    Tensors of a zip-format file (torch 1.6 and newer) are views of the mapped file: keep the file in place while they
    are in use. Raises CheckpointError for anything that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    zipped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        content = _load_with_placeholders(path, zipped, error)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors")
    return content


def _load_with_placeholders(path: Path, zipped: bool, first: Exception) -> Any:
    if not zipped:
        reason = (
            str(first).partition("\n")[0].partition(". ")[0] or type(first).__name__
        )  # not torch's advice to trust it
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely ({reason}). If it is one of torch 1.5 or older, "
            "load it with the software that wrote it and save it again with a newer torch"
        ) from first
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names or "data.pkl" not in names:  # torch.load would hand TorchScript to its interpreter
        raise CheckpointError(
            f"{path} is a zip file but not a torch checkpoint (no data.pkl, or a TorchScript program)"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True, pickle_module=_RESTRICTED)
    except Exception as error:  # damaged pickles fail in any way they like; nothing of theirs has run
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
