"""The environment, arguments, webhook and secrets of a job's command.

Reads: the environment of this process and the installed packages. Writes nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.scheduling.jobfile import JobFile, LoadedJob
from pipeline.scheduling.secrets import SHORTEST, hidden_forms

TAKES_WORKERS = ("build-index", "download", "embed", "index", "generate")


def command_environment(loaded: LoadedJob) -> dict[str, str]:
    """The command's environment variables.

    Raises ConfigError for a secret that is not set or too short, or a requirement that is not installed.
    """
    job = loaded.job
    missing = [name for name in job.environment.secrets if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"job {job.name}: secret {', '.join(missing)} not set. Set it in the environment of the process that runs the job "
            "(on a cluster, of its nodes; in Kubernetes, in the Secret that the job names). Do not write it into the job file."
        )
    short = [name for name in job.environment.secrets if len(os.environ[name].strip()) < SHORTEST]
    if short:
        raise ConfigError(
            f"job {job.name}: secret {', '.join(short)} has fewer than {SHORTEST} characters, so its value cannot be "
            "removed from output reliably; use a longer one"
        )
    absent = [text for text in (*job.environment.pip, *job.environment.uv) if not _installed(text)]
    if absent:
        wanted = " ".join(f"'{text}'" for text in absent)
        raise ConfigError(
            f"job {job.name} needs {wanted}, which is not installed here. Run `{sys.executable} -m pip install {wanted}`"
        )
    return {**os.environ, "RDMPIPE_HOME": job.home, **job.environment.variables}


def _installed(requirement: str) -> bool:
    """Whether an installed package meets the requirement. Raises ConfigError if the requirement is not valid."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
    except InvalidRequirement as error:
        raise ConfigError(f"requirement {requirement!r}: {error}; write it as name==1.2") from error
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def command_arguments(job: JobFile, env: Mapping[str, str]) -> list[str]:
    """The command's arguments. On a cluster they include the largest number of workers that the job allows."""
    given = list(job.arguments)
    if job.command in TAKES_WORKERS:
        if env.get("RAY_ADDRESS") and job.resources.workers_max and "--workers" not in given:
            given += ["--workers", str(job.resources.workers_max)]
        if "--json" not in given:
            given.append("--json")
    return given


def webhook_address(job: JobFile, env: Mapping[str, str]) -> str:
    """The address of the job's webhook, or the value of the secret that it names; empty if it has none."""
    hook = job.report.webhook
    return env[hook[1:]] if hook.startswith("$") else hook


def hidden_values(job: JobFile, env: Mapping[str, str]) -> dict[str, str]:
    """All forms of the values of the job's secrets, for `scrub`."""
    return hidden_forms({name: env[name] for name in job.environment.secrets})
