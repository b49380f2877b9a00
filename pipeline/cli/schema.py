"""`rdmpipe schema`: the JSON Schema of a kind of TOML file. Only call and print."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import one_of, print_json, reported_errors

KINDS = ("job", "manifest", "train", "evaluate")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("schema", rich_help_panel="Jobs and schedules", epilog="Example: rdmpipe schema job > job.schema.json")(
        schema
    )


def schema(
    kind: Annotated[str, typer.Argument(help="job, manifest, train or evaluate: which TOML file to describe.")],
) -> None:
    """Print the JSON Schema of a kind of TOML file. Editors use it for a file whose first line is `#:schema PATH`."""
    with reported_errors():
        print_json(toml_schema(one_of("KIND", kind, KINDS)))


def toml_schema(kind: str) -> dict[str, object]:
    """The schema of one of KINDS."""
    from pipeline.config import json_schema

    if kind == "job":
        from pipeline.scheduling import JobFile

        return json_schema(JobFile, given=("name",))  # a job is named after its file
    if kind == "manifest":
        from pipeline.sources import Manifest, View

        return json_schema(Manifest, View)
    if kind == "train":
        from pipeline.training import TrainConfig

        return json_schema(TrainConfig)
    from pipeline.evaluation import EvaluateConfig

    return json_schema(EvaluateConfig)
