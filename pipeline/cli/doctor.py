"""`rdmpipe doctor`: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli.options import Home, Json, command, print_json


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", rich_help_panel="Search and look", epilog="Example: rdmpipe doctor")(doctor)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not load the shipped encoder and model.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check what can be used and reached here, and print the command that adds what is missing. Exit code 1 for a problem."""
    with command():
        from pipeline.doctor import examine

        findings = []
        for finding in examine(home, load=not quick):
            findings.append(finding)
            if not as_json:
                print(f"{finding.state:8} {finding.area}: {finding.found}", flush=True)
                if finding.fix:
                    print(f"{'':8} -> {finding.fix}", flush=True)
        if as_json:
            print_json([asdict(finding) for finding in findings])
        if any(finding.state == "problem" for finding in findings):
            raise typer.Exit(1)
