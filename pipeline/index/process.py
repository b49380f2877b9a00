"""Runs the process that builds faiss indexes.

The peak memory of a separate process can be measured and limited. Reads and writes nothing itself;
index/worker.py says what that process reads and writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, overload

from pipeline.errors import BudgetError, IndexBuildError, RdmpipeError, RecallError
from pipeline.installation import python_path

if TYPE_CHECKING:
    from pipeline.index.config import IndexConfig
    from pipeline.index.recall import Queries
    from pipeline.index.records import (
        AddJob,
        BuildJob,
        Built,
        ChooseJob,
        Chosen,
        Job,
        Merged,
        MergeJob,
        QueryRecord,
        Step,
        TrainJob,
    )

# Freed blocks are returned to the system at once, to stay within the budget; waiting threads do not spin, to leave the
# processor to others.
FRUGAL = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_WAIT_POLICY": "PASSIVE"}

ERRORS: dict[str, type[RdmpipeError]] = {one.__name__: one for one in (BudgetError, IndexBuildError, RecallError)}


@overload
def run_worker(job: ChooseJob, folder: Path | None = None) -> Chosen: ...
@overload
def run_worker(job: BuildJob, folder: Path | None = None) -> Built: ...
@overload
def run_worker(job: TrainJob | AddJob, folder: Path | None = None) -> Step: ...
@overload
def run_worker(job: MergeJob, folder: Path | None = None) -> Merged: ...
def run_worker(job: Job, folder: Path | None = None) -> object:
    """Run index/worker.py with `job` on its standard input, in `folder`. The last line that it prints is the answer.

    Raises BudgetError and IndexBuildError as the worker does; BudgetError if the system killed it; IndexBuildError if it ended
    in another way.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.index.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path(), **FRUGAL},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, object] = json.loads(lines[-1])
        if "error" not in answer:
            return answer
        raise ERRORS[str(answer["kind"])](str(answer["error"]))
    if done.returncode in (-9, 137):
        raise BudgetError(
            "the process that builds the index was killed, most likely because memory ran out; give a smaller --memory, so "
            "that a smaller index is chosen"
        )
    tail = " ".join(done.stderr.split())[-800:]
    raise IndexBuildError(f"the process that builds the index ended with code {done.returncode}: {tail}")


def query_record(text: Queries | None, folder: Path) -> QueryRecord | None:
    """Text queries for a job. Writes their vectors to folder/queries.npy, from which the worker reads them."""
    import numpy as np

    if text is None:
        return None
    if text.texts:
        np.save(folder / "queries.npy", text.vectors)
    return {"origin": text.origin, "texts": list(text.texts)}


def config_record(config: IndexConfig) -> dict[str, object]:
    """The configuration for a job; `IndexConfig(**record)` restores it."""
    return asdict(config)
