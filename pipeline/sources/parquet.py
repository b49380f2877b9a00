"""Parquet files that hold the pictures' bytes, on the Hub or on this machine.

[source] keys: repo and revision (Hub) or path (a folder or file here); files (globs, default all .parquet); image,
item_id, caption, licence, source_url, columns, shard_rows. options: `cache = false` reads the Hub by range and keeps nothing.
The image column is bytes, or a struct with a field `bytes` as the Hub's image type has it. Integers that the `huggingface`
schema metadata (or the data set's dataset_infos.json) calls class labels become their names.

A shard is a range of rows of one file (sources/parquet.py).

Row ranges of a Parquet file: cut at row groups, read one small batch at a time.

Writes nothing. Does not promise random access: a range that begins inside a row group reads that group from its start.

Parquet files on the Hub or on this machine: which there are, how they are cut into ranges of rows, and their rows.

Shared by the sources that read Parquet. A range is cut at row groups where they fit. Does not promise random access: a range
that begins inside a row group reads that group from its start. Memory: a small batch and about three times the largest Parquet
page (some writers put a whole row group in one page). Listing reads the files' footers, some ahead of what is asked for.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import digest, from_mapping
from pipeline.errors import SourceError, nearest
from pipeline.sources.base import Sample, ShardSpec, SourceOptions
from pipeline.sources.columns import Columns, choose_columns, kind_of
from pipeline.sources.hub import HubDataset, HubFile
from pipeline.sources.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 32  # WikiArt's pictures are half a megabyte each


def cut(groups: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Half-open row ranges of at most `most` rows that cover all groups: whole groups together while they fit; a group
    larger than `most` in equal parts."""
    ranges: list[tuple[int, int]] = []
    start = position = 0
    for rows in groups:
        if position > start and position + rows - start > most:
            ranges.append((start, position))
            start = position
        if rows > most:
            parts = -(-rows // most)
            ranges += [(start + rows * i // parts, start + rows * (i + 1) // parts) for i in range(parts)]
            start = position + rows
        position += rows
    if position > start:
        ranges.append((start, position))
    return ranges


def rows_between(
    parquet: pq.ParquetFile, start: int, stop: int, columns: list[str], batch_rows: int = BATCH_ROWS
) -> Iterator[dict[str, Any]]:
    """Rows start to stop, holding one small batch at a time."""
    metadata = parquet.metadata
    groups: list[int] = []
    first = position = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if position < stop and position + rows > start:
            if not groups:
                first = position
            groups.append(index)
        position += rows
    if not groups:
        return
    columns = list(dict.fromkeys(columns))
    position = first
    for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
        begin, end = max(start - position, 0), min(stop - position, len(batch))
        if begin < end:
            yield from batch.slice(begin, end - begin).to_pylist()
        position += len(batch)
        if position >= stop:
            return


_FOOTERS_AHEAD = 32


@dataclass(frozen=True)
class _Footer:
    file: HubFile
    groups: list[int]  # rows of each row group


class ParquetFiles:
    """The files of a manifest's [source] table: repo and revision (Hub) or path (here), files (globs). `cache = false` reads
    the Hub by range and keeps nothing."""

    def __init__(self, manifest: Manifest, options: SourceOptions, cache: bool, batch_rows: int = BATCH_ROWS) -> None:
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.expected_rows = manifest.expected_rows
        self.limit = options.limit
        self.cache, self.batch_rows = cache, batch_rows
        if bool(self.spec.repo) == bool(self.spec.path):
            raise SourceError(
                f"{self.where}: a {self.spec.kind} source needs either `repo` (Hub) or `path` (this machine)"
            )
        self.hub = HubDataset(self.spec.repo, self.spec.revision, options) if self.spec.repo else None
        self.offline = options.offline
        self.root = Path(self.spec.path).expanduser()
        if self.hub is None and not self.root.exists():
            raise SourceError(f"{self.where}: nothing at path {self.spec.path!r}; check it")

    # ---- what there is

    def schema(self) -> tuple[pa.Schema, str]:
        """The first file's columns, and its name."""
        with self._open(self.files[0], self.revision, whole=False) as file:
            return file.schema_arrow, self.files[0].path

    def plan(self) -> Iterator[ShardSpec]:
        """Ranges of at most `shard_rows` rows, in order; `limit` is observed."""
        left = self.limit or -1
        for footer in self._footers():
            for start, stop in cut(footer.groups, self.spec.shard_rows):
                if left == 0:
                    return
                stop = min(stop, start + left) if left > 0 else stop
                left -= stop - start if left > 0 else 0
                file = footer.file
                yield ShardSpec(
                    rows=stop - start,
                    fingerprint=digest([self.spec.kind, file.path, file.size, file.identity, start, stop]),
                    spec={
                        "file": file.path,
                        "size": file.size,
                        "identity": file.identity,
                        "revision": self.revision,
                        "start": start,
                        "stop": stop,
                    },
                )

    def rows(
        self, spec: Mapping[str, Any], choose: Callable[[pa.Schema, str], Columns], *more: str
    ) -> Iterator[tuple[Columns, str, dict[str, Any]]]:
        """(columns, `file#position`, the row) for each row of one range, with the columns that `choose` needs of the file and
        `more`. Class labels are their names. Raises SourceError."""
        file = HubFile(spec["file"], spec["size"], spec["identity"])
        start, stop = int(spec["start"]), int(spec["stop"])
        if self.hub is None and self._local_file(self._path(file.path)) != file:
            raise SourceError(f"{file.path}: changed since the plan was made; run the same command again to plan anew")
        with self._open(file, spec["revision"], whole=self.cache) as parquet:
            columns, labels = choose(parquet.schema_arrow, file.path), self.labels(parquet.schema_arrow)
            position = start
            try:
                for row in rows_between(parquet, start, stop, [*more, *columns.needed()], self.batch_rows):
                    for name, names in labels.items():
                        if name in row:
                            row[name] = _label(row[name], names)
                    yield columns, f"{file.path}#{position}", row
                    position += 1
            except _unreadable() as error:
                raise SourceError(
                    f"{file.path}: damaged near row {position}: {error}. Fetch the file again."
                ) from error

    def estimate(self) -> tuple[int, int]:
        size = sum(file.size for file in self.files)
        if self.hub is None:
            rows = sum(sum(footer.groups) for footer in self._footers())
        else:
            rows = self.expected_rows
        if self.limit and rows > self.limit:
            return self.limit, size * self.limit // rows
        return rows, size

    # ---- files

    @cached_property
    def revision(self) -> str:
        return self.hub.commit() if self.hub else digest([(file.path, file.identity) for file in self.files])

    @cached_property
    def files(self) -> list[HubFile]:
        patterns = self.spec.files or ("*.parquet",)
        if self.hub:
            return self.hub.files(self.revision, patterns)
        if self.root.is_file():
            return [self._local_file(self.root)]
        names = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not found:
            raise SourceError(f"{self.where}: no file in {self.root} matches {' or '.join(patterns)}")
        return [self._local_file(self.root / name) for name in found]

    def _local_file(self, path: Path) -> HubFile:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise SourceError(f"{path}: gone since the plan was made; run the same command again") from None
        name = path.name if self.root.is_file() else path.relative_to(self.root).as_posix()
        return HubFile(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def _path(self, name: str) -> Path:
        return self.root if self.root.is_file() else self.root / name

    @contextlib.contextmanager
    def _open(self, file: HubFile, revision: str, *, whole: bool) -> Iterator[pq.ParquetFile]:
        """A file to read: all of it (from the cache) or little of it (by range)."""
        import pyarrow.parquet as pq

        with contextlib.ExitStack() as stack:
            handle: Any
            if self.hub is None:
                handle = self._path(file.path)
            elif whole or self.offline:
                handle = self.hub.local(file.path, revision)
            else:
                handle = stack.enter_context(self.hub.stream(file.path, revision, file.size))
            try:
                # pre_buffer, the default, would hold a whole row group: half a gigabyte in WikiArt's files
                parquet = stack.enter_context(pq.ParquetFile(handle, buffer_size=4 << 20, pre_buffer=False))
            except _unreadable() as error:
                raise SourceError(
                    f"{file.path}: not a readable Parquet file ({file.size} bytes): {error}. It is damaged or cut short: "
                    "fetch it again."
                ) from error
            yield parquet

    def _footers(self) -> Iterator[_Footer]:
        """Row groups of every file in order; some are read ahead, because on the Hub each is a few requests."""

        def footer(file: HubFile) -> _Footer:
            with self._open(file, self.revision, whole=False) as parquet:
                metadata = parquet.metadata
                return _Footer(file, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

        with ThreadPoolExecutor(8 if self.hub else 1) as pool:
            for begin in range(0, len(self.files), _FOOTERS_AHEAD):
                yield from pool.map(footer, self.files[begin : begin + _FOOTERS_AHEAD])

    def labels(self, schema: pa.Schema) -> dict[str, list[str]]:
        """Names of the class-label columns."""
        written = (schema.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(written)["info"]["features"] if written else self._listed_features
        except (ValueError, KeyError, TypeError):
            features = self._listed_features
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in (features or {}).items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }

    @cached_property
    def _listed_features(self) -> dict[str, Any]:
        """Features from the repository's dataset_infos.json, for files whose schema does not carry them."""
        if self.hub is None:
            return {}
        files = self.hub.files(self.revision, ("dataset_infos.json",), required=False)
        if not files:
            return {}
        table = json.loads(self.hub.local(files[0].path, self.revision).read_text(encoding="utf-8"))
        return dict(next(iter(table.values())).get("features") or {}) if table else {}


def _label(value: Any, names: list[str]) -> str | None:
    """A class label's name; None for the -1 that stands for no label."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _unreadable() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError)


@dataclass(frozen=True)
class ParquetOptions:
    cache: bool = True


class ParquetSource:
    rereadable = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        own = from_mapping(ParquetOptions, self.spec.options, f"{manifest.name} [source] options")
        self.files = ParquetFiles(manifest, options, own.cache)

    def columns(self) -> dict[str, str]:
        return self._choose(*self.files.schema()).stored()

    def plan(self) -> Iterator[ShardSpec]:
        return self.files.plan()

    def read(self, spec: Mapping[str, Any]) -> Iterator[Sample]:
        for columns, name, row in self.files.rows(spec, self._choose, self.spec.image):
            data, error = _picture(row[self.spec.image])
            yield columns.sample(row, name, data, error)

    def estimate(self) -> tuple[int, int]:
        return self.files.estimate()

    def revision(self) -> str:
        return self.files.revision

    def _choose(self, schema: pa.Schema, name: str) -> Columns:
        import pyarrow as pa

        labels = self.files.labels(schema)
        if self.spec.image not in schema.names:
            raise SourceError(
                f"{name}: no image column {self.spec.image!r}{nearest(self.spec.image, schema.names)}; "
                f'columns: {", ".join(schema.names)}. Name it in the manifest: image = "..."'
            )
        kind = schema.field(self.spec.image).type
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise SourceError(
                f"{name}: image column {self.spec.image!r} holds {kind}; expected bytes or a struct with a field `bytes`"
            )
        available = {
            field.name: "string" if field.name in labels else kind_of(field.type)
            for field in schema
            if field.name != self.spec.image
        }
        return choose_columns(self.spec, available, name)


def _picture(value: Any) -> tuple[bytes | None, str | None]:
    """The bytes in an image cell, or why there are none."""
    if isinstance(value, dict):
        if value.get("bytes") is None:
            return None, f"missing_file: {value['path']}" if value.get("path") else "empty: no bytes in the row"
        value = value["bytes"]
    return (value, None) if value is not None else (None, "empty: no bytes in the row")
