"""The work of test processes that write to one home at the same time. Imports little, because each process imports it."""

from __future__ import annotations

import time

from pipeline.database import IndexEntry, RetrievalDatabase, Version, VersionCounts
from pipeline.encoders import EncoderRecord
from pipeline.errors import BusyError, ConflictError
from pipeline.storage import Artifact, Storage, lease


def count_up(root: str, times: int) -> None:
    storage = Storage(root)
    for _ in range(times):
        while True:
            text = storage.read_text("counter")
            if storage.swap("counter", text, str(int(text or 0) + 1)):
                break


def hold(root: str, name: str) -> None:
    storage = Storage(root)
    try:
        with lease(storage, name, term_s=30.0):
            storage.write_text(f"held/{name}", "")
            while len(storage.list("busy")) + len(storage.list("held")) < 3:  # until the others have tried
                time.sleep(0.1)
    except BusyError:
        storage.write_text(f"busy/{name}", "")


def publish_late(root: str) -> None:
    """A holder that is stopped during its work and continues after its lease has expired."""
    database = RetrievalDatabase("db", root)
    with lease(database.storage, "slow", term_s=1.0):
        before = database.current_id()
        database.storage.write_text("working", "")
        time.sleep(2.0)
        try:
            database.publish(small_version("slow"), before)
            said = "published"
        except ConflictError as error:
            said = str(error)
    database.storage.write_text("said", said)


def small_version(note: str) -> Version:
    encoder = EncoderRecord("tiny", 4, "0" * 64, "openclip")
    index = IndexEntry("i", "exact", "Flat", 1, {"keys": Artifact("k", "0" * 64, 8)})
    counts = VersionCounts(input=1, ok=1, filtered=0, failed=0, reasons={}, duplicates=0)
    return Version("db", {"note": note}, encoder, {}, (), index, counts, "drop", "p")
