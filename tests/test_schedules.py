"""Rendered schedules are accepted by Kubernetes, KubeRay, cron and systemd, and agree with the job file."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.errors import ConfigError, JobError
from pipeline.scheduling import create_and_wait, load_job, render, with_home
from pipeline.scheduling.cron import parse_cron
from pipeline.scheduling.jobfile import shipped_jobs

KUBERNETES = "1.33"
JOBS = sorted(shipped_jobs())
CUSTOM = """
command = "generate"
arguments = ["list.csv", "--db", "wikiart"]
timeout = "90m"
retries = 0
overlap = "wait"
[resources]
cpus = 1.5
gpus = 0.5
memory = "3GB"
workers_min = 2
workers_max = 2
[environment]
home = "s3://bucket/prefix"
working_dir = "lists"
variables = { AWS_ENDPOINT_URL = "http://minio:9000", ODD = "a: b # 'c' %d", MONEY = "$5 $$ $(ODD)" }
secrets = ["AWS_SECRET_ACCESS_KEY"]
pip = ["pillow>=10", "tqdm"]
[schedule]
cron = "5 4 1 * mon"
timezone = "America/New_York"
[kubernetes]
image = "registry.example/rdmpipe:1"
namespace = "art"
service_account = "store-reader"
cpu_limit = true
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("prompt\na cat\n")
    path = tmp_path / "my-job.toml"
    path.write_text(CUSTOM)
    return str(path)


@pytest.fixture(scope="session")
def crds(shared: Path) -> dict[str, Any]:
    """KubeRay's v1 schemas by kind, made strict: an unknown field is an error, as with `kubectl --validate=strict`."""
    found = {}
    for kind in ("rayjobs", "raycronjobs"):
        text = (shared / "reference" / "kuberay" / f"ray.io_{kind}.yaml").read_text()
        definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
        found[definition["spec"]["names"]["kind"]] = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(schema: Any) -> Any:
    """A structural OpenAPI schema as JSON schema."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not keeps:
        made.setdefault("additionalProperties", False)
    return made


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def of_kind(text: str, kind: str) -> dict[str, Any]:
    (found,) = [made for made in documents(text) if made["kind"] == kind]
    return found


def check(made: dict[str, Any], crds: dict[str, Any]) -> None:
    if made["kind"] in crds:
        jsonschema.Draft202012Validator(crds[made["kind"]]).validate(made)
    else:
        kubernetes_validate.validate(made, KUBERNETES, strict=True)


@pytest.mark.parametrize("target", ["cronjob", "rayjob", "raycronjob"])
@pytest.mark.parametrize("name", JOBS)
def test_shipped_jobs_render_to_objects_that_the_published_schemas_accept(
    name: str, target: str, crds: dict[str, Any]
) -> None:
    made = documents(render(load_job(name), target))
    assert len(made) >= 5
    for document in made:
        check(document, crds)
        if document["kind"] == "ConfigMap" and target == "cronjob":
            check(json.loads(document["data"]["rayjob.json"]), crds)


@pytest.mark.parametrize("target", ["cronjob", "rayjob", "raycronjob"])
def test_a_job_with_everything_renders_too(custom: str, target: str, crds: dict[str, Any]) -> None:
    for document in documents(render(load_job(custom), target)):
        check(document, crds)


def test_the_check_itself_finds_unknown_and_mistyped_fields(crds: dict[str, Any]) -> None:
    made = of_kind(render(load_job("nightly-wikiart"), "rayjob"), "RayJob")
    made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["contaners"] = []
    with pytest.raises(jsonschema.ValidationError, match="contaners"):
        check(made, crds)
    cron = of_kind(render(load_job("nightly-wikiart"), "cronjob"), "CronJob")
    cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    with pytest.raises(Exception, match="comand"):
        check(cron, crds)


def _pods(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    cluster = spec["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]


def test_a_ray_job_asks_for_what_the_job_file_says(custom: str) -> None:
    body = of_kind(render(load_job(custom), "rayjob"), "RayJob")
    spec, cluster = body["spec"], body["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 86400
    assert spec["activeDeadlineSeconds"] == 90 * 60 + 1800
    assert spec["backoffLimit"] == 0
    group = cluster["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert cluster["enableInTreeAutoscaling"] is False
    head, worker = _pods(spec)
    assert worker["containers"][0]["resources"] == {
        "requests": {"cpu": "1.5", "memory": "3072Mi", "nvidia.com/gpu": "1"},
        "limits": {"cpu": "1.5", "memory": "3072Mi", "nvidia.com/gpu": "1"},
    }
    assert [toleration["key"] for toleration in worker["tolerations"]] == ["nvidia.com/gpu"]
    assert "tolerations" not in head and "nvidia.com/gpu" not in str(head)
    assert head["serviceAccountName"] == worker["serviceAccountName"] == "store-reader"
    assert body["metadata"]["namespace"] == "art"
    assert body["metadata"]["generateName"] == "my-job-"
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"pip": ["pillow>=10", "tqdm"]}


def test_the_number_of_workers_is_left_to_the_autoscaler_between_the_jobs_bounds() -> None:
    cluster = of_kind(render(load_job("nightly-wikiart"), "rayjob"), "RayJob")["spec"]["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0]
    assert cluster["enableInTreeAutoscaling"] is True
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 4)


@pytest.mark.parametrize("target", ["cronjob", "rayjob", "raycronjob", "crontab", "systemd"])
def test_a_secret_is_named_and_its_value_is_nowhere(custom: str, target: str) -> None:
    text = render(load_job(custom), target)
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "very-secret-value" not in text


def test_pods_get_variables_secrets_and_the_home(custom: str) -> None:
    for pod in _pods(of_kind(render(load_job(custom), "rayjob"), "RayJob")["spec"]):
        env = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        assert env["RDMPIPE_HOME"]["value"] == "s3://bucket/prefix"
        assert env["ODD"]["value"] == "a: b # 'c' %d"
        assert env["MONEY"]["value"] == "$$5 $$$$ $$(ODD)"  # what Kubernetes expands to the file's value
        assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
            "name": "my-job-secrets",
            "key": "AWS_SECRET_ACCESS_KEY",
        }
        assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]


def test_a_home_on_a_volume_is_mounted_where_the_home_is() -> None:
    for pod in _pods(of_kind(render(load_job("nightly-wikiart"), "rayjob"), "RayJob")["spec"]):
        (volume,) = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
        env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        assert volume["persistentVolumeClaim"]["claimName"] == "rdmpipe-home"
        assert mount["mountPath"] == env["RDMPIPE_HOME"]


def test_the_files_that_arguments_name_travel_with_the_job(custom: str, tmp_path: Path) -> None:
    """With the mount as a kubelet makes it, the job file loads, and its working directory holds the list."""
    text = render(load_job(custom), "rayjob")
    data = of_kind(text, "ConfigMap")["data"]
    head, _ = _pods(of_kind(text, "RayJob")["spec"])
    (volume,) = [volume for volume in head["volumes"] if "configMap" in volume]
    mount = tmp_path / "mount"
    for item in volume["configMap"]["items"]:
        (mount / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (mount / item["path"]).write_text(data[item["key"]])
    loaded = load_job(str(mount / "job.toml"))
    assert loaded.job == load_job(custom).job
    assert loaded.working_dir is not None
    assert (loaded.working_dir / "list.csv").read_text() == "prompt\na cat\n"


def test_a_cron_job_waits_for_its_ray_job_and_may_do_no_more_than_that(custom: str) -> None:
    text = render(load_job(custom), "cronjob")
    spec = of_kind(text, "CronJob")["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == (
        "5 4 1 * mon",
        "America/New_York",
        "Allow",
    )
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    roles = {made["metadata"]["name"]: made["rules"] for made in documents(text) if made["kind"] == "Role"}
    bound = {
        subject["name"]: made["roleRef"]["name"]
        for made in documents(text)
        if made["kind"] == "RoleBinding"
        for subject in made["subjects"]
    }
    assert roles[bound[pod["serviceAccountName"]]] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    assert of_kind(render(load_job("nightly-wikiart"), "cronjob"), "CronJob")["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_ray_cron_job_says_that_it_is_alpha_and_what_safety_rests_on(custom: str) -> None:
    head = render(load_job(custom), "raycronjob").split("apiVersion")[0]
    for words in ("alpha", "KubeRay 1.6", "no overlap policy", "compare-and-swap"):
        assert words in head


@pytest.mark.parametrize(
    ("change", "target", "says"),
    [
        (("[schedule]\ncron = \"5 4 1 * mon\"\ntimezone = \"America/New_York\"", ""), "cronjob", "has no schedule"),
        (("s3://bucket/prefix", "/data"), "rayjob", "no home to share"),
        (('namespace = "art"', 'claim = "x"'), "rayjob", "leave kubernetes claim out"),
        (("list.csv", "other.csv"), "rayjob", "leave working_dir out"),
        (("[kubernetes]", '[report]\nsummary = "out.json"\n[kubernetes]'), "rayjob", "absolute path"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_refused_with_the_fix(
    custom: str, change: tuple[str, str], target: str, says: str
) -> None:
    Path(custom).write_text(CUSTOM.replace(*change))
    with pytest.raises(ConfigError, match=says):
        render(load_job(custom), target)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'crontab'"):
        render(load_job("nightly-wikiart"), "crontabs")


# ---- cron and systemd


@pytest.mark.parametrize("target", ["crontab", "systemd"])
def test_a_schedule_on_a_machine_names_the_home_it_was_rendered_with(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDMPIPE_HOME", "homes/art")  # cron and systemd would neither set it nor start here
    monkeypatch.chdir(tmp_path)
    assert f"--home {tmp_path}/homes/art " in render(load_job("nightly-wikiart"), target)
    assert "--home s3://art/x " in render(with_home(load_job("nightly-wikiart"), "s3://art/x"), target)


def test_an_unknown_command_is_never_scheduled(tmp_path: Path) -> None:
    (tmp_path / "typo.toml").write_text('command = "build-indx"\n[schedule]\ncron = "1 2 * * *"\n')
    result = CliRunner().invoke(app, ["render", str(tmp_path / "typo.toml"), "--target", "crontab"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'build-indx' is not an rdmpipe command (did you mean 'build-index'?)" in result.stderr


@pytest.mark.process
@pytest.mark.parametrize("name", JOBS)
def test_a_crontab_line_is_five_fields_and_a_command_the_shell_takes(name: str) -> None:
    lines = [line for line in render(load_job(name), "crontab").splitlines() if not line.startswith("#")]
    assert lines[0].startswith("CRON_TZ=")
    fields = lines[-1].split(None, 5)
    parse_cron(" ".join(fields[:5]))
    subprocess.run(["sh", "-n", "-c", fields[5].replace("\\%", "%")], check=True)
    assert f"{name}.toml" in shlex.split(fields[5])[-1]


def test_percent_signs_are_escaped_for_cron(tmp_path: Path) -> None:
    path = tmp_path / "100% art"
    path.mkdir()
    (path / "job.toml").write_text('command = "list"\n[schedule]\ncron = "1 2 * * *"\n')
    line = render(load_job(str(path / "job.toml")), "crontab").splitlines()[-1]
    assert "100\\% art" in line
    assert shlex.split(line.replace("\\%", "%"))[-1] == str(path / "job.toml")


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("name", [*JOBS, "odd"])
def test_systemd_verifies_the_units(name: str, tmp_path: Path) -> None:
    if name == "odd":
        folder = tmp_path / 'a "100%" $HOME'
        folder.mkdir()
        (folder / "odd.toml").write_text('command = "list"\ntitle = "100%"\n[schedule]\ncron = "1 2 3 * 4"\n')
        name = str(folder / "odd.toml")
    units: dict[str, list[str]] = {}
    for line in render(load_job(name), "systemd").splitlines():
        if line.startswith("# file: "):
            units[line.removeprefix("# file: ")] = []
        units[list(units)[-1]].append(line)
    for unit, lines in units.items():
        (tmp_path / unit).write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *(str(tmp_path / unit) for unit in units)],
        capture_output=True,
        text=True,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "rdmpipe" in line]
    assert complaints == []
    assert [unit.rsplit(".")[-1] for unit in units] == ["service", "timer"]


# ---- the pod of the CronJob, against a small Kubernetes API


class Kubernetes:
    """The part of the API that a RayJob's creator uses: POST and GET of rayjobs, whose state then changes by itself."""

    def __init__(self, account: Path) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states: list[tuple[str, str]] = []  # what each further GET answers; the last one stays
        self.fail_next = 0
        self.retry_after = ""
        self.posts = 0
        kubernetes = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kubernetes.posts += 1
                name = body["metadata"]["name"]
                if name in kubernetes.jobs:
                    return self.answer(409, {"message": "already exists"})
                kubernetes.jobs[name] = body
                return self.answer(201, body)

            def do_GET(self) -> None:
                if kubernetes.fail_next:
                    kubernetes.fail_next -= 1
                    return self.answer(503, {"message": "later"})
                body = kubernetes.jobs.get(self.path.rsplit("/", 1)[-1])
                if body is None:
                    return self.answer(404, {"message": "not found"})
                deployment, ended = kubernetes.states[0]
                if len(kubernetes.states) > 1:
                    kubernetes.states.pop(0)
                return self.answer(200, {**body, "status": {"jobDeploymentStatus": deployment, "jobStatus": ended}})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                if self.headers["Authorization"] != "Bearer tok" or "/namespaces/default/rayjobs" not in self.path:
                    status, body = 403, {"message": "forbidden"}
                data = json.dumps(body).encode()
                self.send_response(status)
                if status == 503 and kubernetes.retry_after:
                    self.send_header("Retry-After", kubernetes.retry_after)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        (account / "token").write_text("tok\n")


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    made = Kubernetes(tmp_path)
    monkeypatch.setenv("KUBERNETES_API", f"http://127.0.0.1:{made.server.server_port}")
    monkeypatch.setenv("KUBERNETES_ACCOUNT", str(tmp_path))
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    config = of_kind(render(with_home(load_job("nightly-wikiart"), None), "cronjob"), "ConfigMap")["data"]
    path = tmp_path / "rayjob.json"
    path.write_text(config["rayjob.json"])
    (tmp_path / "job.toml").write_text(config["job.toml"])
    return path


def test_the_pod_creates_the_ray_job_of_its_slot_and_ends_as_that_does(kubernetes: Kubernetes, manifest: Path) -> None:
    kubernetes.states = [("", ""), ("Initializing", ""), ("Running", "RUNNING"), ("Complete", "SUCCEEDED")]
    kubernetes.fail_next = 1
    said: list[str] = []
    assert create_and_wait(manifest, "s1", "", said.append, poll_s=0.05) == 0
    (body,) = kubernetes.jobs.values()
    assert body["metadata"]["name"] == "nightly-wikiart-s1"
    assert body["spec"]["entrypoint"].endswith("--scheduled --slot s1")
    assert any("Running" in line for line in said)


def test_an_api_that_says_when_to_come_back_is_asked_then(
    kubernetes: Kubernetes, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.states, kubernetes.fail_next, kubernetes.retry_after = [("Complete", "SUCCEEDED")], 2, "7"
    waited: list[float] = []
    ours, sleep = threading.get_ident(), time.sleep  # threads of other tests go on sleeping
    monkeypatch.setattr("time.sleep", lambda s: waited.append(s) if threading.get_ident() == ours else sleep(s))
    assert create_and_wait(manifest, "s1", "", lambda text: None, poll_s=0.05) == 0
    assert waited == [7.0, 7.0]


def test_a_second_pod_for_the_same_time_follows_the_same_ray_job(kubernetes: Kubernetes, manifest: Path) -> None:
    kubernetes.states = [("Complete", "SUCCEEDED")]
    job = str(manifest.with_name("job.toml"))
    assert [create_and_wait(manifest, "", job, lambda text: None, poll_s=0.05) for _ in range(2)] == [0, 0]
    assert kubernetes.posts == 2
    assert len(kubernetes.jobs) == 1
    assert len(next(iter(kubernetes.jobs))) <= 47  # KubeRay allows no longer name


@pytest.mark.parametrize("state", [("Complete", "FAILED"), ("Failed", ""), ("Complete", "STOPPED")])
def test_a_ray_job_that_failed_fails_the_pod(kubernetes: Kubernetes, manifest: Path, state: tuple[str, str]) -> None:
    kubernetes.states = [("Running", "RUNNING"), state]
    assert create_and_wait(manifest, "s1", "", lambda text: None, poll_s=0.05) == 1


def test_a_pod_that_may_not_create_says_what_it_was_refused(kubernetes: Kubernetes, manifest: Path) -> None:
    (manifest.parent / "token").write_text("wrong")
    with pytest.raises(JobError, match="HTTP 403"):
        create_and_wait(manifest, "s1", "", lambda text: None, poll_s=0.05)


def test_outside_a_pod_it_says_what_to_use_instead(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="rdmpipe submit"):
        create_and_wait(manifest, "s1", "", lambda text: None)
