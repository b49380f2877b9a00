"""`rdmpipe doctor`: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli.options import Home, Json, command, print_json


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", rich_help_panel="Search and look", epilog="Example: rdmpipe doctor --verify")(doctor)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not load the shipped encoder and model.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Also compare downloaded data sets and weights with their published sums and counts, and draw a picture with "
            "rdm-768 if it is here. Reads all of them: minutes.",
        ),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check what can be used and reached here, and print the command that adds what is missing. Exit code 1 for a problem."""
    with command():
        from itertools import chain

        from pipeline.config import default_home
        from pipeline.doctor import examine
        from pipeline.doctor import verify as verify_downloads

        findings = []
        more = verify_downloads(home or default_home()) if verify else ()
        for finding in chain(examine(home, load=not quick), more):
            findings.append(finding)
            if not as_json:
                print(f"{finding.state:8} {finding.area}: {finding.found}", flush=True)
                if finding.fix:
                    print(f"{'':8} -> {finding.fix}", flush=True)
        if as_json:
            print_json([asdict(finding) for finding in findings])
        if any(finding.state == "problem" for finding in findings):
            raise typer.Exit(1)
