"""What every command shares: options, error handling, and how results are printed.

Results go to standard output, everything else to standard error. With --json the last line of standard output is one
JSON document.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import typer

from pipeline.errors import ConfigError, RdmpipeError
from pipeline.execution import LogFormat, Progress

Home = Annotated[
    str | None,
    typer.Option("--home", help="Where databases live (env: RDMPIPE_HOME; default: ~/.local/share/rdmpipe)."),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line of standard output.")]

LogFormatOption = Annotated[str, typer.Option("--log-format", help="text or json: progress lines on standard error.")]

BackendOption = Annotated[str, typer.Option("--backend", help="inline (this process), ray, or auto.")]

Address = Annotated[str, typer.Option("--address", help="Ray cluster to use; empty: one of our own on this machine.")]

Where = Annotated[str, typer.Option("--where", help="One SQL expression over the metadata columns.")]

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]

Workers = Annotated[int, typer.Option("--workers", min=0, help="Workers a stage; 0: as the cluster has room.")]


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Print an expected error as one message with its fix and exit with its code; let bugs show their traceback."""
    try:
        yield
    except RdmpipeError as error:
        print(f"rdmpipe: {error}", file=sys.stderr)
        if os.environ.get("RDMPIPE_DEBUG"):
            raise
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        print("rdmpipe: interrupted. What is finished is kept: run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None


@contextlib.contextmanager
def command(log_format: str = "text") -> Iterator[Progress]:
    """A command's body: errors reported, progress on standard error."""
    with reported_errors():
        chosen = cast("LogFormat", one_of("--log-format", log_format, ("text", "json")))
        with Progress(chosen) as progress:
            yield progress


def print_json(value: Any) -> None:
    """One line. JSON has no infinity and no NaN: they become null."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), default=str, ensure_ascii=False)
    print(text, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> None:
    """A table for people: rich on a terminal; in a pipe a line a row, its columns separated by tabs."""
    if not sys.stdout.isatty():
        for row in (headers, *rows):
            print("\t".join("" if cell is None else " ".join(str(cell).split()) for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    Console().print(table)


def one_of(flag: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, or a ConfigError that names the flag and what it takes."""
    if value not in allowed:
        raise ConfigError(f"{flag} {value!r}: use one of {', '.join(word for word in allowed if word)}")
    return value


def which_backend(value: str, address: str) -> Literal["inline", "ray"]:
    """auto is Ray where an address is given (or RAY_ADDRESS is set), else this process."""
    one_of("--backend", value, ("auto", "inline", "ray"))
    if value == "inline" and address:
        raise ConfigError("--backend inline does not use --address; leave one of them out")
    wants_ray = value == "ray" or (value == "auto" and bool(address or os.environ.get("RAY_ADDRESS")))
    return "ray" if wants_ray else "inline"
