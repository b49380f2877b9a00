"""The index stage: from finished embedding shards to something that can be searched.

Reads: embedding shards. Writes index/<encoder>/<id>/: keys.npy, norms.npy, vectors.npy and metadata.parquet (index/rows.py),
index.faiss above the exact size, and entry.json, last. The id is the digest of all inputs and parameters, so that a run that
was killed goes on or starts over with the same id, and a finished index is taken as it is. An exact index is the same
byte for byte every time; an approximate one has the same inputs, and a recall within its interval.

The rule after a refresh: the index is always made anew from the stored vectors, never extended; nothing is embedded again. That
costs reading all vectors once, and above the exact size training and adding; it keeps ordinals dense, training unbiased by what
was there first, and a version's index a function of its rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import canonical_json, digest
from pipeline.database import IndexEntry
from pipeline.index.config import IndexConfig
from pipeline.index.rows import FILES, write_rows
from pipeline.storage import Artifact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.database import RetrievalDatabase, ShardEntry
    from pipeline.encoders import EncoderRecord
    from pipeline.execution import Backend, Progress
    from pipeline.index.recall import Queries

FORMAT = 1  # part of an index's id: raise it whenever the same inputs would give other files


def check_index(config: IndexConfig, rows: int, dim: int) -> None:
    """Refuse before work an index that cannot be: a key that faiss does not know, or too small a budget for `rows` rows
    (0: not known). Raises IndexBuildError or BudgetError, which names the smallest budget."""
    if not config.key and rows <= config.exact_rows:
        return
    from pipeline.index.partitions import partitions_of
    from pipeline.index.sizing import choose, size

    if not rows:
        size(config.key, 1, dim, config.memory)
    elif partitions_of(rows, dim, config) < 2:
        choose(rows, dim, config)


def build_index(
    db: RetrievalDatabase,
    config: IndexConfig,
    encoder: EncoderRecord,
    columns: Mapping[str, str],
    shards: Sequence[ShardEntry],
    gone: NDArray[Any] | Sequence[int] = (),
    text: Queries | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
) -> IndexEntry:
    """Build and publish the index over the ok rows of `shards`, without the keys in `gone`; a finished one is reused.

    `text` holds text queries to measure recall with (see recall.text_queries), None where there are none. `backend` is where
    partitions are built, if it comes to that. Raises
    IndexBuildError (nothing to index, damaged shards, recall that cannot be reached) and BudgetError (memory too small).
    """
    import numpy as np

    from pipeline.execution import Backend, Progress
    from pipeline.index.partitions import build_partitioned, partitions_of
    from pipeline.index.recall import measure_recall

    shards = sorted(shards, key=lambda shard: shard.id)
    absent = np.unique(np.asarray(gone, np.int64))
    inputs = {
        "format": FORMAT,
        "encoder": encoder.id,
        "dim": encoder.dim,
        "columns": list(columns.items()),
        "shards": [(shard.id, shard.artifact.sha256) for shard in shards],
        "gone": hashlib.sha256(absent.tobytes()).hexdigest(),
        "config": asdict(config),
        "text": text.fingerprint() if text is not None else "",
    }
    folder = db.index_folder(encoder, digest(inputs, 12))
    entry = _finished(db, folder)
    if entry is not None:
        db.storage.remove(f"{folder}/parts")
        return entry
    with db.storage.scratch() as scratch:
        counts = write_rows(db, shards, absent, columns, encoder.dim, scratch)
        rows = counts["rows"]
        if not config.key and config.partitions < 2 and rows <= config.exact_rows:
            kind, key = "exact", "Flat"
            params: dict[str, Any] = {}
            build: dict[str, Any] = {}
            recall = measure_recall(scratch / FILES["vectors"], config, text)
        elif partitions_of(rows, encoder.dim, config) > 1:
            kind = "faiss"
            key, params, recall, build = build_partitioned(
                db,
                folder,
                scratch,
                shards,
                absent,
                encoder.dim,
                config,
                text,
                backend or Backend(),
                progress or Progress(),
            )
        else:
            from pipeline.index.sizing import build_faiss

            kind = "faiss"
            key, params, recall, build = build_faiss(scratch, rows, encoder.dim, config, text)
        files = {
            role: db.storage.publish(scratch / name, f"{folder}/{name}")
            for role, name in {**FILES, "faiss": "index.faiss"}.items()
            if (scratch / name).exists()
        }
    entry = IndexEntry(
        id=Path(folder).name,
        kind=kind,
        key=key,
        rows=rows,
        files=files,
        params=params,
        recall=recall,
        build={**build, "duplicates": counts["duplicates"], "config": asdict(config)},
    )
    db.storage.write_text(f"{folder}/entry.json", canonical_json(entry) + "\n")
    db.storage.remove(f"{folder}/parts")
    return entry


def _finished(db: RetrievalDatabase, folder: str) -> IndexEntry | None:
    """The entry of an index that was finished before and whose files are all there."""
    text = db.storage.read_text(f"{folder}/entry.json")
    if text is None:
        return None
    table = json.loads(text)
    table["files"] = {role: Artifact(**artifact) for role, artifact in table["files"].items()}
    entry = IndexEntry(**table)
    whole = all(db.storage.size(artifact.path) == artifact.bytes for artifact in entry.files.values())
    return entry if whole else None
