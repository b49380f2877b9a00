"""Metrics of a run on Ray, for Prometheus: what the driver sees, by stage.

    rdmpipe_images_total{stage, status}        rows through a stage: ok, filtered, failed
    rdmpipe_errors_total{stage, reason}        rows that are not ok by reason; shards' attempts that failed as `shard: <error>`
    rdmpipe_queue_depth{stage}                 shards that wait for a worker
    rdmpipe_worker_wait_seconds_total{stage, device}   time workers waited for a shard; device gpu: what a GPU lost

Reads and writes nothing itself: Ray serves them on each node's metrics port.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.execution.stage import Receipt, Stage


class Metrics:
    """The run's counters. `api` is ray.util.metrics, given by who imports Ray."""

    def __init__(self, api: Any) -> None:
        self.images = api.Counter("rdmpipe_images", "Rows through a stage", ("stage", "status"))
        self.errors = api.Counter("rdmpipe_errors", "Rows and shard attempts that went wrong", ("stage", "reason"))
        self.queue = api.Gauge("rdmpipe_queue_depth", "Shards that wait for a worker", ("stage",))
        self.wait = api.Counter("rdmpipe_worker_wait_seconds", "Time workers waited for a shard", ("stage", "device"))
        self.idle_since: dict[Any, float] = {}
        self.told = 0.0

    def shard(self, stage: Stage, receipt: Receipt) -> None:
        """A shard is through a stage."""
        for status in ("ok", "filtered", "failed"):
            count = getattr(receipt, status)
            if count:
                self.images.inc(count, {"stage": stage.name, "status": status})
        for reason, count in receipt.reasons.items():
            self.errors.inc(count, {"stage": stage.name, "reason": reason})

    def failed(self, stage: Stage, error: str) -> None:
        """An attempt at a shard failed; the reason is the error's class or first words, so that there are few of them."""
        self.errors.inc(1, {"stage": stage.name, "reason": f"shard: {error.split(':', 1)[0][:60]}"})

    def idle(self, worker: Any) -> None:
        self.idle_since[worker] = time.monotonic()

    def busy(self, stage: Stage, worker: Any) -> None:
        since = self.idle_since.pop(worker, None)
        if since is not None:
            device = "gpu" if stage.resources.gpus else "cpu"
            self.wait.inc(max(time.monotonic() - since, 1e-9), {"stage": stage.name, "device": device})

    def queues(self, stages: tuple[Stage, ...], depths: list[int]) -> None:
        """At most once a second."""
        if time.monotonic() - self.told >= 1.0:
            self.told = time.monotonic()
            for stage, depth in zip(stages, depths, strict=True):
                self.queue.set(depth, {"stage": stage.name})
