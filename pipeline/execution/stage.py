"""The type of a stage, and how it processes one shard: skip it if it is done, else run it and write its receipt.

Reads and writes receipts: small JSON files that are written last. A shard is done when its receipt exists and matches the
stage's config and the shard's input. A shard whose worker dies before the receipt is written runs again and gives the same
bytes; the work may be done twice.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

from pipeline.config import Table, canonical_json, from_mapping
from pipeline.errors import ConfigError, RdmpipeError
from pipeline.schema import FAILED, FILTERED, OK, shard_name
from pipeline.storage import Artifact, Storage

Ready: TypeAlias = Any  # what a stage's set-up returns (a source, a model); only that stage's `run` knows its type


class StageFailed(RdmpipeError):
    """Some shards failed after all retries. `failures` lists them. The same command run again tries only those again."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        first = failures[0]
        lines = first.error.strip().splitlines()
        super().__init__(
            f"{len(failures)} shard(s) failed in stage {first.stage!r} after {first.attempts} attempt(s); "
            f"first: shard {first.shard}: {lines[-1] if lines else 'no message'}. "
            "Finished shards are kept: fix the cause and run the same command again."
        )


@dataclass(frozen=True)
class Shard:
    """One unit of work. `fingerprint` is a hash of its input; `spec` is what the first stage needs to find the input."""

    id: int
    rows: int
    fingerprint: str
    spec: Table = field(default_factory=dict)

    @property
    def name(self) -> str:
        return shard_name(self.id)


@dataclass(frozen=True)
class Resources:
    """The resources of one worker of a stage: CPUs and GPUs as Ray counts them, memory in bytes, and seconds for one shard.

    A worker that takes longer than timeout_s is replaced.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    timeout_s: float = 3600.0


@dataclass(frozen=True)
class Receipt:
    """A finished shard: the hash of its input, the counts of its rows, and the files that hold them.

    It holds no times: the same input gives the same receipt.
    """

    stage: str
    shard: int
    config: str
    input: str
    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()

    @property
    def rows(self) -> int:
        return self.ok + self.filtered + self.failed

    def to_json(self) -> str:
        return canonical_json(self) + "\n"

    @staticmethod
    def from_json(text: str) -> Receipt:
        """The receipt in a JSON text. Raises ConfigError for a text that is not one."""
        try:
            return from_mapping(Receipt, json.loads(text), "receipt")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"receipt: not JSON: {error}") from error


@dataclass(frozen=True)
class Failure:
    """A shard that failed after all attempts. `error` is the last attempt's message with the end of its traceback."""

    stage: str
    shard: int
    error: str
    attempts: int


@dataclass(frozen=True)
class Stage:
    """A stage with its config. Picklable: `setup` and `run` are module-level functions or partials of them.

    setup()                 opens a source or loads a model, once per worker
    run(ready, shard)       does all the work of one shard; writes only through `Storage`; returns the receipt
    finish(shard)           removes intermediate files. Called after every run and whenever a finished shard
                            is met again, so that a kill in between leaves nothing behind. It must be fast and must accept
                            that there is nothing to remove
    together                how many shards one process may run at a time, in threads that share `ready`
    """

    name: str
    folder: str  # receipts are <folder>/<shard>.json under the storage's root
    storage: Storage
    config: str  # hash of everything that changes the stage's output
    setup: Callable[[], Ready]
    run: Callable[[Ready, Shard], Receipt]
    resources: Resources = field(default_factory=Resources)
    workers: int = 0  # 0: as many as the backend has room for
    finish: Callable[[Shard], None] | None = None
    together: int = 1

    def receipt_path(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}.json"

    def tidy(self, shard: Shard) -> None:
        """Call `finish` if the stage has one. Only for a shard whose receipt is valid."""
        if self.finish is not None:
            self.finish(shard)

    def receipt(self, shard: Shard) -> Receipt | None:
        """The shard's valid receipt, or None if the shard has to run (again).

        A receipt is valid when it matches the config and the input, and its files exist with their sizes. In a chain of stages
        a shard is done when the last stage's receipt is valid; intermediate files may be gone.
        """
        text = self.storage.read_text(self.receipt_path(shard))
        if text is None:
            return None
        try:
            found = Receipt.from_json(text)
        except ConfigError:
            return None
        if (found.stage, found.config, found.input) != (self.name, self.config, shard.fingerprint):
            return None
        if any(self.storage.size(artifact.path) != artifact.bytes for artifact in found.artifacts):
            return None  # a file was removed (pictures, once they are embedded) or is damaged
        return found


@dataclass(frozen=True)
class Finished:
    """A shard that has passed a stage: its receipt, whether it ran now or was done before, and the seconds it took."""

    receipt: Receipt
    ran: bool
    seconds: float = 0.0


def run_shard_once(stage: Stage, ready: Callable[[], Ready], shard: Shard) -> Finished:
    """Skip a shard that is done, else run it and write its receipt. `ready` gives the result of the worker's set-up.

    Raises what the stage raises, and AssertionError if the receipt does not account for every row of the shard.
    """
    done = stage.receipt(shard)
    if done is not None:
        stage.tidy(shard)
        return Finished(done, ran=False)
    start = time.monotonic()
    receipt = stage.run(ready(), shard)
    if receipt.rows != shard.rows and shard.rows >= 0:
        raise AssertionError(
            f"{stage.name} shard {shard.name}: {shard.rows} rows in, but {receipt.ok} ok + {receipt.filtered} filtered + "
            f"{receipt.failed} failed = {receipt.rows} out"
        )
    stage.storage.write_text(stage.receipt_path(shard), receipt.to_json())
    stage.tidy(shard)
    return Finished(receipt, ran=True, seconds=time.monotonic() - start)


class Counts(TypedDict):
    """The counts of a receipt, by its field names."""

    ok: int
    filtered: int
    failed: int
    reasons: dict[str, int]


def count_statuses(statuses: list[str], errors: list[str | None]) -> Counts:
    """The counts of a receipt, from the rows' status and error columns. `reason: detail` counts under reason."""
    reasons: dict[str, int] = {}
    for status, error in zip(statuses, errors, strict=True):
        if status != OK:
            reason = (error or "unknown").split(":", 1)[0]
            reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "ok": statuses.count(OK),
        "filtered": statuses.count(FILTERED),
        "failed": statuses.count(FAILED),
        "reasons": dict(sorted(reasons.items())),
    }


def describe_exception(error: BaseException) -> str:
    """The error's type, message and last six frames, at most 4,000 characters."""
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-6)
    return "".join(lines)[-4000:].rstrip()
