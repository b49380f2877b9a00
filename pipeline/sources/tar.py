"""A tar archive of pictures with, if there is one, a CSV (or JSON lines) that describes them.

[source] keys: url (with md5 or sha256) or path; csv (with csv_md5), a URL or a path; columns, caption, licence, source_url,
item_id, shard_rows. options:

    path       the meaning of a member's directories, such as "{split}/{style}/{name}", from the end; all but name are columns
    csv_name   the CSV's column with the file names (else file_name, filename, name, file or path)

Rows are the archive's pictures in its order, then a failed row for each further CSV line
(missing_file, duplicate_line, no_name, bad_metadata). Pictures are recognised by their suffix, other members by their first
bytes; `left_out` counts the rest. A CSV line belongs to the picture whose path, file name or stem it gives. Equal names are
distinguished by the columns that agree with the path's directories. A picture without a line has no metadata. A column from the
path replaces the CSV's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from pipeline.config import digest, from_mapping
from pipeline.errors import SourceError
from pipeline.sources.archive import Archive, open_archive
from pipeline.sources.base import Row, Sample, ShardSpec, SourceOptions, Spec
from pipeline.sources.columns import Columns, choose_columns
from pipeline.sources.manifest import Manifest
from pipeline.sources.metadata import MetadataTable
from pipeline.sources.names import is_row, kind_of_name
from pipeline.sources.web.download import fetch, remote_size

_CSV_BYTES = 4 << 30


@dataclass(frozen=True)
class TarOptions:
    path: str = ""
    csv_name: str = ""


@dataclass(frozen=True)
class _Listing:
    """All rows of the source: members by their position in the archive's list, then CSV lines without a picture."""

    members: list[Row]
    lines: list[int | None]  # the CSV row of each member
    missing: list[int]
    described: frozenset[int | None] = frozenset()  # the CSV rows of all members


class TarSource:
    rereadable = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.expected_rows = manifest.expected_rows
        self.options = options
        self.own = from_mapping(TarOptions, self.spec.options, f"{self.where} options")
        self.fields = re.findall(r"{(\w+)}", self.own.path)
        if bool(self.spec.url) == bool(self.spec.path):
            raise SourceError(f"{self.where}: a tar source needs either `url` or `path`")
        if self.own.path and self.fields != [part.strip("{}") for part in self.own.path.split("/")]:
            raise SourceError(
                f'{self.where} options: path {self.own.path!r}: expected names such as "{{split}}/{{name}}"'
            )

    # ---- the Source protocol

    @property
    def revision_is_whole(self) -> bool:
        return not self.spec.csv

    def columns(self) -> dict[str, str]:
        return self._columns.stored()

    def plan(self) -> Iterator[ShardSpec]:
        listing, identity = self._listing, self._archive.identity
        total = len(listing.members) + len(listing.missing)
        total = min(total, self.options.limit or total)
        for start in range(0, total, self.spec.shard_rows):
            stop = min(start + self.spec.shard_rows, total)
            yield ShardSpec(
                rows=stop - start,
                fingerprint=digest(["tar", identity, self._csv_identity, self.own.path, start, stop]),
                spec={"start": start, "stop": stop, "identity": identity, "csv": self._csv_identity},
            )

    def read(self, spec: Spec) -> Iterator[Sample]:
        if (spec["identity"], spec["csv"]) != (self._archive.identity, self._csv_identity):
            raise SourceError(f"{self._archive.name}: changed since the plan was made; run the same command again")
        listing, (start, stop) = self._listing, (spec["start"], spec["stop"])
        members = listing.members[start:stop]
        lines = self._csv.rows(listing.lines[start:stop]) if self._csv else [{} for _ in members]
        for number, (member, line, data) in enumerate(
            zip(members, lines, self._archive.read(members), strict=True), start
        ):
            row = {**line, **self._path_fields(member["name"])}
            described = listing.lines[number]
            told = self._csv.errors[described] if self._csv and described is not None else ""
            yield self._columns.sample(row, member["name"], data, member["error"] or told or None)
        if self._csv:
            count = len(listing.members)
            missing = listing.missing[max(start - count, 0) : max(stop - count, 0)]
            for number, line in zip(missing, self._csv.rows(missing), strict=True):
                name, place = self._csv.names[number], self._csv.places[number]
                yield self._columns.sample(
                    line, name or place, error=self._csv.errors[number] or self._why(name, place)
                )

    def left_out(self) -> dict[str, int]:
        counts = Counter(self._archive.left_out())
        counts.update(kind_of_name(row["name"]) for row in self._split[1])
        return dict(sorted(counts.items()))

    def estimate(self) -> tuple[int, int]:
        if "_archive" not in self.__dict__ and self.spec.url and not self.options.offline:
            rows, size = self.expected_rows, remote_size(self.spec.url, self.options.base_url)
        else:
            rows = len(self._listing.members) + len(self._listing.missing)
            size = sum(member["bytes"] for member in self._listing.members if not member["error"])
        if self.options.limit and rows > self.options.limit:
            return self.options.limit, size * self.options.limit // rows
        return rows, size

    def revision(self) -> str:
        return self._archive.identity

    # ---- the archive and its CSV

    @cached_property
    def _archive(self) -> Archive:
        spec = self.spec
        return open_archive(path=spec.path, url=spec.url, md5=spec.md5, sha256=spec.sha256, options=self.options)

    @cached_property
    def _csv_file(self) -> tuple[Path, str] | None:
        """The path of the CSV on this machine, and an identity of its content."""
        if not self.spec.csv:
            return None
        options = self.options
        if self.spec.csv.startswith(("http://", "https://")):
            found = fetch(
                self.spec.csv,
                md5=self.spec.csv_md5,
                base_url=options.base_url,
                offline=options.offline,
                max_bytes=_CSV_BYTES,
            )
            return found.path, found.identity
        path = Path(self.spec.csv).expanduser()
        if not path.is_file():
            raise SourceError(f"{self.where}: no CSV at {self.spec.csv!r}")
        status = path.stat()
        return path, f"{status.st_size}-{status.st_mtime_ns}"

    @property
    def _csv_identity(self) -> str:
        return self._csv_file[1] if self._csv_file else ""

    @cached_property
    def _csv(self) -> MetadataTable | None:
        return MetadataTable([(self._csv_file[0], "")], self.own.csv_name) if self._csv_file else None

    @cached_property
    def _columns(self) -> Columns:
        kinds = self._csv.kinds() if self._csv else {}
        given = {field: "string" for field in self.fields if field != "name"}
        return choose_columns(self.spec, {**kinds, **given}, self.where)

    @cached_property
    def _split(self) -> tuple[list[Row], list[Row]]:
        """The archive's members that are rows, and the others."""
        rows: list[Row] = []
        others: list[Row] = []
        for member in self._archive.members().to_pylist():
            is_one = is_row(member["name"], partial(self._archive.head, member))
            (rows if is_one else others).append(member)
        return rows, others

    @cached_property
    def _listing(self) -> _Listing:
        members = self._split[0]
        if not members:
            raise SourceError(f"{self._archive.name}: holds no pictures")
        if self._csv is None:
            return _Listing(members, [None] * len(members), [])
        lines = [self._csv.find(_names(row["name"]), self._told(row["name"])) for row in members]
        there = frozenset(lines)
        return _Listing(members, lines, [row for row in range(len(self._csv.names)) if row not in there], there)

    def _why(self, name: str, place: str) -> str:
        """The reason why a line of the CSV is a failed row."""
        if not name:
            return f"no_name: {place} names no file"
        if self._csv and self._csv.find([name]) in self._listing.described:
            return f"duplicate_line: {place} describes {name}, as another line does"
        return f"missing_file: {name} is not in the archive"

    def _told(self, name: str) -> list[str]:
        """Values from a member's path: the fields that the manifest names, else its directories."""
        return list(self._path_fields(name).values()) or list(PurePosixPath(name).parts[:-1])

    def _path_fields(self, name: str) -> dict[str, str]:
        """Values from a member's directories, by column."""
        parts = PurePosixPath(name).parts[-len(self.fields) :] if self.fields else ()
        if len(parts) < len(self.fields):
            return {}
        return {field: part for field, part in zip(self.fields, parts, strict=True) if field != "name"}


def _names(path: str) -> list[str]:
    """The names by which a CSV may refer to a file: its path, any end of the path, its name, its stem."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[i:]) for i in range(len(parts))] + [PurePosixPath(path).stem]
