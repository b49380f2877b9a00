"""A folder of pictures, with subfolders, and the metadata.csv or metadata.jsonl files in it.

[source] keys: path, files (globs; default all), csv (else the metadata files in the folder and its subfolders), columns,
caption, licence, source_url, item_id, shard_rows. A metadata file names its pictures relative to its own folder.

Rows are the pictures sorted by path, together with files that the metadata lists but that do not exist (failed rows:
missing_file); then a failed row for each further line of metadata that names no file or a file that another line describes. A
picture is recognised by its suffix, and a file without a known suffix by its first bytes; every file that a pattern of `files`
matches is a row. `left_out` counts all other files, unless `files` names single files. Links to folders are not followed; a
link to a file is read only if it stays inside the folder. item id: the path inside the folder.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.config import digest, from_mapping
from pipeline.errors import SourceError
from pipeline.sources.base import Sample, ShardSpec, SourceOptions, Value
from pipeline.sources.columns import Columns, choose_columns
from pipeline.sources.listing import Listing, is_glob, list_files, matches_any
from pipeline.sources.manifest import Manifest
from pipeline.sources.metadata import METADATA_FILES, MetadataTable
from pipeline.sources.names import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    MAX_PICTURE_BYTES,
    is_row,
    printable,
    safe_path,
    same_name,
)

_LINE = "\0"  # a row of the plan that begins with this is a line of metadata; no file name can contain it


class FolderSource:
    rereadable = True

    def __init__(self, manifest: Manifest, options: SourceOptions) -> None:
        self.spec = manifest.source
        self.where = f"{manifest.name} [source]"
        self.limit = options.limit
        self.root = Path(self.spec.path).expanduser()
        from_mapping(_NoOptions, self.spec.options, f"{self.where} options")
        if not self.spec.path or not self.root.is_dir():
            raise SourceError(f"{self.where}: no folder at {self.spec.path!r}; check `path`")

    @property
    def revision_is_whole(self) -> bool:
        return not self._metadata_files

    def columns(self) -> dict[str, str]:
        return self._columns.stored()

    def plan(self) -> Iterator[ShardSpec]:
        names = self._names[: self.limit or None]
        for start in range(0, len(names), self.spec.shard_rows):
            part = names[start : start + self.spec.shard_rows]
            seen = [[name, *self._seen(name)] for name in part]
            yield ShardSpec(
                rows=len(part), fingerprint=digest(["folder", seen, self._lines(part)]), spec={"files": part}
            )

    def read(self, spec: Mapping[str, list[str]]) -> Iterator[Sample]:
        for name, line in zip(spec["files"], self._lines(spec["files"]), strict=True):
            yield self._sample(name, line)

    def estimate(self) -> tuple[int, int]:
        names = self._names[: self.limit or None]
        return len(names), sum(self._seen(name)[0] for name in names)

    def revision(self) -> str:
        names = self._names
        return digest([[name, *self._seen(name)] for name in names])

    def left_out(self) -> dict[str, int]:
        skipped = self._metadata.skipped if self._metadata else 0
        return self._listing.left_out | ({"metadata without file names": skipped} if skipped else {})

    # ---- the folder

    @cached_property
    def _listing(self) -> Listing:
        """The pictures, sorted, and the counts of left-out files: none if `files` names single pictures."""
        if self.spec.files:
            named = list_files(self.root, lambda name: name in self._metadata_files or self._is_named(name))
            counted = named.left_out if any(map(is_glob, self.spec.files)) else {}
            return Listing([name for name in named.names if name not in self._metadata_files], counted)
        found = list_files(
            self.root, lambda name: name in self._metadata_files or is_row(name, lambda: self._head(name))
        )
        return Listing([name for name in found.names if name not in self._metadata_files], found.left_out)

    def _is_named(self, name: str) -> bool:
        """Whether `files` selects a path inside the folder."""
        patterns = self.spec.files
        return not patterns or name in patterns or matches_any(name, patterns)

    @cached_property
    def _metadata_files(self) -> dict[str, Path]:
        """The metadata files to read by their path inside the folder."""
        if self.spec.csv:
            path = Path(self.spec.csv).expanduser()
            if not path.is_file():
                raise SourceError(f"{self.where}: no CSV at {self.spec.csv!r}")
            inside = path.resolve().is_relative_to(self.root.resolve())
            return {path.resolve().relative_to(self.root.resolve()).as_posix() if inside else f"/{path}": path}
        found = list_files(self.root, lambda name: PurePosixPath(name).name.lower() in METADATA_FILES).names
        at_root = [name for name in found if "/" not in name]  # a file at the root describes all folders
        folders: dict[str, str] = {}
        for name in sorted(at_root or found, key=_preference):  # if a folder has both, the .csv is read
            folders.setdefault(str(PurePosixPath(name).parent), name)
        return {name: self.root / name for name in sorted(folders.values())}

    @cached_property
    def _names(self) -> list[str]:
        """Every row: the paths inside the folder, sorted, and then the lines of metadata that are separate rows."""
        names = set(self._listing.names)
        extra: list[str] = []
        if self._metadata is not None:
            spellings = {same_name(name): name for name in names}
            taken: set[str] = set()
            for number, listed in enumerate(self._metadata.names):
                if not self._is_named(listed):
                    continue
                safe = (safe_path(listed.replace("\\", "/")) or listed) if listed else ""
                if not listed or same_name(safe) in taken:
                    extra.append(f"{_LINE}{number}")
                    continue
                taken.add(same_name(safe))
                if same_name(safe) not in spellings:
                    names.add(safe)
        if not names and not extra:
            raise SourceError(
                f"{self.where}: no pictures in {self.root}: no file below it ends in {', '.join(sorted(IMAGE_SUFFIXES))}, or "
                f"begins as a picture does{self._others()}"
            )
        return sorted(names) + extra

    def _others(self) -> str:
        counts = ", ".join(f"{count} x {kind}" for kind, count in self._listing.left_out.items())
        return f"; it holds {counts}" if counts else ""

    @cached_property
    def _metadata(self) -> MetadataTable | None:
        files = []
        for name, path in self._metadata_files.items():
            folder = str(PurePosixPath(name).parent)
            files.append((path, "" if self.spec.csv or folder == "." else f"{folder}/"))
        return MetadataTable(files) if files else None

    @cached_property
    def _columns(self) -> Columns:
        return choose_columns(self.spec, self._metadata.kinds() if self._metadata else {}, self.where)

    def _line_of(self, name: str) -> int | None:
        """The row of the metadata that describes a row of the plan."""
        if self._metadata is None:
            return None
        return int(name[1:]) if name.startswith(_LINE) else self._metadata.find([name, f"./{name}"])

    def _lines(self, names: list[str]) -> list[dict[str, Value]]:
        """The metadata of each row; empty if there is none."""
        if self._metadata is None:
            return [{} for _ in names]
        return self._metadata.rows([self._line_of(name) for name in names])

    def _sample(self, name: str, line: Mapping[str, Value]) -> Sample:
        number = self._line_of(name)
        told = self._metadata.errors[number] if self._metadata is not None and number is not None else ""
        if name.startswith(_LINE) and self._metadata is not None and number is not None:
            listed, place = self._metadata.names[number], self._metadata.places[number]
            why = f"duplicate_line: {place} describes {listed} again" if listed else f"no_name: {place} names no file"
            return self._columns.sample(line, place, error=told or why)
        if told:
            return self._columns.sample(line, printable(name), error=told)
        data, error = self._read(name)
        return self._columns.sample(line, printable(name), data, error)

    def _head(self, name: str) -> bytes:
        """The first bytes of a file; empty if it cannot be read."""
        try:
            path = self.root / name
            if not path.resolve(strict=True).is_relative_to(self.root.resolve()) or not stat.S_ISREG(
                path.stat().st_mode
            ):
                return b""
            with path.open("rb") as handle:
                return handle.read(HEAD_BYTES)
        except (OSError, RuntimeError, ValueError):
            return b""

    def _seen(self, name: str) -> tuple[int, int]:
        """The present size and time of a file; (0, 0) if it cannot be accessed."""
        try:
            status = (self.root / name).stat()
        except (OSError, ValueError):
            return 0, 0
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)

    def _read(self, name: str) -> tuple[bytes | None, str | None]:
        """A file's bytes, or the reason why it cannot be read."""
        if safe_path(name) != name:
            return None, f"unsafe_name: {printable(name)} leads out of the folder"
        path = self.root / name
        try:
            if not path.resolve(strict=True).is_relative_to(self.root.resolve()):
                return None, f"unsafe_name: {printable(name)} is a link out of the folder"
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return None, f"not_a_file: {printable(name)}"
            if status.st_size > MAX_PICTURE_BYTES:
                return None, f"too_large: {status.st_size} bytes, at most {MAX_PICTURE_BYTES}"
            return path.read_bytes(), None
        except FileNotFoundError:
            return None, f"missing_file: {printable(name)}"
        except (OSError, RuntimeError, ValueError) as error:
            return None, f"unreadable: {type(error).__name__}: {printable(str(error))}"


def _preference(name: str) -> int:
    return METADATA_FILES.index(PurePosixPath(name).name.lower())


@dataclass(frozen=True)
class _NoOptions:
    """A folder has no options: any option is an error."""
