"""The download stage: one shard of a source into pictures and rows.

Reads: the source. Writes images/<shard>.tar (img2dataset's layout: {key:012d}.jpg|png|..., .json, .txt, sorted, without times
or owners, so that the same shard gives the same bytes), then images/<shard>.parquet (one row for each sample). A bad sample
is a row with status and error, never an exception. Nothing is decoded: bytes that begin like a picture are `ok` here, and the
embed stage detects those that are truncated.

If the tar of a finished shard was removed (because only thumbnails are kept), this stage is no longer done for the shard.
Chains of stages therefore check the last stage first, so that an embedded shard is never downloaded again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import IO, TYPE_CHECKING

from pipeline.config import canonical_json, digest
from pipeline.database import PURGED, BlockList, RetrievalDatabase, picture_key, read_block_list
from pipeline.errors import DatabaseError, SourceError
from pipeline.execution import Receipt, Resources, Shard, Stage, count_statuses, raise_if_stopped
from pipeline.schema import FAILED, FILTERED, FROM_SOURCE, IMAGE_KEY, OK, image_schema, key_of, shard_name
from pipeline.sources import (
    FetchingSource,
    Manifest,
    Row,
    Sample,
    Source,
    SourceOptions,
    Spec,
    name_patches,
    open_source,
    plain,
    sniff,
)
from pipeline.storage import GNU, TarWriter, read_member, tar_members, write_tar

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# (expression, rows with `filter_columns`) -> a boolean for each row; False is `filtered`. A module-level function, so that
# it can be sent to workers: pipeline.filters.filter_mask.
RowFilter = Callable[[str, "pa.Table"], "NDArray[np.bool_]"]

STAGE = "download"

_BATCH_ROWS, _BATCH_BYTES = 256, 32 << 20

_FORMAT = 1  # increase it when the code writes other files for the same source

OUTSIDE = "where: outside the filter"

# Before a picture is read, `width` and `height` in a filter mean the source's columns that state them.
_ANNOUNCED = {"width": "source_width", "height": "source_height"}


@dataclass(frozen=True)
class DownloadConfig:
    """Everything that determines the output of the stage, and how to reach the source."""

    manifest: Manifest
    columns: Mapping[str, str]  # the source's own, with type names; from the plan, so that all workers agree
    options: SourceOptions = field(default_factory=SourceOptions)
    where: str = ""  # a filter; rows that do not match are `filtered`

    def fingerprint(self) -> str:
        """Hash of everything that changes the output. It omits addresses, checksums, tokens and the encoder; the
        fingerprints of the shards cover the input."""
        source, patches = self.manifest.source, self.manifest.patches
        meaning = [source.kind, source.item_id, source.image, source.caption, source.licence, source.source_url]
        told = [self.manifest.name, self.manifest.licence, list(source.columns), dict(source.options)]
        more = [asdict(patches)] if patches else []
        return digest([_FORMAT, meaning, told, list(self.columns.items()), self.where, *more])


def filter_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns that a row filter can name at download, with type names: the row's origin and the source's own. `width` and
    `height` are the values that the source states, if it has such columns."""
    fixed = dict.fromkeys(("item_id", "source", "url", "licence", "caption"), "string")
    announced = {name: columns[column] for name, column in _ANNOUNCED.items() if column in columns}
    own = {name: kind for name, kind in columns.items() if name not in FROM_SOURCE}
    return {"key": "int64", **fixed, **own, **announced}


def download_stage(
    db: RetrievalDatabase, config: DownloadConfig, row_filter: RowFilter | None = None, workers: int = 0
) -> Stage:
    """The stage for a database. `row_filter` is needed if `config.where` is not empty."""
    if config.where and row_filter is None:
        raise ValueError("where: a row filter needs a function that applies it")
    return Stage(
        name=STAGE,
        folder="images",
        storage=db.storage,
        config=config.fingerprint(),
        setup=partial(open_source, config.manifest, config.options),
        run=partial(_run, db, config, row_filter),
        resources=Resources(cpus=1.0),
        workers=workers,
    )


def _run(
    db: RetrievalDatabase, config: DownloadConfig, row_filter: RowFilter | None, source: Source, shard: Shard
) -> Receipt:
    return download_shard(db, config, source, shard, row_filter)


def download_shard(
    db: RetrievalDatabase,
    config: DownloadConfig,
    source: Source,
    shard: Shard,
    row_filter: RowFilter | None = None,
) -> Receipt:
    """Read one shard and write its files. Holds a batch of pictures at a time.

    Raises SourceError if the shard cannot be read or is not what was planned, DiskFullError.
    """
    import pyarrow as pa

    # A filter that changed later applies only to new shards: it is in their spec, not in the fingerprint.
    stamp, config = config.fingerprint(), replace(config, where=shard.spec.get("where", config.where))
    schema = image_schema(config.columns)
    blocked = read_block_list(db.storage)
    tables: list[pa.Table] = []
    with db.storage.scratch() as scratch:
        part = scratch / "images.tar"
        samples = read_spec(source, shard.spec)
        if isinstance(source, FetchingSource):  # rows that are left out are not fetched
            samples = source.fetch(list(_left_in(config, shard.id, samples, row_filter, blocked)), scratch)
        with write_tar(part, GNU) as archive:
            first, stored = 0, -1
            last: tuple[Sample, int] | None = None
            for batch in _batches(samples):
                keys = [key_of(shard.id, first + i) for i in range(len(batch))]
                first += len(batch)
                rows = [image_row(config, key, sample) for key, sample in zip(keys, batch, strict=True)]
                if config.manifest.patches:
                    last = name_patches(config.manifest.patches, rows, batch, last)
                if config.where and row_filter is not None and not isinstance(source, FetchingSource):
                    _leave_out(rows, row_filter(config.where, _named(config, rows)).tolist())
                blocked.blank(rows)
                for row, sample in zip(rows, batch, strict=True):
                    image = row[IMAGE_KEY] if config.manifest.patches else row["key"]
                    if row["status"] == OK and sample.data is not None and image != stored:
                        _add_sample(archive, row, sample.data)  # once for all crops of a picture
                        stored = image
                tables.append(pa.Table.from_pylist(rows, schema))
        if shard.rows not in (first, -1):
            raise SourceError(
                f"shard {shard.name}: planned {shard.rows} rows, found {first}: the source changed since the plan was "
                "made; run the same command again to make a new plan"
            )
        if (scratch / HOSTS).exists():
            db.storage.write_text(hosts_file(shard.id), (scratch / HOSTS).read_text())
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        artifacts = (
            db.storage.publish(part, db.image_tar(shard.id)),
            db.write_table(db.image_table(shard.id), table.combine_chunks()),
        )
    counts = count_statuses(table.column("status").to_pylist(), table.column("error").to_pylist())
    return Receipt(STAGE, shard.id, stamp, shard.fingerprint, artifacts=artifacts, **counts)


HOSTS = "hosts.json"  # a fetching source writes this file into its scratch folder: figures by host


def hosts_file(shard: int) -> str:
    """The path of the figures of a shard's hosts. They differ between runs, and no version lists them."""
    return f".hosts/{shard_name(shard)}.json"


def _left_in(
    config: DownloadConfig, shard: int, samples: Iterator[Sample], row_filter: RowFilter | None, blocked: BlockList
) -> Iterator[Sample]:
    """The samples; those outside the filter or on the block list are marked and lose their address."""
    first = 0
    for batch in _batches(samples):
        keep = [True] * len(batch)
        if config.where and row_filter is not None:
            rows = [image_row(config, key_of(shard, first + i), sample) for i, sample in enumerate(batch)]
            keep = row_filter(config.where, _named(config, rows)).tolist()
        for sample, wanted in zip(batch, keep, strict=True):
            if blocked.covers({"item_id": sample.item_id, "url": sample.url}):
                yield replace(sample, address="", status=FILTERED, error=PURGED)
            else:
                yield sample if wanted else replace(sample, address="", status=FILTERED, error=OUTSIDE)
        first += len(batch)


def _named(config: DownloadConfig, rows: list[Row]) -> pa.Table:
    """The columns of these rows that a row filter can name."""
    import pyarrow as pa

    return filterable(config.columns, pa.Table.from_pylist(rows, image_schema(config.columns)))


def filterable(columns: Mapping[str, str], table: pa.Table) -> pa.Table:
    """The columns of an image table that a row filter can name."""
    import pyarrow as pa

    return pa.table({name: table[_ANNOUNCED.get(name, name)] for name in filter_columns(columns)})


def read_spec(source: Source, spec: Spec) -> Iterator[Sample]:
    """The rows of a planned shard. A refresh plans shards of rows that are picked from parts of the source by item; a retry
    picks them by their position in the part."""
    if "picked" not in spec:
        yield from source.read(spec)
        return
    for part in spec["picked"]:
        if "rows" in part:
            places = set(part["rows"])
            yield from (sample for row, sample in enumerate(read_spec(source, part["spec"])) if row in places)
            continue
        wanted = Counter(part["items"])
        for sample in source.read(part["spec"]):
            if wanted[sample.item_id] > 0:
                wanted[sample.item_id] -= 1
                yield sample


def read_images(db: RetrievalDatabase, shard: int, patches: bool = False) -> Iterator[tuple[Row, bytes | None]]:
    """Rows of images/<shard>.parquet in order, each with its picture file's bytes; None if status is not ok. With
    `patches`, rows of one image_key share a picture.

    Reads the tar once, from beginning to end. Raises DatabaseError if it is absent or does not fit the rows.
    """
    name = db.image_tar(shard)
    rows = db.read_table(db.image_table(shard)).to_pylist()
    fix = "run `rdmpipe download` for this database again"
    try:
        with db.storage.open(name) as handle:
            pictures = _pictures(handle, f"{db.name}: {name}")
            image, data = -1, b""
            for row in rows:
                if row["status"] != OK:
                    yield row, None
                    continue
                if patches and row[IMAGE_KEY] == image:
                    yield row, data
                    continue
                key, data = next(pictures, (-1, b""))
                image = row[IMAGE_KEY] if patches else key
                if key != row["key"]:
                    raise DatabaseError(f"{db.name}: {name} does not hold the picture of key {row['key']}; {fix}")
                yield row, data
    except FileNotFoundError as error:
        raise DatabaseError(f"{db.name}: no pictures in {name}; {fix}") from error


def _pictures(handle: IO[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    """(key, picture file) of a shard's tar, in order. Raises DatabaseError if it is damaged."""
    for member in tar_members(handle, where, DatabaseError):
        key = picture_key(member)
        if key >= 0:
            yield key, read_member(handle, member, where, DatabaseError)


def _batches(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    size = 0
    for sample in samples:
        raise_if_stopped()
        batch.append(sample)
        size += len(sample.data or b"")
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def image_row(config: DownloadConfig, key: int, sample: Sample) -> Row:
    """A row of the image table. sha256 is the hash of the source's bytes, for every status."""
    error = sample.error
    status = sample.status or (FAILED if error else OK)
    if status == OK:
        error = sniff(sample.data or b"")[1]
        status = FAILED if error else OK
    return {
        # The plan's types apply to every file of the source, even if the file has others.
        **{
            name: plain(sample.metadata.get(name), kind)
            for name, kind in config.columns.items()
            if name not in FROM_SOURCE
        },
        "key": key,
        "item_id": sample.item_id,
        "status": status,
        "error": error,
        "source": config.manifest.name,
        "url": sample.url,
        "licence": sample.licence or config.manifest.licence,
        "caption": sample.caption,
        "sha256": hashlib.sha256(sample.data).hexdigest() if sample.data else None,
    }


def _leave_out(rows: list[Row], keep: list[bool]) -> None:
    """Mark the rows outside the filter, even if they failed."""
    for row, wanted in zip(rows, keep, strict=True):
        if not wanted:
            row["status"], row["error"] = FILTERED, OUTSIDE


def _add_sample(archive: TarWriter, row: Mapping[str, object], data: bytes) -> None:
    name = f"{row['key']:012d}"
    about = {column: value for column, value in row.items() if column != "error"}
    members = {
        sniff(data)[0]: data,
        "json": canonical_json({**about, "key": name}).encode(),
    }
    if row["caption"] is not None:
        members["txt"] = str(row["caption"]).encode()
    for extension in sorted(members):
        archive.add(f"{name}.{extension}", members[extension])
