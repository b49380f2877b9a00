"""`rdmpipe import`, `export`, `purge`, `rename`, `delete` and `failures`: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Home, Json, Wait, Where, command, print_json, print_table, reported_errors

UNMATCHED = 3  # exit code of a purge whose list has entries that match no row


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    panel = "Change and exchange databases"
    app.command(
        "import", rich_help_panel=panel, epilog="Example: rdmpipe import laion ./embeddings --encoder vit-l-14"
    )(import_command)
    app.command("export", rich_help_panel=panel, epilog="Example: rdmpipe export wikiart ./out --to npz")(export)
    app.command("purge", rich_help_panel=panel, epilog="Example: rdmpipe purge wikiart --url-list urls.txt --dry-run")(
        purge_command
    )
    app.command("rename", rich_help_panel=panel, epilog="Example: rdmpipe rename wikiart paintings")(rename)
    app.command("delete", rich_help_panel=panel, epilog="Example: rdmpipe delete old_pictures --yes")(delete)
    app.command("failures", rich_help_panel=panel, epilog="Example: rdmpipe failures my_pictures --copy-to ./bad")(
        failures
    )


def import_command(
    name: Annotated[str, typer.Argument(help="Name of the new database.")],
    path: Annotated[Path, typer.Argument(help="A .npz file, a folder of them, or a clip-retrieval folder.")],
    encoder: Annotated[str, typer.Option("--encoder", metavar="NAME", help="The encoder that made the embeddings.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a searchable database from published embeddings, without pictures."""
    with reported_errors():
        from pipeline.exchange import import_embeddings, left_out

        version = import_embeddings(name, path, encoder, home)
        others = left_out(path)
    recall = {kind: version.index.recall[kind] for kind in ("text", "image")}
    if as_json:
        print_json({"name": name, "version": version.id, **version.counts, "left_out": others, "recall": recall})
    else:
        counts = version.counts
        print(f"{name}: {counts['input']:,} rows in = {counts['ok']:,} ok + 0 filtered + {counts['failed']:,} failed")
        if others:
            print(f"  not read: {', '.join(f'{count:,} x {kind}' for kind, count in others.items())}")
        print(f"index {version.index.key}; text recall: {recall['text']}; version {version.id}")


def export(
    name: Annotated[str, typer.Argument(help="A database, a view, or either with @version.")],
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="npz, clip-retrieval, datasets, imagefolder, lance or fiftyone.")
    ] = "npz",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a database in a form that other tools read: embeddings, or pictures with metadata and embeddings."""
    with reported_errors():
        from pipeline.catalog import resolve_database
        from pipeline.exchange import PICTURE_FORMS, export_embeddings, export_pictures

        chosen = resolve_database(name, home)
        write = export_pictures if to in PICTURE_FORMS else export_embeddings
        files = write(chosen.database, chosen.version, to, out, chosen.where)
    if as_json:
        print_json([str(path) for path in files])
    else:
        for path in files:
            print(path)


def purge_command(
    name: Annotated[str, typer.Argument(help="A database, or a view of one.")],
    hash_list: Annotated[
        Path | None, typer.Option("--hash-list", metavar="FILE", help="File of sha256 sums, one on each line.")
    ] = None,
    url_list: Annotated[
        Path | None, typer.Option("--url-list", metavar="FILE", help="File of picture addresses, one on each line.")
    ] = None,
    where: Where = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be removed; change nothing.")] = False,
    wait: Wait = 0.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove rows permanently from all versions and keep them out. Without a list: finish an interrupted purge.

    Entries of a list that match no row are listed, and the exit code is then 3.
    """
    with command() as progress:
        from pipeline.maintenance import PurgeRequest, purge

        done = purge(PurgeRequest(name, hash_list, url_list, where, dry_run, home, wait), progress.say)
    if as_json:
        print_json(asdict(done))
    else:
        for note in done.notes:
            print(f"note: {note}")
        print(done.text(dry_run))
    if done.unmatched:
        raise typer.Exit(UNMATCHED)


def rename(
    old: Annotated[str, typer.Argument(help="A database.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    wait: Wait = 0.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give a database another name. Keys, versions and vectors stay; searches and views still find it by its old name."""
    with command():
        from pipeline.maintenance import rename_database

        done = rename_database(old, new, home, wait)
    if as_json:
        print_json(asdict(done))
    else:
        print(done.text())


def delete(
    name: Annotated[str, typer.Argument(help="A database; a view holds no rows of its own.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Wait = 0.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove a database with all its versions. Runs that used it are kept."""
    with command():
        from pipeline.maintenance import delete_database, plan_deletion

        planned = plan_deletion(name, home)
        if not yes:
            print(planned.text())
            typer.confirm("Delete it permanently?", abort=True)
        done = delete_database(name, home, wait)
    if as_json:
        print_json(asdict(done))
    else:
        print(f"deleted {done.name}")


def failures(
    name: Annotated[str, typer.Argument(help="A database, published or not.")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the list to this CSV file.")
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="DIR", help="Copy the bad files into this new folder.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the rows that failed: file or address, reason and detail."""
    with reported_errors():
        from pipeline.catalog import base_of, failed_rows
        from pipeline.database import RetrievalDatabase
        from pipeline.maintenance import copy_failed, write_csv

        database = RetrievalDatabase(base_of(name.partition("@")[0], home), home)
        rows = list(failed_rows(database))
        if csv_file is not None:
            write_csv(rows, csv_file)
        copied = copy_failed(database, rows, copy_to) if copy_to is not None else 0
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ("key", "file or address", "reason", "detail"),
        [(row.key, row.url or row.item, row.reason, row.detail) for row in rows],
        right=(0,),
    )
    if copy_to is not None:
        print(f"{copied:,} of {len(rows):,} files copied to {copy_to}; failures.csv there lists all of them")
