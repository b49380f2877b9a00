"""Generated reference pages: commands from the typer app, TOML keys from the dataclasses that read them, the error tree.

`write(folder)` writes cli.md, toml.md and errors.txt. docs/conf.py calls it, so that the pages follow the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer.main

from pipeline import errors
from pipeline.cli.app import app
from pipeline.evaluation.config import EvaluateConfig
from pipeline.scheduling.jobfile import JobFile
from pipeline.sources import Manifest, View
from pipeline.training.config import TrainConfig

TOML: tuple[tuple[type, str, str], ...] = (
    (Manifest, "Manifests", "A data set: `rdmpipe manifests --check FILE`, `rdmpipe build-index FILE`."),
    (View, "Views", "A base database and a filter under the name `<base>-<slug>`."),
    (JobFile, "Job files", "What `rdmpipe run`, `submit` and `render` take."),
    (TrainConfig, "Training runs", "What `rdmpipe train` takes."),
    (EvaluateConfig, "Evaluations", "The protocol that `rdmpipe evaluate` takes."),
)

GIVEN = {(JobFile, "name")}  # fields without a default that a file may omit, because its reader sets them


def write(folder: Path) -> None:
    for name, text in (("cli.md", cli_page()), ("toml.md", toml_page()), ("errors.txt", error_tree())):
        keep(folder / name, text)


def keep(path: Path, text: str) -> None:
    """Write a page if its text differs, so that an unchanged page is not built again."""
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


# ---- the command line


def cli_page() -> str:
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Results go to standard output, everything else to standard error. With `--json` the last line of standard",
        "output is one JSON document. Exit codes: 0 done; 1 an error; 2 a wrong option, argument or file; 3 a purge list",
        "with entries that match no row; 75 another process is writing the same database or run, try again later; 130",
        "interrupted.",
        "",
    ]
    for path, command in _commands(root, ("rdmpipe",)):
        lines += _command(path, command)
    return "\n".join(lines) + "\n"


def _commands(command: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    inner: Mapping[str, object] | None = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name in inner:
        if not getattr(inner[name], "hidden", False):
            yield from _commands(inner[name], (*path, name))


def _command(path: tuple[str, ...], command: object) -> list[str]:
    shown = [it for it in command.params if not getattr(it, "hidden", False)]  # type: ignore[attr-defined]
    arguments = [it for it in shown if it.param_type_name == "argument"]
    usage = " ".join((*path, "[OPTIONS]", *(_argument(it) for it in arguments)))
    help_text = inspect.cleandoc(getattr(command, "help", "") or "")
    lines = [f"## {' '.join(path[1:])}", "", *_prose(help_text), "", f"    {usage}", ""]
    if example := getattr(command, "epilog", None):
        lines += [f"Example: `{' '.join(example.split()).removeprefix('Example: ')}`", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{_argument(it)}` | {_cell(getattr(it, 'help', '') or '')} |" for it in arguments]
        lines.append("")
    options = [it for it in shown if it.param_type_name == "option" and it.name not in ("help",)]
    if options:
        lines += ["| option | | default |", "|---|---|---|"]
        for it in options:
            value = "" if getattr(it, "is_flag", False) or not it.metavar else f" {it.metavar}"
            names = ", ".join(f"`{name}{value}`" for name in (*it.opts, *it.secondary_opts))
            lines.append(f"| {names} | {_cell(it.help or '')} | {_default(it.default)} |")
        lines.append("")
    return lines


def _argument(parameter: object) -> str:
    name = str(getattr(parameter, "metavar", None) or parameter.name).strip("[]{}").upper()  # type: ignore[attr-defined]
    return name if parameter.required else f"[{name}]"  # type: ignore[attr-defined]


def _default(value: object) -> str:
    if value is None or value == "" or isinstance(value, bool) or callable(value):
        return ""
    return f"`{value}`"


def _prose(text: str) -> list[str]:
    """A help text as Markdown. Indented or `$ ` lines (examples) become code; rich's markup is left out."""
    text = re.sub(r"\[/?[a-z ]+\]", "", text.replace("\b", ""))
    return text.splitlines() or [""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- TOML keys


def toml_page() -> str:
    lines = [
        "# TOML keys",
        "",
        "All files are strict: an unknown key, a missing key or a value of another type is an error that names the key",
        "and its nearest spelling. A default of *required* means that the key has to be there.",
        "",
    ]
    for cls, title, text in TOML:
        lines += [f"## {title}", "", text, ""]
        lines += _table(cls, "", set())
    return "\n".join(lines) + "\n"


def _table(cls: type, prefix: str, seen: set[type]) -> list[str]:
    """A dataclass's keys, and after them those of the tables inside it."""
    hints, notes = typing.get_type_hints(cls), _notes(cls)
    lines = ["| key | type | default | |", "|---|---|---|---|"] if dataclasses.fields(cls) else []
    inner: list[tuple[str, type]] = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        nested = _dataclass_in(hint)
        key = f"{prefix}{field.name}"
        if nested is not None:
            listed = typing.get_origin(hint) is tuple
            shown = f"[[{key}]]" if listed else f"[{key}]"
            lines.append(f"| `{shown}` | table{'s' if listed else ''} | | {_cell(notes.get(field.name, ''))} |")
            inner.append((key, nested))
        else:
            default = "" if (cls, field.name) in GIVEN else _field_default(field)
            lines.append(f"| `{key}` | {_type(hint)} | {default} | {_cell(notes.get(field.name, ''))} |")
    lines.append("")
    for key, nested in inner:
        lines += [f"### `[{key}]` of {cls.__name__.removesuffix('Config')}", "", *_first_paragraph(nested), ""]
        if nested in seen:
            lines += [f"The keys of `{nested.__name__}`, as above.", ""]
        else:
            seen.add(nested)
            lines += _table(nested, f"{key}." if key.count(".") < 3 else "", seen)
    return lines


def _dataclass_in(hint: object) -> type | None:
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part
    return None


def _type(hint: object) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " \\| ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return f"array of {_type(args[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "table"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    return names.get(getattr(hint, "__name__", str(hint)), getattr(hint, "__name__", str(hint)))


def _field_default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "*required*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", (), {}):
        return ""
    text = f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return f"`{text}`" if len(text) < 60 else ""


def _notes(cls: type) -> dict[str, str]:
    """What the source says of each field: the comment behind it, or its `name   text` paragraph in the docstring."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    found: dict[str, str] = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, mark, comment = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")
            if mark and comment != "fmt: skip":
                found[node.target.id] = comment
    names = {field.name for field in dataclasses.fields(cls)}
    current: list[str] = []
    for line in (inspect.getdoc(cls) or "").splitlines():
        match = re.match(r"^((?:[a-z_]+)(?:, [a-z_]+)*) {2,}(\S.*)$", line)
        if match and set(match[1].split(", ")) <= names:
            current = match[1].split(", ")
            found |= dict.fromkeys(current, match[2])
        elif current and line.startswith("  "):
            for name in current:
                found[name] += " " + line.strip()
        else:
            current = []
    return found


def _first_paragraph(cls: type) -> list[str]:
    text = inspect.getdoc(cls) or ""
    return [] if text.startswith(f"{cls.__name__}(") else text.split("\n\n")[0].splitlines()


# ---- errors


def error_tree() -> str:
    """The error tree as the docstring of `pipeline.errors` draws it."""
    text = inspect.getdoc(errors) or ""
    tree = text.partition("\n\n")[2]
    return "```text\n" + tree + "\n```\n"
