"""Looking at databases: `rdmpipe search`, `status`, `list`, `manifests`, `encoders`, `versions` and `gc`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Device, Home, Json, Where, command, print_json, print_table


def register(app: typer.Typer) -> None:
    for function in (search, status, manifests, encoders, versions, gc):
        app.command()(function)
    app.command("list")(list_command)


def search(
    database: Annotated[str, typer.Argument(help="A database, a view, or either with @version.")],
    query: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    image: Annotated[Path | None, typer.Option("--image", help="Look for pictures like this file.")] = None,
    key: Annotated[
        int | None, typer.Option("--key", min=0, max=2**63 - 1, help="Look for pictures like this row of the database.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    where: Where = "",
    no_duplicates: Annotated[bool, typer.Option("--no-duplicates", help="Leave exact duplicates out.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan and the times to standard error.")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet of the results, as PNG.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the results to a .parquet file.")] = None,
    device: Device = "auto",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Find the pictures nearest to a text, an image or a row, among those a filter lets through."""
    with command():
        from pipeline.retrieval import QueryRequest, run_query

        request = QueryRequest(database, query, image, key, k, where, no_duplicates, device, home, sheet, out)
        found = run_query(request)
        if explain:
            typer.echo(found.explanation(), err=True)
        for warning in found.warnings:
            typer.echo(f"note: {warning}", err=True)
        if sheet is not None:
            found.write_sheet(sheet)
        if out is not None:
            found.write_parquet(out)
        if as_json:
            print_json(found.records())
        else:
            print_table(*found.table(), right=(0, 1))


def status(
    name: Annotated[
        str, typer.Argument(help="A database, a view, a generation's run or a job; empty: all there is.")
    ] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What is built, what is running, what failed."""
    with command():
        from pipeline.catalog import home_status, status_of

        states = [status_of(name, home)] if name else home_status(home)
        if as_json:
            print_json([asdict(state) for state in states])
        else:
            for state in states:
                print(state.text())
            if not states:
                print("nothing here yet; build one with `rdmpipe build-index NAME`")


def list_command(home: Home = None, as_json: Json = False) -> None:
    """The databases in the home, with their versions, and the views on them."""
    with command():
        from pipeline.catalog import listing

        rows = listing(home)
        if as_json:
            print_json(rows)
        else:
            print_table(
                ("name", "rows", "encoder", "version", "view of"),
                [(row["name"], row["rows"], row["encoder"], row["version"], row["base"]) for row in rows],
                right=(1,),
            )


def manifests(
    name: Annotated[str, typer.Argument(help="Show this manifest whole.")] = "",
    check: Annotated[Path | None, typer.Option("--check", help="Check a manifest file.")] = None,
    add: Annotated[Path | None, typer.Option("--add", help="Check a manifest file and copy it into the home.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The data sets and views that are known by name."""
    with command():
        from pipeline.catalog import add_manifest, check_manifest, known_manifests, load_manifest

        if check is not None or add is not None:
            made = check_manifest(Path(check or add or ""), home)
            where = add_manifest(add, home) if add is not None else check
            if as_json:
                print_json({"name": made.name, "file": str(where), "ok": True})
            else:
                print(f"{where}: {made.name} is well formed")
        elif name:
            if as_json:
                print_json(asdict(load_manifest(name, home)))
            else:
                load_manifest(name, home)
                print(known_manifests(home).get(name, Path(name)).read_text(encoding="utf-8"), end="")
        else:
            made_all = [load_manifest(str(path), home) for path in known_manifests(home).values()]
            if as_json:
                print_json([asdict(made) for made in made_all])
            else:
                print_table(
                    ("name", "what"),
                    [
                        (m.name, m.title or f"{getattr(m, 'base', '')} where {getattr(m, 'where', '')}")
                        for m in made_all
                    ],
                )


def encoders(as_json: Json = False) -> None:
    """The encoders that can be asked for by name, and the forms a name can have."""
    with command():
        from pipeline.encoders import describe_encoders

        rows = describe_encoders()
        if as_json:
            print_json(rows)
        else:
            print_table(("name", "what"), [(row["name"], row["what"]) for row in rows])


def versions(
    name: Annotated[str, typer.Argument(help="A database, or a view of one.")], home: Home = None, as_json: Json = False
) -> None:
    """The published versions of a database, newest first; `--db NAME@VERSION` pins one."""
    with command():
        from pipeline.catalog import base_of
        from pipeline.database import RetrievalDatabase
        from pipeline.maintenance import list_versions

        lines = list_versions(RetrievalDatabase(base_of(name, home), home))
        if as_json:
            print_json([asdict(line) for line in lines])
        else:
            rows = [
                (line.version, "current" if line.current else "", line.rows, line.shards, line.index) for line in lines
            ]
            print_table(("version", "", "rows", "shards", "index"), rows, right=(2, 3))


def gc(
    name: Annotated[str, typer.Argument(help="A database, or a view of one.")],
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions to keep, the current one among them.")] = 3,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove old versions and the files that no other version needs."""
    with command() as progress:
        from pipeline.catalog import base_of
        from pipeline.database import RetrievalDatabase
        from pipeline.maintenance import collect

        done = collect(RetrievalDatabase(base_of(name, home), home), keep, progress.say)
        if as_json:
            print_json(asdict(done))
        else:
            freed = f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB"
            print(f"removed {len(done.removed)} version(s): {freed}; kept {len(done.kept)}")
