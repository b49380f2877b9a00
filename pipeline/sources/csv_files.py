"""Lists in CSV files of any length, on this machine or at an address: divided into ranges of rows, and read.

Reads: files as pipeline/sources/csv_rows.py describes, remote ones through the cache. A range is located by its byte
position, so that earlier rows need not be read again. Planning reads a file once from its beginning, up to the last
requested shard. Memory: one row. A column is text unless the manifest's `types` names another type; a column may be
absent from some files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config import digest
from pipeline.errors import SourceError, nearest
from pipeline.schema import TYPES
from pipeline.sources.base import ShardSpec, SourceOptions, Value
from pipeline.sources.columns import Columns
from pipeline.sources.csv_rows import Header, read_header, read_rows
from pipeline.sources.listing import list_files, matches_any
from pipeline.sources.manifest import Manifest
from pipeline.sources.web.download import Cached, fetch


@dataclass(frozen=True)
class ListedRow:
    """A row of a list: `file#row`, its values by column (None if there is none), and the reason if it cannot be used."""

    name: str
    values: dict[str, Value]
    error: str = ""


class CsvFiles:
    """The files of a manifest's [source] table: `files` as addresses, or path (a file, or a folder and `files` as globs)."""

    def __init__(self, manifest: Manifest, options: SourceOptions, types: Mapping[str, str]) -> None:
        self.spec, self.options, self.types = manifest.source, options, types
        self.where = f"{manifest.name} [source]"
        for name, kind in types.items():
            if kind not in TYPES:
                raise SourceError(f"{self.where} options types: {name} is {kind!r}; expected one of {', '.join(TYPES)}")

    def kinds(self, choose: Callable[[Mapping[str, str | None], str], Columns]) -> tuple[dict[str, str | None], str]:
        """Type names of the columns of all files that are planned, and the first file's name.

        `choose` is called with the columns of every file; it raises if one lacks a column that the manifest names.
        """
        found: dict[str, str | None] = {}
        for name in self._planned():
            own = self.kinds_of(name)
            choose(own, name)
            found |= {column: kind for column, kind in own.items() if column not in found}
        for column in self.types:
            if column not in found:
                raise SourceError(
                    f"{self.where} options types: {self.names[0]} has no column {column!r}{nearest(column, found)}; "
                    f"columns: {', '.join(found)}"
                )
        return found, self.names[0]

    def kinds_of(self, name: str, identity: str = "") -> dict[str, str | None]:
        """Type names of one file's columns."""
        header = self._header(name, self._file(name, identity))
        return {column: self.types.get(column, "string") for column in header.names}

    def _planned(self) -> Iterator[str]:
        """The files that `plan` reaches. Rows are counted if that depends on them."""
        names, shards = self.names, self.options.shards
        if len(names) == 1 or not (self.options.limit or shards):
            yield from names
            return
        reached = ""
        for number, spec in enumerate(self.plan()):
            if shards and number >= shards[1]:
                return
            if spec.spec["file"] != reached:
                reached = spec.spec["file"]
                yield reached

    def plan(self) -> Iterator[ShardSpec]:
        """Ranges of at most `shard_rows` rows, in order; `limit` is observed."""
        left = self.options.limit or -1
        for name in self.names:
            cached = self._file(name)
            header = self._header(name, cached)
            with cached.path.open("rb") as handle:
                begin, line = header.end, header.line
                start = row = 0
                for found in read_rows(handle, header, header.end, header.line, self._key(header)):
                    row += 1
                    if row - start == 1:
                        line = found.line
                    if row - start in (self.spec.shard_rows, left):
                        yield self._spec(name, cached, begin, line, start, row)
                        left -= row - start if left > 0 else 0
                        if left == 0:
                            return
                        begin, start = found.end, row
                if row > start:
                    yield self._spec(name, cached, begin, line, start, row)
                    left -= row - start if left > 0 else 0

    def rows(self, spec: Mapping[str, object]) -> Iterator[ListedRow]:
        """The rows of one range. Raises SourceError if the file changed since the plan was made."""
        name, start, stop = str(spec["file"]), int(str(spec["start"])), int(str(spec["stop"]))
        cached = self._file(name, str(spec["identity"]))
        if cached.identity != spec["identity"]:
            raise SourceError(f"{name}: changed since the plan was made; run the same command again to make a new plan")
        header = self._header(name, cached)
        with cached.path.open("rb") as handle:
            offset, line = (
                int(str(spec["offset"])),
                int(str(spec.get("line", 0))),
            )  # plans of older versions have no line
            for row, found in enumerate(read_rows(handle, header, offset, line, self._key(header)), start):
                values = dict(zip(header.names, found.cells, strict=False))
                error = f"bad_row: line {found.line} of {Path(name).name}: {found.error}" if found.error else ""
                yield ListedRow(
                    f"{name}#{row}", {column: self._typed(column, values.get(column)) for column in header.names}, error
                )
                if row + 1 == stop:
                    return

    def left_out(self) -> dict[str, int]:
        """Files of the folder that are not read, by kind."""
        return self._listed[1]

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
        return self._listed[0]

    @cached_property
    def _listed(self) -> tuple[list[str], dict[str, int]]:
        root = Path(self.spec.path).expanduser()
        if not self.spec.path or root.is_file():
            return ([str(root)] if self.spec.path else []), {}
        patterns = self.spec.files or ("*.csv",)
        found = list_files(root, lambda name: matches_any(Path(name).name, patterns))
        if not found.names:
            raise SourceError(f"{self.where}: no file in {self.spec.path} matches {' or '.join(patterns)}")
        return [str(root / name) for name in found.names], found.left_out

    def _header(self, name: str, cached: Cached) -> Header:
        with cached.path.open("rb") as handle:
            header = read_header(handle, name)
        if len(set(header.names)) != len(header.names):
            raise SourceError(f"{name}: expected a header line with different names, found {', '.join(header.names)}")
        return header

    def _key(self, header: Header) -> int | None:
        """The position of the column with the address."""
        return header.names.index(self.spec.image) if self.spec.image in header.names else None

    def _file(self, name: str, identity: str = "") -> Cached:
        if name.startswith(("http://", "https://")):
            options = self.options
            return fetch(name, identity=identity, base_url=options.base_url, offline=options.offline)
        try:
            status = Path(name).stat()
        except FileNotFoundError:
            raise SourceError(f"{name}: no such file") from None
        return Cached(Path(name), f"{status.st_size}-{status.st_mtime_ns}")

    def _spec(self, name: str, cached: Cached, offset: int, line: int, start: int, stop: int) -> ShardSpec:
        return ShardSpec(
            rows=stop - start,
            fingerprint=digest(["csv", name, cached.identity, start, stop]),
            spec={
                "file": name,
                "identity": cached.identity,
                "offset": offset,
                "line": line,
                "start": start,
                "stop": stop,
            },
        )

    def _typed(self, column: str, value: str | None) -> Value:
        kind = self.types.get(column, "string")
        if value is None or value == "" or kind == "string":
            return value or None
        try:
            return value.lower() == "true" if kind == "bool" else float(value) if kind == "float64" else int(value)
        except ValueError:
            return None
