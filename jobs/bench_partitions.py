"""Benchmark: the cost of a very large index: writing its rows, finding each row's list, encoding, merging parts on disk.

    python jobs/bench_partitions.py [--lists 16384] [--rows 20000] [--parts 4] [--shards 5]

The vectors are random unit vectors of 768 dimensions. The centroids of the lists are random too, because the cost of adding a
row does not depend on their quality; training is not measured. The driver runs `write_rows` once over all rows; each
partition runs `write_vectors` over its own. Both read embedding shards of 10,000 rows with short captions, which this script
writes. All times are processor times of one thread. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.database import RetrievalDatabase, ShardEntry
from pipeline.encoders import EncoderRecord
from pipeline.index import IndexInput
from pipeline.index.merge import merge_on_disk
from pipeline.index.rows import write_rows, write_vectors
from pipeline.schema import SHARD_ROWS, embedding_schema, key_of

DIM = 768


def unit(generator: np.random.Generator, rows: int) -> NDArray[np.float32]:
    vectors = generator.standard_normal((rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shard_table(shard: int, generator: np.random.Generator) -> pa.Table:
    """A full embedding shard without duplicates."""
    keys = [key_of(shard, row) for row in range(SHARD_ROWS)]
    vectors = pa.array(unit(generator, SHARD_ROWS).astype(np.float16).ravel())
    values = {
        "key": keys,
        "item_id": [f"folder/{key:012d}.jpg" for key in keys],
        "status": ["ok"] * SHARD_ROWS,
        "source": ["bench"] * SHARD_ROWS,
        "url": [f"https://example.org/pictures/{key:012d}.jpg" for key in keys],
        "licence": ["CC0-1.0"] * SHARD_ROWS,
        "caption": [f"a picture of thing {key}" for key in keys],
        "sha256": [hashlib.sha256(str(key).encode()).hexdigest() for key in keys],
        "phash": [f"{value:016x}" for value in generator.integers(0, 2**63, SHARD_ROWS)],
        "width": [512] * SHARD_ROWS,
        "height": [512] * SHARD_ROWS,
        "vector": pa.FixedSizeListArray.from_arrays(vectors, DIM),
        "norm": np.full(SHARD_ROWS, 10.0, np.float32),
    }
    schema = embedding_schema({}, DIM)
    columns = [pa.array(values.get(field.name, [None] * SHARD_ROWS), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def rows_cost(folder: Path, shards: int, generator: np.random.Generator) -> dict[str, float]:
    """The cost of reading embedding shards: all their columns, and only the vectors."""
    db, entries = RetrievalDatabase("bench", str(folder)), []
    record = EncoderRecord("random:bench", DIM, "0" * 64, "openclip", trained=False, has_text=False)
    for shard in range(shards):
        artifact = db.write_table(db.embedding_table(record, shard), shard_table(shard, generator))
        entries.append(ShardEntry(shard, SHARD_ROWS, artifact))
    rows, out = shards * SHARD_ROWS, folder / "out"
    out.mkdir()
    start = time.process_time()
    write_rows(db, IndexInput(record, {}, entries), out)
    rows_s = time.process_time() - start
    written = sum(file.stat().st_size for file in out.iterdir())
    start = time.process_time()
    write_vectors(db, entries, np.empty(0, np.int64), (rows, DIM), out / "part.npy")
    return {
        "write_rows_us_a_row": 1e6 * rows_s / rows,
        "write_vectors_us_a_row": 1e6 * (time.process_time() - start) / rows,
        "embedding_bytes_a_row": sum(entry.artifact.bytes for entry in entries) / rows,
        "written_bytes_a_row": written / rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=16_384)
    parser.add_argument("--rows", type=int, default=20_000, help="of each part")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--shards", type=int, default=5, help="of 10,000 rows, to read")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    faiss.omp_set_num_threads(1)
    generator = np.random.default_rng(0)
    quantizer = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    start = time.process_time()
    quantizer.add(unit(generator, arguments.lists))
    quantizer_s = time.process_time() - start
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, DIM, arguments.lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.train(unit(generator, 2_000))  # only the ranges of the codes; the quantizer already holds its centroids
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        faiss.write_index(index, str(folder / "trained.faiss"))
        add_s = 0.0
        for number in range(arguments.parts):
            part, vectors = faiss.read_index(str(folder / "trained.faiss")), unit(generator, arguments.rows)
            first = number * arguments.rows
            start = time.process_time()
            part.add_with_ids(vectors, np.arange(first, first + arguments.rows))
            add_s += time.process_time() - start
            faiss.write_index(part, str(folder / f"{number}.faiss"))
        parts = [folder / f"{number}.faiss" for number in range(arguments.parts)]
        start = time.process_time()
        rows = merge_on_disk(folder / "trained.faiss", parts, folder / "index.faiss")
        merge_s = time.process_time() - start
        size = (folder / "index.faiss").stat().st_size
    with tempfile.TemporaryDirectory() as temporary:
        reading = rows_cost(Path(temporary), arguments.shards, generator)
    made = {
        "lists": arguments.lists,
        "rows": rows,
        "quantizer_ms_a_list": 1e3 * quantizer_s / arguments.lists,
        "add_ms_a_row": 1e3 * add_s / rows,
        "merge_seconds": merge_s,
        "merge_us_a_list_and_part": 1e6 * merge_s / (arguments.lists * arguments.parts),
        "index_bytes_a_row": size / rows,
        **reading,
    }
    print(json.dumps(made))


if __name__ == "__main__":
    main()
