"""Reads tensors from a torch checkpoint without running any pickled code.

Reads: one `.ckpt`/`.pt`/`.bin` file, memory-mapped if its format allows that. Writes nothing. The pickle's instructions are
checked first: nesting and size are limited (`require_bounded`), because unpickling very deep tuples ends the process. The
file is then read as plain weights (torch's `weights_only`). If it also pickles objects of its training framework, those
become inert placeholders: nothing is imported, called or constructed for them.
"""

from __future__ import annotations

import collections
import pickle
import pickletools
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

from rdm.errors import CheckpointError

MOST_NESTED = 500  # containers within containers; checkpoints have about ten

MOST_PICKLE = 512 << 20  # bytes of the pickle, without tensors

_LEGACY_PICKLES = 5  # a file of torch 1.5: magic number, version, system, the object, names of storages

_ALLOWED = {
    ("collections", "defaultdict"): lambda *of: {},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class Placeholder:
    """Represents an object that was not unpickled. Accepts any state from the pickle and discards it."""

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


# The attributes that torch.load needs of a `pickle_module`.
_RESTRICTED: Any = SimpleNamespace(__name__="rdm.pickles", Unpickler=_Unpickler, load=_refuse)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """The checkpoint's top-level dict; objects other than tensors and plain containers are placeholders.

    Tensors of a zip-format file (torch 1.6 and newer) are views of the mapped file: keep the file in place while they
    are in use. Raises CheckpointError for anything that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}")
    require_bounded(path)
    zipped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file may raise any error
        content = _load_with_placeholders(path, zipped, error)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a checkpoint is a dict of tensors")
    return content


def require_bounded(path: Path) -> None:
    """Raise CheckpointError if the file is no checkpoint, or its pickle is too large or too deep to be read safely."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.filename.endswith(".pkl"):
                        continue
                    if info.file_size > MOST_PICKLE:
                        raise CheckpointError(
                            f"{path}: its {info.filename} has {info.file_size:,} bytes; at most {MOST_PICKLE:,} are read"
                        )
                    with archive.open(info) as pickled:
                        _require_shallow(path, pickled)
            return
        with path.open("rb") as plain:
            if _is_tar(plain.read(tarfile.BLOCKSIZE)):  # of torch before 0.1.10; torch would unpack it
                raise CheckpointError(f"{path} is a tar archive, not a checkpoint that can be read safely")
            plain.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _require_shallow(path, plain)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely: expected a file that torch.save wrote, such as the release's "
            f"model.ckpt; found one that begins with {_beginning(path)!r} ({type(error).__name__}). If it is a checkpoint of "
            "torch 1.5 or older, load it with the software that wrote it and save it again with a newer torch"
        ) from error


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(12)
    except OSError:
        return b""


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _require_shallow(path: Path, pickled: IO[bytes]) -> None:
    """Follow one pickle's instructions with the depth of each value in place of the value. Raises CheckpointError."""
    stack: list[int] = []  # depths; -1 is a mark
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            stack.append(-1)
        else:
            marked = pickletools.markobject in opcode.stack_before
            wanted = opcode.stack_before.index(pickletools.markobject) if marked else len(opcode.stack_before)
            popped: list[int] = []
            while marked and (depth := stack.pop()) != -1:
                popped.append(depth)
            below = [stack.pop() for _ in range(wanted)]
            inside = max(popped, default=0)
            if name in ("APPEND", "SETITEM", "BUILD"):  # the container is the lowest
                depth = max(below[-1], max(below[:-1]) + 1)
            elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
                depth = max(below[-1], inside + 1)
            elif name == "DUP":
                depth = below[0]
            else:
                depth = max([inside, *below]) + 1 if popped or below else 0
            if depth > MOST_NESTED:
                raise CheckpointError(
                    f"{path}: its pickle nests more than {MOST_NESTED} containers: no checkpoint does"
                )
            stack.extend([depth] * len(opcode.stack_after))


def _load_with_placeholders(path: Path, zipped: bool, first: Exception) -> Any:
    if not zipped:
        reason = (
            str(first).partition("\n")[0].partition(". ")[0] or type(first).__name__
        )  # without torch's advice to trust the file
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely ({reason}). If it is one of torch 1.5 or older, "
            "load it with the software that wrote it and save it again with a newer torch"
        ) from first
    with zipfile.ZipFile(path) as archive:  # its directory was read before, by `require_bounded`
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names or "data.pkl" not in names:  # torch.load would run TorchScript
        raise CheckpointError(
            f"{path} is a zip file but not a torch checkpoint (no data.pkl, or a TorchScript program)"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True, pickle_module=_RESTRICTED)
    except Exception as error:  # a damaged pickle may raise any error; none of its code has run
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
