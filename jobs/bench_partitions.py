"""What a partition of a very large index costs: finding each row's list, encoding it, and merging parts on disk.

    python jobs/bench_partitions.py [--lists 16384] [--rows 20000] [--parts 4]

Random unit vectors of 768 dimensions; the lists' centroids are random too, since the cost of adding does not depend on how good
they are (training is not measured). One thread, its processor time. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from pipeline.faiss_merge import merge_on_disk

DIM = 768


def unit(generator: np.random.Generator, rows: int) -> np.ndarray:
    vectors = generator.standard_normal((rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=16_384)
    parser.add_argument("--rows", type=int, default=20_000, help="of each part")
    parser.add_argument("--parts", type=int, default=4)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    generator = np.random.default_rng(0)
    quantizer = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    start = time.process_time()
    quantizer.add(unit(generator, arguments.lists))
    quantizer_s = time.process_time() - start
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, DIM, arguments.lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.train(unit(generator, 2_000))  # the codes' ranges: the centroids are there
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
    made = {
        "lists": arguments.lists,
        "rows": rows,
        "quantizer_ms_a_list": 1e3 * quantizer_s / arguments.lists,
        "add_ms_a_row": 1e3 * add_s / rows,
        "merge_seconds": merge_s,
        "merge_us_a_list_and_part": 1e6 * merge_s / (arguments.lists * arguments.parts),
        "index_bytes_a_row": size / rows,
    }
    print(json.dumps(made))


if __name__ == "__main__":
    main()
