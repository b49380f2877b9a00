"""`rdmpipe push` and `rdmpipe pull`: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal, cast

import typer

from pipeline.cli.options import Home, Json, LogFormatOption, Wait, command, one_of, print_json
from pipeline.errors import ConfigError, DatabaseError, ModelError

KINDS = ("", "database", "model")

KindOption = Annotated[
    str, typer.Option("--kind", metavar="KIND", help="database or model, if both exist under that name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Change and exchange databases"
    app.command("push", rich_help_panel=panel, epilog="Example: rdmpipe push harbours anna/harbours --public")(push)
    app.command("pull", rich_help_panel=panel, epilog="Example: rdmpipe pull anna/harbours")(pull_command)


def push(
    name: Annotated[str, typer.Argument(help="A database, or a model given by its name or folder.")],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/REPO", help="The repository; it is created if it does not exist.")
    ],
    kind: KindOption = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; else it is private.")] = False,
    despite_licence: Annotated[
        bool,
        typer.Option("--despite-licence", help="Also push rows or a model whose licence is not known to allow it."),
    ] = False,
    wait: Wait = 0.0,
    log_format: LogFormatOption = "text",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Publish a database or a model on the Hugging Face Hub, with a card.

    Refused if the licence of the rows or of the model is not known to allow redistribution. Uses the token of HF_TOKEN or of
    `hf auth login`, and the server of HF_ENDPOINT. Run it again to continue after an interruption.
    """
    with command(log_format) as progress:
        from pipeline.exchange import PushRequest, push_database, push_model

        request = PushRequest(repo, public, despite_licence, wait_s=wait)
        if _which(name, one_of("--kind", kind, KINDS), home) == "database":
            from pipeline.catalog import resolve_database

            done = push_database(resolve_database(name, home), request, progress.say)
        else:
            from pathlib import Path

            from pipeline.generation import outline_model

            row = outline_model(name, home)
            if row.kind != "rdm" or not Path(row.where).is_dir():
                raise ConfigError(f"model {name!r} has no weights of its own to push: {row.where}")
            facts = {"encoder": row.encoder, "neighbours": row.neighbours, "size": row.size}
            done = push_model(row.name, Path(row.where), row.facts.get("licence", ""), facts, request, progress.say)
    if as_json:
        print_json(asdict(done))
    else:
        print(done.text())


def _which(name: str, kind: str, home: str | None) -> str:
    """Whether `name` is a "database" or a "model". Raises ConfigError if it is both, DatabaseError if it is neither."""
    if kind:
        return kind
    from pipeline.catalog import resolve_database
    from pipeline.generation import outline_model
    from pipeline.schema import is_name

    problem: DatabaseError | None = None
    found = []
    try:
        if is_name(name.partition("@")[0]):
            resolve_database(name, home)
            found.append("database")
    except DatabaseError as error:
        problem = error
    try:
        outline_model(name, home)
        found.append("model")
    except ModelError as error:
        problem = problem or DatabaseError(str(error))
    if len(found) > 1:
        raise ConfigError(f"{name!r} is a database and a model; say which with --kind database or --kind model")
    if not found and problem is not None:
        raise problem
    return found[0]


def pull_command(
    repo: Annotated[str, typer.Argument(metavar="OWNER/REPO", help="A repository that `rdmpipe push` wrote.")],
    name: Annotated[str, typer.Argument(help="The name here; else the name that it was pushed under.")] = "",
    kind: KindOption = "",
    revision: Annotated[
        str, typer.Option("--revision", metavar="REVISION", help="A branch, tag or commit; else the newest.")
    ] = "",
    wait: Wait = 0.0,
    log_format: LogFormatOption = "text",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Get a database or a model from the Hugging Face Hub, and compare each file with its checksum.

    Uses the token of HF_TOKEN or of `hf auth login`, and the server of HF_ENDPOINT. Run it again to continue after an
    interruption.
    """
    with command(log_format) as progress:
        from pipeline.exchange import PullRequest, pull
        from pipeline.generation import finish_model

        chosen = cast("Literal['', 'database', 'model']", one_of("--kind", kind, KINDS))
        done = pull(PullRequest(repo, name, chosen, revision, home, wait_s=wait), progress.say, finish_model)
    if as_json:
        print_json(asdict(done))
    else:
        print(done.text())
