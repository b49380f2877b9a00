"""`rdmpipe run`, `submit`, `jobs`, `logs`, `stop` and `render`: parse, call, print."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Home, Json, print_json, print_table, reported_errors
from pipeline.errors import BusyError, ConfigError, nearest

if TYPE_CHECKING:
    from pipeline.scheduling import JobsClient, LoadedJob, Submission

JobFileArgument = Annotated[str, typer.Argument(help="A job file (.toml), or the name of a shipped one.")]

JobId = Annotated[str, typer.Argument(help="Name of a submitted job, as `rdmpipe jobs` shows it.")]

Dashboard = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Dashboard of the Ray cluster, such as http://head:8265.",
    ),
]

Slot = Annotated[
    str, typer.Option("--slot", metavar="NAME", help="Name of the scheduled run (default: the schedule's latest).")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, function, example in (
        ("run", run, "rdmpipe run nightly-wikiart"),
        ("submit", submit, "rdmpipe submit nightly.toml --address http://head:8265 --follow"),
        ("jobs", jobs, "rdmpipe jobs --address http://head:8265"),
        ("logs", logs, "rdmpipe logs nightly-20261122t0115z-1 --follow"),
        ("stop", stop, "rdmpipe stop nightly-20261122t0115z-1"),
        ("render", render_command, "rdmpipe render nightly.toml --target systemd"),
    ):
        app.command(name, epilog=f"Example: {example}", rich_help_panel="Jobs and schedules")(function)
    app.command("follow-rayjob", hidden=True)(follow_rayjob)


def run(
    context: typer.Context,
    job: JobFileArgument,
    slot: Slot = "",
    scheduled: Annotated[
        bool,
        typer.Option("--scheduled", help="For schedulers: use the schedule's slot, and skip a slot that succeeded."),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a job file here, with its timeout, retries, overlap policy and report. Exits with the command's exit code."""
    with reported_errors():
        from pipeline.scheduling import run_job

        loaded = _load(context, job, home)
        made = run_job(loaded, slot, scheduled, notify=_say)
        if as_json:
            print_json(asdict(made))
        else:
            print(made.text())
        if made.status not in ("busy", "done before"):
            _say(f"summary: {made.home}/jobs/{made.job}/runs/{made.slot}.html")
    raise typer.Exit(made.exit_code)


def submit(
    context: typer.Context,
    job: JobFileArgument,
    address: Dashboard = "",
    slot: Slot = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the job to end and exit with its exit code.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the job's log as it grows, and wait for its end.")
    ] = False,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Submit even if the versions of Ray or Python differ.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Submit a job file to a Ray cluster. If an attempt for its slot is running, join it."""
    with reported_errors():
        from pipeline.scheduling import JobsClient, as_record

        loaded = _load(context, job, home)
        client = JobsClient(address, any_version)
        found = client.submit(loaded, slot)
        _say(f"job {found.id}: {'submitted' if found.new else 'is running already; joined it'}")
        if wait or follow:
            found = _attend(client, found.id, follow)
        else:
            _say(f"follow it with: rdmpipe logs {found.id} --follow --address {client.address}")
        if as_json:
            print_json(as_record(found))
        else:
            print(f"{found.id}\t{found.status}")
    raise typer.Exit(found.code if found.is_over else 0)


def jobs(address: Dashboard = "", as_json: Json = False) -> None:
    """List the jobs of a cluster, oldest first."""
    with reported_errors():
        from pipeline.scheduling import JobsClient, as_record

        found = JobsClient(address, any_version=True).submissions()
        if as_json:
            print_json([as_record(job) for job in found])
        else:
            rows = [(job.id, job.status, job.exit_code, job.started, job.ended, job.message) for job in found]
            print_table(("job", "status", "exit code", "started", "ended", "message"), rows, right=(2,))


def logs(
    job: JobId,
    address: Dashboard = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the log as it grows, and exit with the job's exit code.")
    ] = False,
) -> None:
    """Print a submitted job's log."""
    code = 0
    with reported_errors():
        from pipeline.scheduling import JobsClient

        client = JobsClient(address, any_version=True)
        if follow:
            code = _attend(client, job, True).code
        else:
            print(client.logs(job), end="")
    raise typer.Exit(code)


def stop(job: JobId, address: Dashboard = "", as_json: Json = False) -> None:
    """Stop a submitted job. Finished work is kept."""
    with reported_errors():
        from pipeline.scheduling import JobsClient, as_record

        found = JobsClient(address, any_version=True).stop(job)
        if as_json:
            print_json(as_record(found))
        else:
            print(f"{found.id}\t{found.status}")


def render_command(
    context: typer.Context,
    job: JobFileArgument,
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="cronjob, rayjob, raycronjob, crontab or systemd.")
    ] = "cronjob",
    home: Home = None,
) -> None:
    """Print a job file as a schedule: for Kubernetes, cron or systemd."""
    with reported_errors():
        from pipeline.scheduling import render

        print(render(_load(context, job, home), target), end="")


def follow_rayjob(
    manifest: Annotated[Path, typer.Argument(help="A RayJob as JSON, without its name's slot.")],
    slot: Slot = "",
    job: Annotated[str, typer.Option("--job", metavar="FILE", help="Job file whose schedule gives the slot.")] = "",
) -> None:
    """Create a RayJob from inside a Kubernetes pod and wait for its end; follow it if one of that name exists."""
    with reported_errors():
        from pipeline.scheduling import create_and_wait

        code = create_and_wait(manifest, slot, job, _say)
    raise typer.Exit(code)


def _load(context: typer.Context, job: str, home: str | None) -> LoadedJob:
    """The job. Raises ConfigError if its command does not exist, before anything is sent or written."""
    from pipeline.scheduling import load_job, with_home

    loaded = with_home(load_job(job), home)
    program = context.find_root()
    known = program.command.list_commands(program)  # type: ignore[attr-defined]  # the program is a group
    if loaded.job.command not in known:
        hint = nearest(loaded.job.command, known)
        raise ConfigError(
            f"job {loaded.job.name}: {loaded.job.command!r} is not an rdmpipe command{hint}; see `rdmpipe --help`"
        )
    return loaded


def _attend(client: JobsClient, name: str, follow: bool) -> Submission:
    """Wait for a job to end. After Ctrl-C the job keeps running."""
    try:
        found = client.follow(name, _echo) if follow else client.wait(name)
    except KeyboardInterrupt:
        _say(
            f"\njob {name} keeps running. Follow it again with: rdmpipe logs {name} --follow --address {client.address}\n"
            f"stop it with: rdmpipe stop {name} --address {client.address}"
        )
        raise typer.Exit(130) from None
    _say(f"job {name}: {found.status}{f', exit code {found.code}' if found.code else ''}")
    if found.code == BusyError.exit_code:
        _say("exit code 75: another run holds the job or its database, so this run did nothing")
    return found


def _echo(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
