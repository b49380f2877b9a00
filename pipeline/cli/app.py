"""The console script `rdmpipe`. No logic, and no heavy import for `--help`: commands import what they need when they run."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

import typer

from pipeline.cli.build import register as register_build
from pipeline.cli.data import register as register_data
from pipeline.cli.evaluate import register as register_evaluate
from pipeline.cli.generate import register as register_generate
from pipeline.cli.jobs import register as register_jobs
from pipeline.cli.query import register as register_query
from pipeline.cli.train import register as register_train

app = typer.Typer(
    name="rdmpipe",
    help="Build CLIP retrieval databases from art collections; run a retrieval-augmented diffusion model on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for register in (
    register_build,
    register_query,
    register_data,
    register_generate,
    register_jobs,
    register_train,
    register_evaluate,
):
    register(app)


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
