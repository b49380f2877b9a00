"""Jobs on a Ray cluster, through the dashboard's port: submit, list, follow, stop.

Reads: a job file and the cluster's job list. Writes nothing here; on the cluster, a job named `<job>-<slot>-<attempt>`. Ray
refuses a used name for ever, so a name is one attempt: a new one is made only when the last has ended, and who comes second
to a running one follows it. Secrets are not sent: Ray shows a job's environment to everybody, so nodes have to have them.
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
from typing import Any

from pipeline.errors import ConfigError, JobError
from pipeline.scheduling.jobfile import SLOT, LoadedJob

ENTRY = ("python", "-m", "pipeline.cli", "run")

JOB_VARIABLE = "RDMPIPE_JOB"  # carries the job file's text to the cluster

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Submission:
    """A job on the cluster. `exit_code` is None while it has none; `new`: this call made it."""

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
        """What our own process should exit with, once it is over."""
        if self.status == "SUCCEEDED":
            return 0
        return self.exit_code or (143 if self.status == "STOPPED" else 1)


class JobsClient:
    """A connection to a cluster's jobs. Raises JobError where it cannot be had, with the fix."""

    def __init__(self, address: str = "", any_version: bool = False) -> None:
        self.address = _address(address)
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        self.errors = (RuntimeError, ConnectionError, ValueError, OSError, RayError)
        self.client: Any = self._call(JobSubmissionClient, self.address)
        if not any_version:
            self._compare_versions()

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except self.errors as error:
            raise _explained(self.address, error) from error

    def _compare_versions(self) -> None:
        import ray

        answer = self._call(self.client._do_request, "GET", "/api/v0/cluster_metadata")
        if answer.status_code != 200:
            raise JobError(f"{self.address}: HTTP {answer.status_code} where a Ray cluster tells its versions")
        theirs = answer.json()["data"]
        check_versions(
            self.address, theirs["rayVersion"], theirs["pythonVersion"], ray.__version__, platform.python_version()
        )

    def submissions(self, begins: str = "") -> list[Submission]:
        """The cluster's submitted jobs whose names begin so, oldest first."""
        found = self._call(self.client.list_jobs)
        named = [job for job in found if job.submission_id and job.submission_id.startswith(begins)]
        return [_submission(job) for job in sorted(named, key=lambda job: job.start_time or 0)]

    def get(self, name: str) -> Submission:
        try:
            return _submission(self.client.get_job_info(name))
        except self.errors as error:
            if "404" not in str(error):
                raise _explained(self.address, error) from error
            known = [job.id for job in self.submissions()]
            raise JobError(f"{self.address} has no job {name!r}; it has {', '.join(known[-10:]) or 'none'}") from error

    def submit(self, loaded: LoadedJob, slot: str = "", entry: Sequence[str] = ENTRY) -> Submission:
        """Submit the job for a slot (empty: the schedule's latest), or find the attempt that is running for it."""
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
                    continue  # somebody else was quicker: look again, and follow
                raise _explained(self.address, error) from error
            return Submission(name, "PENDING", new=True)
        raise JobError(f"job {begins}: others kept submitting it in the same moment; run the same command again")

    def logs(self, name: str) -> str:
        self.get(name)
        return str(self._call(self.client.get_job_logs, name))

    def stop(self, name: str) -> Submission:
        """Ask the job to stop, and wait until it has."""
        if not self.get(name).is_over:
            self._call(self.client.stop_job, name)
            while not self.get(name).is_over:
                time.sleep(0.5)
        return self.get(name)

    def wait(self, name: str) -> Submission:
        while not (found := self.get(name)).is_over:
            time.sleep(1.0)
        return found

    def follow(self, name: str, heard: Callable[[str], None]) -> Submission:
        """Pass on the job's log as it grows, and wait for its end. A connection that breaks is made again."""
        self.get(name)
        seen = 0

        async def tail() -> None:
            nonlocal seen
            skip = seen  # a new connection begins at the log's start
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


def runtime_env(loaded: LoadedJob) -> dict[str, Any]:
    """What Ray sets up for the job. Nothing secret: Ray shows it to everybody who sees the dashboard."""
    job = loaded.job
    variables = dict(job.environment.variables)
    home = job.environment.home or os.environ.get("RDMPIPE_HOME", "")
    if home:
        variables["RDMPIPE_HOME"] = home
    made: dict[str, Any] = {"env_vars": {**variables, JOB_VARIABLE: loaded.text}}
    if loaded.working_dir is not None:
        made["working_dir"] = str(loaded.working_dir)
    for kind in ("pip", "uv"):
        if getattr(job.environment, kind):
            made[kind] = list(getattr(job.environment, kind))
    return made


def check_versions(address: str, their_ray: str, their_python: str, our_ray: str, our_python: str) -> None:
    """Raise JobError where Ray's or Python's first two numbers differ."""
    pairs = (("Ray", their_ray, our_ray), ("Python", their_python, our_python))
    different = [
        f"{what} {theirs} there, {ours} here" for what, theirs, ours in pairs if _minor(theirs) != _minor(ours)
    ]
    if different:
        raise JobError(
            f"{address}: versions differ: {'; '.join(different)}. Submit from an environment with the cluster's versions "
            f"(`pip install 'ray[default]=={their_ray}'` under Python {_minor(their_python)}), or with --any-version where you "
            "know that the job runs there."
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_attempt(name: str, begins: str) -> bool:
    return name.removeprefix(begins).isdigit()


def _submission(job: Any) -> Submission:
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
    """The dashboard's address: as given, or from RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where that is one."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if not re.match(r"^https?://[^/]+", address):
        found = f"{address!r} is no address of a Ray cluster's dashboard" if address else "which Ray cluster?"
        raise ConfigError(f"{found}; give --address http://HEAD:8265 (its dashboard), or set RAY_API_SERVER_ADDRESS")
    return address.rstrip("/")


def _explained(address: str, error: BaseException) -> JobError:
    text = str(error)
    if any(word in text for word in ("401", "403", "nauthorized", "uthentication")):
        mode, path = os.environ.get("RAY_AUTH_MODE", "unset"), os.environ.get("RAY_AUTH_TOKEN_PATH", "unset")
        return JobError(
            f"{address}: the cluster wants a token, and refused ours (RAY_AUTH_MODE is {mode}, RAY_AUTH_TOKEN_PATH is {path}). "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with the token the cluster's nodes were started with."
        )
    if isinstance(error, ConnectionError | OSError) or "onnect" in text:
        reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
        return JobError(
            f"no Ray cluster answers at {address}: {reason}. Check the address (the dashboard's "
            "port, 8265 as a rule) and that it can be reached from here."
        )
    return JobError(f"{address}: Ray refused: {text.strip().splitlines()[-1] if text.strip() else error!r}")


def as_record(found: Submission) -> dict[str, Any]:
    """For --json."""
    return {**asdict(found), "over": found.is_over}
