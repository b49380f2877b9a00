"""`rdmpipe evaluate`: parse, read the protocol, call, print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    MACHINE,
    Address,
    BackendOption,
    Device,
    Home,
    Json,
    LogFormatOption,
    Wait,
    Workers,
    command,
    print_json,
    which_backend,
    whole,
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        rich_help_panel="Generate and evaluate", epilog="Example: rdmpipe evaluate jobs/evaluate-mini.toml --plan"
    )(evaluate)


def evaluate(
    job: Annotated[
        Path | None, typer.Argument(help="The protocol, such as jobs/evaluate-mini.toml (default: the built-in one).")
    ] = None,
    db: Annotated[
        str, typer.Option("--db", metavar="NAME", help="The labelled database (default: the protocol's).")
    ] = "",
    styles: Annotated[str, typer.Option("--styles", metavar="LIST", help="all, or styles separated by commas.")] = "",
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="FILE", help="A prompt list in place of held-out captions.")
    ] = "",
    captions: Annotated[
        str,
        typer.Option(
            "--captions",
            metavar="NAME",
            help="A database with captions for the content judge (default: the labelled one).",
        ),
    ] = "",
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="A model's name or folder.")] = "",
    models: Annotated[
        str, typer.Option("--models", metavar="LIST", help="Models to compare, separated by commas.")
    ] = "",
    out: Annotated[
        str, typer.Option("--out", metavar="FOLDER", help="Folder of the evaluation (default: in the home).")
    ] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the databases, models and numbers of pictures, and stop.")
    ] = False,
    device: Device = "auto",
    threads: Annotated[
        int,
        typer.Option(
            "--threads", metavar="N", parser=whole(1), help="Torch threads of the judges.", rich_help_panel=MACHINE
        ),
    ] = 1,
    wait: Wait = 0.0,
    backend: BackendOption = "auto",
    address: Address = "",
    workers: Workers = 0,
    home: Home = None,
    log_format: LogFormatOption = "text",
    as_json: Json = False,
) -> None:
    """Measure whether swapping the database swaps the style, with judges that take no part in generation."""
    with command(log_format) as progress:
        from pipeline.evaluation import Compared, EvaluateConfig, compare, read_evaluate_config, summary_text
        from pipeline.evaluation import evaluate as run_evaluation
        from pipeline.execution import Backend

        config = read_evaluate_config(job) if job else EvaluateConfig()
        named = () if styles in ("", "all") else tuple(name.strip() for name in styles.split(",") if name.strip())
        config = replace(
            config,
            database=db or config.database,
            model=model or config.model,
            content_database=captions or config.content_database,
            styles=named if styles else config.styles,
            prompts=replace(config.prompts, file=prompts or config.prompts.file),
        )
        known = {one.model: one for one in config.compare}
        if models:
            names = dict.fromkeys(name.strip() for name in models.split(",") if name.strip())
            config = replace(config, compare=tuple(known.get(name, Compared(name)) for name in names))
        elif model:
            config = replace(config.of(known[model]) if model in known else config, compare=())
        if plan:
            from pipeline.evaluation import forecast

            planned = forecast(config, home)
            print_json(planned.to_json()) if as_json else print(planned.text())
            return
        chosen = Backend(kind=which_backend(backend, address), address=address, workers=workers)
        if config.compare:
            folder, comparison = compare(
                config, progress, chosen, home=home, out=out, device=device, threads=threads, wait_s=wait
            )
            print_json({"out": str(folder), **comparison.to_json()}) if as_json else print(comparison.text(folder))
            return
        folder, summary = run_evaluation(
            config, progress, chosen, home=home, out=out, device=device, threads=threads, wait_s=wait
        )
        if as_json:
            print_json({"out": str(folder), **summary.to_json()})
        else:
            print(summary_text(folder, summary))
