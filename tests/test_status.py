"""Status: what is running, its progress, and what failed, from files of the home only; and one line for each shard in
the log."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from pipeline.catalog import home_status, status_of
from pipeline.catalog.status import DatabaseStatus, RunStatus, database_status
from pipeline.database import RetrievalDatabase
from pipeline.errors import DatabaseError
from pipeline.execution import Progress
from pipeline.storage import Storage, lease
from tests.builds import command, folder_of, last_json, manifest_of, quiet_build
from tests.generations import save_model


def test_a_running_build_shows_stages_shards_rate_and_time_left(tmp_path: Path) -> None:
    storage = RetrievalDatabase("art", str(tmp_path)).storage
    with lease(storage, "build-index art"), Progress("json", io.StringIO()) as progress:
        progress.record_in(storage)
        progress.begin("embed", 10)
        progress.advance("embed", 0, 100, 0.5)
        progress.advance("embed", 1, 0, 0.0, problem="broken")
        progress.record_in(storage)
        state = database_status("art", str(tmp_path))
        assert state.running is not None and state.running.purpose == "build-index art"
        assert state.progress is not None
        embed = state.progress["stages"]["embed"]
        assert (embed["done"], embed["failed"], embed["shards"], embed["rows"]) == (2, 1, 10, 100)
        assert embed["rows_per_second"] > 0 and (embed["seconds_left"] or 0) > 0
        assert "embed: 2/10 shards, 1 failed" in state.text() and "s left" in state.text()
    assert database_status("art", str(tmp_path)).running is None


def test_a_holder_elsewhere_is_running_while_it_renews_and_not_when_it_stopped(tmp_path: Path) -> None:
    storage = RetrievalDatabase("art", str(tmp_path)).storage
    storage.write_text("progress.json", json.dumps({"updated": 1.0, "running_for": 1.0, "stages": {}}))
    holder = {
        "holder": "x",
        "host": "elsewhere",
        "pids": "",
        "pid": 7,
        "started": "1",
        "purpose": "build",
        "term": 60.0,
    }
    storage.write_text("lease", json.dumps(holder))
    state = database_status("art", str(tmp_path))
    assert state.running is not None and state.running.host == "elsewhere"
    old = time.time() - 300
    os.utime(Path(storage.full("lease")), (old, old))
    assert database_status("art", str(tmp_path)).running is None


def test_jobs_and_running_generations_are_listed_and_found_by_name(tmp_path: Path) -> None:
    root = Storage(str(tmp_path))
    run = {"slot": "s1", "status": "failed", "exit_code": 3, "ended": "2026-11-22T01:00:00+00:00"}
    root.write_text("jobs/nightly/runs/s1.json", json.dumps(run))
    generation = root.child("generations/tonight")
    failure = {"stage": "generate", "shard": 2, "error": "Traceback\nValueError: no", "attempts": 3}
    generation.write_text("failures.json", json.dumps([failure]))
    assert [state.name for state in home_status(str(tmp_path))] == ["nightly"]
    with lease(generation, "generate tonight"), Progress("json", io.StringIO()) as progress:
        progress.begin("generate", 4)
        progress.record_in(generation)
        assert [state.name for state in home_status(str(tmp_path))] == ["tonight", "nightly"]
        text = status_of("tonight", str(tmp_path)).text()
    assert "generate: 0/4 shards" in text and "running: generate tonight on" in text
    assert "failed: generate shard 000002 after 3: ValueError: no" in text
    job = status_of("nightly", str(tmp_path))
    assert isinstance(job, RunStatus) and job.last == run
    assert "last run: slot s1 failed, exit code 3" in job.text()
    with pytest.raises(DatabaseError, match="no database 'nightli'"):
        status_of("nightli", str(tmp_path))


def test_shards_that_were_done_before_are_in_no_rate() -> None:
    progress = Progress(stream=io.StringIO())
    progress.begin("download", 3)
    progress.advance("download", 0, 250, 0.0)
    assert progress.snapshot()["stages"]["download"]["rows_per_second"] == 0.0
    progress.advance("download", 1, 100, 50.0)
    state = progress.snapshot()["stages"]["download"]
    assert (state["done"], state["rows"]) == (2, 100)
    assert 1.9 < state["rows_per_second"] <= 2.0 and 49 < (state["seconds_left"] or 0) < 60


@pytest.mark.process
def test_a_log_as_json_has_a_line_for_every_shard_and_stage(tmp_path: Path, home: Path) -> None:
    target = manifest_of(tmp_path / "mine.toml", folder_of(tmp_path / "pictures", 30))
    made = command("build-index", target, "--log-format", "json", home=home)
    assert made.returncode == 0 and made.stderr is not None
    told = [json.loads(line) for line in made.stderr.read().splitlines() if line.startswith("{")]
    stages = {line["stage"]: line["shards"] for line in told if line["message"] == "stage"}
    assert stages == {"download": 3, "embed": 3, "index": 1}
    shards = [line for line in told if line["message"] == "shard"]
    assert sorted((line["stage"], line["shard"]) for line in shards) == [
        *(("download", n) for n in range(3)), *(("embed", n) for n in range(3)), ("index", 0),
    ]  # fmt: skip
    assert all(line["seconds"] > 0 and line["rows"] == (30 if line["stage"] == "index" else 10) for line in shards)
    state = status_of("mine")
    assert isinstance(state, DatabaseStatus)
    assert state.progress is not None and state.progress["stages"]["index"]["done"] == 1


@pytest.mark.process
def test_a_prompt_list_is_generated_by_a_job(tmp_path: Path, home: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 12), name="mine")
    model = save_model(tmp_path / "model")
    (tmp_path / "prompts.csv").write_text("prompt\na red cat\na blue boat\n")
    words = ["prompts.csv", "--db", "mine", "--model", str(model), "--steps", "2", "-k", "3", "--run", "tonight"]
    job = tmp_path / "night.toml"
    job.write_text(
        f'command = "generate"\narguments = {json.dumps(words)}\nretries = 0\n'
        f'[environment]\nhome = "{home}"\nworking_dir = "."\n'
    )
    first = last_json(command("run", job, "--slot", "s1", "--json", home=home))
    assert (first["status"], first["result"]["ok"], first["result"]["made"]) == ("succeeded", 2, 2)
    state = status_of("tonight")
    assert isinstance(state, RunStatus)
    assert (state.kind, state.failures, state.running) == ("generation", (), None)
    assert "slot s1 succeeded" in status_of("night").text()
