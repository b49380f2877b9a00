"""The console script `rdmpipe`. No logic, and no heavy import for `--help`: commands import what they need when they run."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

import typer

from pipeline import cli_build, cli_data, cli_evaluate, cli_generate, cli_jobs, cli_query, cli_train

app = typer.Typer(
    name="rdmpipe",
    help="Build CLIP retrieval databases from art collections; run a retrieval-augmented diffusion model on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (cli_build, cli_query, cli_data, cli_generate, cli_jobs, cli_train, cli_evaluate):
    commands.register(app)


def main() -> None:
    # Waiting OpenMP threads sleep instead of spinning: the decoding pool and other processes need the cores they would burn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SystemExit as ended:
        _leave(ended.code)


def _leave(code: str | int | None) -> NoReturn:
    """End the process after all that Python has to do at its end, and before the destructors of native libraries: threads of
    theirs that still run then have aborted a command that was done ("terminate called without an active exception")."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
