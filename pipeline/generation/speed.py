"""The time that a model needed for its pictures in this home, from the results of runs. Reads results.parquet; writes
nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import default_home
from pipeline.errors import RdmpipeError
from pipeline.schema import read_parquet
from pipeline.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

MOST_RUNS = 100  # runs that are read: the last ones by name


@dataclass(frozen=True)
class Speed:
    """The median of the seconds that one worker needs for one sampler step of one picture, over `pictures` pictures."""

    step_seconds: float
    pictures: int


def measured_speed(model: str, home: str | None = None) -> Speed | None:
    """The speed of a model in the runs of this home; None if no run has used it."""
    import numpy as np

    root = Storage((home or default_home()).rstrip("/"))
    found: list[float] = []
    for run in root.list("generations")[-MOST_RUNS:]:
        table = _results(root, run)
        if table is None:
            continue
        rows = table.to_pylist()
        found += [
            row["seconds"] / row["steps"] for row in rows if row["model"] == model and row["seconds"] and row["steps"]
        ]
    return Speed(float(np.median(found)), len(found)) if found else None


def _results(root: Storage, run: str) -> pa.Table | None:
    """The needed columns of a run's results; None if there are no results yet, or they cannot be read."""
    import pyarrow as pa

    path = f"generations/{run}/results.parquet"
    if not root.exists(path):
        return None
    try:
        with root.open(path) as handle:
            return read_parquet(handle, columns=["model", "seconds", "steps"])
    except (OSError, pa.ArrowException, RdmpipeError):
        return None
