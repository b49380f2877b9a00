"""Render a job file as a schedule: text for Kubernetes, cron or systemd. Reads a job; writes nothing.

Every schedule runs `rdmpipe run`, so the timeout, retries, overlap policy and report always come from the job file. The text
never holds the value of a secret. This module does not promise that a scheduler starts a job only once; the lease in the home
makes a second start harmless.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError, nearest
from pipeline.scheduling.cron import calendar_events
from pipeline.scheduling.jobfile import LoadedJob, scheduled
from pipeline.scheduling.kubernetes import cronjob, raycronjob, rayjob


def render(loaded: LoadedJob, target: str) -> str:
    """The text for a target: cronjob, rayjob, raycronjob, crontab or systemd. Raises ConfigError."""
    known: dict[str, Callable[[LoadedJob], str]] = {
        "cronjob": cronjob,
        "rayjob": rayjob,
        "raycronjob": raycronjob,
        "crontab": crontab,
        "systemd": systemd,
    }
    if target not in known:
        raise ConfigError(f"--target {target!r}{nearest(target, known)}: use one of {', '.join(known)}")
    return known[target](loaded)


def _command(loaded: LoadedJob) -> list[str]:
    """The words of the command that a scheduler runs. Raises ConfigError."""
    path = loaded.path or loaded.folder / f"{loaded.job.name}.toml"
    # --home is written out, because a scheduler starts the job without RDMPIPE_HOME and in another directory.
    home = loaded.job.home
    if "://" not in home:
        home = str(Path(home).expanduser().absolute())
    words = [sys.executable, "-m", "pipeline.cli", "run", "--scheduled", "--home", home, str(path)]
    for word in words:
        if not word.isprintable():  # a newline would start a new line in the crontab or unit
            raise ConfigError(f"job {loaded.job.name}: {word!r} has characters that a schedule cannot hold; rename it")
    return words


def _secrets_file(loaded: LoadedJob) -> Path:
    return Path("/etc/rdmpipe") / f"{loaded.job.name}.env"


def crontab(loaded: LoadedJob) -> str:
    """The lines to add with `crontab -e` on this machine. Raises ConfigError if the job has no schedule."""
    schedule, job = scheduled(loaded), loaded.job
    command = shlex.join(_command(loaded))
    if job.environment.secrets:
        command = f"set -a; . {_secrets_file(loaded)}; set +a; exec {command}"
    lines = [
        f"# {job.name}: {job.title}".rstrip(": "),
        "# CRON_TZ is cronie's (Fedora, RHEL, Arch). Debian's and Ubuntu's cron ignores it and uses the machine's time zone:",
        "# there use `--target systemd`, or set the machine's zone. A run that meets the last one does as `overlap` says.",
    ]
    if job.environment.secrets:
        lines.append(f"# {_secrets_file(loaded)} holds {', '.join(job.environment.secrets)} as NAME=value, mode 0600.")
    lines.append(f"CRON_TZ={schedule.timezone}")
    lines.append(f"{schedule.parsed.text} {command.replace('%', chr(92) + '%')}")
    return "\n".join(lines) + "\n"


def systemd(loaded: LoadedJob) -> str:
    """A systemd service and its timer, each below a comment that names its file. Raises ConfigError without a schedule."""
    schedule, job = scheduled(loaded), loaded.job
    unit = f"rdmpipe-{job.name}"
    command = " ".join(_quoted(word) for word in _command(loaded))
    service = [
        f"# file: {unit}.service",
        "# Write both files with: rdmpipe render JOB --target systemd | awk '/^# file: /{f=$3} f{print > f}'",
        f"# then move them to /etc/systemd/system and: systemctl enable --now {unit}.timer",
        "# It runs as root unless you add User= to [Service].",
        "[Unit]",
        f"Description={(job.title.rstrip(chr(92) + ' ') or job.name).replace('%', '%%')}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={command}",
        f"TimeoutStartSec={int(job.timeout_s) + 600}",
        "KillMode=mixed",
    ]
    if job.environment.secrets:
        service.append(f"# holds {', '.join(job.environment.secrets)} as NAME=value, mode 0600")
        service.append(f"EnvironmentFile={_secrets_file(loaded)}")
    timer = [
        f"# file: {unit}.timer",
        "[Unit]",
        f"Description=Schedule of {job.name}: {schedule.parsed.text} {schedule.timezone}",
        "",
        "[Timer]",
        *(f"OnCalendar={event}" for event in calendar_events(schedule.parsed, schedule.timezone)),
        "AccuracySec=1s",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return "\n".join([*service, "", *timer]) + "\n"


def _quoted(word: str) -> str:
    """A word of a systemd command line, with specifiers and variables escaped, and quoted if needed."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(c in word for c in " \t'\"\\;") else escaped
