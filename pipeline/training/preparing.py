"""The stage that prepares a database for training a denoiser, with one pass of the pictures through the first stage.

Reads a version's embedding shards and stored pictures, and the index of the database that neighbours come from. Writes, in
the database's folder,

    prepared/<id>/prepared.json              the versions, networks and settings of the preparation
    prepared/<id>/<shard>.keys.npy           (n,) int64 keys of the rows
    prepared/<id>/<shard>.order.npy          (n,) uint64 hash of each row's content, which decides what is held out
    prepared/<id>/<shard>.latents.npy        (n, C, h, w) float16, unscaled
    prepared/<id>/<shard>.texts.npy          (n, D) float16 unit vectors of the captions, zeros if there is none
    prepared/<id>/<shard>.neighbours.npy     (n, k) int64 keys in the other database, nearest first
    prepared/<id>/<shard>.json               receipt

A shard is done when its receipt is written; a preparation that was killed continues with the same command. Rows that the
version removed and rows that the filter does not match are counted as filtered. A purge removes its rows from these files
(pipeline/maintenance/derived.py). Training leaves out rows that the current version no longer has; a new version is prepared
under another id.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import digest, from_mapping, parse_json
from pipeline.errors import ConfigError, EncoderError, ModelError, SourceError
from pipeline.execution import Receipt, Resources, Shard, Stage, StageFailed, run_stages
from pipeline.schema import FAILED, FILTERED, OK, shard_name
from pipeline.storage import Artifact, Storage
from pipeline.training.data import CONTENT_COLUMNS, content_name, content_order
from pipeline.training.networks import encode_pictures, load_first_stage

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.catalog import Selection
    from pipeline.database import RetrievalDatabase
    from pipeline.encoders import Encoder
    from pipeline.execution import Backend, Progress
    from pipeline.retrieval import Searcher
    from rdm.untyped import FirstStage

STAGE = "prepare"

FILES = ("keys", "order", "latents", "texts", "neighbours")

_FORMAT = 1  # increase it when the code writes other files for the same rows

_PIXELS = 1 << 27  # total pixels of the pictures in memory


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare.

    name             the database, version or view with the training pictures
    neighbours_from  the database, version or view in which neighbours are searched; empty: `name`
    where            a filter over the rows of `name`
    first_stage      folder or Hub id of a first stage or a saved model
    size             pixels a side; the shorter side of a picture is scaled to it, and its centre is cropped
    neighbours       neighbours of a row
    device           auto, cpu or cuda
    """

    name: str
    first_stage: str
    neighbours_from: str = ""
    where: str = ""
    size: int = 768
    neighbours: int = 20
    device: str = "auto"
    home: str | None = None

    def __post_init__(self) -> None:
        if self.size < 8 or self.neighbours < 1:
            raise ConfigError(f"size is {self.size} and neighbours {self.neighbours}; at least 8 and 1 were expected")


@dataclass(frozen=True)
class Prepared:
    """The content of prepared.json. `scale` is one over the standard deviation of the first shard's latents."""

    id: str
    database: str
    version: str
    neighbours_from: str
    where: str
    first_stage: str
    encoder: str
    size: int
    neighbours: int
    dim: int
    latent: tuple[int, int, int]
    scale: float
    rows: int
    shards: tuple[int, ...]

    @property
    def folder(self) -> str:
        return f"prepared/{self.id}"

    @staticmethod
    def from_json(text: str) -> Prepared:
        """The content of prepared.json. Raises ConfigError for any other text."""
        try:
            found = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"prepared.json: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError("prepared.json: expected a table")
        made = from_mapping(Prepared, found, "prepared.json")
        if len(made.latent) != 3 or not made.shards:
            raise ConfigError("prepared.json: expected three sizes of the latents, and at least one shard")
        return made


def prepare(request: PrepareRequest, progress: Progress, backend: Backend) -> Prepared:
    """Prepare every shard of the database that is not prepared yet.

    Raises ConfigError for a size that the first stage does not take or too few rows for the number of neighbours, EncoderError
    if the two databases have different encoders, SourceError if no picture is stored or no row is left, StageFailed
    for shards that failed.
    """
    from pipeline.catalog import resolve_database
    from pipeline.filters import check_filter
    from pipeline.schema import metadata_columns

    own = resolve_database(request.name, request.home)
    other = resolve_database(request.neighbours_from or request.name, request.home)
    _check(own, other)
    if request.where:
        check_filter(request.where, metadata_columns(own.version.columns))
    weights, latent = _describe_first_stage(request)
    found = digest([_FORMAT, own.version.id, own.where, other.version.id, other.where, request.where, weights,
                    request.size, request.neighbours], 12)  # fmt: skip
    database, record = own.database, own.version.encoder
    stage = Stage(
        name=STAGE,
        folder=f"prepared/{found}",
        storage=database.storage,
        config=found,
        setup=partial(_set_up, request, own, other),
        run=partial(_run, request, own, found),
        resources=Resources(gpus=0.0 if request.device == "cpu" or not _has_gpu() else 1.0),
    )
    shards = [_shard(database, database.embedding_receipt(record, entry.id), entry.id) for entry in own.version.shards]
    outcome = run_stages((stage,), shards, backend, progress, len(shards))
    if outcome.failures:
        raise StageFailed(tuple(outcome.failures))
    receipts = [receipt for shard in shards if (receipt := stage.receipt(shard)) is not None]
    kept = [receipt for receipt in receipts if receipt.ok]
    if not kept:
        raise SourceError(
            f"database {request.name!r} has no row with a stored picture that matches {request.where or own.where!r}: change "
            "--where, or build it again with --images keep"
        )
    latents = load_array(database.storage, kept[0], "latents")
    deviation = float(latents.astype(np.float64).std())
    made = Prepared(
        found, database.name, own.version.id, f"{other.name.partition('@')[0]}@{other.version.id}", request.where,
        request.first_stage, record.name, request.size, request.neighbours, record.dim, latent, 1 / deviation,
        sum(receipt.ok for receipt in kept), tuple(receipt.shard for receipt in kept),
    )  # fmt: skip
    database.storage.write_text(f"{made.folder}/prepared.json", json.dumps(asdict(made), indent=1) + "\n")
    return made


def _check(own: Selection, other: Selection) -> None:
    ours, theirs = own.version.encoder, other.version.encoder
    if (ours.weights, ours.preprocess) != (theirs.weights, theirs.preprocess):
        raise EncoderError(
            f"the vectors of {own.name!r} are of encoder {ours.name} and those of {other.name!r} of {theirs.name}: neighbours "
            f"need one encoder. Build {other.name!r} again with --encoder {ours.name}"
        )
    if own.version.images == "drop":
        raise SourceError(
            f"database {own.name!r} keeps no pictures: build it again with `rdmpipe build-index {own.database.name} "
            "--images keep`"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device(name: str) -> torch.device:
    import torch

    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def _describe_first_stage(request: PrepareRequest) -> tuple[str, tuple[int, int, int]]:
    """The hash of the first stage's weights, and the shape of a picture's latents."""
    import torch

    from pipeline.encoders import sha256_of_state
    from rdm.errors import RDMError

    try:
        first_stage = load_first_stage(request.first_stage)
    except RDMError as error:
        raise ModelError(f"first stage {request.first_stage!r}: {error}") from error
    grey = torch.full((1, 3, request.size, request.size), 127, dtype=torch.uint8)
    try:
        channels, height, width = encode_pictures(first_stage, grey, torch.device("cpu")).shape[1:]
    except RuntimeError as error:
        raise ConfigError(f"the first stage does not take pictures of {request.size} pixels ({error})") from error
    return sha256_of_state(first_stage.state_dict()), (channels, height, width)


def _shard(database: RetrievalDatabase, receipt_path: str, number: int) -> Shard:
    if not database.storage.exists(receipt_path):
        raise SourceError(
            f"shard {shard_name(number)} of database {database.name!r} has no receipt: run `rdmpipe build-index "
            f"{database.name}`"
        )
    receipt = database.read_receipt(receipt_path)
    return Shard(number, receipt.rows, digest([artifact.sha256 for artifact in receipt.artifacts]))


@dataclass(frozen=True)
class _Worker:
    """The open resources of a worker."""

    first_stage: FirstStage
    encoder: Encoder
    searcher: Searcher
    gone: frozenset[int]
    device: torch.device


def _set_up(request: PrepareRequest, own: Selection, other: Selection) -> _Worker:
    from pipeline.database import gone_keys
    from pipeline.encoders import load_recorded
    from pipeline.retrieval import open_search

    device = _device(request.device)
    searcher = open_search(other.database, other.version, other.where, device=request.device)
    matched = searcher.matching()
    count = len(searcher.keys) if matched is None else len(matched)
    if count <= request.neighbours:
        raise ConfigError(
            f"{other.name!r} has {count} rows, but {request.neighbours} neighbours beside a row itself are wanted: lower "
            "--neighbours, or name a larger database with --neighbours-from"
        )
    first_stage = load_first_stage(request.first_stage)
    first_stage.to(device)
    gone = frozenset(gone_keys(own.database, own.version.gone))
    return _Worker(first_stage, load_recorded(own.version.encoder, str(device)), searcher, gone, device)


def _run(request: PrepareRequest, own: Selection, config: str, worker: _Worker, shard: Shard) -> Receipt:
    return prepare_shard(request, own, config, worker, shard)


def prepare_shard(request: PrepareRequest, own: Selection, config: str, worker: _Worker, shard: Shard) -> Receipt:
    """Prepare one shard and write its files. Rows whose picture is missing or cannot be decoded fail."""
    from pipeline.filters import filter_mask

    database, record = own.database, own.version.encoder
    table = database.read_table(database.embedding_table(record, shard.id))
    keys = table["key"].to_numpy()
    reasons = dict[int, str]()
    status = [str(value) for value in table["status"].to_pylist()]
    chosen = np.ones(len(keys), bool)
    for expression in (own.where, request.where):
        if expression.strip():
            chosen &= filter_mask(expression, table)
    for row, key in enumerate(keys.tolist()):
        if status[row] == OK and (key in worker.gone or not chosen[row]):
            status[row], reasons[row] = FILTERED, "removed" if key in worker.gone else "where"
    for row, error in enumerate(table["error"].to_pylist()):
        if status[row] != OK and row not in reasons:
            reasons[row] = (error or "unknown").split(":", 1)[0]
    latents = []
    for rows, pixels in _pictures(
        database, keys, [row for row, found in enumerate(status) if found == OK], request.size
    ):
        made = encode_pictures(worker.first_stage, pixels, worker.device).numpy().astype(np.float16)
        latents.append((rows, made))
    kept = [row for rows, _ in latents for row in rows]
    for row in {row for row, found in enumerate(status) if found == OK} - set(kept):
        status[row], reasons[row] = FAILED, "no_picture"
    counted: dict[str, int] = {}
    for reason in reasons.values():
        counted[reason] = counted.get(reason, 0) + 1
    artifacts: tuple[Artifact, ...] = ()
    if kept:
        rows = table.take(kept)
        vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(kept), -1)
        columns: dict[str, NDArray[np.generic]] = {
            "keys": keys[kept].astype(np.int64),
            "order": _orders(database.name, keys[kept], rows.to_pydict() if _content(table) else {}, _content(table)),
            "latents": np.concatenate([made for _, made in latents]),
            "texts": _texts(worker.encoder, rows["caption"].to_pylist(), record.dim),
            "neighbours": _neighbours(worker.searcher, vectors, keys[kept], request.neighbours, own),
        }
        artifacts = tuple(_write(database.storage, config, shard.id, name, columns[name]) for name in FILES)
    return Receipt(
        STAGE, shard.id, config, shard.fingerprint, status.count(OK), status.count(FILTERED), status.count(FAILED),
        dict(sorted(counted.items())), artifacts,
    )  # fmt: skip


def _pictures(
    database: RetrievalDatabase, keys: NDArray[np.int64], rows: Sequence[int], size: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows with their pictures, (n, 3, size, size) uint8, in batches; without rows whose picture is missing or damaged."""
    import torch

    from pipeline.database import picture_files

    most = max(1, _PIXELS // size**2)
    for start in range(0, len(rows), most):
        group = rows[start : start + most]
        files = picture_files(database, [int(keys[row]) for row in group], originals=True)
        found = [(row, made) for row in group if (made := _square(files.get(int(keys[row])), size)) is not None]
        if found:
            yield [row for row, _ in found], torch.stack([made for _, made in found])


def _square(data: bytes | None, size: int) -> torch.Tensor | None:
    """A picture as (3, size, size) uint8 on a white background: shorter side scaled, centre cropped; None if it is damaged."""
    import torch
    from PIL import Image

    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data)) as opened:
            layers = opened.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    side = min(flat.size)
    left, top = (flat.width - side) // 2, (flat.height - side) // 2
    scaled = flat.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()


def _content(table: object) -> str:
    names = getattr(table, "column_names", [])
    return next((column for column in CONTENT_COLUMNS if column in names), "")


def _orders(database: str, keys: NDArray[np.int64], rows: dict[str, list[object]], column: str) -> NDArray[np.uint64]:
    values = rows[column] if column else [None] * len(keys)
    names = [content_name(database, int(key), column, value) for key, value in zip(keys, values, strict=True)]
    return np.array([content_order(name) for name in names], np.uint64)


def _texts(encoder: Encoder, captions: Sequence[str | None], dim: int) -> NDArray[np.float16]:
    made = np.zeros((len(captions), dim), np.float16)
    said = [row for row, caption in enumerate(captions) if caption and caption.strip()]
    if said and encoder.has_text:
        made[said] = encoder.encode_texts([str(captions[row]) for row in said])
    return made


def _neighbours(
    searcher: Searcher, vectors: NDArray[np.float16], keys: NDArray[np.int64], k: int, own: Selection
) -> NDArray[np.int64]:
    """Keys of the k nearest rows of the other database; a row is not its own neighbour."""
    wide = vectors.astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    found = searcher.search(wide, k + 1).keys
    if searcher.version.database != own.version.database:
        return np.ascontiguousarray(found[:, :k], np.int64)
    # A stable sort by "is the row itself" moves the row to the end and keeps the order of the others.
    order = np.argsort(found == keys[:, None], axis=1, kind="stable")[:, :k]
    return np.ascontiguousarray(np.take_along_axis(found, order, 1), np.int64)


def _write(storage: Storage, config: str, shard: int, name: str, values: NDArray[np.generic]) -> Artifact:
    with storage.scratch() as scratch:
        part = scratch / "part.npy"
        np.save(part, values)
        return storage.publish(part, f"prepared/{config}/{shard_name(shard)}.{name}.npy")


def load_array(storage: Storage, receipt: Receipt, name: str) -> NDArray[np.generic]:
    """One of a shard's arrays (a name of FILES), mapped; fetched first if the storage is remote."""
    artifact = next(found for found in receipt.artifacts if found.path.endswith(f".{name}.npy"))
    values: NDArray[np.generic] = np.load(storage.local(artifact), mmap_mode="r")
    return values
