"""`rdmpipe generate`, `convert` and `models`: parse, configure, call, print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pipeline.cli.options import (
    Address,
    BackendOption,
    Home,
    Json,
    LogFormatOption,
    Workers,
    command,
    one_of,
    print_json,
    print_table,
    which_backend,
)

Databases = Annotated[
    str, typer.Option("--db", help="Databases or views, separated by commas: every prompt with each.")
]

Model = Annotated[
    str,
    typer.Option(
        "--model", help="A model's name or folder; see `rdmpipe models` (default: by the database's encoder)."
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(generate)
    app.command()(convert)
    app.command()(models)


def generate(
    prompts: Annotated[str, typer.Argument(help="A .csv, .parquet, .jsonl or .txt list of prompts, or one prompt.")],
    db: Databases = "",
    model: Model = "",
    where: Annotated[str, typer.Option("--where", help="Only neighbours that match this SQL expression.")] = "",
    k: Annotated[int | None, typer.Option("-k", min=0, help="Neighbours (default: the model's).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Sampler steps (default: the model's).")] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Guidance scale (default: the model's).")] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler", help="ddim, plms, dpmpp_2m or unipc; euler or euler_a with some (default: the model's)."
        ),
    ] = None,
    eta: Annotated[float | None, typer.Option("--eta", min=0.0, help="DDIM's noise (default: the model's).")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures for each prompt and database.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first; the next have seed + 1, + 2, ...")] = 0,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels (default: the model's).")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels (default: the model's).")] = None,
    negative: Annotated[str, typer.Option("--negative", help="A prompt to lead away from.")] = "",
    image: Annotated[str, typer.Option("--image", help="A picture in place of the prompt's text.")] = "",
    text_weight: Annotated[
        float, typer.Option("--text-weight", help="Weight of the text beside the neighbours.")
    ] = 1.0,
    image_scale: Annotated[
        float | None,
        typer.Option("--image-scale", min=0.0, help="Strength of neighbours as image prompts (ip-adapter models)."),
    ] = None,
    weighting: Annotated[
        str, typer.Option("--weighting", help="equal, similarity or mean: how image prompts count (ip-adapter models).")
    ] = "",
    blocks: Annotated[
        str, typer.Option("--blocks", help="all, style, ...: which blocks see image prompts (ip-adapter models).")
    ] = "",
    use: Annotated[str, typer.Option("--use", help="both, neighbours alone, or text alone.")] = "both",
    any_encoder: Annotated[bool, typer.Option("--any-encoder", help="Take an encoder of another name.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out instead of stopping.")] = False,
    out: Annotated[str, typer.Option("--out", help="Folder of the run (default: in the home).")] = "",
    run: Annotated[str, typer.Option("--run", help="Name of the run (default: from the prompts and flags).")] = "",
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, fp16 or bf16.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    batch: Annotated[int, typer.Option("--batch", min=0, help="Pictures at a time; 0: by device.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Torch threads a worker (default on a CPU: 1).")] = 0,
    wait: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for another writer of this run.")
    ] = 0.0,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: Workers = 0,
    home: Home = None,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    """Make pictures for a list of prompts with the neighbours that each database has for them."""
    with command(log_format) as progress:
        from pipeline.execution import Backend
        from pipeline.generation import GenerateConfig, Sampling
        from pipeline.generation import generate as generate_pictures

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
            use=cast("Any", one_of("--use", use, ("both", "neighbours", "text"))),
            any_encoder=any_encoder,
            skip_bad=skip_bad,
            home=home,
            out=out,
            run=run,
            precision=cast("Any", one_of("--precision", precision, ("auto", "fp32", "fp16", "bf16"))),
            device=device,
            batch=batch,
            threads=threads,
        )
        chosen = Backend(kind=which_backend(backend, address), address=address, workers=workers)
        summary = generate_pictures(config, progress, chosen, wait)
        if as_json:
            print_json(asdict(summary))
        else:
            print(summary.text())


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An original checkpoint, model.ckpt.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the model, as safetensors in diffusers' layout.")],
    config: Annotated[
        str, typer.Option("--config", help="A model's name, or a JSON file with its widths.")
    ] = "rdm-768",
    as_json: Json = False,
) -> None:
    """Turn an original checkpoint into a folder that loads fast, without running what is pickled in it."""
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
    """The models that can be asked for by name, or all about one."""
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
            columns = ("name", "encoder", "neighbours", "size", "where")
            print_table(columns, [tuple(getattr(row, column) for column in columns) for row in rows])
