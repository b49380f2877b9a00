"""Create a RayJob from inside a Kubernetes pod and wait for its end. A rendered CronJob runs this.

Reads: the manifest of the RayJob and the pod's service account. Writes: one RayJob, named `<job>-<slot>`. If the slot starts
twice, or Kubernetes moves the pod to another node, the new pod finds the same RayJob and follows it. This module does not
delete the RayJob; Kubernetes deletes it after its time to live.
"""

from __future__ import annotations

import datetime
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import ConfigError, JobError
from pipeline.scheduling.values import mapping, parsed, text
from pipeline.sources import retry_after

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

POLL_S = 10.0


class Api:
    """The Kubernetes API, with the rights of this pod's service account.

    KUBERNETES_API (a URL) and KUBERNETES_ACCOUNT (a directory with `token` and `ca.crt`) replace the pod's own, for a proxy or
    a test. Raises ConfigError outside a pod.
    """

    def __init__(self) -> None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        self.url = os.environ.get("KUBERNETES_API") or (f"https://{host}:{port}" if host else "")
        self.account = Path(os.environ.get("KUBERNETES_ACCOUNT") or ACCOUNT)
        if not self.url or not (self.account / "token").is_file():
            raise ConfigError(
                "this command needs a Kubernetes pod with a service account, and found none. The rendered CronJob sets one up; "
                "outside a pod use `rdmpipe submit JOB`, or `rdmpipe render JOB --target rayjob` with `kubectl create -f`"
            )
        authority = self.account / "ca.crt"
        self.context = ssl.create_default_context(cafile=str(authority)) if authority.is_file() else None

    def call(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> tuple[int, Mapping[str, object]]:
        """The HTTP status and the JSON object of the answer.

        Connection errors, HTTP 429 and HTTP 5xx are retried, in all eight attempts, each after the answer's Retry-After
        if it has one. Raises JobError after the last.
        """
        error: Exception | None = None
        asked_s: float | None = None
        for attempt in range(8):
            if attempt:
                time.sleep(min(2.0**attempt / 4 if asked_s is None else asked_s, 30.0))
            asked_s = None
            request = urllib.request.Request(f"{self.url}{path}", method=method)
            token = (self.account / "token").read_text().strip()  # read each time, because Kubernetes replaces tokens
            request.add_header("Authorization", f"Bearer {token}")
            request.add_header("Content-Type", "application/json")
            data = json.dumps(body).encode() if body is not None else None
            try:
                with urllib.request.urlopen(request, data, timeout=30, context=self.context) as answer:
                    return answer.status, mapping(json.load(answer))
            except urllib.error.HTTPError as refused:
                if refused.code < 500 and refused.code != 429:
                    return refused.code, {"message": refused.read().decode("utf-8", "replace")}
                error, asked_s = refused, retry_after(refused.headers.get("Retry-After"))
            except OSError as broken:
                error = broken
        raise JobError(f"{self.url}: the Kubernetes API does not answer: {error}")


def create_and_wait(manifest: Path, slot: str, job: str, notify: Callable[[str], None], poll_s: float = POLL_S) -> int:
    """Create the RayJob of a slot, or find the existing one, and wait for its end. Returns 0 if it succeeded, otherwise 1.

    manifest: a file with the RayJob as JSON, as `rdmpipe render --target cronjob` writes it.
    slot: empty means the latest slot of the schedule in the job file `job`.
    Raises ConfigError for a bad manifest, and JobError if the RayJob cannot be created or read.
    """
    from pipeline.scheduling.jobfile import load_job

    body = mapping(parsed(manifest.read_text(encoding="utf-8")))
    about, spec = mapping(body.get("metadata")), mapping(body.get("spec"))
    space, entrypoint = text(about.get("namespace")), text(spec.get("entrypoint"))
    if not (space and entrypoint and about.get("name")):
        raise ConfigError(
            f"{manifest}: expected a RayJob as JSON with a name, a namespace and an entrypoint; take rayjob.json from the "
            "ConfigMap that `rdmpipe render JOB --target cronjob` prints"
        )
    slot = slot or load_job(job).job.slot(datetime.datetime.now(datetime.UTC))
    name = f"{about['name']}-{slot}"
    body = {
        **body,
        "metadata": {**about, "name": name},
        "spec": {**spec, "entrypoint": f"{entrypoint} --slot {slot}"},
    }
    api, path = Api(), f"/apis/ray.io/v1/namespaces/{space}/rayjobs"
    status, answer = api.call("POST", path, body)
    if status == 409:
        notify(
            f"RayJob {name} already exists; following it. To run its slot again: kubectl delete -n {space} rayjob {name}"
        )
    elif status >= 300:
        raise JobError(f"RayJob {name} cannot be created: HTTP {status}: {text(answer.get('message'))[:500]}")
    else:
        notify(f"RayJob {name} created")
    told = ""
    while True:
        status, answer = api.call("GET", f"{path}/{name}")
        if status == 404:
            raise JobError(f"RayJob {name} was deleted before it ended")
        if status >= 300:
            raise JobError(f"RayJob {name} cannot be read: HTTP {status}: {text(answer.get('message'))[:500]}")
        state = mapping(answer.get("status"))
        deployment, ended = text(state.get("jobDeploymentStatus")), text(state.get("jobStatus"))
        now = f"{deployment} {ended}".strip()
        if now != told:
            notify(f"RayJob {name}: {now or 'waiting for the KubeRay operator'}")
            told = now
        if deployment in ("Complete", "Failed"):
            if deployment == "Complete" and ended == "SUCCEEDED":
                return 0
            notify(f"RayJob {name}: {text(state.get('reason'))} {text(state.get('message'))}".rstrip())
            return 1
        time.sleep(poll_s)
