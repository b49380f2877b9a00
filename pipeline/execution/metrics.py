"""Metrics of a run on Ray for Prometheus, as the driver sees it, per stage.

    rdmpipe_images_total{stage, status}        rows that passed a stage: ok, filtered, failed
    rdmpipe_errors_total{stage, reason}        rows that are not ok, by reason; failed attempts at shards as `shard: <error>`
    rdmpipe_queue_depth{stage}                 shards that wait for a worker
    rdmpipe_worker_wait_seconds_total{stage, device}   seconds that workers waited for a shard; device: cpu or gpu

Reads and writes nothing itself. Ray serves the metrics on each node's metrics port.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from pipeline.execution.stage import Receipt, Stage


class Counter(Protocol):
    def inc(self, value: float, tags: Mapping[str, str]) -> None: ...


class Gauge(Protocol):
    def set(self, value: float, tags: Mapping[str, str]) -> None: ...


class MetricsApi(Protocol):
    """The part of ray.util.metrics that is used."""

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Counter: ...

    def Gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Gauge: ...


class Metrics:
    """The run's counters. `api` is ray.util.metrics; the module that imports Ray passes it."""

    def __init__(self, api: MetricsApi) -> None:
        self.images = api.Counter("rdmpipe_images", "Rows through a stage", ("stage", "status"))
        self.errors = api.Counter("rdmpipe_errors", "Rows and shard attempts that went wrong", ("stage", "reason"))
        self.queue = api.Gauge("rdmpipe_queue_depth", "Shards that wait for a worker", ("stage",))
        self.wait = api.Counter("rdmpipe_worker_wait_seconds", "Time workers waited for a shard", ("stage", "device"))
        self.idle_since: dict[object, float] = {}  # by worker
        self.published = 0.0

    def shard(self, stage: Stage, receipt: Receipt) -> None:
        """Count the rows of a shard that has passed a stage."""
        for status in ("ok", "filtered", "failed"):
            count = getattr(receipt, status)
            if count:
                self.images.inc(count, {"stage": stage.name, "status": status})
        for reason, count in receipt.reasons.items():
            self.errors.inc(count, {"stage": stage.name, "reason": reason})

    def failed(self, stage: Stage, error: str) -> None:
        """Count a failed attempt at a shard. The reason is the error's class or first words, which keeps the number of
        reasons small."""
        self.errors.inc(1, {"stage": stage.name, "reason": f"shard: {error.split(':', 1)[0][:60]}"})

    def idle(self, worker: object) -> None:
        self.idle_since[worker] = time.monotonic()

    def busy(self, stage: Stage, worker: object) -> None:
        since = self.idle_since.pop(worker, None)
        if since is not None:
            device = "gpu" if stage.resources.gpus else "cpu"
            self.wait.inc(max(time.monotonic() - since, 1e-9), {"stage": stage.name, "device": device})

    def queues(self, stages: tuple[Stage, ...], depths: list[int]) -> None:
        """Publish the lengths of the queues, at most once a second."""
        if time.monotonic() - self.published >= 1.0:
            self.published = time.monotonic()
            for stage, depth in zip(stages, depths, strict=True):
                self.queue.set(depth, {"stage": stage.name})
