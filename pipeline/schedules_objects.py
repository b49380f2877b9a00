"""The Kubernetes objects around a job: the ConfigMap with its files, the accounts with what they may do, and YAML.

Reads the small files that a job's arguments name. Writes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.jobfile import JobFile, LoadedJob

LARGEST_CONFIG = 900_000  # bytes; Kubernetes allows a ConfigMap 1 MiB
Object = dict[str, Any]


def files(loaded: LoadedJob) -> dict[str, str]:
    """Paths in the mount by ConfigMap key: the job and the files its arguments name."""
    job, found = loaded.job, {"job.toml": "job.toml"}
    summary, base = job.report.summary, job.environment.working_dir
    if summary and not summary.startswith("/"):
        raise ConfigError(
            f"job {job.name}: report summary {summary!r}: in Kubernetes give an absolute path, on a volume"
        )
    if loaded.working_dir is None:
        return found
    if Path(base).is_absolute() or ".." in Path(base).parts:
        raise ConfigError(f"job {job.name}: working_dir {base!r}: in Kubernetes it has to be below the job file")
    for argument in job.arguments:
        if re.fullmatch(r"[\w.-]+", argument) and (loaded.working_dir / argument).is_file():
            found[f"file-{argument}"] = str(Path(base) / argument)
    if len(found) == 1 and base not in (".", "./"):
        raise ConfigError(
            f"job {job.name}: no argument names a file in working_dir {base!r}. Put what the job needs into the image, and "
            "leave working_dir out"
        )
    return found


def config_map(loaded: LoadedJob, more: dict[str, str] | None = None) -> Object:
    data = dict(more or {})
    for key in files(loaded):
        if key == "job.toml":
            data[key] = loaded.text
        elif loaded.working_dir is not None:
            data[key] = (loaded.working_dir / key.removeprefix("file-")).read_text(encoding="utf-8")
    size = sum(len(text.encode()) for text in data.values())
    if size > LARGEST_CONFIG:
        raise ConfigError(
            f"job {loaded.job.name}: its files take {size:,} bytes, more than a ConfigMap holds; put them into the home or the "
            "image"
        )
    about = metadata(loaded.job, f"{loaded.job.name}-job")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": data}


def job_volume(loaded: LoadedJob, more: dict[str, str] | None = None) -> Object:
    paths = {**files(loaded), **(more or {})}
    items = [{"key": key, "path": path} for key, path in paths.items()]
    return {"name": "job", "configMap": {"name": f"{loaded.job.name}-job", "items": items}}


def ray_account(job: JobFile) -> list[Object]:
    """The account of the Ray pods, with what Ray's autoscaler needs. A given account is used and not made."""
    account = job.kubernetes.service_account or job.name
    made: list[Object] = []
    if not job.kubernetes.service_account:
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(job, account)})
    role = {
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
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    head = "".join(f"# {note}\n" for note in notes)
    return head + "---\n".join(yaml.dump(made, Dumper=Dumper, sort_keys=False, width=120) for made in objects)
