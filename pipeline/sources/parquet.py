"""Parquet files with the pictures' bytes, or with a list of addresses, on the Hub or on this machine.

[source] keys: repo and revision (Hub) or path (a folder or file here); files (globs, default all .parquet); image, item_id,
caption, licence, source_url, columns, shard_rows. options: `cache = false` reads the Hub by range and keeps nothing. The image
column is bytes, or a struct with a field `bytes` (the Hub's image type). Integers that the `huggingface` schema
metadata (or the data set's dataset_infos.json) calls class labels become their names.

A shard is a range of rows of one file, cut at row groups if these are small enough. All files of a set have one schema: a
column may be absent or null in some of them, integers and floats become floats if that loses nothing, and numbers beside text
become text. Any other difference is a SourceError that names the file and the column. Planning reads the footers of the files,
some ahead, up to the last requested row. A range that begins inside a row group reads that group from its start. Memory: a
small batch and about three times the largest Parquet page; some writers put a whole row group into one page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pipeline.config import digest, from_mapping, parse_json
from pipeline.errors import SourceError, nearest
from pipeline.sources.base import Row, Sample, ShardSpec, SourceOptions, Spec
from pipeline.sources.columns import EXACT_INTEGERS, Columns, choose_columns, kind_of
from pipeline.sources.hub import HubFile, HubRepository
from pipeline.sources.listing import Listing, list_files, matches_any
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
) -> Iterator[Row]:
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
    kinds: dict[str, str | None]  # its columns with their type names; None: nested values or bytes
    nulls: frozenset[str]  # columns without a type: every value is null
    large: frozenset[str]  # columns with integers that are not exact as floats


class ParquetFiles:
    """The files of a manifest's [source] table: repo and revision (Hub) or path (here), files (globs). `cache = false` reads
    the Hub by range and keeps nothing."""

    def __init__(
        self,
        manifest: Manifest,
        options: SourceOptions,
        cache: bool,
        batch_rows: int = BATCH_ROWS,
        check: Callable[[pa.Schema, str], None] | None = None,
    ) -> None:
        """`check` is called with every file's schema and name, and may raise SourceError."""
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.expected_rows = manifest.expected_rows
        self.limit, self.shards = options.limit, options.shards
        self.check = check
        self._read: list[_Footer] = []
        self.cache, self.batch_rows = cache, batch_rows
        if bool(self.spec.repo) == bool(self.spec.path):
            raise SourceError(
                f"{self.where}: a {self.spec.kind} source needs either `repo` (Hub) or `path` (this machine)"
            )
        self.hub = HubRepository(self.spec.repo, self.spec.revision, options) if self.spec.repo else None
        self.offline = options.offline
        self.root = Path(self.spec.path).expanduser()
        if self.hub is None and not self.root.exists():
            raise SourceError(f"{self.where}: nothing at path {self.spec.path!r}; check it")

    # ---- what there is

    def kinds(self, choose: Callable[[Mapping[str, str | None], str], Columns]) -> tuple[dict[str, str | None], str]:
        """Type names of the columns of all files that are planned, and what to call them in a message.

        `choose` is called with the columns of every file; it raises if one lacks a column that the manifest names. Raises
        SourceError, which names the file and the column, if two files do not fit together.
        """
        found: dict[str, str | None] = {}
        first: dict[str, tuple[str, str]] = {}  # the file that a column's type comes from
        nulls: set[str] = set()
        large: set[str] = set()
        for footer in self._planned():
            wanted = set(choose(footer.kinds, footer.file.path).needed())
            large |= footer.large
            for name, kind in footer.kinds.items():
                if name in found and name not in wanted and kind is not None:
                    continue  # not part of the database
                if name in footer.nulls:
                    if name not in found:
                        found[name] = kind
                        nulls.add(name)
                    continue
                if name not in found or name in nulls:
                    nulls.discard(name)
                    found[name], first[name] = kind, (kind or "nested values or bytes", footer.file.path)
                    continue
                if kind != found[name]:
                    found[name] = _wider(name, found[name], kind, first[name], footer.file)
        exact = {name: "string" if kind == "float64" and name in large else kind for name, kind in found.items()}
        return exact, self.files[0].path

    def _planned(self) -> Iterator[_Footer]:
        """The footers of the files that `plan` reaches, each read once."""
        left, behind = self.limit, (self.shards[1] if self.shards else -1)
        number = 0
        for footer in self._footers():
            yield footer
            number += len(cut(footer.groups, self.spec.shard_rows))
            left -= sum(footer.groups)
            if (self.limit and left <= 0) or 0 <= behind <= number:
                return

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
        self, spec: Spec, choose: Callable[[Mapping[str, str | None], str], Columns], *more: str
    ) -> Iterator[tuple[Columns, str, Row]]:
        """(columns, `file#position`, the row) for each row of one range, with the columns that `choose` needs of the file and
        `more`. Class labels are their names. Raises SourceError."""
        file = HubFile(spec["file"], spec["size"], spec["identity"])
        start, stop = int(spec["start"]), int(spec["stop"])
        if self.hub is None and self._local_file(self._path(file.path)) != file:
            raise SourceError(
                f"{file.path}: changed since the plan was made; run the same command again to make a new plan"
            )
        with self._open(file, spec["revision"], whole=self.cache) as parquet:
            columns, labels = choose(self._kinds_of(parquet, file.path), file.path), self.labels(parquet.schema_arrow)
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

    def left_out(self) -> dict[str, int]:
        """Files of the folder or data set that are not read, by kind."""
        if self.hub:
            return self.hub.left_out(self.revision, self._patterns)
        return {} if self.root.is_file() else self._listed.left_out

    def _kinds_of(self, parquet: pq.ParquetFile, name: str) -> dict[str, str | None]:
        """A file's columns with their type names. An unsigned column whose numbers do not fit a signed type is text."""
        if self.check is not None:
            self.check(parquet.schema_arrow, name)
        labels = self.labels(parquet.schema_arrow)
        return {
            column.name: "string" if column.name in labels or _overflows(parquet, column) else kind_of(column.type)
            for column in parquet.schema_arrow
        }

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

    @property
    def _patterns(self) -> tuple[str, ...]:
        return self.spec.files or ("*.parquet",)

    @cached_property
    def files(self) -> list[HubFile]:
        patterns = self._patterns
        if self.hub:
            return self.hub.files(self.revision, patterns)
        if self.root.is_file():
            return [self._local_file(self.root)]
        if not self._listed.names:
            raise SourceError(f"{self.where}: no file in {self.root} matches {' or '.join(patterns)}")
        return [self._local_file(self.root / name) for name in self._listed.names]

    @cached_property
    def _listed(self) -> Listing:
        patterns = self.spec.files or ("*.parquet",)

        return list_files(self.root, lambda name: matches_any(name, patterns))

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
        """An open file: the whole file from the cache, or parts of it by range requests."""
        import pyarrow.parquet as pq

        with contextlib.ExitStack() as stack:
            handle: Path | BinaryIO
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
        """The footer of every file in order, each read once; some are read ahead, because on the Hub each takes several
        requests."""

        def footer(file: HubFile) -> _Footer:
            with self._open(file, self.revision, whole=False) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
                groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
                nulls = frozenset(column.name for column in schema if _is_null(column))
                kinds = self._kinds_of(parquet, file.path)
                whole = [name for name, kind in kinds.items() if kind == "int64"]
                large = frozenset(name for name in whole if _largest(parquet, name) > EXACT_INTEGERS)
                return _Footer(file, groups, kinds, nulls, large)

        yield from self._read
        with ThreadPoolExecutor(8 if self.hub else 1) as pool:
            while len(self._read) < len(self.files):
                begin = len(self._read)
                self._read += pool.map(footer, self.files[begin : begin + _FOOTERS_AHEAD])
                yield from self._read[begin:]

    def labels(self, schema: pa.Schema) -> dict[str, list[str]]:
        """Names of the class-label columns."""
        written = (schema.metadata or {}).get(b"huggingface")
        try:
            features = cast("Row", parse_json(written))["info"]["features"] if written else self._listed_features
        except (ValueError, KeyError, TypeError):
            features = self._listed_features
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in (features or {}).items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }

    @cached_property
    def _listed_features(self) -> Row:
        """Features from the repository's dataset_infos.json, for files whose schema does not carry them."""
        if self.hub is None:
            return {}
        files = self.hub.files(self.revision, ("dataset_infos.json",), required=False)
        if not files:
            return {}
        try:
            table = parse_json(self.hub.local(files[0].path, self.revision).read_bytes())
        except ValueError:
            return {}
        first = next(iter(table.values()), None) if isinstance(table, dict) else None
        features = first.get("features") if isinstance(first, dict) else None
        return features if isinstance(features, dict) else {}


def _label(value: object, names: list[str]) -> str | None:
    """A class label's name; None for the -1 that stands for no label."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _wider(name: str, before: str | None, now: str | None, first: tuple[str, str], file: HubFile) -> str | None:
    kinds = {before, now}
    if kinds == {"int64", "float64"}:
        return "float64"
    if "string" in kinds and kinds & {"int64", "float64"}:
        return "string"
    if kinds == {"string", "bool"}:
        return "string"
    raise SourceError(
        f"{file.path}: column {name!r} holds {now or 'nested values or bytes'}, but {first[0]} in {first[1]}: the files of "
        "a set need one type for each column. Write this file again with the other type, or name the columns to keep in "
        "the manifest: columns = [...]"
    )


def _is_null(column: pa.Field) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_null(column.type))


def _overflows(parquet: pq.ParquetFile, column: pa.Field) -> bool:
    """Whether, by its statistics, an unsigned 64-bit column holds a number that does not fit a signed type."""
    import pyarrow as pa

    if not pa.types.is_uint64(column.type):
        return False
    return _largest(parquet, column.name) >= 2**63


def _largest(parquet: pq.ParquetFile, name: str) -> float:
    """The largest absolute value of a column by its statistics; infinity if a row group has no statistics."""
    metadata = parquet.metadata
    place = next(i for i in range(len(metadata.schema)) if metadata.schema.column(i).path == name)
    largest = 0
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(place).statistics
        if statistics is None or not statistics.has_min_max:
            if statistics is not None and statistics.null_count == metadata.row_group(group).num_rows:
                continue
            return float("inf")
        largest = max(largest, abs(statistics.min), abs(statistics.max))
    return largest


def _unreadable() -> tuple[type[BaseException], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError)


@dataclass(frozen=True)
class ParquetOptions:
    cache: bool = True


class ParquetSource:
    rereadable = True
    revision_is_whole = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        own = from_mapping(ParquetOptions, self.spec.options, f"{manifest.name} [source] options")
        self.files = ParquetFiles(manifest, options, own.cache, check=self._check_image)

    def columns(self) -> dict[str, str]:
        return self._choose(*self.files.kinds(self._choose)).stored()

    def plan(self) -> Iterator[ShardSpec]:
        return self.files.plan()

    def read(self, spec: Spec) -> Iterator[Sample]:
        for columns, name, row in self.files.rows(spec, self._choose, self.spec.image):
            data, error = _picture(row[self.spec.image])
            yield columns.sample(row, name, data, error)

    def estimate(self) -> tuple[int, int]:
        return self.files.estimate()

    def revision(self) -> str:
        return self.files.revision

    def left_out(self) -> dict[str, int]:
        return self.files.left_out()

    def _check_image(self, schema: pa.Schema, name: str) -> None:
        import pyarrow as pa

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

    def _choose(self, kinds: Mapping[str, str | None], name: str) -> Columns:
        return choose_columns(
            self.spec, {column: kind for column, kind in kinds.items() if column != self.spec.image}, name
        )


def _picture(value: Row | bytes | None) -> tuple[bytes | None, str | None]:
    """The bytes in an image cell, or the reason why there are none."""
    if isinstance(value, dict):
        if value.get("bytes") is None:
            return None, f"missing_file: {value['path']}" if value.get("path") else "empty: no bytes in the row"
        data: bytes | None = value["bytes"]
    else:
        data = value
    return (data, None) if data is not None else (None, "empty: no bytes in the row")
