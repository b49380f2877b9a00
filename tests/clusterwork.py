"""The work of a test's job on a cluster: two small real stages on Ray, then a published version.

python -m tests.clusterwork run env:RDMPIPE_JOB --slot S       the entry point of a submitted job, as `rdmpipe run` is
python -m tests.clusterwork work ROOT SHARDS PAUSE TIMEOUT      the job's command; files go to the home
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.config import digest
from pipeline.database import IndexEntry, RetrievalDatabase, Version
from pipeline.encoders import EncoderRecord
from pipeline.errors import RdmpipeError
from pipeline.execution import Backend, Progress, run_stages
from pipeline.scheduling import load_job, run_job
from pipeline.storage import Artifact, lease
from tests.stages import shards, stage

STAGES = ("first", "second")


def work(root: Path, count: int, pause: float, timeout_s: float, backend: Backend) -> dict[str, object]:
    """Run the stages and publish their results, as a build does: under a lease, and only when all exist."""
    database = RetrievalDatabase("db")
    home = database.storage
    first = stage(root, "first", pause=pause, timeout_s=timeout_s, storage=home)
    second = stage(root, "second", before="first", pause=pause, timeout_s=timeout_s, storage=home)
    with lease(home, "work", wait_s=90, term_s=10), Progress("json") as progress:
        before = database.current_id()
        outcome = run_stages((first, second), shards(count), backend, progress, total=count)
        failures = [asdict(failure) for failure in outcome.failures]
        home.write_text("failures.json", json.dumps(failures))
        if not failures:
            receipts = [second.receipt(shard) for shard in shards(count)]
            contents = digest([receipt.to_json() for receipt in receipts if receipt])
            database.publish(version(contents, count), before)
    return {"name": "db", "ran": outcome.ran, "skipped": outcome.skipped, "failures": len(failures)}


def version(contents: str, count: int) -> Version:
    encoder = EncoderRecord("tiny", 4, "0" * 64, "openclip")
    index = IndexEntry(contents, "exact", "Flat", count, {"keys": Artifact("k", "0" * 64, 8)})
    return Version("db", {}, encoder, {}, (), index, {"ok": count}, "drop", contents)


def main() -> int:
    if sys.argv[1] == "run":
        _, _, job, _, slot = sys.argv
        made = run_job(load_job(job), slot, entry=(sys.executable, "-m", "tests.clusterwork"), notify=print)
        print(json.dumps({"status": made.status, **made.result}), flush=True)
        return made.exit_code
    _, _, root, count, pause, timeout_s = sys.argv
    with Path(root, "drivers").open("a") as handle:
        handle.write(f"{os.getpid()}\n")
    made_by = work(
        Path(root), int(count), float(pause), float(timeout_s), Backend("ray", workers=2, start_timeout_s=90)
    )
    print(json.dumps(made_by), flush=True)
    return 1 if made_by["failures"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RdmpipeError as error:
        print(f"rdmpipe: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
