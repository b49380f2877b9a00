"""Jobs on a real cluster of three nodes: the result is the same if something dies, hangs, disconnects or is started twice."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError, JobError
from pipeline.execution import Backend
from pipeline.scheduling import JobsClient, LoadedJob, Submission, load_job
from pipeline.scheduling.cluster import check_versions
from pipeline.storage import Storage
from pipeline.storage.files import TEMPORARY
from tests import builds
from tests.cluster import Cluster, cluster, read_authentication_again
from tests.clusterwork import STAGES, work
from tests.generations import pictures, quiet_generate, save_model
from tests.s3server import BUCKET, KEYS, Proxy, s3_server
from tests.stages import lines, order

pytestmark = pytest.mark.cluster

ENTRY = ("python", "-m", "tests.clusterwork", "run")
SHARDS = 14
SEED = int(os.environ.get("RDMPIPE_TEST_SEED", "20260607"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(3, env={**KEYS, "RAY_metrics_report_interval_ms": "1000"}) as made:
        for name, value in made.client_env.items():
            os.environ[name] = value
        read_authentication_again()
        yield made
        for name in made.client_env:
            del os.environ[name]
    read_authentication_again()


@pytest.fixture
def client(nodes: Cluster) -> JobsClient:
    return JobsClient(nodes.dashboard)


@pytest.fixture
def three(nodes: Cluster) -> Cluster:
    """The cluster with all its nodes, even if the last test ended some of them."""
    while len(nodes.nodes) < 3:
        nodes.add()
    return nodes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the same work, done without failures in this process."""
    root = tmp_path_factory.mktemp("undisturbed")
    before = os.environ.get("RDMPIPE_HOME")
    os.environ["RDMPIPE_HOME"] = str(root / "home")
    try:
        work(root, SHARDS, 0.0, 60.0, Backend())
    finally:
        if before is None:
            del os.environ["RDMPIPE_HOME"]
        else:
            os.environ["RDMPIPE_HOME"] = before
    return contents(str(root / "home"))


def contents(home: str) -> dict[str, bytes]:
    """The expected files of a run: those of the stages, and the published ones."""
    database = RetrievalDatabase("db", home)
    storage = database.storage
    names = [f"{name}/{file}" for name in STAGES for file in storage.list(name)]
    names += ["current", *(f"versions/{version}.json" for version in database.versions())]
    return {name: storage.read_bytes(name) for name in names}


def job(tmp_path: Path, name: str, pause: float = 0.2, timeout_s: float = 60.0, **variables: str) -> LoadedJob:
    home = variables.pop("home", str(tmp_path / "home"))
    path = tmp_path / f"{name}.toml"
    given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in variables.items())
    path.write_text(
        f'command = "work"\narguments = ["{tmp_path}", "{SHARDS}", "{pause}", "{timeout_s}"]\nretries = 0\n'
        f"[environment]\nhome = {json.dumps(home)}\nvariables = {{ {given} }}\n"
    )
    return load_job(str(path))


def finished(client: JobsClient, found: Submission, seconds: float = 150.0) -> Submission:
    deadline = time.monotonic() + seconds
    while not (now := client.get(found.id)).is_over:
        assert time.monotonic() < deadline, f"{found.id} did not end:\n{client.logs(found.id)[-6000:]}"
        time.sleep(0.3)
    return now


def until(tmp_path: Path, condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that; log: {lines(tmp_path, '')}"
        time.sleep(0.05)


def runs(tmp_path: Path) -> int:
    return len(lines(tmp_path, "run"))


def same(tmp_path: Path, undisturbed: dict[str, bytes], client: JobsClient, found: Submission, home: str = "") -> None:
    assert found.status == "SUCCEEDED", client.logs(found.id)[-8000:]
    assert contents(home or str(tmp_path / "home")) == undisturbed


@pytest.mark.usefixtures("three")
def test_two_submissions_at_once_are_one_run_that_both_follow_and_prometheus_sees(
    nodes: Cluster, client: JobsClient, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    loaded, found = job(tmp_path, "twice", pause=0.5), []

    def submit() -> None:
        mine = JobsClient(nodes.dashboard)
        made = mine.submit(loaded, "s1", ENTRY)
        said: list[str] = []
        found.append((made, mine.follow(made.id, said.append), "".join(said)))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(tmp_path, lambda: runs(tmp_path) >= 4)
    address = f"http://{nodes.nodes[0].address}:{nodes.ports['metrics-export-port']}/metrics"
    seen = ""
    while threads[0].is_alive() and not all(
        f"rdmpipe_{name}" in seen for name in ("images", "queue_depth", "worker_wait")
    ):
        with urllib.request.urlopen(address, timeout=5) as answer:
            seen = answer.read().decode()
        time.sleep(0.5)
    for thread in threads:
        thread.join(120)
    assert re.search(
        r'rdmpipe_images_total\{[^}]*stage="db|rdmpipe_images_total\{[^}]*stage="first"[^}]*\} \d', seen
    ), seen[-3000:]
    assert "rdmpipe_queue_depth" in seen and "rdmpipe_worker_wait_seconds" in seen
    assert sorted(made.new for made, _, _ in found) == [False, True]
    assert {made.id for made, _, _ in found} == {"twice-s1-1"}
    for _, end, log in found:
        same(tmp_path, undisturbed, client, end)
        assert '"status": "succeeded"' in log
        assert log.count('"message": "stage"') == len(STAGES)  # the whole log, once
    assert [s.id for s in client.submissions("twice-")] == ["twice-s1-1"]
    assert len(lines(tmp_path, "run")) == 2 * SHARDS
    summary = json.loads(Storage(str(tmp_path / "home")).read_text("jobs/twice/runs/s1.json") or "")
    assert (summary["status"], summary["result"]["ran"]) == ("succeeded", dict.fromkeys(STAGES, SHARDS))


@pytest.mark.usefixtures("three")
def test_a_killed_driver_is_a_failure_and_the_next_attempt_continues(
    nodes: Cluster, client: JobsClient, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    loaded = job(tmp_path, "driver", pause=0.4)
    first = client.submit(loaded, "s1", ENTRY)
    when = random.Random(SEED + 1).randrange(4, SHARDS)
    until(tmp_path, lambda: runs(tmp_path) >= when)
    os.kill(int((tmp_path / "drivers").read_text().split()[-1]), signal.SIGKILL)
    ended = finished(client, first)
    assert (ended.status, ended.exit_code) == ("FAILED", 137)
    assert not RetrievalDatabase("db", str(tmp_path / "home")).exists()
    second = client.submit(loaded, "s1", ENTRY)
    assert (second.id, second.new) == ("driver-s1-2", True)
    same(tmp_path, undisturbed, client, finished(client, second))


@pytest.mark.long  # the executor's own tests hang a worker on one machine
@pytest.mark.usefixtures("three")
def test_a_worker_that_hangs_is_replaced(client: JobsClient, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    order(tmp_path, "second", 3, "hang")
    found = client.submit(job(tmp_path, "hang", pause=0.0, timeout_s=4.0), "s1", ENTRY)
    same(tmp_path, undisturbed, client, finished(client, found))
    assert lines(tmp_path, "run second 3") == ["run second 3"] * 2


@pytest.mark.long  # tests/test_s3.py runs stages over a failing store on one machine
def test_a_store_that_breaks_off_in_mid_run_changes_nothing(
    nodes: Cluster, client: JobsClient, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        proxy = Proxy(server, nodes.host)
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.address}.items():
            monkeypatch.setenv(name, value)
        home = f"s3://{BUCKET}/cluster"
        loaded = job(tmp_path, "store", pause=0.2, home=home, AWS_ENDPOINT_URL=proxy.address)
        found = client.submit(loaded, "s1", ENTRY)
        until(tmp_path, lambda: runs(tmp_path) >= 5)
        rng = random.Random(SEED + 2)
        proxy.order("PUT", *(rng.choice(["500", "503", "lost", "cut", ""]) for _ in range(10)))
        proxy.down = True
        time.sleep(3.0)
        proxy.down = False
        ended = finished(client, found)
        assert proxy.seen["cut"] > 0
        same(tmp_path, undisturbed, client, ended, home)
        proxy.close()


def test_nodes_that_do_not_share_the_home_are_an_error_at_the_start(
    nodes: Cluster, client: JobsClient, tmp_path: Path
) -> None:
    if not nodes.isolated:
        pytest.skip("needs namespaces: a node that sees another directory where the others see the home")
    (tmp_path / "home").mkdir()
    stranger = nodes.add(cpus=4, hide=tmp_path / "home")
    try:
        found = finished(client, client.submit(job(tmp_path, "stranger"), "s1", ENTRY))
        log = client.logs(found.id)
        assert (found.status, found.exit_code) == ("FAILED", ConfigError.exit_code), log
        assert "does not share the home" in log
        assert not RetrievalDatabase("db", str(tmp_path / "home")).exists()
    finally:
        nodes.kill(stranger)


@pytest.mark.usefixtures("three")
def test_a_node_killed_in_mid_run_changes_nothing(
    nodes: Cluster, client: JobsClient, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Two nodes have CPUs for exactly the stages' workers; one node is lost with half of them."""
    found = client.submit(job(tmp_path, "node"), "s1", ENTRY)
    when = random.Random(SEED).randrange(3, SHARDS)
    until(tmp_path, lambda: runs(tmp_path) >= when)
    nodes.kill(nodes.nodes[1])
    same(tmp_path, undisturbed, client, finished(client, found))


MISHAPS = ("node", "driver", "hang", "cable", "twice")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(int(os.environ.get("RDMPIPE_TEST_MISHAPS", "12"))))
@pytest.mark.usefixtures("three")
def test_any_two_mishaps_at_any_moment_change_nothing(
    seed: int,
    nodes: Cluster,
    client: JobsClient,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a disk, or on a store that sometimes fails; the job is submitted again until it succeeds."""
    rng = random.Random(SEED + seed)
    chosen = [rng.choice([mishap for mishap in MISHAPS if nodes.isolated or mishap != "cable"]) for _ in range(2)]
    moments = sorted(rng.randrange(1, 2 * SHARDS) for _ in chosen)
    with s3_server() as server:
        proxy = Proxy(server, nodes.host)
        home = f"s3://{BUCKET}/{seed}" if rng.random() < 0.5 else str(tmp_path / "home")
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": proxy.address}.items():
            monkeypatch.setenv(name, value)
        for method in ("GET", "PUT"):
            proxy.order(method, *(rng.choice(["500", "503", "lost", "cut", *[""] * 12]) for _ in range(100)))
        loaded = job(tmp_path, f"mishap{seed}", timeout_s=15.0, home=home, AWS_ENDPOINT_URL=proxy.address)
        print(
            f"seed {seed}: {home.split(':')[0]}, "
            + ", ".join(f"{m} at {t}" for m, t in zip(chosen, moments, strict=True))
        )
        found, attempts = client.submit(loaded, "s1", ENTRY), 1
        for mishap, moment in zip(chosen, moments, strict=True):
            deadline = time.monotonic() + 120
            while runs(tmp_path) < moment and not client.get(found.id).is_over and time.monotonic() < deadline:
                time.sleep(0.05)
            _mishap(mishap, nodes, client, loaded, tmp_path, rng)
        while (ended := finished(client, found, 300)).status != "SUCCEEDED":
            assert "driver" in chosen and attempts < 5, client.logs(found.id)[-8000:]
            found, attempts = client.submit(loaded, "s1", ENTRY), attempts + 1
        same(tmp_path, undisturbed, client, ended, home)
        proxy.close()


@pytest.mark.long
@pytest.mark.usefixtures("three")
def test_a_real_build_that_loses_a_node_publishes_what_an_uninterrupted_one_does(
    nodes: Cluster, client: JobsClient, tmp_path: Path
) -> None:
    """`rdmpipe build-index`, submitted as users submit it: plan, download, embed and index."""
    manifest = builds.manifest_of(tmp_path / "mine.toml", builds.folder_of(tmp_path / "pictures", 60), shard_rows=5)
    expected = builds.quiet_build(manifest, home=str(tmp_path / "undisturbed"))
    path = tmp_path / "build.toml"
    path.write_text(
        f'command = "build-index"\narguments = ["{manifest}", "--workers", "2"]\nretries = 0\n'
        f'[environment]\nhome = "{tmp_path}/home"\n'
    )
    found = client.submit(load_job(str(path)), "s1")
    receipts = Storage(f"{tmp_path}/home/databases/mine")
    until(tmp_path, lambda: len(receipts.list("images", ".json")) >= 3)
    nodes.kill(nodes.nodes[1])
    nodes.add()
    ended = finished(client, found, 400)
    assert ended.status == "SUCCEEDED", client.logs(found.id)[-8000:]
    summary = json.loads(Storage(str(tmp_path / "home")).read_text("jobs/build/runs/s1.json") or "")
    assert summary["result"]["version"] == expected.version
    made = builds.contents(tmp_path / "home")  # less what the dead node was writing, which the next build clears away
    whole = {path: data for path, data in made.items() if not path.startswith(TEMPORARY)}
    assert whole == builds.contents(tmp_path / "undisturbed")
    page = Storage(str(tmp_path / "home")).read_text("jobs/build/runs/s1.html") or ""
    assert "embed" in page and expected.version in page


@pytest.mark.long
@pytest.mark.usefixtures("three")
def test_a_prompt_list_submitted_as_a_job_gives_the_pictures_that_it_gives_here(
    client: JobsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, model = tmp_path / "home", save_model(tmp_path / "model")
    monkeypatch.setenv("RDMPIPE_HOME", str(home))
    builds.quiet_build(builds.folder_of(tmp_path / "pictures", 12), name="mine")
    (tmp_path / "prompts.csv").write_text("prompt\na red cat\na blue boat\na horse\n")
    here = quiet_generate(tmp_path / "prompts.csv", db=("mine",), model=str(model), out=str(tmp_path / "here"))
    words = ["prompts.csv", "--db", "mine", "--model", str(model), "--steps", "2", "-k", "3", "--run", "night"]
    path = tmp_path / "night.toml"
    path.write_text(
        f'command = "generate"\narguments = {json.dumps([*words, "--workers", "2"])}\nretries = 0\n'
        f'[environment]\nhome = "{home}"\nworking_dir = "."\n'
    )
    found = client.submit(load_job(str(path)), "s1")
    assert finished(client, found, 400).status == "SUCCEEDED", client.logs(found.id)[-8000:]
    assert pictures(home / "generations" / "night") == pictures(here.out)


def _mishap(
    kind: str, nodes: Cluster, client: JobsClient, loaded: LoadedJob, tmp_path: Path, rng: random.Random
) -> None:
    if kind == "node":
        nodes.kill(nodes.nodes[rng.randrange(1, len(nodes.nodes))])
        nodes.add()
    elif kind == "driver" and (tmp_path / "drivers").exists():
        driver = int((tmp_path / "drivers").read_text().split()[-1])
        if Path(f"/proc/{driver}").exists():
            os.kill(driver, signal.SIGKILL)
    elif kind == "hang":
        order(tmp_path, rng.choice(STAGES), rng.randrange(SHARDS), "hang")
    elif kind == "cable":
        lost = nodes.nodes[rng.randrange(1, len(nodes.nodes))]
        nodes.cable(lost, plugged=False)
        time.sleep(rng.uniform(1.0, 15.0))  # noticed as lost after about eight seconds, or not at all
        nodes.cable(lost, plugged=True)
        time.sleep(3.0)
        if lost.address not in {node["node_ip"] for node in alive(client)}:
            nodes.kill(lost)
            nodes.add()
    elif kind == "twice":
        again = client.submit(loaded, "s1", ENTRY)
        assert again.id.startswith(f"{loaded.job.name}-s1-")


def alive(client: JobsClient) -> list[dict[str, Any]]:
    answer = client.client._do_request("GET", "/api/v0/nodes").json()
    return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


# ---- submitting, following, stopping


def cli(nodes: Cluster, *words: str, wait: bool = True, **env: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *words],
        env={**os.environ, "RAY_API_SERVER_ADDRESS": nodes.dashboard, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(120)
    return process


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(nodes: Cluster, client: JobsClient, tmp_path: Path) -> None:
    found = client.submit(job(tmp_path, "long", pause=20.0), "s1", ENTRY)
    until(tmp_path, lambda: runs(tmp_path) >= 1)
    follower = cli(nodes, "logs", found.id, "--follow", wait=False)
    assert follower.stderr is not None and follower.stderr.readline(), "it follows: the job's first line is there"
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert f"rdmpipe logs {found.id} --follow --address {nodes.dashboard}" in err
    assert not client.get(found.id).is_over
    stopped = cli(nodes, "stop", found.id, "--json")
    assert stopped.stdout is not None
    assert json.loads(stopped.stdout.read())["status"] == "STOPPED"
    driver = int((tmp_path / "drivers").read_text())
    until(
        tmp_path,
        lambda: not Path(f"/proc/{driver}/cmdline").exists() or not Path(f"/proc/{driver}/cmdline").read_bytes(),
    )


def test_a_job_submitted_by_the_program_gives_it_its_exit_code(nodes: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "missing.toml"
    path.write_text('command = "status"\narguments = ["no-such-database"]\nretries = 0\n')
    done = cli(nodes, "submit", str(path), "--slot", "s1", "--follow", "--home", str(tmp_path / "home"), "--json")
    assert done.stdout is not None and done.stderr is not None
    err = done.stderr.read()
    assert done.returncode == 1, err
    assert "no database 'no-such-database'" in err
    record = json.loads(done.stdout.read())
    assert (record["id"], record["status"], record["exit_code"]) == ("missing-s1-1", "FAILED", 1)
    listed = cli(nodes, "jobs", "--json")
    assert listed.stdout is not None
    assert record["id"] in [job["id"] for job in json.loads(listed.stdout.read())]


def test_a_wrong_token_is_explained(nodes: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("not-the-token-" * 4)
    for env in ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, {"RAY_AUTH_MODE": "disabled"}):
        done = cli(nodes, "jobs", **env)
        assert done.stderr is not None
        err = done.stderr.read()
        assert done.returncode == 1
        assert "Set RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN_PATH" in err, err
        assert "Traceback" not in err


def test_an_unknown_job_is_an_error_that_names_those_there_are(client: JobsClient) -> None:
    with pytest.raises(JobError, match="has no job 'nope'"):
        client.logs("nope")


def test_an_address_where_nothing_answers_is_explained() -> None:
    with pytest.raises(JobError, match="no Ray cluster answers at"):
        JobsClient("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="--address http://HEAD:8265"):
        JobsClient("ray://head:10001")


@pytest.mark.parametrize(
    ("ray", "python", "says"),
    [("2.49.0", "3.11.9", "Ray 2.49.0 there, 2.60.0 here"), ("2.60.1", "3.12.1", "Python 3.12.1 there, 3.11.7 here")],
)
def test_versions_that_differ_are_an_error_that_says_which(ray: str, python: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        check_versions("http://head:8265", ray, python, "2.60.0", "3.11.7")
    check_versions("http://head:8265", "2.60.2", "3.11.1", "2.60.0", "3.11.7")
