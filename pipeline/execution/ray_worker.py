"""The code that runs in a Ray actor: one stage's set-up, kept for all shards of the actor.

Reads the home's nonce, to check that this node sees the home that the driver wrote to. Writes what the stage writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RdmpipeError
from pipeline.execution.backend import FATAL, SetUp
from pipeline.execution.stage import Finished, Shard, Stage, describe_exception, run_shard_once


@dataclass(frozen=True)
class WorkerError:
    """An error of a worker as a value: only an actor's death raises in the driver."""

    kind: str  # the error's class, by name
    text: str
    fatal: bool  # every other shard would fail too


class Worker:
    """The actor."""

    def __init__(self, stage: Stage, nonce: str) -> None:
        self.stage = stage
        self.nonce = nonce
        self.set_up = SetUp(stage.setup)

    def ready(self) -> WorkerError | None:
        """Set the stage up. Returns an error if that fails or if this node sees another home than the driver."""
        import socket

        try:
            found = self.stage.storage.read_text("nonce")
            if found != self.nonce:
                return WorkerError(
                    "ConfigError",
                    f"node {socket.gethostname()} does not share the home {self.stage.storage.url} (it reads "
                    f"{found!r} where this run wrote {self.nonce!r}). Several nodes need one home: a network disk "
                    "mounted at the same path everywhere, or RDMPIPE_HOME=s3://...",
                    fatal=True,
                )
            self.set_up()
        except Exception as error:
            text = str(error) if isinstance(error, RdmpipeError) else describe_exception(error)
            return WorkerError(_class_name(error), text, fatal=True)
        return None

    def run(self, shard: Shard) -> Finished | WorkerError:
        try:
            return run_shard_once(self.stage, self.set_up, shard)
        except FATAL as error:
            return WorkerError(_class_name(error), str(error), fatal=True)
        except Exception as error:
            return WorkerError(_class_name(error), describe_exception(error), fatal=False)


def _class_name(error: BaseException) -> str:
    return type(error).__name__ if isinstance(error, RdmpipeError) else "JobError"
