"""Strict configuration: TOML tables to frozen dataclasses, and the canonical JSON that fingerprints hash.

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
from collections.abc import Hashable, Mapping, Sequence
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
    except (OSError, ValueError, RecursionError) as error:  # tomllib raises the last two for nesting and long numbers
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from error


def parse_json(text: str | bytes) -> object:
    """The JSON value in `text`. Raises ValueError if it is not JSON, or nested too deeply for Python: foreign text
    must not end a process with a RecursionError."""
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    return value


def from_mapping(cls: type[T], table: Mapping[str, object], where: str) -> T:
    """Build the frozen dataclass `cls` from a TOML table. Raises one ConfigError that lists every unknown, missing and mistyped
    key.

    `where` names the table in messages, such as `wikiart.toml [source]`.
    """
    problems: list[str] = []
    made = _table(cls, table, where, problems)
    _raise(problems)
    return typing.cast("T", made)


def checked(hint: type[T], value: object, where: str) -> T:
    """`value` (as read from JSON or TOML) converted to the type `hint`: a dataclass, a TypedDict, a tuple of these.
    Raises ConfigError."""
    problems: list[str] = []
    made = _convert(hint, value, where, problems)
    _raise(problems)
    return typing.cast("T", made)


def _raise(problems: list[str]) -> None:
    """Raise a ConfigError with all problems, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} problems:", *problems]))


@functools.cache
def fields_and_hints(cls: Hashable) -> tuple[dict[str, dataclasses.Field[object]], dict[str, object]]:
    """A dataclass's fields, and their types with all names resolved, which is slow."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    return fields, typing.get_type_hints(cls)


def is_required(field: dataclasses.Field[object]) -> bool:
    """Whether a dataclass's field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _table(cls: type, table: object, where: str, problems: list[str]) -> object:
    """The dataclass `cls` made from a table. Faults are appended to `problems`; the returned value must then not be used."""
    named = where.removesuffix(":")  # of a table inside another
    if not isinstance(table, Mapping):
        problems.append(f"{named}: expected a table, found {type(table).__name__}")
        return None
    fields, hints = fields_and_hints(typing.cast("Hashable", cls))
    before = len(problems)
    values: dict[str, object] = {}
    for key, value in table.items():
        if key in fields:
            values[key] = _convert(hints[key], value, f"{where} {key}", problems)
        else:
            problems.append(
                f"{named}: unknown key {key!r}{nearest(key, fields)}; known keys: {', '.join(sorted(fields)) or 'none'}"
            )
    problems += [
        f"{named}: missing key {name!r}; add `{name} = ...`"
        for name, field in fields.items()
        if is_required(field) and name not in values
    ]
    return cls(**values) if len(problems) == before else None


def _convert(hint: object, value: object, where: str, problems: list[str]) -> object:
    """`value` as the annotated type; faults are appended to `problems`. It only converts int to float and list to tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(hint, value, where, problems)
    if origin is typing.Literal:
        if value not in args:
            problems.append(
                f"{where}: {value!r} is not one of {', '.join(map(str, args))}{nearest(str(value), map(str, args))}"
            )
        return value
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast("type", hint), value, f"{where}:", problems)
    if typing.is_typeddict(hint):
        return _typed_dict(hint, value, where, problems)
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[0] if args else object
        return tuple(_convert(inner, item, f"{where}[{i}]", problems) for i, item in enumerate(value))
    if is_mapping(hint):
        if isinstance(value, Mapping):
            inner = args[1] if len(args) == 2 else object
            return {str(key): _convert(inner, item, f"{where}.{key}", problems) for key, item in value.items()}
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not _is_looser(hint, value):
        return value
    problems.append(_mistyped(where, hint, value))
    return value


def _is_looser(hint: type, value: object) -> bool:
    """Whether the value is of the Python type but not of the TOML type: `true` is not an integer, a time is not a date."""
    return (hint is int and isinstance(value, bool)) or (hint is datetime.date and isinstance(value, datetime.datetime))


def is_mapping(hint: object) -> bool:
    """Whether a type is a table with free keys."""
    origin = typing.get_origin(hint)
    known = hint is dict or origin in (dict, Mapping, types.MappingProxyType)
    return known or getattr(origin, "__name__", "") == "Mapping"


def _one_of(hint: object, value: object, where: str, problems: list[str]) -> object:
    """`value` as one of the types of a union."""
    args = typing.get_args(hint)
    options = [arg for arg in args if arg is not type(None)]
    if value is None and len(options) < len(args):
        return None
    if len(options) == 1:
        return _convert(options[0], value, where, problems)
    for option in options:
        failed: list[str] = []
        made = _convert(option, value, where, failed)
        if not failed:
            return made
    problems.append(_mistyped(where, hint, value))
    return value


def _typed_dict(hint: object, value: object, where: str, problems: list[str]) -> dict[str, object] | None:
    hints = typing.get_type_hints(hint)
    if not isinstance(value, Mapping) or set(value) != set(hints):
        found = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
        problems.append(f"{where}: expected a table with the keys {', '.join(sorted(hints))}; found {found}")
        return None
    return {key: _convert(hints[key], item, f"{where}.{key}", problems) for key, item in value.items()}


def _mistyped(where: str, hint: object, value: object) -> str:
    wanted = getattr(hint, "__name__", str(hint))
    return f"{where}: expected {wanted}, found {type(value).__name__} {value!r}"


def canonical_json(value: object) -> str:
    """Deterministic JSON of plain values and dataclasses. Every fingerprint in a database is a hash of such a text."""

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


# ---- JSON Schema


def json_schema(*classes: type, given: Sequence[str] = ()) -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of the TOML files that these dataclasses read, for editors that complete and check.

    It has keys, types, choices and defaults. It lacks further checks of a class, such as the range of a number. `given`
    names required keys that a file may leave out, because its reader sets them.
    """
    definitions: dict[str, Table] = {}
    parts = [_schema_of(cls, definitions) for cls in classes]
    for cls in classes:
        needed = definitions[cls.__name__]["required"]
        definitions[cls.__name__]["required"] = [name for name in needed if name not in given]
    top = parts[0] if len(parts) == 1 else {"anyOf": parts}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


_PLAIN: Mapping[object, Table] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    datetime.date: {"type": "string", "format": "date"},
}


def _schema_of(hint: object, definitions: dict[str, Table]) -> Table:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [_schema_of(arg, definitions) for arg in args if arg is not type(None)]
        return options[0] if len(options) == 1 else {"anyOf": options}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if dataclasses.is_dataclass(hint):
        cls = typing.cast("type", hint)
        if cls.__name__ not in definitions:
            definitions[cls.__name__] = {}  # for classes that contain themselves
            definitions[cls.__name__] = _schema_of_table(cls, definitions)
        return {"$ref": f"#/$defs/{cls.__name__}"}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0], definitions)}
    if is_mapping(hint):
        return {
            "type": "object",
            "additionalProperties": _schema_of(args[1] if len(args) == 2 else object, definitions),
        }
    return dict(_PLAIN.get(hint, {}))


def _schema_of_table(cls: type, definitions: dict[str, Table]) -> Table:
    fields, hints = fields_and_hints(typing.cast("Hashable", cls))
    properties: dict[str, Table] = {}
    for name, field in fields.items():
        properties[name] = _schema_of(hints[name], definitions)
        if isinstance(field.default, str | int | float) and field.default != "":
            properties[name]["default"] = field.default
    about = (cls.__doc__ or "").strip()
    return {
        "type": "object",
        "description": "" if about.startswith(f"{cls.__name__}(") else " ".join(about.split("\n\n")[0].split()),
        "properties": properties,
        "required": [name for name, field in fields.items() if is_required(field)],
        "additionalProperties": False,
    }
