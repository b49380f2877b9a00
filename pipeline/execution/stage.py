"""What a stage is, and the one way a shard goes through it: skip -> run -> receipt.

Reads and writes: receipts, small JSON files that are written last, so that a shard is done when its receipt exists
and matches the stage's config and the shard's input. Does not promise exactly-once: a shard whose worker dies before the
receipt is run again, and gives the same bytes.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import canonical_json
from pipeline.errors import RdmpipeError
from pipeline.schema import FAILED, FILTERED, OK, shard_name
from pipeline.storage import Artifact, Storage


class StageFailed(RdmpipeError):
    """Some shards failed after all retries. `failures` lists them; running the same command again retries only those."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        first = failures[0]
        lines = first.error.strip().splitlines()
        super().__init__(
            f"{len(failures)} shard(s) failed in stage {first.stage!r} after {first.attempts} attempt(s); "
            f"first: shard {first.shard}: {lines[-1] if lines else 'no message'}. "
            "Finished shards are kept: mend the cause and run the same command again."
        )


@dataclass(frozen=True)
class Shard:
    """One unit of work. `spec` is what the source's reader needs to read it; `fingerprint` names its input's content."""

    id: int
    rows: int
    fingerprint: str
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return shard_name(self.id)


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage takes, in Ray's terms. timeout_s bounds one shard; a worker over it is replaced."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    timeout_s: float = 3600.0


@dataclass(frozen=True)
class Receipt:
    """A finished shard: what went in, what came of it, which files hold it. Holds no times: it is the same every time."""

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
        table = json.loads(text)
        table["artifacts"] = tuple(Artifact(**artifact) for artifact in table["artifacts"])
        return Receipt(**table)


@dataclass(frozen=True)
class Failure:
    """A shard that did not go through: the last attempt's error, as text with its traceback's end."""

    stage: str
    shard: int
    error: str
    attempts: int


@dataclass(frozen=True)
class Stage:
    """A bound stage. Picklable: `setup` and `run` are module-level functions or partials of them over frozen configs.

    setup() -> context      once per worker (opens a source, loads a model)
    run(context, shard)     all the work of one shard; writes only through `Storage`; returns the receipt's contents
    finish(shard)           tidying up that is safe once the receipt is written (removing what led there). Called after every
                            run and whenever a done shard is met again, so that a kill in between leaves nothing behind;
                            quick, and nothing where there is nothing to do
    """

    name: str
    folder: str  # receipts are <folder>/<shard>.json under the storage's root
    storage: Storage
    config: str  # hash of everything that changes the stage's output
    setup: Callable[[], Any]
    run: Callable[[Any, Shard], Receipt]
    resources: Resources = field(default_factory=Resources)
    workers: int = 0  # 0: as many as the backend has room for
    finish: Callable[[Shard], None] | None = None

    def receipt_path(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}.json"

    def tidy(self, shard: Shard) -> None:
        """Call `finish`, where the stage has one. Only for a shard whose receipt is valid."""
        if self.finish is not None:
            self.finish(shard)

    def receipt(self, shard: Shard) -> Receipt | None:
        """The shard's valid receipt, or None where it has to be run (again).

        A receipt is valid when it matches config and input and its files are there. In a chain of stages a shard is done
        when the last one's receipt is valid: files that only led there may be gone.
        """
        text = self.storage.read_text(self.receipt_path(shard))
        if text is None:
            return None
        try:
            found = Receipt.from_json(text)
        except (ValueError, KeyError, TypeError):
            return None
        if (found.stage, found.config, found.input) != (self.name, self.config, shard.fingerprint):
            return None
        if any(self.storage.size(artifact.path) != artifact.bytes for artifact in found.artifacts):
            return None  # what it names was removed (pictures, once embedded) or is damaged
        return found


def run_shard_once(stage: Stage, context: Callable[[], Any], shard: Shard) -> tuple[Receipt, float]:
    """Skip a shard that is done, else run it and write its receipt. Returns the receipt and the seconds it took (0: skipped).

    `context` gives the worker's set-up result, made at the first shard that needs it.
    """
    done = stage.receipt(shard)
    if done is not None:
        stage.tidy(shard)
        return done, 0.0
    start = time.monotonic()
    receipt = stage.run(context(), shard)
    if receipt.rows != shard.rows and shard.rows >= 0:
        raise AssertionError(
            f"{stage.name} shard {shard.name}: {shard.rows} rows in, but {receipt.ok} ok + {receipt.filtered} filtered + "
            f"{receipt.failed} failed = {receipt.rows} out"
        )
    stage.storage.write_text(stage.receipt_path(shard), receipt.to_json())
    stage.tidy(shard)
    return receipt, time.monotonic() - start


def count_statuses(statuses: list[str], errors: list[str | None]) -> dict[str, Any]:
    """The counts a receipt carries, from the rows' status and error columns. `reason: detail` counts under reason."""
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
    """Type, message and the last frames, short enough for a table and long enough to mend the cause."""
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-6)
    return "".join(lines)[-4000:].rstrip()
