"""Files under one root, on a disk or an object store: each appears whole or not at all.

Reads and writes through fsspec (`file` and `s3` are tested). A write goes to a temporary name and is renamed (disk) or
is one PUT or completed multipart upload (object store). `swap` is compare-and-swap on one small text file: under a lock on
a disk, with If-Match / If-None-Match on S3. Does not promise: atomicity across several files (a version file does that).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config import cache_dir
from pipeline.errors import DatabaseError, DiskFullError
from pipeline.storage.objects import explained, open_store, swap_object

TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Artifact:
    """A finished file: path relative to the storage's root, sha256 of its bytes, size."""

    path: str
    sha256: str
    bytes: int


@contextlib.contextmanager
def disk_full_is_an_error(where: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into a DiskFullError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left while writing {where}. What is finished is kept: free some space (or point RDMPIPE_HOME at a "
                "larger disk) and run the same command again."
            ) from error
        raise


class Storage:
    """A root directory or bucket prefix. Cheap to build, picklable, holds no open file."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
        self.is_local = "://" not in url or url.startswith("file://")
        if url.startswith("file://"):
            self.url = str(Path(url.removeprefix("file://")).absolute())

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    @property
    def fs(self) -> Any:
        if self.is_local:
            import fsspec

            return fsspec.filesystem("file")
        return open_store(self.url)

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        """Errors of an object store in our words; a disk's are clear enough."""
        return contextlib.nullcontext() if self.is_local else explained(self.url)

    def child(self, relative: str) -> Storage:
        return Storage(f"{self.url}/{relative}")

    def full(self, relative: str) -> str:
        """The address of `relative` as fsspec and DuckDB take it. Refuses to leave the root."""
        if relative.startswith("/") or ".." in Path(relative).parts:
            raise DatabaseError(f"{relative!r} is not a path inside {self.url}")
        return f"{self.url}/{relative}" if relative else self.url

    # ---- reading

    def exists(self, relative: str) -> bool:
        with self._asking():
            return bool(self.fs.exists(self.full(relative)))

    def size(self, relative: str) -> int | None:
        """Bytes in the file, or None where there is none."""
        try:
            with self._asking():
                return int(self.fs.info(self.full(relative))["size"])
        except FileNotFoundError:
            return None

    def age_s(self, relative: str) -> float | None:
        """Seconds since the file was written, by the clock of whoever keeps it, or None where there is none."""
        try:
            with self._asking():
                self.fs.invalidate_cache()
                written: datetime.datetime = self.fs.modified(self.full(relative))
        except FileNotFoundError:
            return None
        return (datetime.datetime.now(datetime.UTC) - written).total_seconds()

    def read_bytes(self, relative: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        with self._asking():
            return bytes(self.fs.cat_file(self.full(relative)))

    def read_text(self, relative: str) -> str | None:
        """The whole file as text, or None where there is none."""
        try:
            return self.read_bytes(relative).decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, relative: str) -> BinaryIO:
        with self._asking():
            handle: BinaryIO = self.fs.open(self.full(relative), "rb")
        return handle

    def list(self, relative: str = "", suffix: str = "") -> list[str]:
        """Sorted file and directory names directly below `relative` that end in `suffix`."""
        fs = self.fs
        fs.invalidate_cache()
        try:
            with self._asking():
                found = fs.ls(self.full(relative), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        itself = str(fs._strip_protocol(self.full(relative)))  # stores list a file, or a folder's marker, below itself
        names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found if str(path).rstrip("/") != itself}
        return sorted(name for name in names if name.endswith(suffix) and name != TEMPORARY)

    def local(self, artifact: Artifact) -> Path:
        """A local path of a finished file for memory mapping: itself on a disk, a copy cached by checksum otherwise."""
        if self.is_local:
            return Path(self.full(artifact.path))
        target = cache_dir() / "objects" / artifact.sha256[:2] / artifact.sha256
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
            try:
                with disk_full_is_an_error(str(target)), self._asking():
                    self.fs.get_file(self.full(artifact.path), str(part))
                if sha256_file(part) != artifact.sha256:
                    raise DatabaseError(
                        f"{self.full(artifact.path)}: checksum differs from the version's; build it again"
                    )
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return target

    # ---- writing

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private local directory, on the same disk as a local root, removed at the end."""
        parent = None
        if self.is_local:
            parent = Path(self.url) / TEMPORARY
            parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        try:
            with disk_full_is_an_error(self.url):
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, local: Path, relative: str) -> Artifact:
        """Move a finished local file to `relative`, whole. The local file is gone afterwards."""
        artifact = Artifact(relative, sha256_file(local), local.stat().st_size)
        target = self.full(relative)
        with disk_full_is_an_error(target):
            if self.is_local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                with local.open("rb+") as handle:
                    os.fsync(handle.fileno())
                try:
                    local.replace(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    part = Path(self.url) / TEMPORARY / uuid.uuid4().hex
                    part.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(local, part)
                    part.replace(target)
            else:
                with self._asking():
                    self.fs.put_file(str(local), target)
                local.unlink()
        return artifact

    def write_bytes(self, relative: str, data: bytes) -> Artifact:
        if not self.is_local:
            with self._asking():
                self.fs.pipe_file(self.full(relative), data)
            return Artifact(relative, hashlib.sha256(data).hexdigest(), len(data))
        with self.scratch() as scratch:
            part = scratch / "part"
            part.write_bytes(data)
            return self.publish(part, relative)

    def write_text(self, relative: str, text: str) -> Artifact:
        return self.write_bytes(relative, text.encode("utf-8"))

    def remove(self, relative: str) -> None:
        """Remove a file or a directory with all it holds; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            self.fs.rm(self.full(relative), recursive=True)

    def clear_scratch(self) -> None:
        """Remove what killed writers left behind. Only for the one writer of this root."""
        if self.is_local:
            shutil.rmtree(Path(self.url) / TEMPORARY, ignore_errors=True)

    def swap(self, relative: str, expected: str | None, new: str) -> bool:
        """Set the small text file to `new` if it now reads `expected` (None: if it is absent). True when it was set."""
        if not self.is_local:
            with self._asking():
                return swap_object(self.fs, self.full(relative), expected, new)
        target = Path(self.full(relative))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = (target.parent / f".{target.name}.lock").open("a")
        except OSError as error:  # every writer comes by here first, for its lease
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DatabaseError(
                f"{target.parent} cannot be written ({error.strerror}): give a folder that can, with --home or RDMPIPE_HOME"
            ) from error
        with handle as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read_text(relative) != expected:
                return False
            self.write_text(relative, new)
            return True


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
