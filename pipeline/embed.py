"""The embed stage: one shard of pictures into unit vectors.

Reads: images/<shard>.parquet and .tar. Writes thumbnails/<shard>.tar (`--images thumbnail`), then
embeddings/<encoder>/<shard>.parquet: every row of the image table, with perceptual hash, size, vector and norm for those
that are ok. Once the receipt is there, images/<shard>.tar is removed unless pictures are kept. A picture that cannot be
decoded is a failed row, never an exception.

Decoding runs ahead of the model in a bounded pool. The same pictures, encoder, batch size and torch threads give the same
bytes on the same machine. Does not check the pictures' sha256 again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.ahead import ahead
from pipeline.config import digest
from pipeline.database import EncoderRecord, RetrievalDatabase
from pipeline.decoding import Decoded, decode_row
from pipeline.download import read_images
from pipeline.embedded import EmbeddedRows
from pipeline.encoders import Encoder, load, require_match, resolve, to_numpy
from pipeline.images import MAX_PIXELS
from pipeline.schema import OK
from pipeline.stage import Receipt, Resources, Shard, Stage, count_statuses

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

STAGE = "embed"
_FORMAT = 1  # raise it when the same pictures would give other files

Images = Literal["keep", "thumbnail", "drop"]


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. Zeros are filled in for the machine by `embed_stage`."""

    encoder: str
    precision: str = "fp32"
    preprocess: str = "openclip"
    images: Images = "keep"
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch: int = 0
    torch_threads: int = 0  # of the model, on the CPU; the same number gives the same bytes
    decode_threads: int = 0
    max_pixels: int = MAX_PIXELS
    patches: bool = False  # rows are crops: their patch_coords say which

    def fingerprint(self, record: EncoderRecord) -> str:
        """Hash of what changes the output. Batch size, threads and device change no vector beyond float16 rounding."""
        return digest([_FORMAT, record, self.images, self.max_pixels, *(["patches"] if self.patches else [])])

    def for_machine(self) -> EmbedConfig:
        """The same config with this machine's device, batch size and threads filled in."""
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu, cores = device.startswith("cuda"), _cores()
        return replace(
            self,
            device=device,
            batch=self.batch or (256 if on_gpu else 16),
            torch_threads=self.torch_threads or (1 if on_gpu else cores),
            decode_threads=self.decode_threads or (min(cores, 16) if on_gpu else cores),
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Timing:
    """Where a shard's time went, seconds of the main thread. Goes to the log and to callbacks, never into a receipt."""

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
) -> Stage:
    """The stage for a database. `record` is that of the loaded encoder: workers refuse to run with another."""
    config = config.for_machine()
    on_gpu = config.device.startswith("cuda")
    return Stage(
        name=STAGE,
        folder=db.embedding_folder(record),
        storage=db.storage,
        config=config.fingerprint(record),
        setup=partial(_set_up, config, record),
        run=partial(_run, db, config, on_timing),
        resources=Resources(
            cpus=float(config.decode_threads if on_gpu else config.torch_threads), gpus=1.0 if on_gpu else 0.0
        ),
        workers=workers,
        finish=None if config.images == "keep" else partial(_remove_pictures, db),
    )


def _set_up(config: EmbedConfig, record: EncoderRecord) -> Encoder:
    import torch

    torch.set_num_threads(config.torch_threads)
    torch.set_flush_denormal(True)  # random and pruned weights have denormals, which are slow
    encoder = load(resolve(config.encoder), config.device, config.precision, config.preprocess)
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
    """Embed one shard and write its files. Raises DatabaseError where its pictures are absent or damaged, DiskFullError."""
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
        with _tar(thumbnails if config.images == "thumbnail" else None) as archive:
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
        STAGE,
        shard.id,
        config.fingerprint(encoder.record),
        shard.fingerprint,
        artifacts=tuple(artifacts),
        **counts,
    )


def _embed(
    db: RetrievalDatabase,
    config: EmbedConfig,
    encoder: Encoder,
    shard: Shard,
    found: EmbeddedRows,
    archive: tarfile.TarFile | None,
    timing: Timing,
) -> None:
    """Decode ahead, run the model batch by batch, and fill `found`. A GPU works on one batch while the next is gathered."""
    # Fixed shapes: a picture's vector does not depend on how many came with it. A small shard is not padded to a whole batch.
    size = min(config.batch, -(-found.status.count(OK) // 8) * 8)
    rows = ((i, row, data) for i, (row, data) in enumerate(read_images(db, shard.id, config.patches)))
    decode = partial(decode_row, encoder.preprocess, config.images == "thumbnail", config.max_pixels, config.patches)
    may_decode = threading.Event()
    may_decode.set()
    takes_turns = encoder.device.type == "cpu" and 1 < config.torch_threads >= _cores()
    running: deque[tuple[list[int], torch.Tensor]] = deque()
    batch: list[int] = []
    pixels: NDArray[Any] | None = None

    def when_allowed(item: tuple[int, dict[str, Any], bytes | None]) -> Decoded:
        may_decode.wait()
        return decode(item)

    def collect(left: int) -> None:
        while len(running) > left:
            these, made = running.popleft()
            found.add_vectors(these, to_numpy(made)[: len(these)])

    def flush() -> None:
        nonlocal batch, pixels
        assert pixels is not None
        pixels[len(batch) :] = 0
        if takes_turns:  # one stalled thread of the model stalls them all: decoding waits where there is no core for it
            may_decode.clear()
        try:
            running.append((batch, encoder.submit(pixels)))
        finally:
            may_decode.set()
        timing.pictures += len(batch)
        batch, pixels = [], None
        collect(1)

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
                    _add(archive, f"{row['key']:012d}.jpg", decoded.thumbnail)
                begun = time.monotonic()
                if pixels is None:
                    pixels = np.empty((size, *decoded.pixels.shape), decoded.pixels.dtype)
                pixels[len(batch)] = decoded.pixels
                batch.append(i)
                if len(batch) == size:
                    flush()
                timing.forward += time.monotonic() - begun
            since = time.monotonic()
    begun = time.monotonic()
    if batch:
        flush()
    collect(0)
    timing.forward += time.monotonic() - begun


@contextlib.contextmanager
def _tar(path: Path | None) -> Iterator[tarfile.TarFile | None]:
    """A new tar, or nothing where `path` is None."""
    if path is None:
        yield None
        return
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        yield archive


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without time or owner, so that the same pictures give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    archive.addfile(info, io.BytesIO(data))
