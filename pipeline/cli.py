"""The console script `rdmpipe`. No logic, and no heavy import for `--help`: commands import what they need when they run."""

from __future__ import annotations

import os

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
    app()


if __name__ == "__main__":
    main()
