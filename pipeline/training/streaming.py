"""The rows of a prepared database, read when training needs them.

Reads prepared/<id>/ of a database (see pipeline/training/preparing.py) and the index of the database that neighbours come
from, all mapped. Writes nothing. The rows of a step are a function of the seed and the step, so that the position in the data
needs no separate file: the step that rdm.train saves is the position. Only the row numbers of one window of shards are in
memory, for any number of rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, DatabaseError
from pipeline.execution import Receipt
from pipeline.schema import shard_name
from pipeline.training.preparing import Prepared, load_array

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.database import RetrievalDatabase
    from pipeline.retrieval import Searcher

_WINDOW = 8  # number of shards whose rows are shuffled together

_OPEN = 64  # number of mapped arrays

_SHOWN = 64  # number of held-out rows for the loss


class PreparedRows:
    """Rows of a prepared database, without those that the current version no longer has. Close it after use.

    A place is a pair: the position of a shard, and a row in its files. `raw`: neighbours' vectors have the length that the
    encoder gave them, for a model that takes them so; else unit length.
    """

    raw = False

    def __init__(self, database: RetrievalDatabase, prepared: Prepared, searcher: Searcher, held_out: float) -> None:
        self.prepared = prepared
        self._storage, self._searcher, self._held_out = database.storage, searcher, held_out
        keys = database.version().index.files["keys"]  # of all rows that were neither removed nor purged, ascending
        self._current: NDArray[np.int64] = np.load(database.storage.local(keys), mmap_mode="r")
        self._receipts = [self._read_receipt(shard) for shard in prepared.shards]
        self._counts = np.array([len(self._split(shard)[0]) for shard in range(len(prepared.shards))], np.int64)
        self._mapped = lru_cache(maxsize=_OPEN)(self._map)
        self._window = lru_cache(maxsize=2)(self._mix)
        if not self._counts.sum():
            raise ConfigError(
                f"all {prepared.rows} rows of {prepared.database}/{prepared.id} are held out or removed: lower [data] "
                "held_out_contents, or prepare the current version"
            )

    def __enter__(self) -> PreparedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._searcher.close()

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.prepared.latent

    @property
    def dim(self) -> int:
        return self.prepared.dim

    def places(self, index: int, rows: int, seed: int) -> Tensor:
        """(rows, 2) places of pass `index` of `rows` rows each. Every epoch uses each row once, in another order."""
        import torch

        found = [self._place(position, seed) for position in range(index * rows, (index + 1) * rows)]
        return torch.tensor(found, dtype=torch.long)

    def held_out_places(self) -> Tensor:
        """At most 64 places of held-out rows, from the first shards that have some."""
        import torch

        found: list[tuple[int, int]] = []
        for shard in range(len(self.prepared.shards)):
            found += [(shard, int(row)) for row in self._split(shard)[1][: _SHOWN - len(found)]]
            if len(found) == _SHOWN:
                break
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2)

    def latents(self, places: Tensor) -> Tensor:
        """(B, C, h, w) float32, unscaled."""
        import torch

        return torch.from_numpy(self._rows("latents", places).astype(np.float32))

    def captions(self, places: Tensor, which: Tensor) -> Tensor:
        """(B, D) vectors of the captions, zeros if there is none. `which` is not used: a row has one caption."""
        import torch

        return torch.from_numpy(self._rows("texts", places).astype(np.float32))

    def neighbours(self, places: Tensor, count: int, own: bool) -> Tensor:
        """(B, count, D) vectors of the nearest rows that still exist. `own` must be False: styles are not prepared."""
        import torch

        keys = np.asarray(self._rows("neighbours", places), np.int64)
        chosen = nearest_present(keys, _contains(self._searcher.keys, keys), count)
        vectors, norms = self._searcher.vectors(chosen.ravel())
        if self.raw:
            vectors = vectors * norms[:, None]
        return torch.from_numpy(vectors.reshape(*chosen.shape, -1))

    # ---- files and orders

    def _map(self, shard: int, name: str) -> NDArray[np.generic]:
        return load_array(self._storage, self._receipts[shard], name)

    def _read_receipt(self, shard: int) -> Receipt:
        path = f"{self.prepared.folder}/{shard_name(shard)}.json"
        text = self._storage.read_text(path)
        if text is None:
            raise DatabaseError(f"{path} of database {self.prepared.database!r} is missing: prepare the database again")
        try:
            return Receipt.from_json(text)
        except ConfigError as error:
            raise DatabaseError(
                f"{self._storage.full(path)} is damaged: {error}. Prepare the database again"
            ) from error

    def _rows(self, name: str, places: Tensor) -> NDArray[np.generic]:
        return np.stack([self._mapped(shard, name)[row] for shard, row in places.tolist()])

    def _split(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of a shard for training, and held-out rows."""
        there = _contains(self._current, np.asarray(self._map(shard, "keys"), np.int64))
        held = np.asarray(self._map(shard, "order")) <= np.uint64(min(2**64 - 2, int(self._held_out * 2**64)))
        return np.flatnonzero(there & ~held), np.flatnonzero(there & held)

    def _place(self, position: int, seed: int) -> tuple[int, int]:
        epoch, position = divmod(position, len(self))
        order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(self._counts))
        ends = np.cumsum(self._counts[order])
        first = int(np.searchsorted(ends, position, side="right")) // _WINDOW * _WINDOW
        before = int(ends[first - 1]) if first else 0
        mixed = self._window(seed, epoch, tuple(order[first : first + _WINDOW].tolist()))
        shard, row = mixed[position - before].tolist()
        return shard, row

    def _mix(self, seed: int, epoch: int, shards: tuple[int, ...]) -> NDArray[np.int64]:
        """(n, 2) places of all rows of a window, in the order of this epoch."""
        rows = [np.stack([np.full(self._counts[shard], shard), self._split(shard)[0]], axis=1) for shard in shards]
        chance = np.random.Generator(np.random.PCG64([seed, epoch, *shards]))
        return chance.permutation(np.concatenate(rows))


def _contains(ascending: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of `keys` is among the ascending ones."""
    found = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.asarray(ascending[found] == keys)


def nearest_present(keys: NDArray[np.int64], present: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The first `count` present keys of each row of (B, k), in their order; if there are fewer, they are repeated.

    Raises DatabaseError if a row has none left.
    """
    left = present.sum(axis=1)
    if not left.all():
        raise DatabaseError(
            "a prepared row has no neighbour left, because a purge removed them: run `rdmpipe train prepare` again"
        )
    order = np.argsort(~present, axis=1, kind="stable")
    return np.take_along_axis(np.take_along_axis(keys, order, 1), np.arange(count) % left[:, None], 1)


def open_prepared(name: str, held_out: float, home: str | None = None) -> PreparedRows:
    """The rows of a prepared database: `name` is DATABASE or DATABASE/ID. Raises ConfigError, DatabaseError."""
    from pipeline.catalog import resolve_database
    from pipeline.database import RetrievalDatabase
    from pipeline.retrieval import open_search

    base, _, wanted = name.partition("/")
    database = RetrievalDatabase(base, home)
    there = [found for found in database.storage.list("prepared")
             if database.storage.exists(f"prepared/{found}/prepared.json")]  # fmt: skip
    chosen = [found for found in there if found.startswith(wanted)]
    if len(chosen) != 1:
        known = f"; there are {', '.join(f'{base}/{found}' for found in there)}" if there else ""
        raise ConfigError(
            f"[data] prepared = {name!r} names {len(chosen)} preparations{known}: name one, or make it with `rdmpipe train "
            f"prepare {base} --first-stage FOLDER`"
        )
    path = f"prepared/{chosen[0]}/prepared.json"
    try:
        prepared = Prepared.from_json(database.storage.read_text(path) or "")
    except ConfigError as error:
        raise DatabaseError(
            f"{database.storage.full(path)} is damaged: {error}. Prepare again: `rdmpipe train prepare {base}`"
        ) from error
    try:
        other = resolve_database(prepared.neighbours_from, home)
    except DatabaseError:  # a purge removed that version; the current one only lacks the purged rows
        other = resolve_database(prepared.neighbours_from.partition("@")[0], home)
    searcher = open_search(other.database, other.version, other.where, threads=1)
    return PreparedRows(database, prepared, searcher, held_out)
