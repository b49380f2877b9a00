"""The executor on Ray: pools of actors, the loop that moves shards through them, and the connection to a cluster.

Every stage has a pool of actors; each is set up once. A shard moves to the next stage as soon as it has passed one. The work
in flight is bounded. A dead actor is replaced; an actor that exceeds its stage's time limit is killed and replaced. Only
shards and receipts are sent between processes. Writes a nonce into the home, by which nodes that do not share it are detected.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pipeline.errors import JobError, RdmpipeError, error_class
from pipeline.execution.backend import Backend, Outcome, last_line
from pipeline.execution.metrics import Metrics
from pipeline.execution.progress import Progress
from pipeline.execution.ray_worker import Worker, WorkerError
from pipeline.execution.stage import Failure, Finished, Shard, Stage
from pipeline.installation import require

LOST_LIMIT = 10  # how often a shard may be lost with a node before that counts as a failure of the shard

STARVED_S = 10.0  # seconds that a stage waits for resources that another stage's idle worker holds

Reference: TypeAlias = Hashable  # ray.ObjectRef: the result of a call that may still run


class _Method(Protocol):
    def remote(self, *arguments: object) -> Reference: ...


class _Actor(Protocol):
    """A handle on a Worker in an actor."""

    ready: _Method
    run: _Method


def _raised_again(error: WorkerError) -> RdmpipeError:
    return error_class(error.kind)(error.text)


@dataclass
class _Call:
    """A call of an actor that has not returned."""

    stage: int
    actor: _Actor
    shard: Shard | None  # None: the actor is being set up
    since: float


class RayRun:
    """One run on Ray: pools of actors, a queue per stage, and the loop that moves shards through them."""

    def __init__(self, chain: tuple[Stage, ...], backend: Backend, progress: Progress, outcome: Outcome) -> None:
        self.chain, self.backend, self.progress, self.outcome = chain, backend, progress, outcome
        self.queues: list[deque[Shard]] = [deque() for _ in chain]
        self.idle: list[list[_Actor]] = [[] for _ in chain]
        self.calls: dict[Reference, _Call] = {}
        self.attempts: dict[tuple[int, int], int] = {}
        self.lost: Counter[tuple[int, int]] = Counter()
        self.wanted = [self._pool_size(stage) for stage in chain]
        self.setup_failures = 0
        self.exhausted = False

    def _pool_size(self, stage: Stage) -> int:
        return self.backend.workers or stage.workers or 1

    def run(self, shards: Iterator[Shard]) -> None:
        first = next(shards, None)
        if first is None:
            return
        self.queues[0].append(first)
        with ray_connection(self.backend.address):
            import ray
            import ray.util.metrics

            self.ray, self.metrics = ray, Metrics(ray.util.metrics)
            self.nonce = os.urandom(8).hex()
            for storage in {stage.storage.url: stage.storage for stage in self.chain}.values():
                storage.write_text("nonce", self.nonce)
            self.actor = ray.remote(Worker)
            try:
                for nth in range(
                    max(self.wanted)
                ):  # one of each stage before a second of any: no stage starves another
                    for stage in reversed(range(len(self.chain))):
                        if nth < self.wanted[stage]:
                            self._start_actor(stage)
                while self._step(shards):
                    pass
            finally:
                for call in self.calls.values():
                    self._kill(call.actor)
                for pool in self.idle:
                    for actor in pool:
                        self._kill(actor)

    def _start_actor(self, stage: int) -> None:
        need = self.chain[stage].resources
        options: dict[str, float] = {
            "num_cpus": need.cpus,
            "num_gpus": need.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if need.memory:
            options["memory"] = need.memory
        actor: _Actor = self.actor.options(**options).remote(self.chain[stage], self.nonce)
        self.calls[actor.ready.remote()] = _Call(stage, actor, None, time.monotonic())

    def _kill(self, actor: _Actor) -> None:
        with contextlib.suppress(Exception):  # it may be dead already
            self.ray.kill(actor)

    def _feed(self, shards: Iterator[Shard]) -> None:
        """Start new shards while the later stages have room for the results of the first."""
        busy = sum(1 for call in self.calls.values() if call.shard is not None)
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
        """One turn of the loop. Returns False when all shards are done or given up."""
        self._feed(shards)
        for stage, queue in enumerate(self.queues):
            while queue and self.idle[stage]:
                actor, shard = self.idle[stage].pop(), queue.popleft()
                self.calls[actor.run.remote(shard)] = _Call(stage, actor, shard, time.monotonic())
                self.metrics.busy(self.chain[stage], actor)
        self.metrics.queues(self.chain, [len(queue) for queue in self.queues])
        working = any(call.shard is not None for call in self.calls.values())
        if not working and not any(self.queues) and self.exhausted:
            return False
        if len(self.outcome.failures) >= self.backend.max_failures:
            return False
        done, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=1.0)
        for reference in done:
            self._returned(reference, self.calls.pop(reference))
        self._watch(working)
        return True

    def _returned(self, reference: Reference, call: _Call) -> None:
        """Handle a call that returned: a set-up, a finished shard, an error, or an actor's death."""
        stage = self.chain[call.stage]
        try:
            result: Finished | WorkerError | None = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self._died(call, error)
            return
        if isinstance(result, WorkerError) and result.fatal:
            raise _raised_again(result)
        self.idle[call.stage].append(call.actor)
        self.metrics.idle(call.actor)
        if call.shard is None or result is None:
            return
        if isinstance(result, WorkerError):
            self._failed(call.stage, call.shard, result.text)
            return
        self.outcome.count(stage, result)
        self.metrics.shard(stage, result.receipt)
        self.progress.advance(stage.name, call.shard.id, result.receipt.rows, result.seconds)
        if call.stage + 1 < len(self.chain):
            self.queues[call.stage + 1].append(call.shard)

    def _died(self, call: _Call, error: Exception) -> None:
        """Replace an actor that died in a call, or that can no longer be reached."""
        self._kill(call.actor)  # an unreachable actor may still run, and must not work beside its replacement
        if call.shard is None:
            self.setup_failures += 1
            if self.setup_failures > 3 + sum(self.wanted):
                name = self.chain[call.stage].name
                raise JobError(f"workers of stage {name!r} die while they are set up: {error}") from error
        else:
            text = f"worker died: {last_line(str(error))}"
            # Ray's text about a process's exit always ends with advice on nodes
            lost = "node" in str(error).split("Worker exit type")[0].lower()
            self._failed(call.stage, call.shard, text, lost)
        self._start_actor(call.stage)

    def _failed(self, stage: int, shard: Shard, error: str, lost: bool = False) -> None:
        """Queue the shard again, or give it up. A shard that was `lost` with a node gets more attempts."""
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
        """Replace actors that exceed their time limit. Raise JobError if a stage cannot get its first worker."""
        now = time.monotonic()
        if not working:
            self._make_room(now)
        for reference, call in list(self.calls.items()):
            limit = self.chain[call.stage].resources.timeout_s
            if call.shard is not None and now - call.since > limit:
                del self.calls[reference]
                self._kill(call.actor)
                self._failed(call.stage, call.shard, f"timeout: no result after {limit:.0f} s")
                self._start_actor(call.stage)
            elif call.shard is None and not working and now - call.since > self.backend.start_timeout_s:
                need, has = self.chain[call.stage].resources, self.ray.cluster_resources()
                raise JobError(
                    f"no worker for stage {self.chain[call.stage].name!r} after {self.backend.start_timeout_s:.0f} s: "
                    f"one needs {need.cpus:g} CPUs and {need.gpus:g} GPUs; the cluster has {has.get('CPU', 0):g} and "
                    f"{has.get('GPU', 0):g}. Free some, ask for fewer (--workers), or use --backend inline. If workers only "
                    "start slowly, set RDMPIPE_START_TIMEOUT_S to more seconds."
                )

    def _make_room(self, now: float) -> None:
        """End an idle worker of another stage if a stage with work has no room for a worker, for example after the loss
        of a node.

        Called while no worker is busy. The replacement of the ended worker is queued after the starved stage's worker.
        """
        starved = [
            call.stage
            for call in self.calls.values()
            if call.shard is None and self.queues[call.stage] and now - call.since > STARVED_S
        ]
        if not starved or any(self.idle[stage] for stage in starved):
            return
        need, free = self.chain[starved[0]].resources, self.ray.available_resources()
        if free.get("CPU", 0.0) >= need.cpus and free.get("GPU", 0.0) >= need.gpus:
            return  # there is room: the worker is being set up
        holders = [stage for stage in range(len(self.chain)) if self.idle[stage]]
        if holders:
            stage = max(holders, key=lambda holder: len(self.idle[holder]))
            self._kill(self.idle[stage].pop())
            self._start_actor(stage)


@contextlib.contextmanager
def ray_connection(address: str = "", environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """A connection to Ray for the length of the block.

    It is the connection that is already open, else the cluster at `address` (or RAY_ADDRESS), else a cluster that is started on
    this machine and ends with the block. Such a cluster listens only on the loopback interface, has no dashboard, and
    accepts only clients that know its token, which is made for it and which its processes inherit.

    environment: variables for the workers. Raises JobError if no cluster answers.
    """
    require("ray", "working on a Ray cluster")
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, object] = {"log_to_driver": False, "logging_level": "ERROR"}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    with contextlib.ExitStack() as stack:
        attempts = 1
        if where == "local":
            options["include_dashboard"] = False
            attempts = 3  # its ports were free when it looked; another cluster that starts now can take them first
            stack.enter_context(_token())
        stack.callback(ray.shutdown)
        for attempt in range(1, attempts + 1):
            try:
                with _on_loopback() if where == "local" else contextlib.nullcontext():
                    ray.init(address=where, **options)
                break
            except Exception as error:  # plain ones too: "The current node timed out during startup"
                ray.shutdown()
                if attempt == attempts:
                    raise JobError(
                        f"no Ray cluster answers at {where}: {error}. Check the address, or leave it out for a local one."
                    ) from error
        yield


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a node that starts in the block use 127.0.0.1 as its address, on which Ray then listens.

    Ray replaces `_node_ip_address="127.0.0.1"` by the machine's public address, unless this setting says that nodes do not form
    clusters. On Windows and macOS, Ray sets it itself.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    with _variables({name: "0", "RAY_prestart_worker_first_driver": "0"}):  # no workers that wait for plain tasks
        before = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _token() -> Iterator[None]:
    """Token authentication with a new token for a cluster that starts in the block."""
    raylet = importlib.import_module("ray._raylet")

    def read_again() -> None:
        """Ray reads the mode and the token once, when it is imported."""
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    try:
        with _variables(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None}
        ):
            read_again()
            yield
    finally:
        read_again()


@contextlib.contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for the length of the block; None removes one."""
    before = {name: os.environ.get(name) for name in values}

    def put(these: Mapping[str, str | None]) -> None:
        for name, value in these.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)
