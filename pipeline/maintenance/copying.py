"""Copy the files of failed rows into a folder, so that they can be examined and fixed.

Reads: the published plan, and the source again. Writes: DIR/<key>-<name> for each file that the source still has, and
DIR/failures.csv, which lists every failed row. Addresses are not fetched again: `rdmpipe retry` does that.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from pipeline.building import manifest_of, plan_shards, read_plan, read_spec
from pipeline.catalog import FailedRow
from pipeline.database import RetrievalDatabase
from pipeline.errors import ConfigError
from pipeline.schema import key_of, shard_of
from pipeline.sources import SourceOptions, open_source


def copy_failed(database: RetrievalDatabase, rows: Sequence[FailedRow], folder: Path) -> int:
    """Copy the files of failed rows; returns how many. Raises ConfigError if the folder is not empty, SourceError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} already exists and is not an empty folder; name another")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "failures.csv")
    wanted = {row.key: row for row in rows}
    plan = read_plan(database, database.version().plan)
    source = open_source(manifest_of(database), SourceOptions(limit=plan.options.get("limit") or 0))
    copied = 0
    shards = {shard_of(key) for key in wanted}
    for shard in plan_shards(database, plan.id):
        if shard.id not in shards:
            continue
        for place, sample in enumerate(read_spec(source, shard.spec)):
            row = wanted.get(key_of(shard.id, place))
            if row is not None and sample.data:
                name = re.sub(r"[^\w.-]+", "_", PurePosixPath(row.item).name)[-100:]
                (folder / f"{row.key:012d}-{name}").write_bytes(sample.data)
                copied += 1
    return copied


def write_csv(rows: Sequence[FailedRow], path: Path) -> None:
    """The failed rows as a CSV file with a header line."""
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, ["key", "item", "url", "reason", "detail"])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
