"""`rdmpipe generate`, `convert` and `models`: parse, configure, call, print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from pipeline.cli.options import (
    MACHINE,
    OUTPUT,
    Address,
    BackendOption,
    Device,
    Home,
    Json,
    LogFormatOption,
    Threads,
    Wait,
    Workers,
    command,
    decimal,
    one_of,
    print_json,
    print_table,
    which_backend,
    whole,
)

SAMPLING = "Sampling"

Databases = Annotated[
    str,
    typer.Option(
        "--db", metavar="NAMES", help="Databases or views, separated by commas; every prompt is used with each."
    ),
]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A model's name or folder; see `rdmpipe models` (default: chosen by the database's encoder).",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Generate and evaluate"
    example = "Example: rdmpipe generate 'a castle by the sea' --db wikiart --n 4"
    app.command(rich_help_panel=panel, epilog=example)(generate)
    app.command(rich_help_panel=panel, epilog="Example: rdmpipe convert model.ckpt ./rdm-768")(convert)
    app.command(rich_help_panel=panel, epilog="Example: rdmpipe models")(models)


def generate(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A list of prompts (.csv, .tsv, .parquet, .json, .jsonl, .xlsx, .txt, or - for standard input), or one prompt."
        ),
    ],
    db: Databases = "",
    model: Model = "",
    where: Annotated[
        str, typer.Option("--where", metavar="SQL", help="Use only neighbours that match this SQL expression.")
    ] = "",
    k: Annotated[
        int | None,
        typer.Option("-k", metavar="N", parser=whole(0), help="Neighbours of each prompt (default: the model's)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            parser=whole(1),
            help="Sampler steps (default: the model's).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", metavar="NUMBER", help="Guidance scale (default: the model's).", rich_help_panel=SAMPLING
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            help="ddim, plms, dpmpp_2m or unipc; euler or euler_a with some models; with an RDM also a diffusers scheduler "
            "and its times, as UniPCMultistepScheduler:karras (default: the model's).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            "--eta",
            metavar="NUMBER",
            parser=decimal(0.0),
            help="Noise that DDIM adds in each step, from 0 (default: the model's).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", parser=whole(1), help="Pictures for each prompt and database.")
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            parser=whole(0),
            help="Seed of the first picture; the next have seed + 1, seed + 2, ...",
            rich_help_panel=SAMPLING,
        ),
    ] = 0,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", metavar="PIXELS", parser=whole(1), help="Width (default: the model's).", rich_help_panel=SAMPLING
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(
            "--height",
            metavar="PIXELS",
            parser=whole(1),
            help="Height (default: the model's).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    negative: Annotated[str, typer.Option("--negative", metavar="TEXT", help="A prompt to avoid.")] = "",
    image: Annotated[
        str, typer.Option("--image", metavar="FILE", help="A picture to use in place of the prompt's text.")
    ] = "",
    text_weight: Annotated[
        float,
        typer.Option(
            "--text-weight",
            metavar="NUMBER",
            help="Weight of the text relative to the neighbours.",
            rich_help_panel=SAMPLING,
        ),
    ] = 1.0,
    image_scale: Annotated[
        float | None,
        typer.Option(
            "--image-scale",
            metavar="NUMBER",
            parser=decimal(0.0),
            help="Strength of neighbours as image prompts (ip-adapter models).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    weighting: Annotated[
        str,
        typer.Option(
            "--weighting",
            metavar="WAY",
            help="Weights of the image prompts: equal, similarity or mean (ip-adapter models).",
            rich_help_panel=SAMPLING,
        ),
    ] = "",
    blocks: Annotated[
        str,
        typer.Option(
            "--blocks",
            metavar="NAMES",
            help="Network blocks that see image prompts: all, style, ... (ip-adapter models).",
            rich_help_panel=SAMPLING,
        ),
    ] = "",
    use: Annotated[
        str,
        typer.Option("--use", metavar="WHAT", help="Condition on both, neighbours or text.", rich_help_panel=SAMPLING),
    ] = "both",
    any_encoder: Annotated[
        bool, typer.Option("--any-encoder", help="Accept a database whose encoder has another name than the model's.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="FOLDER", help="Folder of the run (default: in the home).", rich_help_panel=OUTPUT
        ),
    ] = "",
    run: Annotated[
        str,
        typer.Option(
            "--run",
            metavar="NAME",
            help="Name of the run (default: from the prompts and flags).",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    precision: Annotated[
        str, typer.Option("--precision", metavar="TYPE", help="auto, fp32, fp16 or bf16.", rich_help_panel=MACHINE)
    ] = "auto",
    device: Device = "auto",
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            metavar="N",
            parser=whole(0),
            help="Pictures at a time; 0: chosen by device, size and number.",
            rich_help_panel=MACHINE,
        ),
    ] = 0,
    threads: Threads = 0,
    wait: Wait = 0.0,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: Workers = 0,
    home: Home = None,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    """Make pictures for a list of prompts, conditioned on each prompt's neighbours in each database."""
    with command(log_format) as progress:
        from pipeline.execution import Backend
        from pipeline.generation import GenerateConfig, Sampling
        from pipeline.generation import generate as generate_pictures
        from pipeline.machine import arrow_without_pandas

        arrow_without_pandas()
        config = GenerateConfig(
            prompts=prompts,
            db=tuple(name.strip() for name in db.split(",") if name.strip()),
            model=model,
            where=where,
            k=k,
            sampling=Sampling(sampler, steps, scale, eta, width, height),
            n=n,
            seed=seed,
            negative=negative,
            image=image,
            text_weight=text_weight,
            image_scale=image_scale,
            weighting=weighting,
            blocks=blocks,
            use=cast("Literal['both', 'neighbours', 'text']", one_of("--use", use, ("both", "neighbours", "text"))),
            any_encoder=any_encoder,
            skip_bad=skip_bad,
            home=home,
            out=out,
            run=run,
            precision=cast(
                "Literal['auto', 'fp32', 'fp16', 'bf16']",
                one_of("--precision", precision, ("auto", "fp32", "fp16", "bf16")),
            ),
            device=device,
            batch=batch,
            threads=threads,
        )
        chosen = Backend(kind=which_backend(backend, address), address=address, workers=workers)
        summary = generate_pictures(config, progress, chosen, wait)
        if as_json:
            print_json(asdict(summary))
        else:
            print(summary.text(said=progress.notes))


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An original checkpoint, model.ckpt.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the model, as safetensors in diffusers' layout.")],
    config: Annotated[
        str, typer.Option("--config", metavar="NAME", help="A model's name, or a JSON file with its widths.")
    ] = "rdm-768",
    as_json: Json = False,
) -> None:
    """Convert an original checkpoint into a folder of safetensors. No code in the checkpoint is run."""
    with command() as progress:
        from pipeline.generation import convert_checkpoint

        report = convert_checkpoint(checkpoint, folder, config, progress.say)
        if as_json:
            print_json(report.to_json())
        else:
            print("\n".join(f"{name}: {value}" for name, value in report.to_json().items()))


def models(
    name: Annotated[str, typer.Argument(help="A model, to see its base, licence and terms (default: list all).")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the models that have a name, or describe one."""
    with command():
        from pipeline.generation import list_models, outline_model

        if name:
            row = outline_model(name, home)
            if as_json:
                print_json(asdict(row))
            else:
                print("\n".join(f"{field}: {value}" for field, value in row.lines()))
            return
        rows = list_models(home)
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            print_table(
                ("name", "encoder", "neighbours", "size", "licence", "where"),
                [(row.name, row.takes, row.neighbours, row.size, row.licence, row.where) for row in rows],
            )
