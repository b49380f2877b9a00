"""The executor on Ray: pools of actors, and the loop that moves shards along.

Every stage has a pool of actors, set up once each; shards move on to the next stage as soon as they are through one, work in
flight is bounded, a dead actor is replaced, and one that is over its stage's time limit is killed and replaced. Only shard
ids and receipts cross processes. Writes a nonce into the home, by which nodes that do not share it are found out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import JobError, RdmpipeError, error_class
from pipeline.execution.backend import Backend, Outcome, last_line
from pipeline.execution.metrics import Metrics
from pipeline.execution.progress import Progress
from pipeline.execution.ray_worker import Worker
from pipeline.execution.stage import Failure, Shard, Stage

LOST_LIMIT = 10  # times a shard may go down with a node before that counts as its own failure

STARVED_S = 10.0  # how long a stage waits for room that another stage's idle worker holds


def _revive(name: str, text: str) -> RdmpipeError:
    """The error a worker met, as the same class here."""
    return error_class(name)(text)


@dataclass
class _Flight:
    stage: int
    actor: Any
    shard: Shard | None  # None: the actor is setting up
    since: float


class RayRun:
    """One run on Ray: pools of actors, a queue per stage, and the loop that moves shards along."""

    def __init__(self, chain: tuple[Stage, ...], backend: Backend, progress: Progress, outcome: Outcome) -> None:
        self.chain, self.backend, self.progress, self.outcome = chain, backend, progress, outcome
        self.queues: list[deque[Shard]] = [deque() for _ in chain]
        self.idle: list[list[Any]] = [[] for _ in chain]
        self.flights: dict[Any, _Flight] = {}
        self.attempts: dict[tuple[int, int], int] = {}
        self.lost: Counter[tuple[int, int]] = Counter()
        self.wanted = [self._pool_size(stage) for stage in chain]
        self.alive = [0 for _ in chain]
        self.setup_failures = 0
        self.exhausted = False

    def _pool_size(self, stage: Stage) -> int:
        return self.backend.workers or stage.workers or 1

    def run(self, shards: Iterator[Shard]) -> None:
        first = next(shards, None)
        if first is None:
            return
        self.queues[0].append(first)
        with connect(self.backend.address):
            import ray
            import ray.util.metrics

            self.ray, self.metrics = ray, Metrics(ray.util.metrics)
            self.nonce = os.urandom(8).hex()
            for storage in {stage.storage.url: stage.storage for stage in self.chain}.values():
                storage.write_text("nonce", self.nonce)
            self.actor = ray.remote(Worker)
            try:
                for nth in range(max(self.wanted)):  # one of each stage before a second of any: none may starve another
                    for stage in reversed(range(len(self.chain))):
                        if nth < self.wanted[stage]:
                            self._start_actor(stage)
                while self._step(shards):
                    pass
            finally:
                for flight in self.flights.values():
                    self._kill(flight.actor)
                for pool in self.idle:
                    for actor in pool:
                        self._kill(actor)

    def _start_actor(self, stage: int) -> None:
        need = self.chain[stage].resources
        options: dict[str, Any] = {
            "num_cpus": need.cpus,
            "num_gpus": need.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if need.memory:
            options["memory"] = need.memory
        actor = self.actor.options(**options).remote(self.chain[stage], self.nonce)
        self.alive[stage] += 1
        self.flights[actor.ready.remote()] = _Flight(stage, actor, None, time.monotonic())

    def _kill(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # it may be dead already, which is what we want
            self.ray.kill(actor)

    def _feed(self, shards: Iterator[Shard]) -> None:
        """Take new shards in while the stages behind the first have room for what it makes."""
        busy = sum(1 for flight in self.flights.values() if flight.shard is not None)
        behind = sum(len(queue) for queue in self.queues[1:])
        room = 2 * sum(self.wanted) + 2
        while (
            not self.exhausted and len(self.queues[0]) < self.wanted[0] and busy + behind + len(self.queues[0]) < room
        ):
            shard = next(shards, None)
            if shard is None:
                self.exhausted = True
            else:
                self.queues[0].append(shard)

    def _step(self, shards: Iterator[Shard]) -> bool:
        """One turn of the loop. False when all is done or given up."""
        self._feed(shards)
        for stage, queue in enumerate(self.queues):
            while queue and self.idle[stage]:
                actor, shard = self.idle[stage].pop(), queue.popleft()
                self.flights[actor.run.remote(shard)] = _Flight(stage, actor, shard, time.monotonic())
                self.metrics.busy(self.chain[stage], actor)
        self.metrics.queues(self.chain, [len(queue) for queue in self.queues])
        working = any(flight.shard is not None for flight in self.flights.values())
        if not working and not any(self.queues) and self.exhausted:
            return False
        if len(self.outcome.failures) >= self.backend.max_failures:
            return False
        done, _ = self.ray.wait(list(self.flights), num_returns=1, timeout=1.0)
        for ref in done:
            self._land(ref, self.flights.pop(ref))
        self._watch(working)
        return True

    def _land(self, ref: Any, flight: _Flight) -> None:
        """A call came back: a set-up, a finished shard, an error, or an actor's death."""
        stage = self.chain[flight.stage]
        try:
            result = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            self._kill(flight.actor)  # where only the way to it is broken, it must not go on beside its replacement
            self.alive[flight.stage] -= 1
            if flight.shard is None:
                self.setup_failures += 1
                if self.setup_failures > 3 + sum(self.wanted):
                    raise JobError(f"workers of stage {stage.name!r} die while they are set up: {error}") from error
            else:
                text = f"worker died: {last_line(str(error))}"
                # what Ray says of a process's exit ends in advice on nodes, whatever became of the node
                lost = "node" in str(error).split("Worker exit type")[0].lower()
                self._failed(flight.stage, flight.shard, text, lost)
            self._start_actor(flight.stage)
            return
        if flight.shard is None:
            if result[0]:
                raise _revive(*result)
            self.idle[flight.stage].append(flight.actor)
            self.metrics.idle(flight.actor)
            return
        self.idle[flight.stage].append(flight.actor)
        self.metrics.idle(flight.actor)
        receipt, seconds, error_text, fatal = result
        if fatal:
            raise _revive(fatal, error_text)
        if receipt is None:
            self._failed(flight.stage, flight.shard, error_text)
            return
        self.outcome.count(stage, seconds)
        self.metrics.shard(stage, receipt)
        self.progress.advance(stage.name, flight.shard.id, receipt.rows, seconds)
        if flight.stage + 1 < len(self.chain):
            self.queues[flight.stage + 1].append(flight.shard)

    def _failed(self, stage: int, shard: Shard, error: str, lost: bool = False) -> None:
        """Try the shard again, or give it up. One that was `lost` with a node is not to blame: it has more attempts."""
        if lost and self.lost[stage, shard.id] < LOST_LIMIT:
            self.lost[stage, shard.id] += 1
            self.progress.say(f"{self.chain[stage].name}: shard {shard.name}: {error}")
            self.metrics.failed(self.chain[stage], "lost with its node")
            self.queues[stage].append(shard)
            return
        attempt = self.attempts.get((stage, shard.id), 0) + 1
        self.attempts[stage, shard.id] = attempt
        name = self.chain[stage].name
        self.metrics.failed(self.chain[stage], last_line(error))
        if attempt <= self.backend.retries:
            self.progress.say(f"{name}: shard {shard.name}: attempt {attempt}: {last_line(error)}")
            self.queues[stage].append(shard)
        else:
            self.outcome.failures.append(Failure(name, shard.id, error, attempt))
            self.progress.advance(name, shard.id, 0, 0.0, problem=last_line(error))

    def _watch(self, working: bool) -> None:
        """Replace actors that are over their time; give up when no worker can be had at all."""
        now = time.monotonic()
        if not working:
            self._make_room(now)
        for ref, flight in list(self.flights.items()):
            limit = self.chain[flight.stage].resources.timeout_s
            if flight.shard is not None and now - flight.since > limit:
                del self.flights[ref]
                self._kill(flight.actor)
                self.alive[flight.stage] -= 1
                self._failed(flight.stage, flight.shard, f"timeout: no result after {limit:.0f} s")
                self._start_actor(flight.stage)
            elif flight.shard is None and not working and now - flight.since > self.backend.start_timeout_s:
                need, has = self.chain[flight.stage].resources, self.ray.cluster_resources()
                raise JobError(
                    f"no worker for stage {self.chain[flight.stage].name!r} after {self.backend.start_timeout_s:.0f} s: "
                    f"one needs {need.cpus:g} CPUs and {need.gpus:g} GPUs; the cluster has {has.get('CPU', 0):g} and "
                    f"{has.get('GPU', 0):g}. Free some, ask for fewer (--workers), or use --backend inline; where workers are "
                    "only slow to start, RDMPIPE_START_TIMEOUT_S gives them longer."
                )

    def _make_room(self, now: float) -> None:
        """Nothing works, and a stage with work has no worker for lack of room: a cluster that lost a node. Give up an idle
        worker of another stage; its replacement waits behind the starved one."""
        starved = [
            flight.stage
            for flight in self.flights.values()
            if flight.shard is None and self.queues[flight.stage] and now - flight.since > STARVED_S
        ]
        if not starved or any(self.idle[stage] for stage in starved):
            return
        need, free = self.chain[starved[0]].resources, self.ray.available_resources()
        if free.get("CPU", 0.0) >= need.cpus and free.get("GPU", 0.0) >= need.gpus:
            return  # there is room: it is being set up
        holders = [stage for stage in range(len(self.chain)) if self.idle[stage]]
        if holders:
            stage = max(holders, key=lambda holder: len(self.idle[holder]))
            self._kill(self.idle[stage].pop())
            self.alive[stage] -= 1
            self._start_actor(stage)


@contextlib.contextmanager
def connect(address: str = "") -> Iterator[None]:
    """A connection to Ray for the length of the block: the one that is open already, the cluster at `address` (or
    RAY_ADDRESS), or a cluster of our own that ends with the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {"include_dashboard": False} if where == "local" else {}
    # A cluster of our own takes ports that were free when it looked; another one starting beside it can be quicker.
    attempts = 3 if where == "local" else 1
    for attempt in range(1, attempts + 1):
        try:
            ray.init(address=where, log_to_driver=False, logging_level="ERROR", **own)
            break
        except Exception as error:  # plain ones too: "The current node timed out during startup"
            ray.shutdown()
            if attempt == attempts:
                raise JobError(
                    f"no Ray cluster answers at {where}: {error}. Check the address, or leave it out for a local one."
                ) from error
    try:
        yield
    finally:
        ray.shutdown()
