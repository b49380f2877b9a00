"""Job files are strict, and a job's run has its timeout, retries, overlap policy, secrets and report."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.scheduling import load_job, run_job
from pipeline.scheduling.cron import calendar_events, latest, parse_cron, time_zone
from pipeline.scheduling.jobfile import shipped_jobs
from pipeline.scheduling.run import JobSummary
from pipeline.storage import Storage

pytestmark = pytest.mark.process

ENTRY = (sys.executable, "-m", "tests.jobprogram")
REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO))


def write(tmp_path: Path, text: str, name: str = "job") -> str:
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return str(path)


def job(tmp_path: Path, command: str, *arguments: str, **options: object) -> str:
    lines = [f"command = {json.dumps(command)}", f"arguments = {json.dumps(arguments)}", 'retry_wait = "0s"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in options.items() if not isinstance(value, dict)]
    environment = {"home": str(tmp_path / "home"), "working_dir": str(tmp_path), **options.pop("environment", {})}  # type: ignore[dict-item]
    tables = {"environment": environment, **{key: value for key, value in options.items() if isinstance(value, dict)}}
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return write(tmp_path, "\n".join(lines))


def go(where: str, **options: object) -> JobSummary:
    return run_job(load_job(where), entry=ENTRY, **options)  # type: ignore[arg-type]


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


# ---- job files


@pytest.mark.parametrize("name", sorted(shipped_jobs()))
def test_shipped_jobs_are_well_formed(name: str) -> None:
    loaded = load_job(name)
    assert loaded.job.name == name
    assert loaded.job.schedule is not None
    assert loaded.job.title


def test_the_jobs_that_ship_are_the_ones_that_are_promised() -> None:
    assert set(shipped_jobs()) >= {"nightly-wikiart", "nightly-artbench", "nightly-styles", "nightly-laion"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('comand = "list"', "did you mean 'command'"),
        ("title = 'x'", "missing key 'command'"),
        ('command = "build index"', "put arguments into `arguments`"),
        ('command = "list"\noverlap = "skip"', "forbid, wait, replace"),
        ('command = "list"\ntimeout = "90"', "90s, 30m, 6h or 2d"),
        ('command = "list"\ntimeout = "0h"', "not a length of time"),
        ('command = "list"\nname = "Nightly Job"', "lower-case"),
        ('command = "list"\nretries = 99', "0 to 20"),
        ('command = "list"\n[resources]\nworkers_min = 4\nworkers_max = 2', "at least the minimum"),
        ('command = "list"\n[resources]\nmemory = "lots"', "resources memory: 'lots' .* 4GB"),
        ('command = "list"\ntitle = "two\\nlines"', "one line"),
        ('command = "list"\n[kubernetes]\nnamespace = "My Space"', "not a Kubernetes name"),
        ('command = "list"\n[kubernetes]\nimage = "rdmpipe latest"', "not an image name"),
        ('command = "list"\n[environment]\nvariables = { HF_TOKEN = "x" }', r'secrets = \["HF_TOKEN"\]'),
        ('command = "list"\n[environment]\nvariables = { "A B" = "x" }', "not a name of an environment variable"),
        ('command = "list"\n[environment]\npip = ["a"]\nuv = ["b"]', "not both"),
        ('command = "list"\n[environment]\nworking_dir = "nowhere"', "not a directory"),
        ('command = "list"\n[report]\nwebhook = "$HOOK"', "environment secrets"),
        ('command = "list"\n[schedule]\ncron = "15 2 * *"', "4 fields"),
        ('command = "list"\n[schedule]\ncron = "15 25 * * *"', "hour '25'"),
        ('command = "list"\n[schedule]\ncron = "15 2 * * mno"', "did you mean 'mon'"),
        ('command = "list"\n[schedule]\ncron = "* * 31 2 *"', "never fires"),
        ('command = "list"\n[schedule]\ncron = "*/0 * * * *"', r"\*/10"),
        ('command = "list"\n[schedule]\ncron = "1 2 * * *"\ntimezone = "Europe/Berln"', "did you mean 'Europe/Berlin'"),
    ],
)
def test_a_wrong_job_file_is_an_error_that_says_the_fix(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_job(write(tmp_path, text))


def test_an_unknown_shipped_job_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nightly-wikiart'"):
        load_job("nightly-wikart")


# ---- schedules


@pytest.mark.parametrize(
    ("cron", "zone", "now", "fired"),
    [
        ("15 2 * * *", "Etc/UTC", "2026-11-22T02:15", "2026-11-22T02:15"),
        ("15 2 * * *", "Etc/UTC", "2026-11-22T02:14", "2026-11-21T02:15"),
        ("15 2 * * *", "Europe/Berlin", "2026-11-22T09:00", "2026-11-22T01:15"),
        ("15 2 * * *", "Europe/Berlin", "2026-07-22T09:00", "2026-07-22T00:15"),
        ("15 2 * * *", "Europe/Berlin", "2026-03-29T09:00", "2026-03-28T01:15"),  # 2:15 does not exist that night
        ("*/20 9-17 * * mon-fri", "Etc/UTC", "2026-11-22T12:00", "2026-11-20T17:40"),  # a Sunday
        ("0 0 29 feb *", "Etc/UTC", "2026-11-22T12:00", "2024-02-29T00:00"),
        ("0 6 1 * mon", "Etc/UTC", "2026-11-22T12:00", "2026-11-16T06:00"),  # the first of the month or a Monday
        ("0 6 * * 7", "Etc/UTC", "2026-11-22T12:00", "2026-11-22T06:00"),  # 7 is Sunday too
        ("0 3 13 1 */4", "Etc/UTC", "2026-11-22T12:00", "2022-01-13T03:00"),  # a 13th that is a Sunday or a Thursday
        ("0 0 29 2 */6", "Etc/UTC", "2026-11-22T12:00", "2020-02-29T00:00"),  # a leap day on a weekend
    ],
)
def test_the_slot_is_the_latest_scheduled_time(cron: str, zone: str, now: str, fired: str) -> None:
    at = latest(parse_cron(cron), time_zone(zone), datetime.datetime.fromisoformat(now + "+00:00"))
    assert at.isoformat(timespec="minutes") == fired + "+00:00"


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="needs systemd-analyze")
@pytest.mark.parametrize("cron", ["15 2 * * *", "*/20 9-17 * * mon-fri", "0 6 1,15 * mon", "30 22 * 1-3,12 0"])
def test_systemd_understands_the_events_and_fires_when_cron_does(cron: str) -> None:
    parsed, zone = parse_cron(cron), time_zone("Europe/Berlin")
    base = "2026-11-22 12:00:00 UTC"
    coming = []
    for event in calendar_events(parsed, "Europe/Berlin"):
        done = subprocess.run(
            ["systemd-analyze", "calendar", "--iterations=1", f"--base-time={base}", event],
            capture_output=True,
            text=True,
            env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        found = re.search(r"Next elapse: \w+ (\S+ \S+) UTC|\(in UTC\): \w+ (\S+ \S+) UTC", done.stdout)
        assert found, done.stdout
        text = found.group(1) or found.group(2)
        coming.append(datetime.datetime.fromisoformat(text + "+00:00"))
    following = min(coming)
    start = datetime.datetime.fromisoformat("2026-11-22T12:00:00+00:00")
    assert latest(parsed, zone, following) == following
    assert latest(parsed, zone, following - datetime.timedelta(minutes=1)) <= start


# ---- runs


def test_a_run_reports_what_the_command_said(tmp_path: Path) -> None:
    made = go(job(tmp_path, "say", "a", "b"), slot="s1")
    assert (made.status, made.exit_code, made.slot) == ("succeeded", 0, "s1")
    assert made.result == {"name": "db", "ok": 9, "filtered": 1, "failed": 0, "input": 10, "arguments": ["a", "b"]}
    storage = Storage(str(tmp_path / "home"))
    kept = json.loads(storage.read_text("jobs/job/runs/s1.json") or "")
    assert kept["status"] == "succeeded" and kept["result"]["ok"] == 9
    assert "succeeded" in (storage.read_text("jobs/job/runs/s1.html") or "")
    assert (storage.read_text("jobs/job/lease") or "") == ""


def test_a_summary_is_written_to_a_file_where_the_job_wants_one(tmp_path: Path) -> None:
    go(job(tmp_path, "say", report={"summary": "out/summary.json"}), slot="s1")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "succeeded"


def test_a_summary_that_cannot_be_written_does_not_change_how_the_run_went(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    said: list[str] = []
    made = go(job(tmp_path, "say", report={"summary": "taken/summary.json"}), notify=said.append)
    assert (made.status, made.exit_code) == ("succeeded", 0)
    assert any("summary could not be written" in line for line in said)


def test_a_failed_command_is_tried_again_and_the_summary_lists_the_attempts(tmp_path: Path) -> None:
    made = go(job(tmp_path, "fail", "2", retries=3))
    assert (made.status, made.exit_code) == ("succeeded", 0)
    assert [attempt.exit_code for attempt in made.attempts] == [3, 3, 0]
    assert "it broke" in made.attempts[0].error


def test_a_command_that_keeps_failing_gives_its_exit_code(tmp_path: Path) -> None:
    made = go(job(tmp_path, "fail", "99", retries=1))
    assert (made.status, made.exit_code, len(made.attempts)) == ("failed", 3, 2)


def test_a_command_that_is_used_wrongly_is_not_tried_again(tmp_path: Path) -> None:
    made = go(job(tmp_path, "misuse", retries=3))
    assert (made.status, made.exit_code, len(made.attempts)) == ("failed", 2, 1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_timeout_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    made = go(job(tmp_path, "hang", timeout="4s", retries=2))
    assert (made.status, made.exit_code, len(made.attempts)) == ("timeout", 124, 1)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_does_not_outlive_the_run_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    code = "import sys; from tests.test_jobs import go; go(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, job(tmp_path, "hang")], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pids").exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(how)
    process.wait(30)
    command = int((tmp_path / "pids").read_text().split()[0])
    deadline = time.monotonic() + 10
    while alive(command) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(command)
    os.killpg(command, signal.SIGKILL) if how == signal.SIGKILL else None  # its child, where nobody was left to end it


def test_a_scheduled_slot_that_succeeded_is_not_run_again(tmp_path: Path) -> None:
    where = job(tmp_path, "say", schedule={"cron": "0 3 * * *"})
    first, second = go(where, scheduled=True), go(where, scheduled=True)
    assert (first.status, second.status, second.exit_code) == ("succeeded", "done before", 0)
    assert first.slot == second.slot
    assert starts(tmp_path) == 1
    assert go(where).status == "succeeded"  # asked for by hand
    assert starts(tmp_path) == 2


def test_a_scheduled_slot_that_failed_is_run_again(tmp_path: Path) -> None:
    where = job(tmp_path, "fail", "1", retries=0, schedule={"cron": "0 3 * * *"})
    assert [go(where, scheduled=True).status for _ in range(3)] == ["failed", "succeeded", "done before"]


def _go_into(where: str, queue: multiprocessing.Queue[tuple[str, int]]) -> None:
    made = go(where)
    queue.put((made.status, made.exit_code))


@pytest.mark.parametrize(
    ("overlap", "first", "second"),
    [
        ("forbid", ("succeeded", 0), ("busy", 75)),
        ("wait", ("succeeded", 0), ("succeeded", 0)),
        ("replace", ("replaced", 143), ("succeeded", 0)),
    ],
)
def test_a_run_that_meets_the_last_one_does_as_the_job_says(
    tmp_path: Path, overlap: str, first: tuple[str, int], second: tuple[str, int]
) -> None:
    queue: multiprocessing.Queue[tuple[str, int]] = multiprocessing.Queue()
    where = job(tmp_path, "sleep", "8", overlap=overlap)
    thread = threading.Thread(target=_go_into, args=(where, queue))
    thread.start()
    while not (tmp_path / "starts").exists():
        time.sleep(0.05)
    Path(where).write_text(Path(where).read_text().replace('"sleep"', '"say"'))
    made = go(where)
    thread.join(60)
    assert (made.status, made.exit_code) == second
    assert queue.get(timeout=5) == first
    assert starts(tmp_path) == (1 if overlap == "forbid" else 2)


# ---- environment and secrets


def test_variables_reach_the_command_and_so_does_the_home(tmp_path: Path) -> None:
    made = go(job(tmp_path, "environment", "COLOUR", "RDMPIPE_HOME", environment={"variables": {}}))
    assert made.result["RDMPIPE_HOME"] == str(tmp_path / "home")
    assert made.result["cwd"] == str(tmp_path)
    text = 'command = "environment"\narguments = ["COLOUR"]\n[environment]\nvariables = { COLOUR = "blue" }\n'
    where = write(tmp_path, text + f'home = "{tmp_path}/home"\nworking_dir = "."', "other")
    assert go(where).result["COLOUR"] == "blue"


def test_a_secret_reaches_the_command_and_nothing_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2-very-secret")
    made = go(job(tmp_path, "leak", retries=0, environment={"secrets": ["MY_TOKEN"]}))
    assert made.result == {"seen": "[MY_TOKEN]"}
    assert "the value is [MY_TOKEN]" in made.attempts[0].error
    out, err = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert not any(b"hunter2" in data for data in written)
    assert "hunter2" not in out + err


def test_a_secret_that_is_not_set_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="secret NO_SUCH_SECRET not set"):
        go(job(tmp_path, "say", environment={"secrets": ["NO_SUCH_SECRET"]}))
    assert not (tmp_path / "starts").exists()


def test_a_requirement_that_is_not_installed_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install 'pytest<2'"):
        go(job(tmp_path, "say", environment={"pip": ["pytest<2"]}))
    assert go(job(tmp_path, "say", environment={"pip": ["pytest>=2"]})).status == "succeeded"


# ---- webhook


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, object]], list[int]]]:
    got: list[dict[str, object]] = []
    answers: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = answers.pop(0) if answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hooks/a", got, answers
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_the_summary_where_the_operator_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: tuple[str, list[dict[str, object]], list[int]]
) -> None:
    address, got, answers = hook
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", f"https://example.org/, {address.removesuffix('a')}")
    answers.append(503)
    made = go(job(tmp_path, "say", report={"webhook": address}))
    assert made.webhook == "sent"
    assert [post["status"] for post in got] == ["succeeded"] * 2
    answers.append(302)
    assert go(job(tmp_path, "say", report={"webhook": address})).webhook == "not sent: HTTP 302"
    assert len(got) == 3


def test_a_webhook_address_can_be_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: tuple[str, list[dict[str, object]], list[int]]
) -> None:
    address, got, _ = hook
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", address)
    monkeypatch.setenv("HOOK", address)
    made = go(job(tmp_path, "say", report={"webhook": "$HOOK"}, environment={"secrets": ["HOOK"]}))
    assert (made.webhook, len(got)) == ("sent", 1)
    assert address not in (Storage(str(tmp_path / "home")).read_text(f"jobs/job/runs/{made.slot}.json") or "")


@pytest.mark.parametrize(
    "allowed", ["", "https://127.0.0.1:9/", "http://127.0.0.1:8/", "http://127.0.0.1:9/hook", "http://localhost:9/"]
)
def test_any_other_webhook_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", allowed)
    with pytest.raises(ConfigError, match="not an allowed address"):
        go(job(tmp_path, "say", report={"webhook": "http://127.0.0.1:9/hooks/a"}))
    assert not (tmp_path / "starts").exists()
