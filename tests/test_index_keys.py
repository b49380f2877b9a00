"""The choice of an index key with and without autofaiss: the same rows and memory get the same key."""

from __future__ import annotations

import pytest

from pipeline.errors import BudgetError
from pipeline.index import IndexConfig
from pipeline.index import keys as index_keys
from pipeline.index.autofaiss import autofaiss_key, autofaiss_works
from pipeline.index.keys import choose_key, graph_key

MB, GB = 1 << 20, 1 << 30

# autofaiss 2.18's first choice; "" for its compressed keys, which are not taken
CHOSEN = {
    (500, 768, GB): "Flat",
    (6_000, 768, GB): "HNSW15",
    (81_000, 768, 4 * GB): "HNSW32",
    (81_000, 768, 64 * MB): "",
    (300_000, 512, 640 * MB): "HNSW23",
    (1_000_000, 768, 3_200_000_000): "HNSW16",
    (1_000_000, 768, GB): "",
    (5_000_000, 512, 12 * GB): "HNSW32",
}


@pytest.mark.parametrize(("rows", "dim", "size"), CHOSEN)
def test_our_rule_gives_what_autofaiss_chose(rows: int, dim: int, size: int) -> None:
    assert graph_key(rows, dim, size) == CHOSEN[rows, dim, size]


@pytest.mark.skipif(not autofaiss_works(), reason="autofaiss is not installed, or NumPy is 2 or newer")
def test_our_rule_and_the_installed_autofaiss_choose_alike() -> None:
    compared = 0
    for rows in (1, 999, 1_000, 9_999, 10_000, 60_000, 200_001, 1_000_000, 7_000_000):
        for dim in (32, 512, 768, 1024):
            for links in (-300, 7, 8, 9, 20, 31, 32, 40):  # around the size at which a graph of so many links fits
                size = max(1 << 20, 4 * rows * (dim + 2 * links))
                for near in (size - 1, size, size + 1):
                    try:
                        theirs = autofaiss_key(rows, dim, near)
                    except BudgetError:
                        theirs = ""
                    theirs = theirs if theirs.startswith(("HNSW", "Flat")) else ""
                    assert graph_key(rows, dim, near) == theirs, (rows, dim, near)
                    compared += 1
    assert compared == 864


@pytest.mark.process
@pytest.mark.skipif(not autofaiss_works(), reason="autofaiss is not installed, or NumPy is 2 or newer")
@pytest.mark.parametrize("memory", [256 * MB, 2 * GB, 4 * GB])
def test_an_installation_without_autofaiss_builds_the_same_key_with_faiss(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(memory=memory)
    with_it, _ = choose_key(1_000_000, 768, config)
    monkeypatch.setattr(index_keys, "autofaiss_works", lambda: False)
    without, builder = choose_key(1_000_000, 768, config)
    assert (without, builder) == (with_it, "faiss")
