"""The embed stage: one shard of pictures into unit vectors.

Reads: images/<shard>.parquet and .tar. Writes thumbnails/<shard>.tar (`--images thumbnail`), then
embeddings/<encoder>/<shard>.parquet: every row of the image table, with perceptual hash, size, vector and norm for rows that
are ok. After the receipt is written, images/<shard>.tar is removed unless pictures are kept. A picture that cannot be decoded
is a failed row, never an exception.

Decoding runs ahead of the model in a bounded pool. The same pictures, encoder, batch size and torch threads give the same
bytes on the same machine. The stage does not check the pictures' sha256 again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from pipeline import machine
from pipeline.building.decoding import Decoded, decode_row
from pipeline.building.download import read_images
from pipeline.config import digest
from pipeline.database import RetrievalDatabase
from pipeline.encoders import Encoder, EncoderRecord, load_encoder, require_match, to_numpy, unit_rows
from pipeline.execution import Receipt, Resources, Shard, Stage, ahead, count_statuses
from pipeline.images import MAX_PIXELS
from pipeline.schema import FAILED, OK, with_vectors
from pipeline.sources import Row
from pipeline.storage import USTAR, TarWriter, write_tar

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from pipeline.building.decoding import Pixels


@dataclass
class EmbeddedRows:
    """The columns that embedding adds or changes, by row. `status` and `error` start with the image table's values."""

    rows: int
    dim: int
    status: list[str]
    error: list[str | None]
    phash: list[str | None] = field(init=False)
    width: list[int | None] = field(init=False)
    height: list[int | None] = field(init=False)
    vectors: NDArray[np.float16] = field(init=False)
    norms: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.phash = [None] * self.rows
        self.width, self.height = [None] * self.rows, [None] * self.rows
        self.vectors = np.zeros((self.rows, self.dim), np.float16)
        self.norms = np.zeros(self.rows, np.float32)

    def fail(self, row: int, error: str) -> None:
        self.status[row], self.error[row] = FAILED, error

    def add_vectors(self, rows: list[int], made: NDArray[np.float32]) -> None:
        """Add vectors from the model. A vector without a direction makes a failed row."""
        unit, norms = unit_rows(made)
        good = np.isfinite(norms) & (norms > 0) & np.isfinite(unit).all(axis=1)
        for row, vector, norm, is_good in zip(rows, unit, norms, good, strict=True):
            if is_good:
                self.vectors[row], self.norms[row] = vector, norm
            else:
                self.fail(row, f"not_finite: the vector's norm is {norm}")

    def table(self, images: pa.Table) -> pa.Table:
        """The embedding table (schema.embedding_schema)."""
        import pyarrow as pa

        schema = with_vectors(images.schema, self.dim)
        absent = np.array([status != OK for status in self.status], dtype=bool)
        made: Row = {
            "status": self.status,
            "error": self.error,
            "phash": self.phash,
            "width": self.width,
            "height": self.height,
        }
        columns = [
            pa.array(made[name], schema.field(name).type) if name in made else images[name]
            for name in schema.names
            if name not in ("vector", "norm")
        ]
        # Arrow's Parquet reader refuses a fixed-size list with nulls, so a row without a vector holds zeros.
        filled = np.where(absent[:, None], np.float16(0), self.vectors)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(filled.ravel()), self.dim)
        norms = pa.array(self.norms, mask=absent)
        return pa.table([*columns, vectors, norms], schema=schema).combine_chunks()


log = logging.getLogger(__name__)

EMBED_STAGE = "embed"

_FORMAT = 1  # increase it when the code writes other files for the same pictures

TURNS = 4  # batches after which the times decide whether decoding and the model take turns

Images = Literal["keep", "thumbnail", "drop"]


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. `embed_stage` replaces zeros by values for the machine."""

    encoder: str
    precision: str = "fp32"
    preprocess: str = "openclip"
    images: Images = "keep"
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch: int = 0
    torch_threads: int = 0  # of the model, on the CPU; the same number gives the same bytes
    decode_threads: int = 0
    max_pixels: int = MAX_PIXELS
    patches: bool = False  # rows are crops, given by their patch_coords

    def fingerprint(self, record: EncoderRecord) -> str:
        """Hash of everything that changes the output. Batch size, threads and device change vectors only by float16
        rounding."""
        return digest([_FORMAT, record, self.images, self.max_pixels, *(["patches"] if self.patches else [])])

    def for_machine(self) -> EmbedConfig:
        """The same config with this machine's device, batch size and threads."""
        device, cores = machine.device(self.device), machine.cores()
        on_gpu = device.startswith("cuda")
        return replace(
            self,
            device=device,
            batch=self.batch or (256 if on_gpu else 16),
            torch_threads=self.torch_threads or (1 if on_gpu else cores),
            decode_threads=self.decode_threads or (min(cores, 16) if on_gpu else cores),
        )


@dataclass
class Timing:
    """How a shard's time was spent, in seconds of the main thread. For the log and callbacks, never in a receipt."""

    shard: int = 0
    pictures: int = 0
    waiting: float = 0.0  # for decoded pictures
    forward: float = 0.0  # assembling batches and the model
    writing: float = 0.0
    total: float = 0.0


def embed_stage(
    db: RetrievalDatabase,
    config: EmbedConfig,
    record: EncoderRecord,
    workers: int = 0,
    on_timing: Callable[[Timing], None] | None = None,
    loaded: Callable[[], Encoder] | None = None,
) -> Stage:
    """The stage for a database. `record` describes the loaded encoder; workers refuse to run with another.

    loaded: returns the encoder for a stage that runs in this process, so that it is loaded only once.
    """
    config = config.for_machine()
    on_gpu = config.device.startswith("cuda")
    return Stage(
        name=EMBED_STAGE,
        folder=db.embedding_folder(record),
        storage=db.storage,
        config=config.fingerprint(record),
        setup=partial(_set_up, config, record, loaded),
        run=partial(_run, db, config, on_timing),
        resources=Resources(
            cpus=float(config.decode_threads if on_gpu else config.torch_threads), gpus=1.0 if on_gpu else 0.0
        ),
        workers=workers,
        finish=None if config.images == "keep" else partial(_remove_pictures, db),
    )


def _set_up(config: EmbedConfig, record: EncoderRecord, loaded: Callable[[], Encoder] | None = None) -> Encoder:
    import torch

    torch.set_num_threads(config.torch_threads)
    torch.set_flush_denormal(True)  # random and pruned weights have denormals, which are slow
    if loaded is not None:
        encoder = loaded()
    else:
        encoder = load_encoder(config.encoder, config.device, config.precision, config.preprocess)
    require_match(record, encoder)
    return encoder


def _run(
    db: RetrievalDatabase,
    config: EmbedConfig,
    on_timing: Callable[[Timing], None] | None,
    encoder: Encoder,
    shard: Shard,
) -> Receipt:
    return embed_shard(db, config, encoder, shard, on_timing)


def _remove_pictures(db: RetrievalDatabase, shard: Shard) -> None:
    db.storage.remove(db.image_tar(shard.id))


def embed_shard(
    db: RetrievalDatabase,
    config: EmbedConfig,
    encoder: Encoder,
    shard: Shard,
    on_timing: Callable[[Timing], None] | None = None,
) -> Receipt:
    """Embed one shard and write its files. Raises DatabaseError if its pictures are absent or damaged, DiskFullError."""
    import torch

    config = config.for_machine()
    if encoder.device.type == "cpu" and torch.get_num_threads() != config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    timing = Timing(shard=shard.id)
    start = time.monotonic()
    table = db.read_table(db.image_table(shard.id))
    found = EmbeddedRows(table.num_rows, encoder.dim, table["status"].to_pylist(), table["error"].to_pylist())
    artifacts = []
    with db.storage.scratch() as scratch:
        thumbnails = scratch / "thumbnails.tar"
        kept = write_tar(thumbnails, USTAR) if config.images == "thumbnail" else contextlib.nullcontext()
        with kept as archive:
            _embed(db, config, encoder, shard, found, archive, timing)
        begun = time.monotonic()
        if config.images == "thumbnail":
            artifacts.append(db.storage.publish(thumbnails, db.thumbnail_tar(shard.id)))
        made = found.table(table)
        artifacts.append(db.write_table(db.embedding_table(encoder.record, shard.id), made))
    counts = count_statuses(found.status, found.error)
    timing.writing += time.monotonic() - begun
    timing.total = time.monotonic() - start
    log.info("embedded shard %s: %s", shard.name, asdict(timing))
    if on_timing is not None:
        on_timing(timing)
    return Receipt(
        EMBED_STAGE,
        shard.id,
        config.fingerprint(encoder.record),
        shard.fingerprint,
        artifacts=tuple(artifacts),
        **counts,
    )


class _Batches:
    """Batches in the model. A GPU works on one while the next is collected.

    `takes_turns`: if there is no spare core, decoding waits while the model runs, because one stalled thread of the model
    stalls all. A small model on small pictures spends as much time waiting for them as computing: then decoding goes on.
    """

    def __init__(self, encoder: Encoder, found: EmbeddedRows, size: int, takes_turns: bool, timing: Timing) -> None:
        self.encoder, self.found, self.size, self.timing = encoder, found, size, timing
        self.takes_turns = takes_turns
        self.may_decode = threading.Event()
        self.may_decode.set()
        self._rows: list[int] = []
        self._pixels: Pixels | None = None
        self._running: deque[tuple[list[int], torch.Tensor]] = deque()

    def add(self, row: int, pixels: Pixels) -> None:
        """Add one prepared picture, and run the model when a batch is full."""
        begun = time.monotonic()
        if self._pixels is None:
            self._pixels = cast("Pixels", np.empty((self.size, *pixels.shape), pixels.dtype))
        self._pixels[len(self._rows)] = pixels
        self._rows.append(row)
        if len(self._rows) == self.size:
            self._flush()
        self.timing.forward += time.monotonic() - begun

    def finish(self) -> None:
        """Run the last batch, and wait for all vectors."""
        begun = time.monotonic()
        if self._rows:
            self._flush()
        self._collect(0)
        self.timing.forward += time.monotonic() - begun

    def _flush(self) -> None:
        assert self._pixels is not None
        self._pixels[len(self._rows) :] = 0
        if self.takes_turns:
            self.may_decode.clear()
        try:
            self._running.append((self._rows, self.encoder.submit(self._pixels)))
        finally:
            self.may_decode.set()
        self.timing.pictures += len(self._rows)
        if self.timing.pictures >= TURNS * self.size and self.timing.waiting > self.timing.forward / 2:
            self.takes_turns = False
        self._rows, self._pixels = [], None
        self._collect(1)

    def _collect(self, left: int) -> None:
        while len(self._running) > left:
            rows, made = self._running.popleft()
            self.found.add_vectors(rows, to_numpy(made)[: len(rows)])


def _embed(
    db: RetrievalDatabase,
    config: EmbedConfig,
    encoder: Encoder,
    shard: Shard,
    found: EmbeddedRows,
    archive: TarWriter | None,
    timing: Timing,
) -> None:
    """Decode ahead, run the model batch by batch, and fill `found`."""
    # Batches have fixed shapes, so that a vector does not depend on the rest of its batch. A small shard is not padded.
    size = min(config.batch, -(-found.status.count(OK) // 8) * 8)
    takes_turns = encoder.device.type == "cpu" and 1 < config.torch_threads >= machine.cores()
    batches = _Batches(encoder, found, size, takes_turns, timing)
    decode = partial(decode_row, encoder.preprocess, config.images == "thumbnail", config.max_pixels, config.patches)

    def when_allowed(item: tuple[int, Row, bytes | None]) -> Decoded:
        batches.may_decode.wait()
        return decode(item)

    rows = ((i, row, data) for i, (row, data) in enumerate(read_images(db, shard.id, config.patches)))
    since = time.monotonic()
    stream = ahead(rows, when_allowed, config.decode_threads, 2 * size + 8, lambda item: len(item[2] or b""))
    with contextlib.closing(stream):
        for (i, row, _), decoded in stream:
            timing.waiting += time.monotonic() - since
            if decoded.error is not None:
                found.fail(i, decoded.error)
            if decoded.pixels is not None:
                found.phash[i], found.width[i], found.height[i] = decoded.phash, decoded.width, decoded.height
                if archive is not None and decoded.thumbnail is not None:
                    archive.add(f"{row['key']:012d}.jpg", decoded.thumbnail)
                batches.add(i, decoded.pixels)
            since = time.monotonic()
    batches.finish()
