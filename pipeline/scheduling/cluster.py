"""Submit, list, follow and stop jobs on a Ray cluster, through the port of its dashboard.

Reads: a job file and the cluster's list of jobs. Writes: no local file; one job on the cluster, named `<job>-<slot>-<attempt>`.
Ray never accepts a name twice, so each name stands for one attempt. A new attempt is submitted only after the last one ended;
while an attempt runs, a second submission follows it. Secrets are not sent, because Ray shows a job's environment to every
user of the dashboard. The cluster's nodes must have the secrets in their own environment.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from pipeline.errors import ConfigError, JobError
from pipeline.installation import require
from pipeline.scheduling.jobfile import SLOT, LoadedJob

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

P = ParamSpec("P")
T = TypeVar("T")

ENTRY = ("python", "-m", "pipeline.cli", "run")

JOB_VARIABLE = "RDMPIPE_JOB"  # the environment variable that carries the job file's text to the cluster

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Submission:
    """A job on the cluster, as one query found it.

    exit_code: of the job's command; None while it runs, or if it never started.
    started, ended: UTC times in ISO format; empty if not yet known.
    message: the first line of Ray's message.
    new: this call submitted the job.
    """

    id: str
    status: str
    exit_code: int | None = None
    started: str = ""
    ended: str = ""
    message: str = ""
    new: bool = False

    @property
    def is_over(self) -> bool:
        return self.status in ENDED

    @property
    def code(self) -> int:
        """The exit code for the local process after the job has ended."""
        if self.status == "SUCCEEDED":
            return 0
        return self.exit_code or (143 if self.status == "STOPPED" else 1)


class JobsClient:
    """A connection to the jobs of a Ray cluster.

    Raises ConfigError if there is no valid address, and JobError if the cluster does not answer, refuses the token, or runs
    another version of Ray or Python (any_version=True skips the check of versions).
    """

    def __init__(self, address: str = "", any_version: bool = False) -> None:
        self.address = _address(address)
        require("ray", "talking to a Ray cluster")
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        self.errors = (RuntimeError, ConnectionError, ValueError, OSError, RayError)
        self.client: JobSubmissionClient = self._call(JobSubmissionClient, self.address)
        if not any_version:
            self._compare_versions()

    def _call(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """`function(*args, **options)`, with Ray's errors raised as JobError."""
        try:
            return function(*args, **options)
        except self.errors as error:
            raise _explained(self.address, error) from error

    def _compare_versions(self) -> None:
        import ray

        answer = self._call(self.client._do_request, "GET", "/api/v0/cluster_metadata")
        if answer.status_code != 200:
            raise JobError(
                f"{self.address}: expected the versions of a Ray cluster, got HTTP {answer.status_code}. "
                "Check that this is the address of a Ray dashboard, or give --any-version to skip the check"
            )
        theirs = answer.json()["data"]
        check_versions(
            self.address, theirs["rayVersion"], theirs["pythonVersion"], ray.__version__, platform.python_version()
        )

    def submissions(self, begins: str = "") -> list[Submission]:
        """The cluster's submitted jobs, oldest first. begins: only the jobs whose names begin with this text."""
        found = self._call(self.client.list_jobs)
        named = [job for job in found if job.submission_id and job.submission_id.startswith(begins)]
        return [_submission(job) for job in sorted(named, key=lambda job: job.start_time or 0)]

    def get(self, name: str) -> Submission:
        """The job of that name. Raises JobError if the cluster has none."""
        try:
            return _submission(self.client.get_job_info(name))
        except self.errors as error:
            if "404" not in str(error):
                raise _explained(self.address, error) from error
            known = [job.id for job in self.submissions()]
            raise JobError(f"{self.address} has no job {name!r}; it has {', '.join(known[-10:]) or 'none'}") from error

    def submit(self, loaded: LoadedJob, slot: str = "", entry: Sequence[str] = ENTRY) -> Submission:
        """Submit the job for a slot, or return the attempt that already runs for that slot.

        slot: empty means the schedule's latest slot.
        entry: the program that runs the job on the cluster.
        """
        job = loaded.job
        if slot and not SLOT.match(slot):
            raise ConfigError(f"--slot {slot!r}: use at most 16 lower-case letters, digits and -")
        slot = slot or job.slot(datetime.datetime.now(datetime.UTC))
        begins = f"{job.name}-{slot}-"
        for _ in range(20):
            attempts = {
                int(s.id.removeprefix(begins)): s for s in self.submissions(begins) if _is_attempt(s.id, begins)
            }
            last = max(attempts, default=0)
            if last and not attempts[last].is_over:
                return attempts[last]
            name = f"{begins}{last + 1}"
            try:
                self.client.submit_job(
                    entrypoint=shlex.join([*entry, f"env:{JOB_VARIABLE}", "--slot", slot]),
                    submission_id=name,
                    runtime_env=runtime_env(loaded),
                    metadata={"job": job.name, "slot": slot, "attempt": str(last + 1)},
                )
            except self.errors as error:
                if "already exists" in str(error):
                    continue  # another process submitted this name first: list the jobs again and follow that one
                raise _explained(self.address, error) from error
            return Submission(name, "PENDING", new=True)
        raise JobError(
            f"{job.name}, slot {slot}: 20 attempts to submit it failed, because other processes "
            "submitted the same names first. Run the same command again"
        )

    def logs(self, name: str) -> str:
        """The job's whole log so far."""
        self.get(name)
        return str(self._call(self.client.get_job_logs, name))

    def stop(self, name: str) -> Submission:
        """Stop the job and wait until it has ended."""
        if not self.get(name).is_over:
            self._call(self.client.stop_job, name)
            while not self.get(name).is_over:
                time.sleep(0.5)
        return self.get(name)

    def wait(self, name: str) -> Submission:
        """Wait until the job has ended."""
        while not (found := self.get(name)).is_over:
            time.sleep(1.0)
        return found

    def follow(self, name: str, heard: Callable[[str], None]) -> Submission:
        """Pass new text of the job's log to `heard` until the job ends. A lost connection is opened again up to 20 times."""
        self.get(name)
        seen = 0

        async def tail() -> None:
            nonlocal seen
            skip = seen  # a new connection sends the log from its start
            async for text in self.client.tail_job_logs(name):
                fresh = text[skip:]
                skip = max(0, skip - len(text))
                seen += len(fresh)
                if fresh:
                    heard(fresh)

        import aiohttp

        failures = 0
        while True:
            before = seen
            try:
                asyncio.run(tail())
            except (*self.errors, aiohttp.ClientError) as error:
                failures = 1 if seen > before else failures + 1
                if failures > 20:
                    raise _explained(self.address, error) from error
            try:
                if (found := self.get(name)).is_over:
                    rest = str(self.client.get_job_logs(name))[seen:]
                    if rest:
                        heard(rest)
                    return found
            except JobError:
                failures += 1
                if failures > 20:
                    raise
            time.sleep(1.0)


def runtime_env(loaded: LoadedJob) -> dict[str, object]:
    """The job's runtime environment for Ray. It holds no secret, because Ray shows it to every user of the dashboard."""
    job = loaded.job
    variables = dict(job.environment.variables)
    home = job.environment.home or os.environ.get("RDMPIPE_HOME", "")
    if home:
        variables["RDMPIPE_HOME"] = home
    made: dict[str, object] = {"env_vars": {**variables, JOB_VARIABLE: loaded.text}}
    if loaded.working_dir is not None:
        made["working_dir"] = str(loaded.working_dir)
    for kind in ("pip", "uv"):
        if getattr(job.environment, kind):
            made[kind] = list(getattr(job.environment, kind))
    return made


def check_versions(address: str, their_ray: str, their_python: str, our_ray: str, our_python: str) -> None:
    """Raise JobError if the first two numbers of Ray's or Python's version differ."""
    pairs = (("Ray", their_ray, our_ray), ("Python", their_python, our_python))
    different = [
        f"{what} {theirs} there, {ours} here" for what, theirs, ours in pairs if _minor(theirs) != _minor(ours)
    ]
    if different:
        raise JobError(
            f"{address}: versions differ: {'; '.join(different)}. Submit from an environment with the cluster's versions "
            f"(`pip install 'ray[default]=={their_ray}'` under Python {_minor(their_python)}), or give --any-version if you "
            "know that the job runs with these versions."
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_attempt(name: str, begins: str) -> bool:
    return name.removeprefix(begins).isdigit()


def _submission(job: JobDetails) -> Submission:
    def when(ms: int | None) -> str:
        return datetime.datetime.fromtimestamp(ms / 1e3, datetime.UTC).isoformat(timespec="seconds") if ms else ""

    lines = (job.message or "").strip().splitlines()
    return Submission(
        id=str(job.submission_id),
        status=str(job.status.value),
        exit_code=job.driver_exit_code,
        started=when(job.start_time),
        ended=when(job.end_time),
        message=lines[0] if lines else "",
    )


def _address(given: str) -> str:
    """The dashboard's address: `given`, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS. Raises ConfigError if not a URL."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if not re.match(r"^https?://[^/]+", address):
        found = f"{address!r} is not the address of a Ray dashboard" if address else "no Ray cluster is given"
        raise ConfigError(
            f"{found}; give the dashboard's address with --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS"
        )
    return address.rstrip("/")


def _explained(address: str, error: BaseException) -> JobError:
    """A JobError that says what Ray's error means and how to fix it."""
    text = str(error)
    if any(word in text for word in ("401", "403", "nauthorized", "uthentication")):
        mode, path = os.environ.get("RAY_AUTH_MODE", "unset"), os.environ.get("RAY_AUTH_TOKEN_PATH", "unset")
        return JobError(
            f"{address}: the cluster requires a token and refused this request (RAY_AUTH_MODE is {mode}, "
            f"RAY_AUTH_TOKEN_PATH is {path}). "
            "Set RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN_PATH to a file with the token that the cluster's nodes use."
        )
    if isinstance(error, ConnectionError | OSError) or "onnect" in text:
        reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
        return JobError(
            f"no Ray cluster answers at {address}: {reason}. Check the host and the "
            "dashboard's port (8265 by default), and that this machine can reach them."
        )
    return JobError(f"{address}: Ray refused the request: {text.strip().splitlines()[-1] if text.strip() else error!r}")


def as_record(found: Submission) -> dict[str, object]:
    """The JSON object that `--json` prints."""
    return {**asdict(found), "over": found.is_over}
