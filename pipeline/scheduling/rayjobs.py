"""From inside a pod: create a RayJob, and wait for its end. What a rendered CronJob runs.

Reads: a RayJob's manifest and the pod's service account. Writes one RayJob, named `<job>-<slot>`: the same slot started twice,
or a pod that was moved to another node, meets the same RayJob and follows it. Does not delete it: its time-to-live does.
"""

from __future__ import annotations

import datetime
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, JobError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

POLL_S = 10.0


class Api:
    """The Kubernetes API as this pod may use it. KUBERNETES_API and KUBERNETES_ACCOUNT name another (a test's, a proxy's)."""

    def __init__(self) -> None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        self.url = os.environ.get("KUBERNETES_API") or (f"https://{host}:{port}" if host else "")
        self.account = Path(os.environ.get("KUBERNETES_ACCOUNT") or ACCOUNT)
        if not self.url or not (self.account / "token").is_file():
            raise ConfigError(
                "this command runs inside a Kubernetes pod with a service account (the rendered CronJob sets one up); from "
                "elsewhere use `rdmpipe submit`, or `kubectl create -f` with `rdmpipe render --target rayjob`"
            )
        authority = self.account / "ca.crt"
        self.context = ssl.create_default_context(cafile=str(authority)) if authority.is_file() else None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """(HTTP status, answer). Connection errors and 5xx are tried again for about two minutes."""
        error: Exception | None = None
        for attempt in range(8):
            if attempt:
                time.sleep(min(2.0**attempt / 4, 30.0))
            request = urllib.request.Request(f"{self.url}{path}", method=method)
            request.add_header(
                "Authorization", f"Bearer {(self.account / 'token').read_text().strip()}"
            )  # tokens rotate
            request.add_header("Content-Type", "application/json")
            data = json.dumps(body).encode() if body is not None else None
            try:
                with urllib.request.urlopen(request, data, timeout=30, context=self.context) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as refused:
                if refused.code < 500 and refused.code != 429:
                    text = refused.read().decode("utf-8", "replace")
                    return refused.code, {"message": text}
                error = refused
            except OSError as broken:
                error = broken
        raise JobError(f"{self.url}: the Kubernetes API does not answer: {error}")


def create_and_wait(manifest: Path, slot: str, job: str, notify: Callable[[str], None], poll_s: float = POLL_S) -> int:
    """Create the RayJob of this slot or find it, follow it to its end, and give its exit code: 0, or 1 for a failure."""
    from pipeline.scheduling.jobfile import load_job

    body = json.loads(manifest.read_text(encoding="utf-8"))
    slot = slot or load_job(job).job.slot(datetime.datetime.now(datetime.UTC))
    space = body["metadata"]["namespace"]
    name = f"{body['metadata']['name']}-{slot}"
    body["metadata"]["name"] = name
    body["spec"]["entrypoint"] += f" --slot {slot}"
    api, path = Api(), f"/apis/ray.io/v1/namespaces/{space}/rayjobs"
    status, answer = api.call("POST", path, body)
    if status == 409:
        notify(
            f"RayJob {name} exists already; following it (to run its slot again: kubectl delete -n {space} rayjob {name})"
        )
    elif status >= 300:
        raise JobError(f"RayJob {name} cannot be created: HTTP {status}: {answer.get('message', '')[:500]}")
    else:
        notify(f"RayJob {name} created")
    told = ""
    while True:
        status, answer = api.call("GET", f"{path}/{name}")
        if status == 404:
            raise JobError(f"RayJob {name} was deleted while it was followed")
        if status >= 300:
            raise JobError(f"RayJob {name} cannot be read: HTTP {status}: {answer.get('message', '')[:500]}")
        state = answer.get("status") or {}
        deployment, ended = state.get("jobDeploymentStatus", ""), state.get("jobStatus", "")
        now = f"{deployment} {ended}".strip()
        if now != told:
            notify(f"RayJob {name}: {now or 'waiting for the operator'}")
            told = now
        if deployment in ("Complete", "Failed"):
            message = state.get("message", "")
            if deployment == "Complete" and ended == "SUCCEEDED":
                return 0
            notify(f"RayJob {name}: {state.get('reason', '')} {message}".rstrip())
            return 1
        time.sleep(poll_s)
