"""Run a job file's command here: in a process of its own, with its timeout, retries, overlap policy and report.

Reads: a job, the environment. Writes, in the home: `jobs/<job>/lease` (one run at a time), `jobs/<job>/stop` (a newer run that
replaces this one), `jobs/<job>/runs/<slot>.json` and `.html` (the summary). The values of secrets are removed from everything
that is written or printed (pipeline/scheduling/secrets.py). Does not promise exactly one run per slot; a second run of a slot
does no harm, because publishing is compare-and-swap and pictures are made by key.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import parse_json
from pipeline.errors import BusyError, ConfigError, RdmpipeError
from pipeline.execution import Ended, run_process
from pipeline.scheduling.environment import command_arguments, command_environment, hidden_values, webhook_address
from pipeline.scheduling.jobfile import SLOT, LoadedJob, parse_duration
from pipeline.scheduling.secrets import scrub, scrub_value
from pipeline.scheduling.webhook import check_webhook, post_json
from pipeline.storage import Storage, lease

ENTRY = (sys.executable, "-m", "pipeline.cli")

TAIL_LINES = 40

TIMED_OUT, REPLACED = 124, 143

NOT_AGAIN = (2, 126, 127, 130)  # exit codes that a retry cannot change: bad configuration, no program, interrupted

Status = Literal["succeeded", "failed", "timeout", "replaced", "busy", "done before"]


@dataclass(frozen=True)
class Attempt:
    """One start of the command. `error`: the end of its standard error, where it failed."""

    started: str
    seconds: float
    exit_code: int
    error: str = ""


@dataclass(frozen=True)
class JobSummary:
    """What a run did. `result` is the command's own JSON summary, where it printed one."""

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
    result: dict[str, Any] = field(default_factory=dict)
    webhook: str = ""  # sent, or why not; empty: none wanted

    def text(self) -> str:
        tries = f" in {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
        return f"job {self.job}, slot {self.slot}: {self.status}{tries}, exit code {self.exit_code}"


def run_job(
    loaded: LoadedJob,
    slot: str = "",
    scheduled: bool = False,
    entry: Sequence[str] = ENTRY,
    notify: Callable[[str], None] = lambda text: None,
) -> JobSummary:
    """Run the job's command to its end. Raises ConfigError before any work; otherwise the summary says how it went.

    scheduled: the slot is the schedule's, and a slot that has succeeded is not run again.
    entry: the program that the command and its arguments are given to.
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
        notify(f"job {job.name}: slot {slot} has succeeded before; nothing to do")
        return replace(begun, status="done before", exit_code=0, ended=_utc())
    deadline = time.monotonic() + job.timeout_s
    if job.overlap == "replace":
        storage.write_text("stop", run)  # whoever runs now reads this and stops
    wait_s = {"forbid": 0.0, "wait": job.timeout_s, "replace": 300.0}[job.overlap]
    try:
        with lease(storage, f"job {job.name}, slot {slot}, run {run}", wait_s, notify=notify, believe=False):
            made = _run_under_lease(loaded, begun, storage, env, entry, deadline, notify)
            made = _reported(made, loaded, storage, hook, hidden_values(job, env), notify)
    except BusyError as error:
        notify(f"job {job.name}: not run: {error}")
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
    job, status = loaded.job, "failed"
    attempts: list[Attempt] = []
    result: dict[str, Any] = {}
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
        found = _json(ended.last_line, {})
        result = {scrub(str(key), hidden): scrub_value(item, hidden) for key, item in found.items()}
        error = "" if code == 0 else "\n".join(tail)
        attempts.append(Attempt(started, round(time.monotonic() - began, 3), code, error))
        status = {Ended.TIMEOUT: "timeout", Ended.STOPPED: "replaced"}.get(
            ended.how, "succeeded" if code == 0 else "failed"
        )
        if status != "failed" or code in NOT_AGAIN or number > job.retries:
            break
        pause = min(parse_duration(job.retry_wait, "retry_wait", zero=True) * 2 ** (number - 1), 3600.0)
        if time.monotonic() + pause >= deadline:
            break
        notify(f"job {job.name}: attempt {number} ended with exit code {code}; the next in {pause:.0f} s")
        time.sleep(pause)
    return replace(
        begun,
        status=status,  # type: ignore[arg-type]  # one of Status by the tables above
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
    """Write the summary where the job wants it. A report that cannot be delivered does not change how the run went."""
    from pipeline.scheduling.report import run_report

    if hook:
        said = post_json(hook, {**asdict(made), "text": made.text()})
        made = replace(made, webhook=scrub(said, hidden))
    text = json.dumps(asdict(made), ensure_ascii=False, indent=1) + "\n"
    try:
        storage.write_text(f"runs/{made.slot}.json", text)
        storage.write_text(f"runs/{made.slot}.html", run_report(asdict(made), *_left_in_home(made)))
        if loaded.job.report.summary:
            path = loaded.folder / Path(loaded.job.report.summary).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, RdmpipeError) as error:
        notify(f"job {made.job}: the summary could not be written: {scrub(str(error), hidden)}")
    return made


def _left_in_home(made: JobSummary) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The stages' last progress and the shards that failed, from the database or generation the command worked on."""
    home = Storage(made.home)
    subjects = [made.result.get("name"), made.result.get("run"), *made.command[1:2]]
    for subject in subjects:
        for kind in ("databases", "generations"):
            if isinstance(subject, str) and re.fullmatch(r"[a-z0-9][\w.-]*", subject):
                progress = _json(home.read_text(f"{kind}/{subject}/progress.json"), {})
                if progress:
                    return progress, _json(home.read_text(f"{kind}/{subject}/failures.json"), [])
    return {}, []


def _stop_reader(storage: Storage, run: str) -> Callable[[], bool]:
    """Whether a newer run has asked this one to stop; looks every few seconds."""
    every, last = (1.0 if storage.is_local else 10.0), [0.0]

    def asked() -> bool:
        if time.monotonic() - last[0] < every:
            return False
        last[0] = time.monotonic()
        with contextlib.suppress(OSError):  # a store that does not answer: the next look will tell
            return storage.read_text("stop") not in (None, run)
        return False

    return asked


def _status_of(storage: Storage, slot: str) -> str:
    return str(_json(storage.read_text(f"runs/{slot}.json"), {}).get("status", ""))


def _json(text: str | None, otherwise: Any) -> Any:
    """The JSON value in the text if it is of the same type as `otherwise`, else that."""
    try:
        found = parse_json(text or "")
    except ValueError:
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise


def _utc(now: datetime.datetime | None = None) -> str:
    return (now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")
