"""The commands about embeddings that come from elsewhere or go there: import and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import Home, Json, print_json, reported_errors


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("import")(import_command)
    app.command("export")(export)


def import_command(
    name: Annotated[str, typer.Argument(help="Call the database this.")],
    path: Annotated[Path, typer.Argument(help="A .npz file, a folder of them, or a clip-retrieval folder.")],
    encoder: Annotated[str, typer.Option("--encoder", help="The encoder that made the embeddings.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a searchable database of published embeddings, without pictures."""
    with reported_errors():
        from pipeline.embeddings_import import import_embeddings

        version = import_embeddings(name, path, encoder, home)
    recall = {kind: version.index.recall[kind] for kind in ("text", "image")}
    if as_json:
        print_json({"name": name, "version": version.id, **version.counts, "recall": recall})
    else:
        counts = version.counts
        print(f"{name}: {counts['input']:,} rows in = {counts['ok']:,} ok + 0 filtered + {counts['failed']:,} failed")
        print(f"index {version.index.key}; text recall: {recall['text']}; version {version.id}")


def export(
    name: Annotated[str, typer.Argument(help="A database, or NAME@VERSION.")],
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[str, typer.Option("--to", help="npz or clip-retrieval.")] = "npz",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a database's embeddings as others read them."""
    with reported_errors():
        from pipeline.database import RetrievalDatabase
        from pipeline.embeddings_export import export_embeddings

        bare, _, wanted = name.partition("@")
        database = RetrievalDatabase(bare, home)
        files = export_embeddings(database, database.version(wanted), to, out)
    if as_json:
        print_json([str(path) for path in files])
    else:
        for path in files:
            print(path)
