"""Webdataset tars: for each key a picture (.jpg, .png, ...), and where they are there a .txt caption and .json metadata.

[source] keys: path (a tar, or a folder of them) with files (globs), or files alone (URLs, with {000..009} ranges); columns,
caption, licence, source_url, item_id (a JSON field), shard_rows. A shard is a range of one tar's keys. Planning lists the
members of every tar, so tars at URLs are fetched into the cache then. Columns and their types are those of the first
tar's first thousand JSON files; the .txt is the caption unless the manifest names another. item id: <path of the tar>/<key>.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipeline.config import digest, from_mapping, parse_json
from pipeline.errors import SourceError
from pipeline.sources.archive import Archive, open_archive
from pipeline.sources.base import Sample, ShardSpec, SourceOptions
from pipeline.sources.columns import Columns, choose_columns, kinds_of_values, text
from pipeline.sources.manifest import Manifest
from pipeline.sources.names import is_picture
from pipeline.sources.web.download import remote_size

_LOOK_AT = 1000


@dataclass(frozen=True)
class WebdatasetOptions:
    """Webdatasets have no options of their own: any is a mistake."""


@dataclass
class _Group:
    """Members of one key, as positions in the archive's list."""

    key: str
    picture: dict[str, Any] | None = None
    json: dict[str, Any] | None = None
    txt: dict[str, Any] | None = None
    extra: list[str] = field(default_factory=list)


class WebdatasetSource:
    rereadable = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.expected_rows = manifest.expected_rows
        self.options = options
        self._last: tuple[str, Archive, list[_Group]] | None = None
        from_mapping(WebdatasetOptions, self.spec.options, f"{self.where} options")
        self.tars = self._find()

    def columns(self) -> dict[str, str]:
        return self._columns.stored()

    def plan(self) -> Iterator[ShardSpec]:
        left = self.options.limit or -1
        for name in self.tars:
            archive, groups = self._groups(name)
            for start in range(0, len(groups), self.spec.shard_rows):
                stop = min(start + self.spec.shard_rows, len(groups))
                stop = min(stop, start + left) if left > 0 else stop
                left -= stop - start if left > 0 else 0
                yield ShardSpec(
                    rows=stop - start,
                    fingerprint=digest(["webdataset", self._label(name), archive.identity, start, stop]),
                    spec={"tar": name, "identity": archive.identity, "start": start, "stop": stop},
                )
                if left == 0:
                    return

    def read(self, spec: Mapping[str, Any]) -> Iterator[Sample]:
        archive, groups = self._groups(spec["tar"], spec["identity"])
        for group in groups[spec["start"] : spec["stop"]]:
            item_id = f"{self._label(spec['tar'])}/{group.key}"
            fields, error = self._fields(archive, group)
            sample = self._columns.sample(fields, item_id)
            if group.picture is None:
                extra = f", only {', '.join(group.extra)}" if group.extra else ""
                error = error or f"missing_file: no picture for key {group.key}{extra}"
            else:
                error = group.picture["error"] or error
            data = None if error or group.picture is None else next(archive.read([group.picture]))
            caption = sample.caption
            if group.txt and not self.spec.caption:
                written = next(archive.read([group.txt])) or b""
                caption = text(written.decode("utf-8", "replace").strip()) or caption
            yield replace(sample, data=data, error=error, caption=caption)

    def estimate(self) -> tuple[int, int]:
        remote = [name for name in self.tars if "://" in name]
        size = sum(Path(name).stat().st_size for name in self.tars if "://" not in name)
        size += sum(remote_size(name, self.options.base_url) for name in remote) if not self.options.offline else 0
        rows = self.expected_rows
        if self.options.limit and rows > self.options.limit:
            return self.options.limit, size * self.options.limit // rows
        return rows, size

    def revision(self) -> str:
        return digest([self._open(name).identity for name in self.tars])

    # ---- tars

    def _find(self) -> list[str]:
        """Addresses or paths of the tars, sorted for a folder, in the given order for URLs."""
        if not self.spec.path:
            tars = [url for pattern in self.spec.files for url in expand(pattern)]
            if not tars or not all(name.startswith(("http://", "https://")) for name in tars):
                raise SourceError(f"{self.where}: a webdataset source needs `path`, or `files` with http(s) addresses")
            return tars
        root = Path(self.spec.path).expanduser()
        if root.is_file():
            return [str(root)]
        patterns = self.spec.files or ("*.tar",)
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        if not found:
            raise SourceError(f"{self.where}: no file in {self.spec.path!r} matches {' or '.join(patterns)}")
        return [str(root / name) for name in found]

    def _label(self, name: str) -> str:
        """What item ids call a tar: its path inside the folder or on the server, without .tar."""
        if "://" in name:
            label = urlsplit(name).path.lstrip("/")
        else:
            root = Path(self.spec.path).expanduser()
            label = Path(name).name if root.is_file() else Path(name).relative_to(root).as_posix()
        return label.removesuffix(".tar")

    def _open(self, name: str, identity: str = "") -> Archive:
        if "://" in name:
            return open_archive(url=name, identity=identity, options=self.options)
        return open_archive(path=name, identity=identity, options=self.options)

    def _groups(self, name: str, identity: str = "") -> tuple[Archive, list[_Group]]:
        """A tar and its members by key, in order. The last one is kept: its shards follow one another."""
        if self._last and self._last[0] == name and identity in ("", self._last[1].identity):
            return self._last[1], self._last[2]
        archive = self._open(name, identity)
        groups: dict[str, _Group] = {}
        for row in archive.members().to_pylist():
            path = PurePosixPath(row["name"])
            stem, _, extension = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else str(path)
            group = groups.setdefault(key, _Group(key))
            if is_picture(path.name) and group.picture is None:
                group.picture = row
            elif extension.lower() == "json" and not row["error"]:
                group.json = row
            elif extension.lower() == "txt" and not row["error"]:
                group.txt = row
            else:
                group.extra.append(extension)
        self._last = (name, archive, list(groups.values()))
        return archive, self._last[2]

    def _fields(self, archive: Archive, group: _Group) -> tuple[dict[str, Any], str | None]:
        """The JSON of a key, or why it cannot be read."""
        if group.json is None:
            return {}, None
        try:
            found = parse_json(next(archive.read([group.json])) or b"")
        except ValueError as error:
            return {}, f"bad_metadata: {error}"
        return (found, None) if isinstance(found, dict) else ({}, "bad_metadata: the JSON is not an object")

    @cached_property
    def _columns(self) -> Columns:
        archive, groups = self._groups(self.tars[0])
        kinds = kinds_of_values(self._fields(archive, group)[0] for group in islice(groups, _LOOK_AT))
        return choose_columns(self.spec, kinds, f"{self.where} {archive.name}")


def expand(pattern: str) -> list[str]:
    """Addresses of a pattern with {first..last} ranges, zero-padded as they are written."""
    match = re.search(r"{(\d+)\.\.(\d+)}", pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [url for number in numbers for url in expand(pattern[: match.start()] + number + pattern[match.end() :])]
