"""Job files as Kubernetes objects: a RayJob, a RayCronJob, or a CronJob that creates a RayJob and waits for its end.

Reads: a job and the small files that its arguments name. Writes nothing. The rendered text also holds a ConfigMap with the
job's files, and the service accounts with their roles. Tests check the text against KubeRay's CRDs and the Kubernetes API
schema; it has not been applied to a cluster. The user provides the image (jobs/Dockerfile shows one).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shlex
from pathlib import Path

from pipeline.config import parse_size
from pipeline.errors import ConfigError
from pipeline.scheduling.jobfile import JobFile, LoadedJob, parse_duration, scheduled

LARGEST_CONFIG = 900_000  # bytes; Kubernetes allows a ConfigMap 1 MiB

Object = dict[str, object]  # a Kubernetes object, or a part of one, as JSON


def files(loaded: LoadedJob) -> dict[str, str]:
    """ConfigMap key -> path in the mount, for the job file and the files that its arguments name. Raises ConfigError."""
    job, found = loaded.job, {"job.toml": "job.toml"}
    summary, base = job.report.summary, job.environment.working_dir
    if summary and not summary.startswith("/"):
        raise ConfigError(
            f"job {job.name}: report summary {summary!r}: in Kubernetes give an absolute path on a volume"
        )
    if loaded.working_dir is None:
        return found
    if Path(base).is_absolute() or ".." in Path(base).parts:
        raise ConfigError(
            f"job {job.name}: working_dir {base!r}: in Kubernetes it must be a relative path below the job file's folder"
        )
    for argument in job.arguments:
        if re.fullmatch(r"[\w.-]+", argument) and (loaded.working_dir / argument).is_file():
            found[f"file-{argument}"] = str(Path(base) / argument)
    if len(found) == 1 and base not in (".", "./"):
        raise ConfigError(
            f"job {job.name}: no argument names a file in working_dir {base!r}. Put the files that it needs into the image, "
            "and leave working_dir out"
        )
    return found


def config_map(loaded: LoadedJob, more: dict[str, str] | None = None) -> Object:
    """The ConfigMap with the job's files. more: further texts by key. Raises ConfigError if they are too large."""
    data = dict(more or {})
    for key in files(loaded):
        if key == "job.toml":
            data[key] = loaded.text
        elif loaded.working_dir is not None:
            data[key] = (loaded.working_dir / key.removeprefix("file-")).read_text(encoding="utf-8")
    size = sum(len(text.encode()) for text in data.values())
    if size > LARGEST_CONFIG:
        raise ConfigError(
            f"job {loaded.job.name}: its files take {size:,} bytes, and a ConfigMap holds at most {LARGEST_CONFIG:,}; "
            "put them into the home or the image"
        )
    about = metadata(loaded.job, f"{loaded.job.name}-job")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": data}


def job_volume(loaded: LoadedJob, more: dict[str, str] | None = None) -> Object:
    """The volume that mounts the ConfigMap. more: further paths by key."""
    paths = {**files(loaded), **(more or {})}
    items = [{"key": key, "path": path} for key, path in paths.items()]
    return {"name": "job", "configMap": {"name": f"{loaded.job.name}-job", "items": items}}


def ray_account(job: JobFile) -> list[Object]:
    """The service account of the Ray pods, with the role that Ray's autoscaler needs.

    If the job names a service account, only the role and its binding are rendered.
    """
    account = job.kubernetes.service_account or job.name
    made: list[Object] = []
    if not job.kubernetes.service_account:
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(job, account)})
    role: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(job, f"{job.name}-autoscaler"),
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
            {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
        ],
    }
    return [*made, role, binding(job, f"{job.name}-autoscaler", account)]


def binding(job: JobFile, role: str, account: str) -> Object:
    """The RoleBinding that gives `account` the rights of `role`."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(job, role),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": job.kubernetes.namespace}],
    }


def labels(job: JobFile) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rdmpipe", "app.kubernetes.io/instance": job.name}


def metadata(job: JobFile, name: str) -> Object:
    return {"name": name, "namespace": job.kubernetes.namespace, "labels": labels(job)}


def documents(notes: list[str], objects: list[Object]) -> str:
    """The YAML text of the objects, with the notes as comments above them."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> object:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    head = "".join(f"# {note}\n" for note in notes)
    return head + "---\n".join(yaml.dump(made, Dumper=Dumper, sort_keys=False, width=120) for made in objects)


MOUNT = "/etc/rdmpipe"

START_S = 1800  # seconds for a cluster to start, added to the job's timeout


def rayjob(loaded: LoadedJob) -> str:
    """A RayJob that runs now. Each `kubectl create -f -` creates another one, because Kubernetes generates the name."""
    job = loaded.job
    about: Object = {
        "namespace": job.kubernetes.namespace,
        "labels": labels(job),
        "generateName": f"{job.name}-",
    }
    body = _rayjob(about, _rayjob_spec(loaded, _entrypoint(job)))
    notes = [
        "One run, now. First once: `kubectl apply` the objects before the RayJob; then `kubectl create` the RayJob, each time.",
        *_notes(job),
    ]
    return documents(notes, [config_map(loaded), *ray_account(job), body])


def raycronjob(loaded: LoadedJob) -> str:
    """A RayCronJob, with which KubeRay itself starts the RayJobs. Raises ConfigError if the job has no schedule."""
    job, schedule = loaded.job, scheduled(loaded)
    spec = _rayjob_spec(loaded, f"{_entrypoint(job)} --scheduled")
    body: Object = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": metadata(job, job.name),
        "spec": {"schedule": schedule.parsed.text, "timeZone": schedule.timezone, "jobTemplate": spec},
    }
    notes = [
        "RayCronJob is alpha: KubeRay 1.6 or newer, behind its RayCronJob feature gate. It has no overlap policy: it starts",
        "the next run whether or not the last has ended. Safety rests on rdmpipe: the lease in the home turns a second run",
        "away (or makes it wait, or replaces the first: the job file's `overlap`), and publishing is compare-and-swap.",
        *_notes(job),
    ]
    return documents(notes, [config_map(loaded), *ray_account(job), body])


def cronjob(loaded: LoadedJob) -> str:
    """A CronJob whose pod creates a RayJob and waits for its end. Raises ConfigError if the job has no schedule."""
    job = loaded.job
    inner = _rayjob(metadata(job, job.name), _rayjob_spec(loaded, f"{_entrypoint(job)} --scheduled"))
    creator = f"{job.name}-schedule"
    role: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(job, creator),
        "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
    }
    account: Object = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(job, creator)}
    notes = [
        "A CronJob that creates a RayJob, named after its scheduled time, and waits for its end: so that concurrencyPolicy",
        "covers the work and not only the pod that started it. A pod started twice for one time follows the one RayJob.",
        *_notes(job),
    ]
    objects = [
        config_map(loaded, {"rayjob.json": json.dumps(inner, indent=1)}),
        account,
        role,
        binding(job, creator, creator),
        *ray_account(job),
        _cronjob(loaded, _creating_pod(loaded, creator)),
    ]
    return documents(notes, objects)


def _creating_pod(loaded: LoadedJob, account: str) -> Object:
    """The pod that creates the RayJob and follows it."""
    job = loaded.job
    container = {
        "name": "schedule",
        "image": job.kubernetes.image,
        "command": ["rdmpipe", "follow-rayjob", f"{MOUNT}/rayjob.json", "--job", f"{MOUNT}/job.toml"],
        "env": [{"name": "RDMPIPE_HOME", "value": _plain(_home(job))}],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "job", "mountPath": MOUNT, "readOnly": True}],
    }
    return {
        "serviceAccountName": account,
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [job_volume(loaded, {"rayjob.json": "rayjob.json"})],
    }


def _cronjob(loaded: LoadedJob, pod: Object) -> Object:
    job, schedule = loaded.job, scheduled(loaded)
    # After Kubernetes moves the pod, it starts the pod again, and the new pod follows the same RayJob. After the RayJob failed,
    # it does not start the pod again.
    failures = {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "schedule", "operator": "NotIn", "values": [0]}},
        ]
    }
    template = {
        "activeDeadlineSeconds": int(job.timeout_s) + 2 * START_S,
        "backoffLimit": 3,
        "podFailurePolicy": failures,
        "template": {"metadata": {"labels": labels(job)}, "spec": pod},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata(job, job.name),
        "spec": {
            "schedule": schedule.parsed.text,
            "timeZone": schedule.timezone,
            "concurrencyPolicy": {"forbid": "Forbid", "wait": "Allow", "replace": "Replace"}[job.overlap],
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": template},
        },
    }


def _entrypoint(job: JobFile) -> str:
    return shlex.join(["rdmpipe", "run", f"{MOUNT}/job.toml", "--home", _home(job)])


def _rayjob(about: Object, spec: Object) -> Object:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": about, "spec": spec}


def _rayjob_spec(loaded: LoadedJob, entrypoint: str) -> Object:
    """A RayJob's spec: a Ray cluster that runs `entrypoint` and ends with it."""
    job, k8s, need = loaded.job, loaded.job.kubernetes, loaded.job.resources
    low, high = need.workers_min, need.workers_max or max(1, need.workers_min)
    cluster: Object = {
        "rayVersion": k8s.ray_version or importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": low != high,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},  # no workers on the head: it runs drivers and the index
            "template": _pod(loaded, "ray-head", gpus=0),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": low,
                "minReplicas": low,
                "maxReplicas": high,
                "rayStartParams": {},
                "template": _pod(loaded, "ray-worker", gpus=math.ceil(need.gpus)),
            }
        ],
    }
    if low != high:
        cluster["autoscalerOptions"] = {"idleTimeoutSeconds": 120, "upscalingMode": "Default"}
    wanted = {kind: list(getattr(job.environment, kind)) for kind in ("pip", "uv") if getattr(job.environment, kind)}
    return {
        **({"runtimeEnvYAML": json.dumps(wanted) + "\n"} if wanted else {}),  # JSON is YAML
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": int(parse_duration(k8s.keep, "kubernetes keep")),
        "activeDeadlineSeconds": int(job.timeout_s) + START_S,
        # One retry with a new cluster, for a lost head. All other retries happen inside the run.
        "backoffLimit": 1 if job.retries else 0,
        "rayClusterSpec": cluster,
    }


def _pod(loaded: LoadedJob, container: str, gpus: int) -> Object:
    """The pod template of a head or worker, with the job's resources, environment, secrets and volumes."""
    job, k8s, need = loaded.job, loaded.job.kubernetes, loaded.job.resources
    memory = f"{parse_size(need.memory) >> 20}Mi"
    requests, limits = {"cpu": f"{need.cpus:g}", "memory": memory}, {"memory": memory}
    if k8s.cpu_limit:
        limits["cpu"] = f"{need.cpus:g}"
    if gpus:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(gpus)
    home = _home(job)
    mounts: list[Object] = [
        {"name": "job", "mountPath": MOUNT, "readOnly": True},
        {"name": "cache", "mountPath": "/cache"},
    ]
    volumes: list[Object] = [job_volume(loaded), {"name": "cache", "emptyDir": {}}]
    if k8s.claim:
        mounts.append({"name": "home", "mountPath": home})
        volumes.append({"name": "home", "persistentVolumeClaim": {"claimName": k8s.claim}})
    values = {
        "RDMPIPE_HOME": home,
        "RDMPIPE_CACHE": "/cache",
        "RDMPIPE_START_TIMEOUT_S": str(START_S),
        **job.environment.variables,
    }
    env: list[Object] = [{"name": name, "value": _plain(value)} for name, value in values.items()]
    secret = k8s.secret or f"{job.name}-secrets"
    for name in job.environment.secrets:
        env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}})
    spec: Object = {
        "serviceAccountName": k8s.service_account or job.name,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "containers": [
            {
                "name": container,
                "image": k8s.image,
                "env": env,
                "resources": {"requests": requests, "limits": limits},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels(job)}, "spec": spec}


def _plain(value: str) -> str:
    """The value with `$` written as `$$`, because Kubernetes expands `$(NAME)` and turns `$$` into `$`."""
    return value.replace("$", "$$")


def _home(job: JobFile) -> str:
    """The home's path or URL inside the pods. Raises ConfigError if the pods could not share it."""
    home = job.environment.home
    if job.kubernetes.claim:
        if "://" in home:
            raise ConfigError(f"job {job.name}: home {home} is an object store; leave kubernetes claim out")
        return home or "/home/rdmpipe-data"
    if "://" not in home:
        raise ConfigError(
            f"job {job.name}: pods have no home to share. Set kubernetes claim to a ReadWriteMany volume claim, or environment "
            "home to s3://bucket/prefix, az:// or gs:// (or --home)"
        )
    return home


def _notes(job: JobFile) -> list[str]:
    """Comments for the head of the text: what has to exist before the job can run."""
    notes = [
        "Needs KubeRay 1.6 or newer (authOptions: token).",
        f"image {job.kubernetes.image}: yours, built from jobs/Dockerfile or like it; pods run as user 1000.",
    ]
    if job.environment.secrets:
        names = ", ".join(job.environment.secrets)
        notes.append(f"Secret {job.kubernetes.secret or f'{job.name}-secrets'} has to exist, with the keys {names}.")
    if job.kubernetes.claim:
        notes.append(f"PersistentVolumeClaim {job.kubernetes.claim} has to exist, ReadWriteMany.")
    return notes
