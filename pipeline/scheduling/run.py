"""Run a job file's command on this machine, in a separate process, with the job's timeout, retries, overlap policy and report.

Reads: a job and the environment. Writes in the home: `jobs/<job>/lease` (allows one run at a time), `jobs/<job>/stop` (the
newer run that replaces the current one), and `jobs/<job>/runs/<slot>.json` and `.html` (the summary). The values of secrets
are removed from everything that is written or printed (see secrets.py). This module does not promise exactly one run per slot.
A second run of a slot does no harm, because publishing is compare-and-swap and generated pictures are stored by key.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.errors import BusyError, ConfigError, RdmpipeError
from pipeline.execution import Ended, run_process
from pipeline.scheduling.environment import command_arguments, command_environment, hidden_values, webhook_address
from pipeline.scheduling.jobfile import SLOT, LoadedJob, parse_duration
from pipeline.scheduling.secrets import scrub, scrub_value
from pipeline.scheduling.values import mapping, parsed
from pipeline.scheduling.webhook import check_webhook, post_json
from pipeline.storage import Storage, lease

ENTRY = (sys.executable, "-m", "pipeline.cli")

TAIL_LINES = 40

TIMED_OUT, REPLACED = 124, 143

NOT_AGAIN = (2, 126, 127, 130)  # exit codes that are not retried: bad configuration, no program, interrupted

Status = Literal["succeeded", "failed", "timeout", "replaced", "busy", "done before"]


@dataclass(frozen=True)
class Attempt:
    """One attempt to run the command.

    started: UTC time in ISO format. error: the last lines of its standard error if it failed, otherwise empty.
    """

    started: str
    seconds: float
    exit_code: int
    error: str = ""


@dataclass(frozen=True)
class JobSummary:
    """The summary of a run. `result`: the JSON object that the command printed as its last line; empty if it printed none."""

    job: str
    slot: str
    run: str
    status: Status
    exit_code: int
    command: tuple[str, ...]
    started: str
    ended: str
    host: str
    home: str
    attempts: tuple[Attempt, ...] = ()
    result: dict[str, object] = field(default_factory=dict)
    webhook: str = ""  # `sent`, or the reason why not; empty if the job names no webhook

    def text(self) -> str:
        """One line to print."""
        tries = f" in {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
        return f"job {self.job}, slot {self.slot}: {self.status}{tries}, exit code {self.exit_code}"


def run_job(
    loaded: LoadedJob,
    slot: str = "",
    scheduled: bool = False,
    entry: Sequence[str] = ENTRY,
    notify: Callable[[str], None] = lambda text: None,
) -> JobSummary:
    """Run the job's command, with its retries, until it ends. Returns the summary, also for a run that failed.

    slot: the run's name; empty means the schedule's latest slot if `scheduled`, otherwise the current time.
    scheduled: do not run a slot again that has already succeeded.
    entry: the program that gets the command and its arguments.
    Raises ConfigError before any work, for a bad slot, secret, requirement or webhook.
    """
    job = loaded.job
    if slot and not SLOT.match(slot):
        raise ConfigError(f"--slot {slot!r}: use at most 16 lower-case letters, digits and -")
    now = datetime.datetime.now(datetime.UTC)
    slot = slot or (job.slot(now) if scheduled else now.strftime("%Y%m%dt%H%M%Sz"))
    env = command_environment(loaded)
    hook = check_webhook(webhook_address(job, env))
    storage = Storage(job.home).child(f"jobs/{job.name}")
    run = uuid.uuid4().hex[:12]
    begun = JobSummary(
        job=job.name,
        slot=slot,
        run=run,
        status="failed",
        exit_code=1,
        command=(job.command, *job.arguments),
        started=_utc(now),
        ended="",
        host=socket.gethostname(),
        home=job.home,
    )
    if scheduled and _status_of(storage, slot) == "succeeded":
        notify(f"job {job.name}: slot {slot} has already succeeded; nothing to do")
        return replace(begun, status="done before", exit_code=0, ended=_utc())
    deadline = time.monotonic() + job.timeout_s
    if job.overlap == "replace":
        storage.write_text("stop", run)  # the current run reads this and stops
    wait_s = {"forbid": 0.0, "wait": job.timeout_s, "replace": 300.0}[job.overlap]
    try:
        with lease(storage, f"job {job.name}, slot {slot}, run {run}", wait_s, notify=notify, believe=False):
            made = _run_under_lease(loaded, begun, storage, env, entry, deadline, notify)
            made = _reported(made, loaded, storage, hook, hidden_values(job, env), notify)
    except BusyError as error:
        notify(f"job {job.name}: did not start: {error}")
        return replace(begun, status="busy", exit_code=BusyError.exit_code, ended=_utc())
    return made


def _run_under_lease(
    loaded: LoadedJob,
    begun: JobSummary,
    storage: Storage,
    env: dict[str, str],
    entry: Sequence[str],
    deadline: float,
    notify: Callable[[str], None],
) -> JobSummary:
    """Run the command until it succeeds, its retries are used up, its time is over, or a newer run replaces it."""
    job = loaded.job
    status: Status = "failed"
    attempts: list[Attempt] = []
    result: dict[str, object] = {}
    hidden = hidden_values(job, env)
    command = [*entry, job.command, *command_arguments(job, env)]
    stop_asked = _stop_reader(storage, begun.run) if job.overlap == "replace" else lambda: False
    code = 1
    for number in range(1, job.retries + 2):
        started, began = _utc(), time.monotonic()
        notify(f"job {job.name}, slot {begun.slot}: attempt {number}: rdmpipe {' '.join(begun.command)}")
        tail: list[str] = []

        def heard(line: str, tail: list[str] = tail) -> None:
            line = scrub(line, hidden)
            tail.append(line)
            del tail[:-TAIL_LINES]
            print(line, file=sys.stderr, flush=True)

        ended = run_process(command, env, loaded.working_dir, deadline, stop_asked, heard)
        code = {Ended.TIMEOUT: TIMED_OUT, Ended.STOPPED: REPLACED}.get(ended.how, ended.code)
        found = mapping(parsed(ended.last_line))
        result = {scrub(str(key), hidden): scrub_value(item, hidden) for key, item in found.items()}
        error = "" if code == 0 else "\n".join(tail)
        attempts.append(Attempt(started, round(time.monotonic() - began, 3), code, error))
        if ended.how == Ended.TIMEOUT:
            status = "timeout"
        elif ended.how == Ended.STOPPED:
            status = "replaced"
        else:
            status = "succeeded" if code == 0 else "failed"
        if status != "failed" or code in NOT_AGAIN or number > job.retries:
            break
        pause = min(parse_duration(job.retry_wait, "retry_wait", zero=True) * 2 ** (number - 1), 3600.0)
        if time.monotonic() + pause >= deadline:
            break
        notify(
            f"job {job.name}: attempt {number} ended with exit code {code}; the next attempt starts in {pause:.0f} s"
        )
        time.sleep(pause)
    return replace(
        begun,
        status=status,
        exit_code=code,
        ended=_utc(),
        attempts=tuple(attempts),
        result=result,
    )


def _reported(
    made: JobSummary,
    loaded: LoadedJob,
    storage: Storage,
    hook: str,
    hidden: Mapping[str, str],
    notify: Callable[[str], None],
) -> JobSummary:
    """Send and write the summary as the job asks. A report that fails does not change the run's status."""
    from pipeline.scheduling.report import run_report
    from pipeline.scheduling.traces import read_traces

    if hook:
        said = post_json(hook, {**asdict(made), "text": made.text()})
        made = replace(made, webhook=scrub(said, hidden))
    # A lone surrogate, which a command may print, has no encoding: it is written as the JSON escape that it is.
    text = (json.dumps(asdict(made), ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace").decode()
    try:
        storage.write_text(f"runs/{made.slot}.json", text)
        started = datetime.datetime.fromisoformat(made.started).timestamp()
        left = read_traces(made.home, made.result, made.command, hidden, started)
        storage.write_text(f"runs/{made.slot}.html", run_report(asdict(made), left))
        if loaded.job.report.summary:
            path = loaded.folder / Path(loaded.job.report.summary).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, RdmpipeError) as error:
        notify(f"job {made.job}: the summary could not be written: {scrub(str(error), hidden)}")
    return made


def _stop_reader(storage: Storage, run: str) -> Callable[[], bool]:
    """A function: did a newer run ask this run to stop? It reads the home at most once in 1 s, or 10 s if remote."""
    every, last = (1.0 if storage.is_local else 10.0), [0.0]

    def asked() -> bool:
        if time.monotonic() - last[0] < every:
            return False
        last[0] = time.monotonic()
        with contextlib.suppress(OSError):  # the store does not answer: read again at the next call
            return storage.read_text("stop") not in (None, run)
        return False

    return asked


def _status_of(storage: Storage, slot: str) -> str:
    return str(mapping(parsed(storage.read_text(f"runs/{slot}.json"))).get("status", ""))


def _utc(now: datetime.datetime | None = None) -> str:
    return (now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")
