"""What runs in a Ray actor: one stage's set-up, kept over the shards it is given.

Reads: the home's nonce, to find out whether this node sees the home that the driver wrote to. Writes what the stage writes.
"""

from __future__ import annotations

from pipeline.errors import RdmpipeError
from pipeline.execution.backend import FATAL, Context
from pipeline.execution.stage import Receipt, Shard, Stage, describe_exception, run_shard_once


class Worker:
    """The actor: one stage's set-up, kept over shards. Errors come back as values, so that only its death raises."""

    def __init__(self, stage: Stage, nonce: str) -> None:
        self.stage = stage
        self.context = Context(stage.setup)
        self.nonce = nonce

    def ready(self) -> tuple[str, str]:
        """("", "") where this node sees the home the driver wrote to and the set-up works; else error class and text."""
        import socket

        try:
            found = self.stage.storage.read_text("nonce")
            if found != self.nonce:
                return "ConfigError", (
                    f"node {socket.gethostname()} does not share the home {self.stage.storage.url} (it reads "
                    f"{found!r} where this run wrote {self.nonce!r}). Several nodes need one home: a network disk "
                    "mounted at the same path everywhere, or RDMPIPE_HOME=s3://..."
                )
            self.context()
        except Exception as error:
            return _error_class(error), str(error) if isinstance(error, RdmpipeError) else describe_exception(error)
        return "", ""

    def run(self, shard: Shard) -> tuple[Receipt | None, float, str, str]:
        """(receipt, seconds, error text, error class where no other shard could do better)"""
        try:
            receipt, seconds = run_shard_once(self.stage, self.context, shard)
        except Exception as error:
            if isinstance(error, FATAL):
                return None, 0.0, str(error), _error_class(error)
            return None, 0.0, describe_exception(error), ""
        return receipt, seconds, "", ""


def _error_class(error: BaseException) -> str:
    return type(error).__name__ if isinstance(error, RdmpipeError) else "JobError"
