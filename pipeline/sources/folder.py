"""A folder of pictures, with subfolders, and where there is one a metadata.csv whose file_name names the picture.

[source] keys: path, csv (else metadata.csv in the folder), columns, caption, licence, source_url, item_id, shard_rows.
Rows are the pictures sorted by path, together with the files that the CSV lists and that are not there (failed rows:
missing_file). Hidden files and system junk are left out. Links to folders are never followed; a link to a file is
read only where it stays inside the folder. item id: the path inside the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config import digest, from_mapping
from pipeline.errors import SourceError
from pipeline.sources.base import Sample, ShardSpec, SourceOptions
from pipeline.sources.columns import Columns, choose_columns
from pipeline.sources.csv_tables import MetadataCsv
from pipeline.sources.manifest import Manifest
from pipeline.sources.names import IMAGE_SUFFIXES, MAX_PICTURE_BYTES, is_junk, is_picture, printable, safe_path


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

    def read(self, spec: Mapping[str, Any]) -> Iterator[Sample]:
        for name, line in zip(spec["files"], self._lines(spec["files"]), strict=True):
            data, error = self._read(name)
            yield self._columns.sample(line, printable(name), data, error)

    def estimate(self) -> tuple[int, int]:
        names = self._names[: self.limit or None]
        return len(names), sum(self._seen(name)[0] for name in names)

    def revision(self) -> str:
        names = self._names
        return digest([[name, *self._seen(name)] for name in names])

    # ---- the folder

    @cached_property
    def _names(self) -> list[str]:
        """Every row's path inside the folder, sorted."""
        found = {name for name in _walk(self.root, "") if is_picture(name)}
        if self._csv:
            found |= {(safe_path(name) or name) for name in self._csv.names if name}
        if not found:
            raise SourceError(
                f"{self.where}: no pictures in {self.root}: no file below it ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return sorted(found)

    @cached_property
    def _csv(self) -> MetadataCsv | None:
        path = Path(self.spec.csv).expanduser() if self.spec.csv else self.root / "metadata.csv"
        if self.spec.csv and not path.is_file():
            raise SourceError(f"{self.where}: no CSV at {self.spec.csv!r}")
        return MetadataCsv(path, path.name) if path.is_file() else None

    @cached_property
    def _columns(self) -> Columns:
        return choose_columns(self.spec, self._csv.kinds() if self._csv else {}, self.where)

    def _lines(self, names: list[str]) -> list[dict[str, Any]]:
        """The CSV's line of each file; empty where there is none."""
        if self._csv is None:
            return [{} for _ in names]
        return self._csv.rows([self._csv.find([name, f"./{name}"]) for name in names])

    def _seen(self, name: str) -> tuple[int, int]:
        """Size and time of a file as they are now; (0, 0) where it cannot be seen."""
        try:
            status = (self.root / name).stat()
        except (OSError, ValueError):
            return 0, 0
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)

    def _read(self, name: str) -> tuple[bytes | None, str | None]:
        """A file's bytes, or why they cannot be had."""
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


@dataclass(frozen=True)
class _NoOptions:
    """A folder has no options of its own: any is a mistake."""


def _walk(root: Path, below: str) -> Iterator[str]:
    """Paths of files under `root`, links to folders not followed."""
    try:
        entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(
            f"{printable(str(root / below))}: this folder cannot be listed ({error.strerror}); make it readable, or move it"
        ) from error
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if is_junk(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name)
        elif not (entry.is_symlink() and Path(entry).is_dir()):  # DirEntry.is_dir raises for a link in a circle
            yield name
