"""Job files: a strict TOML file that describes one job, for a local run, a cluster or a schedule.

Reads: a file by its path, or a shipped file by its name (`nightly-wikiart`). Writes nothing. A job file holds the names of
secrets and never their values; the values come from the environment in which the command runs. This module does not check the
command's arguments; the command does.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.config import default_home, from_mapping, parse_size, read_toml
from pipeline.errors import ConfigError, nearest
from pipeline.installation import data_folder
from pipeline.scheduling.cron import Cron, latest, parse_cron, time_zone
from pipeline.scheduling.secrets import secret_name, secret_shape

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")

OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")

SLOT = re.compile(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?\Z")

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

LONGEST_NAME = 30  # characters; a RayJob's name is this name and the slot, and KubeRay allows 47 characters

Overlap = Literal["forbid", "wait", "replace"]


@dataclass(frozen=True)
class WorkerResources:
    """The resources of one worker, and the number of workers."""

    cpus: float = 1.0  # of one worker's pod
    gpus: float = 0.0  # of one worker's pod
    memory: str = "4GB"  # of one worker's pod
    workers_min: int = 1  # smallest number of pods
    workers_max: int = 0  # largest number of pods; on a cluster also the command's --workers; 0: the command decides


@dataclass(frozen=True)
class Environment:
    """The environment of the command."""

    home: str = ""  # folder, or s3://, az:// or gs:// URL, of the databases; empty: RDMPIPE_HOME
    working_dir: str = ""  # relative to the job file; sent with a submission
    pip: tuple[str, ...] = ()  # requirements: installed on a cluster, only checked here
    uv: tuple[str, ...] = ()  # the same, installed with uv
    variables: Mapping[str, str] = field(default_factory=dict)  # plain values; names that look like secrets are refused
    secrets: tuple[str, ...] = ()  # names of environment variables that must be set where the job runs


@dataclass(frozen=True)
class Schedule:
    """When a job runs."""

    cron: str  # a cron expression of five fields
    timezone: str = "Etc/UTC"  # an IANA time zone

    @property
    def parsed(self) -> Cron:
        return parse_cron(self.cron)

    def slot(self, now: datetime.datetime) -> str:
        """The name of the latest scheduled time at or before `now`: `20261122t0115z` (UTC)."""
        return latest(self.parsed, time_zone(self.timezone), now).strftime("%Y%m%dt%H%Mz")


@dataclass(frozen=True)
class Report:
    """Where a run's summary is written or sent, besides the home."""

    summary: str = ""  # a file, relative to the job file
    webhook: str = ""  # an address that receives the summary by POST; `$NAME` means the value of the secret NAME


@dataclass(frozen=True)
class Kubernetes:
    """Settings that only Kubernetes manifests use."""

    image: str = "rdmpipe:latest"  # the image of the pods; jobs/Dockerfile builds one
    namespace: str = "default"
    service_account: str = ""  # empty: the job's name
    claim: str = ""  # a ReadWriteMany volume claim, mounted as the home
    secret: str = ""  # the Kubernetes Secret with one key per secret; empty: <job>-secrets
    ray_version: str = ""  # empty: the version that is installed where `rdmpipe render` runs
    keep: str = "1d"  # how long Kubernetes keeps a finished RayJob
    cpu_limit: bool = False  # set a CPU limit too, not only a CPU request


@dataclass(frozen=True)
class JobFile:
    """One job."""

    name: str  # names runs, submissions and Kubernetes objects; default: the file's name
    command: str  # an rdmpipe command
    arguments: tuple[str, ...] = ()  # its arguments
    title: str = ""  # for logs, units and reports
    timeout: str = "12h"  # limit for the whole run, including its retries: 90s, 30m, 6h, 2d
    retries: int = 2  # attempts of the command after the first
    retry_wait: str = "1m"  # pause before the first retry; it doubles each time, up to 1 h
    overlap: Overlap = "forbid"  # if the last run is still running: forbid (exit code 75), wait, or replace it
    resources: WorkerResources = field(default_factory=WorkerResources)
    environment: Environment = field(default_factory=Environment)
    schedule: Schedule | None = None
    report: Report = field(default_factory=Report)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)

    @property
    def timeout_s(self) -> float:
        return parse_duration(self.timeout, "timeout")

    @property
    def home(self) -> str:
        return self.environment.home or default_home()

    def slot(self, now: datetime.datetime) -> str:
        """The schedule's latest slot, or the current minute if the job has no schedule."""
        return self.schedule.slot(now) if self.schedule else now.strftime("%Y%m%dt%H%Mz")


@dataclass(frozen=True)
class LoadedJob:
    """A job and its source.

    text: the TOML text. folder: the directory for relative paths. path: the job file; None if the text came from elsewhere.
    """

    job: JobFile
    text: str
    folder: Path
    path: Path | None = None

    @property
    def working_dir(self) -> Path | None:
        given = self.job.environment.working_dir
        return (self.folder / Path(given).expanduser()).resolve() if given else None


def shipped_jobs() -> dict[str, Path]:
    """Paths of the job files that the package ships, by name. TOML files without a `command` are not job files."""
    return {path.stem: path for path in sorted(data_folder("jobs").glob("*.toml")) if "command" in read_toml(path)}


_PROTOCOL = ("compare", "content_judge", "database", "style_judge", "tuning")  # keys of `rdmpipe evaluate`'s files


def load_job(where: str) -> LoadedJob:
    """Read and check a job file. Raises ConfigError.

    where: a path, the name of a shipped job, or `env:NAME`. The last reads the text from the environment variable NAME, as a
    submitted job does; its files are in the current directory.
    """
    if where.startswith("env:"):
        return _from_environment(where.removeprefix("env:"))
    path = Path(where).expanduser()
    if "/" not in where and path.suffix != ".toml":
        known = shipped_jobs()
        if where not in known:
            raise ConfigError(
                f"no job {where!r}{nearest(where, known)}; shipped jobs: {', '.join(known)}. "
                "For your own job file, give its path."
            )
        path = known[where]
    table = read_toml(path)
    if "command" not in table and not table.keys().isdisjoint(_PROTOCOL):
        raise ConfigError(
            f"{where} is an evaluation's protocol, not a job file: `rdmpipe evaluate {shlex.quote(str(path))} --plan` shows "
            "what it would do, and without --plan it runs"
        )
    job, text = _checked(path, table), path.read_text(encoding="utf-8")
    named = text if "name" in table else f'name = "{job.name}"\n{text}'  # the text is sent without the file's name
    return LoadedJob(job, named, path.resolve().parent, path.resolve())


def _from_environment(name: str) -> LoadedJob:
    text = os.environ.get(name)
    if text is None:
        raise ConfigError(f"env:{name}: this environment variable is not set; it must hold the text of a job file")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"env:{name}: not a job file: {error}") from error
    if isinstance(table.get("environment"), dict):
        table["environment"].pop("working_dir", None)
    loaded = LoadedJob(_checked(Path(name), table), text, Path.cwd())
    return with_home(loaded, os.environ.get("RDMPIPE_HOME"))  # this home replaces the one in the job file


def _checked(path: Path, table: Mapping[str, object]) -> JobFile:
    """The job in `table`, with every value checked. Raises ConfigError."""
    job = from_mapping(JobFile, {"name": path.stem, **table}, path.name)
    if not NAME.match(job.name) or len(job.name) > LONGEST_NAME:
        raise ConfigError(
            f"{path.name}: name {job.name!r}: use lower-case letters and digits, words joined by -, at most {LONGEST_NAME} "
            "characters (it names Kubernetes objects)"
        )
    if not re.fullmatch(r"[a-z][a-z-]*", job.command):
        raise ConfigError(
            f"{path.name}: command {job.command!r} is not an rdmpipe command; put arguments into `arguments`"
        )
    _check_texts(path.name, job)
    parse_duration(job.timeout, f"{path.name} timeout")
    parse_duration(job.retry_wait, f"{path.name} retry_wait", zero=True)
    parse_duration(job.kubernetes.keep, f"{path.name} kubernetes keep")
    if not 0 <= job.retries <= 20:
        raise ConfigError(f"{path.name}: retries = {job.retries}: use 0 to 20")
    _check_resources(path.name, job.resources)
    _check_environment(path, job.environment)
    _check_kubernetes(path.name, job.kubernetes)
    if job.schedule is not None:
        parse_cron(job.schedule.cron, f"{path.name} schedule cron")
        time_zone(job.schedule.timezone, f"{path.name} schedule timezone")
    hook = job.report.webhook
    if hook.startswith("$") and hook[1:] not in job.environment.secrets:
        raise ConfigError(f"{path.name}: report webhook {hook}: add {hook[1:]!r} to environment secrets")
    return job


def _check_texts(where: str, job: JobFile) -> None:
    """Check that texts which crontabs, units, logs and reports show are one line each and hold no credentials."""
    for what, text in (("title", job.title), ("environment home", job.environment.home)):
        if not text.isprintable():
            raise ConfigError(f"{where}: {what} {text!r}: use one line of plain text (crontabs and units hold it)")
    places = {"environment home": job.environment.home, "report webhook": job.report.webhook, "title": job.title}
    for what, text in (*places.items(), *(("arguments", argument) for argument in job.arguments)):
        shape = secret_shape(text)
        if shape:
            raise ConfigError(
                f"{where}: {what} holds {shape}. Every user of the cluster can read job files. Take it out, set it as an "
                "environment variable, and add the variable's name to `secrets`"
            )


def _check_resources(where: str, need: WorkerResources) -> None:
    parse_size(need.memory, f"{where} resources memory")
    if need.cpus <= 0 or need.gpus < 0:
        raise ConfigError(f"{where} resources: cpus must be above 0 and gpus at least 0")
    if need.workers_min < 0 or (need.workers_max and need.workers_max < max(1, need.workers_min)):
        raise ConfigError(
            f"{where} resources: workers_min = {need.workers_min}, workers_max = {need.workers_max}: the maximum must be at "
            "least the minimum (0 lets the command decide)"
        )


def _check_environment(path: Path, environment: Environment) -> None:
    for name in (*environment.variables, *environment.secrets):
        if not VARIABLE.match(name):
            raise ConfigError(f"{path.name} environment: {name!r} is not a name of an environment variable")
    for name, value in environment.variables.items():
        shape = secret_shape(value)
        if shape or secret_name(name, value):
            raise ConfigError(
                f"{path.name} environment variables: {name} looks like {shape or 'a secret'}. Take its value out of the "
                f'file and set secrets = ["{name}"]; the job then reads the value from the environment.'
            )
        if "\0" in value:
            raise ConfigError(
                f"{path.name} environment variables: {name} holds a zero byte, which a variable cannot hold; remove it"
            )
    if environment.pip and environment.uv:
        raise ConfigError(f"{path.name} environment: give requirements as `pip` or as `uv`, not both")
    given = environment.working_dir
    if given and not (path.resolve().parent / Path(given).expanduser()).is_dir():
        raise ConfigError(f"{path.name} environment: working_dir {given!r} is not a directory beside the job file")


def _check_kubernetes(where: str, k8s: Kubernetes) -> None:
    for name in ("namespace", "service_account", "claim", "secret"):
        value = getattr(k8s, name)
        if not OBJECT.match(value) and (value or name == "namespace"):
            raise ConfigError(
                f"{where} kubernetes {name}: {value!r} is not a Kubernetes name; use lower-case letters, digits and -"
            )
    if not k8s.image or not k8s.image.isprintable() or " " in k8s.image:
        raise ConfigError(
            f"{where} kubernetes image: {k8s.image!r} is not an image name; write it as registry.example/rdmpipe:0.1.0"
        )


def scheduled(loaded: LoadedJob) -> Schedule:
    """The job's schedule. Raises ConfigError if it has none."""
    if loaded.job.schedule is None:
        raise ConfigError(
            f"job {loaded.job.name} has no schedule; add [schedule] with cron = '15 2 * * *' and a timezone, "
            "or use `--target rayjob`"
        )
    return loaded.job.schedule


def with_home(loaded: LoadedJob, home: str | None) -> LoadedJob:
    """The job with `home` instead of its own home; unchanged if `home` is empty. Raises ConfigError."""
    if not home:
        return loaded
    if not home.isprintable():
        raise ConfigError(f"--home {home!r}: use one line of plain text (crontabs and units hold it)")
    return replace(loaded, job=replace(loaded.job, environment=replace(loaded.job.environment, home=home)))


def parse_duration(text: str, where: str, zero: bool = False) -> float:
    """The seconds in a duration such as `90s`, `30m`, `6h` or `2d`. Raises ConfigError, also for 0 unless `zero`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in units or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", number) or (float(number) == 0 and not zero):
        raise ConfigError(f"{where}: {text!r} is not a length of time; write it as 90s, 30m, 6h or 2d")
    return float(number) * units[unit]
