"""Webdataset tars: for each key a picture (.jpg, .png, ...), and optionally a .txt caption and .json metadata.

[source] keys: path (a tar, or a folder of them) with files (globs), or files alone (URLs, with {000..009} ranges); columns,
caption, licence, source_url, item_id (a JSON field), shard_rows. Tars may be compressed (.tar.gz, .tgz, .tar.bz2, .tar.xz).

A key is a member's path up to the first dot of its name, and the rest is its extension. The picture of a key is the member
whose whole extension is a picture's: 000.jpg, not 000.depth.png. Names with dots in them (J.M.W. Turner.jpg) are keys up to
their last dot. Every picture is one row, and a key without a picture is a failed row. A shard is a range of one tar's rows.
Planning lists the members of every tar and reads their JSON, so it fetches tars at URLs into the cache. The columns are
those of all JSON files, each with a type that holds all its values. The .txt is the caption unless the manifest names another.
item id: <path of the tar>/<key>.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.config import digest, from_mapping, parse_json
from pipeline.errors import SourceError
from pipeline.sources.archive import Archive, open_archive
from pipeline.sources.base import Row, Sample, ShardSpec, SourceOptions, Spec
from pipeline.sources.columns import Columns, choose_columns, kinds_of_values, text
from pipeline.sources.csv_rows import decoded
from pipeline.sources.listing import list_files, matches_any
from pipeline.sources.manifest import Manifest
from pipeline.sources.names import is_picture, looks_like_a_picture, same_name
from pipeline.sources.web.download import remote_size

_LOOK_AT = 1000

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_EXTENSION = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z0-9_]+)*")  # the form of the first part of an extension: depth, mask.0


@dataclass(frozen=True)
class WebdatasetOptions:
    """Webdatasets have no options: any option is an error."""


Member = Row  # a row of `Archive.members()`


@dataclass
class _Group:
    """The members of one row."""

    key: str
    picture: Member | None = None
    json: Member | None = None
    txt: Member | None = None
    extra: list[str] = field(default_factory=list)  # extensions of the other members
    error: str = ""


class WebdatasetSource:
    rereadable = True
    revision_is_whole = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.expected_rows = manifest.expected_rows
        self.options = options
        self._last: tuple[str, Archive, list[_Group]] | None = None
        from_mapping(WebdatasetOptions, self.spec.options, f"{self.where} options")
        self.tars = self._find()

    def columns(self) -> dict[str, str]:
        return self._chosen(self._kinds).stored()

    def plan(self) -> Iterator[ShardSpec]:
        kinds = self._kinds
        for name, start, stop in self._ranges():
            identity = self._groups(name)[0].identity
            yield ShardSpec(
                rows=stop - start,
                fingerprint=digest(["webdataset", self._label(name), identity, start, stop]),
                spec={"tar": name, "identity": identity, "start": start, "stop": stop, "kinds": kinds},
            )

    def read(self, spec: Spec) -> Iterator[Sample]:
        archive, groups = self._groups(spec["tar"], spec["identity"])
        # Plans of older versions have no `kinds`; their columns are those of the first JSON files of the first tar.
        columns = self._chosen(spec["kinds"] if "kinds" in spec else self._first_kinds())
        for group in groups[spec["start"] : spec["stop"]]:
            item_id = f"{self._label(spec['tar'])}/{group.key}"
            fields, error = self._fields(archive, group)
            sample = columns.sample(fields, item_id)
            if group.picture is None:
                extra = f", only {', '.join(group.extra)}" if group.extra else ""
                error = error or f"missing_file: no picture for key {group.key}{extra}"
            else:
                error = group.error or group.picture["error"] or error
            data = None if error or group.picture is None else next(archive.read([group.picture]))
            caption = sample.caption
            if group.txt and not self.spec.caption:
                written = next(archive.read([group.txt])) or b""
                caption = text(decoded(written).strip()) or caption
            yield replace(sample, data=data, error=error, caption=caption)

    def left_out(self) -> dict[str, int]:
        counts = Counter(self._listed[1])
        for name in self.tars:
            archive, groups = self._groups(name)
            counts.update(archive.left_out())
            for group in groups:
                counts.update(f".{extension}" if extension else "no suffix" for extension in group.extra)
        return dict(sorted(counts.items()))

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
        return self._listed[0]

    @cached_property
    def _listed(self) -> tuple[list[str], dict[str, int]]:
        """The tars on this machine, and the other files in their folder by kind."""
        root = Path(self.spec.path).expanduser()
        if not self.spec.path or root.is_file():
            return ([str(root)] if self.spec.path else []), {}
        patterns = self.spec.files or tuple(f"*{ending}" for ending in TAR_ENDINGS)
        found = list_files(root, lambda name: matches_any(name, patterns))
        if not found.names:
            raise SourceError(f"{self.where}: no file in {self.spec.path!r} matches {' or '.join(patterns)}")
        return [str(root / name) for name in found.names], found.left_out

    def _label(self, name: str) -> str:
        """The name of a tar in item ids: its path inside the folder or on the server, without .tar."""
        if "://" in name:
            label = urlsplit(name).path.lstrip("/")
        else:
            root = Path(self.spec.path).expanduser()
            label = Path(name).name if root.is_file() else Path(name).relative_to(root).as_posix()
        return label[:-4] if label.lower().endswith(".tar") else label

    def _open(self, name: str, identity: str = "") -> Archive:
        if "://" in name:
            return open_archive(url=name, identity=identity, options=self.options)
        return open_archive(path=name, identity=identity, options=self.options)

    def _groups(self, name: str, identity: str = "") -> tuple[Archive, list[_Group]]:
        """A tar and its members by key, in order. The last tar is cached, because its shards follow one another."""
        if self._last and self._last[0] == name and identity in ("", self._last[1].identity):
            return self._last[1], self._last[2]
        archive = self._open(name, identity)
        groups = group_members(archive.members().to_pylist(), archive.head)
        self._last = (name, archive, groups)
        return archive, groups

    def _fields(self, archive: Archive, group: _Group) -> tuple[Row, str | None]:
        """The JSON of a key, or the reason why it cannot be read."""
        return _object(next(archive.read([group.json]))) if group.json is not None else ({}, None)

    def _ranges(self) -> Iterator[tuple[str, int, int]]:
        """(tar, first row, row after the last) of each shard; `limit` is observed."""
        left = self.options.limit or -1
        for name in self.tars:
            rows = len(self._groups(name)[1])
            for start in range(0, rows, self.spec.shard_rows):
                stop = min(start + self.spec.shard_rows, rows)
                stop = min(stop, start + left) if left > 0 else stop
                left -= stop - start if left > 0 else 0
                yield name, start, stop
                if left == 0:
                    return

    @cached_property
    def _kinds(self) -> dict[str, str | None]:
        """The columns of all JSON files that are planned, by type name."""
        return kinds_of_values(self._json_rows())

    def _json_rows(self) -> Iterator[Row]:
        """The JSON of every row that is planned; nothing if it cannot be read."""
        behind = self.options.shards[1] if self.options.shards else None
        for name, start, stop in islice(self._ranges(), behind):
            archive, groups = self._groups(name)
            members = [group.json for group in groups[start:stop] if group.json is not None]
            for data in archive.read(members):
                yield _object(data)[0]

    def _first_kinds(self) -> dict[str, str | None]:
        archive, groups = self._groups(self.tars[0])
        return kinds_of_values(self._fields(archive, group)[0] for group in islice(groups, _LOOK_AT))

    def _chosen(self, kinds: Mapping[str, str | None]) -> Columns:
        return choose_columns(self.spec, kinds, self.where)


def _object(data: bytes | None) -> tuple[Row, str | None]:
    """The object in a JSON file, or the reason why there is none."""
    try:
        found = parse_json(data or b"")
    except ValueError as error:
        return {}, f"bad_metadata: {error}"
    return (found, None) if isinstance(found, dict) else ({}, "bad_metadata: the JSON is not an object")


def group_members(members: Sequence[Member], head: Callable[[Member], bytes]) -> list[_Group]:
    """The rows of a tar in order of their first member. `head` gives the first bytes of a member."""
    by_key: dict[str, list[tuple[str, str, Member]]] = {}
    for member in members:
        path = PurePosixPath(member["name"])
        stem, _, extension = path.name.partition(".")
        key = str(path.with_name(stem)) if stem else str(path)
        by_key.setdefault(same_name(key), []).append((key, extension if stem else "", member))
    rows: dict[str, _Group] = {}
    for found in by_key.values():
        for name, extension, member in _split_names(found):
            _add(rows, name, extension, member, head)
    return list(rows.values())


def _split_names(found: list[tuple[str, str, Member]]) -> Iterator[tuple[str, str, Member]]:
    """(key, extension, member) for the members that share a name up to the first dot.

    In `000.depth.png` beside `000.jpg`, `depth.png` is an extension of two parts. A dotted name is a separate key if no
    member's whole extension is a picture's or a text's, if it has its own text, or if it does not look like an extension.
    """
    extensions = [same_name(extension) for _, extension, _ in found]
    whole = {extension.lower() for extension in extensions if "." not in extension}
    texts = {extension.rpartition(".")[0] for extension in extensions if extension.lower().endswith((".json", ".txt"))}
    has_whole = any(is_picture(f"x.{extension}") or extension in ("json", "txt") for extension in whole)
    for key, extension, member in found:
        stem, _, last = extension.rpartition(".")
        if stem and (not has_whole or same_name(stem) in texts or not _EXTENSION.fullmatch(stem)):
            yield f"{key}.{stem}", last, member
        else:
            yield key, extension, member


def _add(rows: dict[str, _Group], key: str, extension: str, member: Member, head: Callable[[Member], bytes]) -> None:
    group = rows.setdefault(same_name(key), _Group(key))
    kind = extension.lower()
    if "." not in kind and (is_picture(f"x.{kind}") or (not kind and looks_like_a_picture(head(member)))):
        if group.picture is not None:  # one picture in each row: the second becomes a failed row
            other = f"{key}.{extension}"
            while same_name(other) in rows and rows[same_name(other)].picture is not None:
                other += "_"
            second = rows.setdefault(same_name(other), _Group(other))
            second.picture = member
            second.error = f"second_picture: key {key} has {_suffix(group.picture)} and .{extension}"
            return
        group.picture = member
    elif kind == "json" and not member["error"] and group.json is None:
        group.json = member
    elif kind == "txt" and not member["error"] and group.txt is None:
        group.txt = member
    else:
        group.extra.append(extension)


def _suffix(member: Member) -> str:
    return PurePosixPath(member["name"]).suffix


def expand(pattern: str) -> list[str]:
    """Addresses of a pattern with {first..last} ranges, zero-padded as they are written."""
    match = re.search(r"{(\d+)\.\.(\d+)}", pattern)
    if not match:
        return [pattern]
    first, last = match.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [url for number in numbers for url in expand(pattern[: match.start()] + number + pattern[match.end() :])]
