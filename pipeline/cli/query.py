"""Read-only commands and `gc`: `rdmpipe search`, `status`, `list`, `manifests`, `encoders`, `versions` and `gc`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Device, Home, Json, PlainCells, Where, command, print_json, print_table, whole


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, function, panel, example in (
        ("search", search, "Search and look", "rdmpipe search wikiart 'a harbour at dawn' -k 5 --sheet sheet.png"),
        ("show", show, "Search and look", "rdmpipe show wikiart 41007 --out picture.jpg"),
        ("status", status, "Search and look", "rdmpipe status wikiart"),
        ("list", list_command, "Search and look", "rdmpipe list"),
        ("manifests", manifests, "Search and look", "rdmpipe manifests wikiart"),
        ("encoders", encoders, "Search and look", "rdmpipe encoders"),
        ("versions", versions, "Change and exchange databases", "rdmpipe versions wikiart"),
        ("gc", gc, "Change and exchange databases", "rdmpipe gc wikiart --keep 2"),
        ("check", check, "Change and exchange databases", "rdmpipe check wikiart --repair"),
    ):
        app.command(name, epilog=f"Example: {example}", rich_help_panel=panel)(function)


def search(
    database: Annotated[str, typer.Argument(help="A database, a view, or either with @version.")],
    query: Annotated[str, typer.Argument(help="What to search for, in words; or a picture file.")] = "",
    image: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="Search by this picture file.")] = None,
    key: Annotated[
        int | None,
        typer.Option(
            "--key", metavar="KEY", parser=whole(0), help="Search by the picture of this row of the database."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", parser=whole(1), help="How many results.")] = 10,
    where: Where = "",
    no_duplicates: Annotated[bool, typer.Option("--no-duplicates", help="Leave out exact duplicates.")] = False,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", metavar="NAME", help="Search the vectors of this encoder (default: the database's own)."
        ),
    ] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan and the times to standard error.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE", help="Write a contact sheet of the results, as PNG.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the results to this .parquet, .csv or .html file."),
    ] = None,
    device: Device = "auto",
    plain_cells: PlainCells = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Find the pictures nearest to a text, a picture or a row, among the rows that match a filter."""
    with command():
        from pipeline.machine import arrow_without_pandas
        from pipeline.retrieval import QueryRequest, run_query

        arrow_without_pandas()
        if _is_picture_file(query):
            query, image = "", Path(query).expanduser() if image is None else image
        request = QueryRequest(database, query, image, key, k, where, no_duplicates, device, home, sheet, out, encoder)
        found = run_query(request)
        if explain:
            typer.echo(found.explanation(), err=True)
        for warning in found.warnings:
            typer.echo(f"note: {warning}", err=True)
        if sheet is not None and (note := found.write_sheet(sheet)):
            typer.echo(f"note: {note}", err=True)
        if out is not None:
            found.write(out, query or str(image or f"more like row {key}"))
        if as_json:
            print_json(found.records())
        else:
            print_table(*found.table(), right=(0, 1), plain_cells=plain_cells)


def _is_picture_file(query: str) -> bool:
    """Whether a query names a picture file, which must not be searched for as words. Raises ConfigError if that file is
    missing."""
    from pipeline.errors import ConfigError
    from pipeline.sources import is_picture

    if not is_picture(query) or "\n" in query:
        return False
    try:
        is_there = Path(query).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # the text cannot be a path
        return False
    if not is_there and " " not in query.strip():
        raise ConfigError(f"{query}: no such file; give the path of a picture, or words that are not the name of one")
    return is_there


def show(
    database: Annotated[str, typer.Argument(help="A database, a view, or either with @version.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="The row's key, as search prints it.")],
    k: Annotated[int, typer.Option("-k", metavar="N", parser=whole(1), help="How many neighbours.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the stored picture to this file.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one row: its metadata, its source, and the rows nearest to it."""
    with command():
        from pipeline.errors import ConfigError, DatabaseError
        from pipeline.retrieval import show_row

        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise ConfigError(
                f"{key[:40]!r} is not a row's key: a key is a whole number, as `rdmpipe search` prints it"
            )
        shown = show_row(database, int(key), k, home)
        if out is not None:
            if shown.picture is None:
                raise DatabaseError(f"row {key} of {database} has no stored picture: it was built with --images drop")
            out.write_bytes(shown.picture)
        if as_json:
            print_json(shown.record())
            return
        for name, value in shown.metadata.items():
            print(f"{name}: {value}")
        print(
            "picture: "
            + (f"written to {out}" if out else "stored; --out FILE writes it" if shown.picture else "not kept")
        )
        print("\nnearest to it:")
        near = shown.neighbours.to_pylist()
        rows = [
            (row["key"], f"{row['score']:.4f}", row.get("title") or row["caption"] or row["item_id"]) for row in near
        ]
        print_table(("key", "score", "what"), rows, right=(0, 1))


def status(
    name: Annotated[
        str, typer.Argument(help="A database, a view, a generation run or a job (default: everything).")
    ] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what is built, what is running and what failed."""
    with command():
        from pipeline.catalog import home_status, status_of

        states = [status_of(name, home)] if name else home_status(home)
        if as_json:
            print_json([state.record() for state in states])
        else:
            for state in states:
                print(state.text())
            if not states:
                print("no databases yet; build one with `rdmpipe build-index NAME`")


def list_command(home: Home = None, as_json: Json = False) -> None:
    """List the databases in the home with their versions and views."""
    with command():
        from dataclasses import replace

        from pipeline.catalog import listing
        from pipeline.retrieval import count_rows

        rows = [replace(row, rows=count_rows(row.name, home)) if row.base else row for row in listing(home)]
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            print_table(
                ("name", "rows", "encoder", "version", "belongs to"),
                [(row.name, row.rows, row.encoder, row.version, row.belongs_to) for row in rows],
                right=(1,),
            )


def manifests(
    name: Annotated[str, typer.Argument(help="Show this manifest in full.")] = "",
    check: Annotated[Path | None, typer.Option("--check", metavar="FILE", help="Check a manifest file.")] = None,
    add: Annotated[
        Path | None, typer.Option("--add", metavar="FILE", help="Check a manifest file and copy it into the home.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the data sets and views that have a name; show, check or add a manifest."""
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
    """List the encoders that have a short name, and the other forms of a name."""
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
    """List the published versions of a database, newest first. `--db NAME@VERSION` pins one."""
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
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", parser=whole(1), help="Versions to keep, including the current one.")
    ] = 3,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove old versions, and the files that no other version needs."""
    with command() as progress:
        from pipeline.catalog import base_of, companions
        from pipeline.database import RetrievalDatabase
        from pipeline.maintenance import collect

        database = RetrievalDatabase(base_of(name, home), home)
        done = collect(database, keep, progress.say)
        for one in companions(database.name, home):
            typer.echo(f"note: {one.database.name} has versions of its own: `rdmpipe gc {one.database.name}`", err=True)
        if as_json:
            print_json(asdict(done))
        else:
            freed = f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB"
            print(f"removed {len(done.removed)} version(s): {freed}; kept {len(done.kept)}")


def check(
    name: Annotated[str, typer.Argument(help="A database, or a view of one.")],
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what can be rebuilt.")] = False,
    device: Device = "auto",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare every file of a database with its checksum and counts. The exit code is 1 if a damaged file remains."""
    with command() as progress:
        from pipeline.catalog import base_of
        from pipeline.database import RetrievalDatabase
        from pipeline.maintenance import check_database, repair_database

        db = RetrievalDatabase(base_of(name, home), home)
        found = repair_database(db, progress, device) if repair else check_database(db, progress.say)
        if as_json:
            print_json(asdict(found))
        else:
            print(found.text())
        if found.damages:
            raise typer.Exit(1)
