"""Reads states of torch.distributed.checkpoint without running what is pickled in them.

torch itself unpickles `.metadata` and every value that is no tensor (a learning rate, for example). Here the first may name
only the classes that describe a state, and the others are read as plain values (torch's `weights_only`). Writes nothing.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_METADATA = "torch.distributed.checkpoint.metadata"

_ALLOWED: Mapping[str, frozenset[str]] = {
    _METADATA: frozenset(
        {"BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
         "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"}
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size"}),
    "pathlib": frozenset({"PosixPath"}),
    "pathlib._local": frozenset({"PosixPath"}),  # its place in Python 3.13
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a state's description")
        return super().find_class(module, name)


class StateReader(FileSystemReader):
    """The reader of a state's folder. Raises pickle.UnpicklingError for a description that names anything else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"{self.path}: its description is a {type(found).__name__}")
        return found


class StatePlanner(DefaultLoadPlanner):
    """Loads values that are no tensors only if they are plain."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises pickle.UnpicklingError for anything else
        value.seek(0)
        super().load_bytes(read_item, value)
