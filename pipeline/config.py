"""Strict configuration: TOML tables into frozen dataclasses, with errors that name the key and its nearest spelling.

Reads: TOML files, the environment variables RDMPIPE_HOME, RDMPIPE_CACHE and RDMPIPE_ENCODER. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError, nearest

T = TypeVar("T")


def default_home() -> str:
    """Where databases and generations live: RDMPIPE_HOME, else ~/.local/share/rdmpipe."""
    return os.environ.get("RDMPIPE_HOME") or str(Path.home() / ".local" / "share" / "rdmpipe")


def cache_dir() -> Path:
    """Where downloads that can be made again live: RDMPIPE_CACHE, else ~/.cache/rdmpipe."""
    return Path(os.environ.get("RDMPIPE_CACHE") or Path.home() / ".cache" / "rdmpipe")


def read_toml(path: Path) -> dict[str, Any]:
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


def from_mapping(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build the frozen dataclass `cls` from a TOML table. Unknown, missing and mistyped keys are ConfigErrors.

    `where` names the table in messages, as in `wikiart.toml [source]`.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table, found {type(table).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
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


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; the only coercions are int -> float and list -> tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
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
        return from_mapping(typing.cast("type[Any]", hint), value, f"{where}:")
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[0] if args else Any
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if (
        origin in (dict, Mapping, types.MappingProxyType)
        or hint is dict
        or getattr(origin, "__name__", "") == "Mapping"
    ):
        if not isinstance(value, Mapping):
            raise _mistyped(where, hint, value)
        inner = args[1] if len(args) == 2 else Any
        return {str(key): _convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        if hint is datetime.date and isinstance(value, datetime.datetime):
            raise _mistyped(where, hint, value)
        return value
    raise _mistyped(where, hint, value)


def _mistyped(where: str, hint: Any, value: Any) -> ConfigError:
    wanted = getattr(hint, "__name__", str(hint))
    return ConfigError(f"{where}: expected {wanted}, found {type(value).__name__} {value!r}")


def canonical_json(value: Any) -> str:
    """Deterministic JSON of plain values and dataclasses: what every hash in a database is taken over."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, datetime.date):
            return item.isoformat()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"not JSON: {type(item).__name__}")

    return json.dumps(value, default=plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: Any, length: int = 16) -> str:
    """Hex sha256 of `canonical_json(value)`, cut to `length` characters."""
    encoded = canonical_json(value).encode("utf-8", "surrogatepass")  # file names need not be valid UTF-8
    return hashlib.sha256(encoded).hexdigest()[:length]


def parse_size(text: str, where: str = "") -> int:
    """Bytes in `4GB`, `256MB`, `512k` or a plain number (powers of 1024, as memory is sold)."""
    start = f"{where}: " if where else ""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    body = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (body[:-1], body[-1:]) if body[-1:].isalpha() else (body, "")
    try:
        value = float(number) * units[unit]
    except (KeyError, ValueError):
        raise ConfigError(f"{start}{text!r} is not a size; write it as 4GB, 256MB or a number of bytes") from None
    if not 0 < value < 2**63:
        raise ConfigError(
            f"{start}{text!r} is not a size that a machine has; write it as 4GB, 256MB or a number of bytes"
        )
    return int(value)
