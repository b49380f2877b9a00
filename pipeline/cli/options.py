"""Options that commands share, error handling, and the printing of results.

Results go to standard output, everything else to standard error. With --json the last line of standard output is one
JSON document.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.errors import ConfigError, RdmpipeError
from pipeline.execution import LogFormat, Progress
from pipeline.terminal import escaped_output, printable, printable_json, raw, spreadsheet_cell

MACHINE, OUTPUT = "Machine and cluster", "Home and output"  # panels of a command's help


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _NoTypes:
    """The help shows no type behind flags and arguments; typer writes `<bool>` and `<str>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""
            elif one.param_type_name == "argument":
                one.display_type_rich = lambda ctx: None
        return params


class _Command(_NoTypes, TyperCommand):
    pass


class _Group(_NoTypes, TyperGroup):
    pass


class Program(typer.Typer):
    """A program, or a group of commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": _Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Function], _Function]:
        return super().command(name, **{"cls": _Command, **settings})


def whole(least: int) -> Callable[[str | int], int]:
    """A parser for a whole number of at least `least`. (typer's own `min` shows `INTEGER RANGE [x>=0]` in the help.)"""

    def parse(value: str | int) -> int:
        try:
            number = int(str(value)[:40])
        except ValueError:
            number = least - 1
        if not least <= number < 2**63:
            raise typer.BadParameter(f"{str(value)[:40]!r} is not a whole number of at least {least}")
        return number

    return parse


def decimal(least: float, most: float = math.inf) -> Callable[[str | float], float]:
    """A parser for a number from `least` to `most`."""
    words = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"

    def parse(value: str | float) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and least <= number <= most):
            raise typer.BadParameter(f"{str(value)[:40]!r} is not a number {words}")
        return number

    return parse


Home = Annotated[
    str | None,
    typer.Option(
        "--home",
        metavar="PLACE",
        help="Folder, or s3://, az:// or gs:// URL: databases and runs (env: RDMPIPE_HOME; default: ~/.local/share/rdmpipe).",
        rich_help_panel=OUTPUT,
    ),
]

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document as the last line of standard output.", rich_help_panel=OUTPUT),
]

LogFormatOption = Annotated[
    str,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        help="Progress on standard error as text or json lines.",
        rich_help_panel=OUTPUT,
    ),
]

BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="inline (this process), ray, or auto (ray if an address is given).",
        rich_help_panel=MACHINE,
    ),
]

Address = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to use; empty: start one on this machine.",
        rich_help_panel=MACHINE,
    ),
]

Where = Annotated[
    str,
    typer.Option("--where", metavar="SQL", help="One SQL expression over the metadata columns, such as 'year > 1870'."),
]

Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:1.", rich_help_panel=MACHINE)
]

Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        parser=whole(0),
        help="Workers for each stage; 0: as many as the cluster has room for.",
        rich_help_panel=MACHINE,
    ),
]

Threads = Annotated[
    int,
    typer.Option(
        "--threads",
        metavar="N",
        parser=whole(0),
        help="Torch threads for each worker; 0: its share of the cores.",
        rich_help_panel=MACHINE,
    ),
]

Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        parser=decimal(0.0),
        help="How long to wait while another process writes the same database or run.",
        rich_help_panel=MACHINE,
    ),
]

PlainCells = Annotated[
    bool,
    typer.Option(
        "--plain-cells",
        help="In a pipe, print cells that begin with = + - @ as they are, without the apostrophe for spreadsheets.",
        rich_help_panel=OUTPUT,
    ),
]


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Print an expected error as one message with its fix, and exit with its code. An unexpected one shows its traceback.

    Everything that is printed in the block has its control characters escaped.
    """
    with escaped_output():
        try:
            yield
        except RdmpipeError as error:
            print(f"rdmpipe: {error}", file=sys.stderr)
            if os.environ.get("RDMPIPE_DEBUG"):
                raise
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            again = shlex.join(["rdmpipe", *sys.argv[1:]])
            print(f"rdmpipe: interrupted. Finished work is kept. To continue, run: {again}", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


@contextlib.contextmanager
def command(log_format: str = "text") -> Iterator[Progress]:
    """The body of a command: reports errors, and shows progress on standard error."""
    with reported_errors():
        chosen = cast("LogFormat", one_of("--log-format", log_format, ("text", "json")))
        with Progress(chosen) as progress:
            yield progress


def print_json(value: object) -> None:
    """One line. JSON has no infinity and no NaN: they become null."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), default=str, ensure_ascii=False)
    print(printable_json(text), flush=True)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = (), plain_cells: bool = False
) -> None:
    """A table: drawn on a terminal; in a pipe one line per row, with tabs between the columns.

    In a pipe, a cell that a spreadsheet would run as a formula gets a leading apostrophe, unless `plain_cells`.
    """
    if not sys.stdout.isatty():
        for row in (headers, *rows):
            cells = ["" if cell is None else " ".join(str(cell).split()) for cell in row]
            print("\t".join(cells if plain_cells else map(spreadsheet_cell, cells)))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else escape(printable(str(cell), keep="")) for cell in row))
    Console(file=raw(sys.stdout)).print(table)


def one_of(flag: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, if it is allowed. Raises ConfigError with the flag and the allowed words."""
    if value not in allowed:
        raise ConfigError(f"{flag} {value!r}: use one of {', '.join(word for word in allowed if word)}")
    return value


def which_backend(value: str, address: str) -> Literal["inline", "ray"]:
    """ray or inline; auto is ray if an address is given or RAY_ADDRESS is set."""
    one_of("--backend", value, ("auto", "inline", "ray"))
    if value == "inline" and address:
        raise ConfigError("--backend inline does not use --address; leave one of them out")
    wants_ray = value == "ray" or (value == "auto" and bool(address or os.environ.get("RAY_ADDRESS")))
    return "ray" if wants_ray else "inline"
