"""Three functions that call autofaiss. Only this module imports it, inside the worker process (index/worker.py).

autofaiss is optional (`pip install 'rdmpipe[autofaiss]'`), because it needs NumPy below 2, which has no builds for Python 3.13.
Without it index/keys.py chooses the same keys by its own rule, and faiss builds them.

autofaiss chooses an index key for a memory budget, and builds the keys that need no training (HNSW). If it fails, it
logs that and returns (None, None), or raises any exception; here both become IndexBuildError. It is not used for three
things: training (it takes the first rows, which are not representative in a sorted collection, and does not limit their
number), compressed keys (OPQ takes longer to train than everything else together), and recall (it queries with the first
500 rows).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import BudgetError, IndexBuildError

if TYPE_CHECKING:
    import faiss


def autofaiss_works() -> bool:
    """Whether autofaiss is installed and works with this NumPy (below 2: it cannot write its report with 2)."""
    if importlib.util.find_spec("autofaiss") is None:
        return False
    return int(metadata.version("numpy").split(".")[0]) < 2


def autofaiss_key(rows: int, dim: int, index_bytes: int) -> str:
    """autofaiss's first choice of index key for `rows` rows within `index_bytes`. Raises BudgetError if it has none."""
    from autofaiss.external.optimize import get_optimal_index_keys_v2

    try:
        keys = get_optimal_index_keys_v2(rows, dim, f"{index_bytes}B")
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise BudgetError(
            f"autofaiss finds no index for {rows:,} rows within {index_bytes:,} bytes ({type(error).__name__}: {error})"
        ) from error
    if not keys:
        raise BudgetError(f"autofaiss finds no index for {rows:,} rows within {index_bytes:,} bytes")
    return str(keys[0])


def autofaiss_build(vectors: Path, key: str, index_bytes: int, memory: int, threads: int, folder: Path) -> faiss.Index:
    """An inner-product faiss index over vectors.npy under a key that needs no training. Writes into `folder`."""
    import autofaiss

    only = folder / "autofaiss"
    only.mkdir()
    os.link(vectors, only / "vectors.npy")  # autofaiss reads every .npy file of a folder
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("autofaiss").addHandler(handler)
    try:
        index, _ = autofaiss.build_index(
            embeddings=str(only),
            index_path=str(folder / "autofaiss.index"),
            index_infos_path=str(folder / "autofaiss.json"),
            index_key=key,
            index_param="efSearch=64",  # index/worker.py measures recall and raises it: no search for it here
            max_index_memory_usage=f"{index_bytes}B",
            current_memory_available=f"{memory}B",
            metric_type="ip",
            nb_cores=threads,
            verbose=logging.WARNING,
        )
    except (IndexError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise IndexBuildError(
            f"autofaiss could not build {key}: {type(error).__name__}: {error}. Choose an index key, such as "
            "--index-key IVF1024,SQ8"
        ) from error
    finally:
        logging.getLogger("autofaiss").removeHandler(handler)
    if index is None:
        said = " ".join(log.getvalue().split())[-500:] or "nothing"
        raise IndexBuildError(
            f"autofaiss gave up on {key} without an error; its log says: {said}. Give more --memory, or name an index key "
            "yourself, such as --index-key IVF1024,SQ8"
        )
    return index
