"""Import modules of large libraries without the unused parts of those libraries.

`import diffusers` or `import open_clip` also executes transformers, peft, timm, scipy and torch's compiler if they are
installed: 6 to 8 seconds of processor time in every process. `import_apart` imports a copy of a library under another name, as
if those packages were not installed. `import diffusers` still gives the whole library, before and after. Reads
installed packages and writes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_lock = threading.RLock()


def import_apart(
    names: Iterable[str], without: Iterable[str], plain: Mapping[str, Sequence[str]] | None = None
) -> tuple[ModuleType, ...]:
    """Import modules of one library while the packages `without` appear to be missing.

    names: full names of modules of one library; they are returned in this order.
    plain: packages of the library whose `__init__` is not executed, with the names that other modules import from them; a name
        stands for an empty class. The modules of such a package can be imported as usual.

    If the library is already imported, the modules are those of the whole library. Otherwise the library's modules are in
    `sys.modules` under the name `apart_<library>`, because functions of a library import more of it when they are called.
    """
    names = tuple(names)
    library = names[0].partition(".")[0]
    copy = f"apart_{library}"
    with _lock:
        if library in sys.modules:
            return tuple(importlib.import_module(name) for name in names)
        with _absent(without), no_compiler():
            if copy not in sys.modules:
                root = Path(_installed(library))
                for name, attributes in (plain or {}).items():
                    inner = name.partition(".")[2]
                    package = _plain_package(f"{copy}.{inner}", root.joinpath(*inner.split(".")), attributes)
                    sys.modules[package.__name__] = package
                _execute(copy, root)
            return tuple(importlib.import_module(copy + name.removeprefix(library)) for name in names)


def import_whole(*libraries: str) -> None:
    """Import those of the libraries that are installed, before `import` statements that could run during `import_apart`.

    It waits while another thread hides packages, because an import during that time would not find them.
    """
    with _lock:
        for library in libraries:
            if importlib.util.find_spec(library) is not None:
                importlib.import_module(library)


def _installed(library: str) -> str:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    return spec.submodule_search_locations[0]


def _execute(name: str, folder: Path) -> None:
    """Import the package in `folder` as `name`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except BaseException:
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
        raise


def _plain_package(name: str, folder: Path, attributes: Sequence[str]) -> ModuleType:
    """A package with the modules of a folder and empty classes in place of what its `__init__` holds."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    package.__package__ = name
    for attribute in attributes:
        setattr(package, attribute, type(attribute, (), {}))
    return package


@contextmanager
def _absent(names: Iterable[str]) -> Iterator[None]:
    """Hide packages from `import` and from `importlib.util.find_spec` in the block."""
    hidden = [name for name in names if name not in sys.modules]
    try:
        sys.modules.update(cast("Mapping[str, ModuleType]", dict.fromkeys(hidden)))  # None: the import fails
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def no_compiler() -> Iterator[None]:
    """Replace torch._dynamo by a stand-in in the block: its import takes two seconds, and only torch.compile needs it.

    Functions that are decorated or first called in the block lose the mark that excludes them from torch.compile.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    compiler, helpers = ModuleType(name), ModuleType(f"{name}.utils")
    compiler.__path__ = []

    def keep(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
        return function if function is not None else keep

    def is_compile_supported(device_type: str) -> bool:
        from torch._dynamo.utils import is_compile_supported as real

        return bool(real(device_type))

    for attribute in ("disable", "allow_in_graph"):
        setattr(compiler, attribute, keep)
    helpers.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {name: compiler, f"{name}.utils": helpers}
    try:
        sys.modules.update(stand_ins)
        yield
    finally:
        for stand_in in stand_ins:
            del sys.modules[stand_in]
