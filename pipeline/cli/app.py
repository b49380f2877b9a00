"""The console script `rdmpipe`. It holds no logic. Commands import what they need when they run, so that `--help` is fast."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from pipeline.cli.browse import register as register_browse
from pipeline.cli.build import register as register_build
from pipeline.cli.data import register as register_data
from pipeline.cli.doctor import register as register_doctor
from pipeline.cli.evaluate import register as register_evaluate
from pipeline.cli.generate import register as register_generate
from pipeline.cli.hub import register as register_hub
from pipeline.cli.jobs import register as register_jobs
from pipeline.cli.options import Program
from pipeline.cli.query import register as register_query
from pipeline.cli.schema import register as register_schema
from pipeline.cli.train import register as register_train

app = Program(
    name="rdmpipe",
    help="Build CLIP retrieval databases from art collections; run a retrieval-augmented diffusion model on them.",
    epilog="Example: rdmpipe build-index ~/Pictures --name mine, then rdmpipe search mine 'a harbour at dawn'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"rdmpipe {version('rdmpipe')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done the work


for register in (
    register_build,
    register_query,
    register_browse,
    register_doctor,
    register_data,
    register_hub,
    register_generate,
    register_jobs,
    register_schema,
    register_train,
    register_evaluate,
):
    register(app)


def main() -> None:
    """Run the command line and end the process."""
    # Waiting OpenMP threads sleep instead of spinning, because the decoding pool and other processes need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a character that the terminal's encoding lacks is printed as \\u..., without a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:
        _leave(ended.code)


def _leave(code: str | int | None) -> NoReturn:
    """Run Python's exit functions and end the process without the destructors of native libraries.

    Threads of those libraries that were still running aborted finished commands ("terminate called without an active
    exception").
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
