"""Strict configuration: TOML tables to frozen dataclasses, and the canonical JSON that every fingerprint is a hash of.

Errors name the key and the nearest known spelling. Reads TOML files and the environment variables RDMPIPE_HOME and
RDMPIPE_CACHE. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import tomllib
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from pipeline.errors import ConfigError, nearest

T = TypeVar("T")

Table: TypeAlias = dict[str, typing.Any]  # a parsed TOML or JSON table, before its fields are checked


def default_home() -> str:
    """The folder of databases and generations: RDMPIPE_HOME, else ~/.local/share/rdmpipe."""
    return os.environ.get("RDMPIPE_HOME") or str(Path.home() / ".local" / "share" / "rdmpipe")


def cache_dir() -> Path:
    """The folder of downloads that can be repeated: RDMPIPE_CACHE, else ~/.cache/rdmpipe."""
    return Path(os.environ.get("RDMPIPE_CACHE") or Path.home() / ".cache" / "rdmpipe")


def read_toml(path: Path) -> Table:
    """The table in a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # of tomllib: also nesting and numbers of many digits
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from error


def parse_json(text: str | bytes) -> object:
    """The JSON value in `text`. Raises ValueError for what is not JSON, and for nesting that Python cannot follow: text of
    others must not end a process with a RecursionError."""
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    return value


def from_mapping(cls: type[T], table: Mapping[str, object], where: str) -> T:
    """Build the frozen dataclass `cls` from a TOML table. Unknown, missing and mistyped keys are ConfigErrors.

    `where` names the table in messages, as in `wikiart.toml [source]`.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table, found {type(table).__name__}")
    fields, hints = _fields_and_hints(typing.cast("Hashable", cls))
    for key in table:
        if key not in fields:
            raise ConfigError(
                f"{where}: unknown key {key!r}{nearest(key, fields)}; known keys: {', '.join(sorted(fields)) or 'none'}"
            )
    values = {key: _convert(hints[key], value, f"{where} {key}") for key, value in table.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: missing key {name!r}; add `{name} = ...`")
    return cls(**values)


def checked(hint: type[T], value: object, where: str) -> T:
    """`value` (as JSON and TOML give it) as the type `hint`: a dataclass, a TypedDict, a tuple of these. Raises ConfigError."""
    return typing.cast("T", _convert(hint, value, where))


@functools.cache
def _fields_and_hints(cls: Hashable) -> tuple[dict[str, dataclasses.Field[object]], dict[str, object]]:
    """A dataclass's fields, and their types with all names resolved, which is slow."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    return fields, typing.get_type_hints(cls)


def _convert(hint: object, value: object, where: str) -> object:
    """`value` as the annotated type. The only coercions are int to float and list to tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return _convert(options[0], value, where)
        for option in options:
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
        raise _mistyped(where, hint, value)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(
                f"{where}: {value!r} is not one of {', '.join(map(str, args))}{nearest(str(value), map(str, args))}"
            )
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast("type[object]", hint), typing.cast("Mapping[str, object]", value), f"{where}:")
    if typing.is_typeddict(hint):
        return _typed_dict(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[0] if args else object
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if (
        origin in (dict, Mapping, types.MappingProxyType)
        or hint is dict
        or getattr(origin, "__name__", "") == "Mapping"
    ):
        if not isinstance(value, Mapping):
            raise _mistyped(where, hint, value)
        inner = args[1] if len(args) == 2 else object
        return {str(key): _convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        if hint is datetime.date and isinstance(value, datetime.datetime):
            raise _mistyped(where, hint, value)
        return value
    raise _mistyped(where, hint, value)


def _typed_dict(hint: object, value: object, where: str) -> dict[str, object]:
    hints = typing.get_type_hints(hint)
    if not isinstance(value, Mapping) or set(value) != set(hints):
        found = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigError(f"{where}: expected a table with the keys {', '.join(sorted(hints))}; found {found}")
    return {key: _convert(hints[key], item, f"{where}.{key}") for key, item in value.items()}


def _mistyped(where: str, hint: object, value: object) -> ConfigError:
    wanted = getattr(hint, "__name__", str(hint))
    return ConfigError(f"{where}: expected {wanted}, found {type(value).__name__} {value!r}")


def canonical_json(value: object) -> str:
    """Deterministic JSON of plain values and dataclasses. Every hash in a database is a hash of such a text."""

    def plain(item: object) -> object:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, datetime.date):
            return item.isoformat()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"not JSON: {type(item).__name__}")

    return json.dumps(value, default=plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: object, length: int = 16) -> str:
    """Hex sha256 of `canonical_json(value)`, cut to `length` characters."""
    encoded = canonical_json(value).encode("utf-8", "surrogatepass")  # file names need not be valid UTF-8
    return hashlib.sha256(encoded).hexdigest()[:length]


def parse_size(text: str, where: str = "") -> int:
    """The number of bytes in `4GB`, `256MB`, `512k` or a plain number; units are powers of 1024. Raises ConfigError."""
    start = f"{where}: " if where else ""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    body = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (body[:-1], body[-1:]) if body[-1:].isalpha() else (body, "")
    try:
        value = float(number) * units[unit]
    except (KeyError, ValueError):
        raise ConfigError(f"{start}{text!r} is not a size; write it as 4GB, 256MB or a number of bytes") from None
    if not 0 < value < 2**63:
        raise ConfigError(f"{start}{text!r} is not a possible size; write it as 4GB, 256MB or a number of bytes")
    return int(value)
