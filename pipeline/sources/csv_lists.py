"""CSV files of any length, on this machine or at an address: cut into ranges of rows, and their rows.

Reads: UTF-8 files with a header line, the remote ones through the cache. A range is found by its place in the file (bytes), so
that reading one does not read what comes before it; planning reads a file once, from its beginning, as far as shards are asked
for. Memory: one row. Every column is text unless the manifest's `types` says otherwise: the beginning does not tell a type.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config import digest
from pipeline.errors import SourceError, nearest
from pipeline.schema import TYPES
from pipeline.sources.base import ShardSpec, SourceOptions
from pipeline.sources.manifest import Manifest
from pipeline.sources.web.download import Cached, fetch


class CsvFiles:
    """The files of a manifest's [source] table: `files` as addresses, or path (a file, or a folder and `files` as globs)."""

    def __init__(self, manifest: Manifest, options: SourceOptions, types: Mapping[str, str]) -> None:
        self.spec, self.options, self.types = manifest.source, options, types
        self.where = f"{manifest.name} [source]"
        for name, kind in types.items():
            if kind not in TYPES:
                raise SourceError(f"{self.where} options types: {name} is {kind!r}; expected one of {', '.join(TYPES)}")

    def available(self) -> tuple[dict[str, str | None], str]:
        """The first file's columns by type name, and its name."""
        name = self.names[0]
        with self._file(name).path.open("rb") as handle:
            header = _header(handle, name)[1]
        for column in self.types:
            if column not in header:
                raise SourceError(
                    f"{self.where} options types: {name} has no column {column!r}{nearest(column, header)}; "
                    f"columns: {', '.join(header)}"
                )
        return {column: self.types.get(column, "string") for column in header}, name

    def plan(self) -> Iterator[ShardSpec]:
        """Ranges of at most `shard_rows` rows, in order; `limit` is observed."""
        left = self.options.limit or -1
        for name in self.names:
            cached = self._file(name)
            with cached.path.open("rb") as handle:
                begin, _ = _header(handle, name)
                start = row = 0
                for end, _ in _rows(handle, begin, name):
                    row += 1
                    if row - start in (self.spec.shard_rows, left):
                        yield self._spec(name, cached, begin, start, row)
                        left -= row - start if left > 0 else 0
                        if left == 0:
                            return
                        begin, start = end, row
                if row > start:
                    yield self._spec(name, cached, begin, start, row)
                    left -= row - start if left > 0 else 0

    def rows(self, spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(`file#row`, the row by column, every value as text, None where there is none) for a range. Raises SourceError."""
        name = spec["file"]
        cached = self._file(name, spec["identity"])
        if cached.identity != spec["identity"]:
            raise SourceError(f"{name}: changed since the plan was made; run the same command again to plan anew")
        with cached.path.open("rb") as handle:
            header = _header(handle, name)[1]
            handle.seek(spec["offset"])
            row = spec["start"]
            for _, values in _rows(handle, spec["offset"], name):
                found = dict.fromkeys(header, None) | dict(zip(header, values, strict=False))
                yield f"{name}#{row}", {column: self._typed(column, value) for column, value in found.items()}
                row += 1
                if row == spec["stop"]:
                    return

    @cached_property
    def revision(self) -> str:
        return digest([(name, self._file(name).identity) for name in self.names])

    @cached_property
    def names(self) -> list[str]:
        """The files in the manifest's order; those of a folder by name."""
        if not self.spec.path:
            if not self.spec.files:
                raise SourceError(f"{self.where}: a CSV list needs `files` (addresses) or `path` (this machine)")
            return list(self.spec.files)
        root = Path(self.spec.path).expanduser()
        if root.is_file():
            return [str(root)]
        patterns = self.spec.files or ("*.csv",)
        found = sorted(str(path) for path in root.rglob("*") if any(fnmatch.fnmatch(path.name, p) for p in patterns))
        if not found:
            raise SourceError(f"{self.where}: no file in {self.spec.path} matches {' or '.join(patterns)}")
        return found

    def _file(self, name: str, identity: str = "") -> Cached:
        if name.startswith(("http://", "https://")):
            options = self.options
            return fetch(name, identity=identity, base_url=options.base_url, offline=options.offline)
        try:
            status = Path(name).stat()
        except FileNotFoundError:
            raise SourceError(f"{name}: no such file") from None
        return Cached(Path(name), f"{status.st_size}-{status.st_mtime_ns}")

    def _spec(self, name: str, cached: Cached, offset: int, start: int, stop: int) -> ShardSpec:
        return ShardSpec(
            rows=stop - start,
            fingerprint=digest(["csv", name, cached.identity, start, stop]),
            spec={"file": name, "identity": cached.identity, "offset": offset, "start": start, "stop": stop},
        )

    def _typed(self, column: str, value: str | None) -> Any:
        kind = self.types.get(column, "string")
        if value is None or value == "" or kind == "string":
            return value or None
        try:
            return value.lower() == "true" if kind == "bool" else float(value) if kind == "float64" else int(value)
        except ValueError:
            return None


def _header(handle: BinaryIO, name: str) -> tuple[int, list[str]]:
    """(where the rows begin, names of the columns)."""
    for end, values in _rows(handle, 0, name):
        names = [value.strip() for value in values]
        if names[0].lower().startswith(("<!doctype", "<html")) or len(set(names)) != len(names):
            raise SourceError(f"{name}: expected a CSV file with a header line, found {values[0][:40]!r}")
        return end, names
    raise SourceError(f"{name}: an empty file; expected a CSV file with a header line")


def _rows(handle: BinaryIO, position: int, name: str) -> Iterator[tuple[int, list[str]]]:
    """(where the next row begins, values) of each row that is not empty. A value may hold line breaks."""

    def lines() -> Iterator[str]:
        nonlocal position
        for line in handle:
            text = line.decode("utf-8-sig" if position == 0 else "utf-8", "replace")
            position += len(line)
            yield text

    try:
        for values in csv.reader(lines()):
            if values:
                yield position, values
    except csv.Error as error:
        raise SourceError(f"{name}: not a readable CSV near byte {position}: {error}") from error
