"""`rdmpipe train`: parse, read the run's TOML file, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    MACHINE,
    Address,
    BackendOption,
    Device,
    Home,
    Json,
    LogFormatOption,
    Program,
    Where,
    command,
    print_json,
    which_backend,
    whole,
)
from pipeline.cli.options import Workers as StageWorkers

if TYPE_CHECKING:
    from pipeline.training import Part

Job = Annotated[Path, typer.Argument(help="The run's TOML file, such as jobs/train-mini.toml.")]

Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last save.")]

Workers = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", parser=whole(1), help="Ray workers that share each batch.", rich_help_panel=MACHINE
    ),
]

Base = Annotated[
    str,
    typer.Option(
        "--base", metavar="MODEL", help="Train the weights of this model further, in place of the recipe's base."
    ),
]

train_app = Program(no_args_is_help=True, help="Train an encoder, an autoencoder or an RDM.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(train_app, name="train", rich_help_panel="Train")


def _run(
    part: Part, job: Path, resume: bool, workers: int, address: str, log_format: str, as_json: bool, base: str = ""
) -> None:
    with command(log_format) as progress:
        from pipeline.training import read_train_config, train, with_base

        config = read_train_config(job)
        if base:
            from pipeline.generation import find_model

            config = with_base(config, find_model(base).folder)
        if workers > 1 or address:
            from pipeline.training import train_on_ray

            folder = train_on_ray(part, config, progress, workers=workers, address=address, resume=resume)
        else:
            folder = train(part, config, progress, resume=resume)
        if as_json:
            print_json({"part": part, "model": str(folder)})
        else:
            print(folder)


@train_app.command(epilog="Example: rdmpipe train prepare laion --first-stage models/kl-f16 --size 768")
def prepare(
    name: Annotated[str, typer.Argument(help="The database, version or view whose pictures are trained on.")],
    first_stage: Annotated[
        str,
        typer.Option(
            "--first-stage",
            metavar="MODEL",
            help="Folder or Hub id of a first stage or a saved model, or a model's name.",
        ),
    ],
    neighbours_from: Annotated[
        str,
        typer.Option(
            "--neighbours-from", metavar="DB", help="Database in which neighbours are searched; empty: the same one."
        ),
    ] = "",
    where: Where = "",
    size: Annotated[int, typer.Option("--size", metavar="N", parser=whole(8), help="Pixels a side.")] = 768,
    neighbours: Annotated[
        int, typer.Option("--neighbours", metavar="N", parser=whole(1), help="Neighbours of each picture.")
    ] = 20,
    device: Device = "auto",
    home: Home = None,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: StageWorkers = 0,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    """Write latents, caption vectors and neighbours of a database, to train an RDM on them."""
    with command(log_format) as progress:
        from dataclasses import asdict

        from pipeline.execution import Backend
        from pipeline.generation import find_model
        from pipeline.training import PrepareRequest
        from pipeline.training import prepare as prepare_database

        if "/" not in first_stage and not Path(first_stage).exists():
            first_stage = str(find_model(first_stage, home).folder)
        request = PrepareRequest(name, first_stage, neighbours_from, where, size, neighbours, device, home)
        made = prepare_database(request, progress, Backend(which_backend(backend, address), address, workers))
        if as_json:
            print_json(asdict(made))
        else:
            print(f"{made.database}/{made.id}")


@train_app.command(epilog="Example: rdmpipe train rehearse jobs/train-rdm-768.toml --workers 32")
def rehearse(job: Job, workers: Workers = 1, log_format: LogFormatOption = "text", as_json: Json = False) -> None:
    """Show the memory, saved state and arithmetic of a denoiser's training, without running it."""
    with command(log_format):
        from dataclasses import asdict

        from pipeline.training import read_train_config
        from pipeline.training import rehearse as rehearse_run

        found = rehearse_run(read_train_config(job), workers)
        if as_json:
            print_json({**asdict(found), "memory": found.memory})
        else:
            print("\n".join(f"{name:42}{value}" for name, value in found.lines()))


@train_app.command(epilog="Example: rdmpipe train encoder jobs/train-mini.toml")
def encoder(
    job: Job, resume: Resume = False, workers: Workers = 1, address: Address = "", log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a contrastive encoder of pictures and texts, in open_clip's format."""
    _run("encoder", job, resume, workers, address, log_format, as_json)


@train_app.command(epilog="Example: rdmpipe train autoencoder jobs/train-mini.toml")
def autoencoder(
    job: Job, resume: Resume = False, workers: Workers = 1, address: Address = "", log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train the first stage: a KL autoencoder, in diffusers' format."""
    _run("autoencoder", job, resume, workers, address, log_format, as_json)


@train_app.command(epilog="Example: rdmpipe train rdm jobs/train-mini.toml --resume")
def rdm(
    job: Job, base: Base = "", resume: Resume = False, workers: Workers = 1, address: Address = "",
    log_format: LogFormatOption = "text", as_json: Json = False,
) -> None:  # fmt: skip
    """Train the retrieval-augmented denoiser, from the start or (--base) from a model's weights."""
    _run("rdm", job, resume, workers, address, log_format, as_json, base)
