"""Runs of jobs of the home, and their pages. Reads jobs/<job>/runs/<slot>.json and .html of `rdmpipe run`; writes nothing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pipeline.config import default_home
from pipeline.errors import DatabaseError
from pipeline.serving.api import Endpoint, Server, answer_json
from pipeline.storage import Storage, holder_of

if TYPE_CHECKING:
    from starlette.requests import Request

MOST = 200  # runs that are listed, newest first

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)


@dataclass(frozen=True)
class JobRun:
    """A run of a job: status and exit code, when (UTC), seconds of all attempts, command line, and the URL of its page."""

    job: str
    slot: str
    status: str
    exit_code: int
    started: str
    ended: str
    seconds: float
    command: str
    page: str


@dataclass(frozen=True)
class JobsAnswer:
    """Job runs of the home, the newest first. `running`: jobs that run now."""

    running: tuple[str, ...]
    runs: tuple[JobRun, ...]


def list_jobs(home: str | None) -> JobsAnswer:
    """The newest runs of all jobs."""
    root = Storage((home or default_home()).rstrip("/"))
    names = [name for name in root.list("jobs") if _NAME.fullmatch(name)]
    runs = [run for name in names for run in _runs(root.child(f"jobs/{name}"), name)]
    running = tuple(name for name in names if holder_of(root.child(f"jobs/{name}")) is not None)
    return JobsAnswer(running, tuple(sorted(runs, key=lambda run: run.started, reverse=True)[:MOST]))


def _runs(storage: Storage, job: str) -> Iterator[JobRun]:
    pages = set(storage.list("runs", ".html"))
    for file in storage.list("runs", ".json")[-MOST:]:
        slot = file.removesuffix(".json")
        try:
            found = json.loads(storage.read_text(f"runs/{file}") or "null")
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, Mapping) or not _NAME.fullmatch(slot):
            continue
        attempts, words = found.get("attempts"), found.get("command")
        yield JobRun(
            job, slot, str(found.get("status", "")), _number(found.get("exit_code")), str(found.get("started", "")),
            str(found.get("ended", "")),
            round(sum(float(one.get("seconds", 0)) for one in attempts if isinstance(one, Mapping)), 1)
            if isinstance(attempts, list) else 0.0,
            shlex.join(["rdmpipe", *map(str, words)]) if isinstance(words, list) else "",
            f"/jobs/{job}/{slot}" if f"{slot}.html" in pages else "",
        )  # fmt: skip


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def job_page(home: str | None, job: str, slot: str) -> str:
    """The page of a run. Raises DatabaseError if there is none."""
    text = None
    if _NAME.fullmatch(job) and _NAME.fullmatch(slot):
        text = Storage((home or default_home()).rstrip("/")).read_text(f"jobs/{job}/runs/{slot}.html")
    if text is None:
        raise DatabaseError(
            f"no page of job {job[:80]!r}, slot {slot[:80]!r}; GET /api/jobs lists those that there are"
        )
    return text


async def jobs(server: Server, request: Request) -> Response:
    return answer_json(await run_in_threadpool(list_jobs, server.options.home))


async def page(server: Server, request: Request) -> Response:
    text = await run_in_threadpool(
        job_page, server.options.home, request.path_params["job"], request.path_params["slot"]
    )
    headers = {"cache-control": "no-store", "content-security-policy": _POLICY}
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


JOBS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/jobs", jobs, "Runs of jobs, the newest first.", JobsAnswer),
    Endpoint("GET", "/jobs/{job}/{slot}", page, "The page of a run of a job.", "text/html"),
)
