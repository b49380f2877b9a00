"""`rdmpipe browse`: parse, serve, print the address."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipeline.cli.options import OUTPUT, Device, Home, Threads, command, print_json, whole

SHARING = "Who may use it"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("browse", rich_help_panel="Search and look", epilog="Example: rdmpipe browse wikiart --open")(browse)


def browse(
    database: Annotated[str, typer.Argument(help="A database or view to show first (default: the first one).")] = "",
    port: Annotated[int, typer.Option("--port", metavar="N", parser=whole(1), help="Port to listen on.")] = 8420,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    allow_generate: Annotated[
        bool, typer.Option("--allow-generate", help="Let the page draw pictures and keep favourites.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. If it is not a loopback address, every request needs the token.",
            rich_help_panel=SHARING,
        ),
    ] = "127.0.0.1",
    token: Annotated[
        str,
        typer.Option(
            "--token",
            metavar="TEXT",
            help="The token, at least 16 characters (env: RDMPIPE_TOKEN; default: a random one).",
            rich_help_panel=SHARING,
        ),
    ] = "",
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="URL",
            help="A site whose scripts may use the API, such as https://example.org; may be repeated.",
            rich_help_panel=SHARING,
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    home: Home = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address as one JSON document.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Browse databases in the web browser: search as you type, filter, compare, and see how they were built."""
    with command():
        from pipeline.installation import require

        require("serve", "`rdmpipe browse`")
        from pipeline.serving import ServeOptions, serve

        def started(address: str) -> None:
            if as_json:
                print_json({"address": address})
            else:
                print(f"Look at {address} (Ctrl-C ends)", flush=True)
            if open_page:
                import webbrowser

                webbrowser.open(address)

        serve(
            ServeOptions(
                database=database,
                home=home,
                host=host,
                port=port,
                token=token or os.environ.get("RDMPIPE_TOKEN", ""),
                allow_generate=allow_generate,
                allow_origins=tuple(allow_origin or ()),
                device=device,
                threads=threads,
            ),
            started,
        )
