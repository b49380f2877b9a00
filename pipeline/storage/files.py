"""Files under one root, on a disk or an object store: each appears whole or not at all.

Reads and writes through fsspec (`file` and `s3` are tested). On a disk, a write goes to a temporary name that is then renamed;
on an object store, it is one PUT or one completed multipart upload. `swap` is compare-and-swap on one small text file: under a
file lock on a disk, with If-Match / If-None-Match on S3. Does not promise atomicity across several files; a database's version
file provides that.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.config import cache_dir
from pipeline.errors import DamagedError, DatabaseError, DiskFullError
from pipeline.storage.litter import PROBE, is_litter
from pipeline.storage.objects import FileSystem, explained, open_store, swap_object

TEMPORARY = ".tmp"

VERIFIED = (
    4 << 20
)  # bytes; a file up to this size is compared with its checksum at every opening, which takes some 5 ms


@dataclass(frozen=True)
class Artifact:
    """A finished file: path relative to the storage's root, sha256 of its bytes, size."""

    path: str
    sha256: str
    bytes: int


@contextlib.contextmanager
def disk_full_is_an_error(where: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into a DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left while writing {where}. Finished files are kept: free some space, or set RDMPIPE_HOME to a "
                "folder on a larger disk, and run the same command again."
            ) from error
        raise


@contextlib.contextmanager
def _explained_disk(url: str) -> Iterator[None]:
    """Turn disk errors that no retry can fix into a DatabaseError; other errors pass unchanged."""
    try:
        yield
    except (PermissionError, IsADirectoryError) as error:
        raise DatabaseError(
            f"{error.filename or url}: {error.strerror}. Expected a file or folder that this user can read and write; check "
            f"its owner and mode with `ls -ld`"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS):
            raise DatabaseError(f"{str(error.filename or url)[:300]}: {error.strerror}") from error
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
    def fs(self) -> FileSystem:
        if self.is_local:
            import fsspec

            return fsspec.filesystem("file")
        return open_store(self.url)

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of the disk or the store that no retry can fix into a DatabaseError or ConfigError."""
        return _explained_disk(self.url) if self.is_local else explained(self.url)

    def child(self, relative: str) -> Storage:
        return Storage(self.full(relative))

    def full(self, relative: str) -> str:
        """The address of `relative` as fsspec takes it. Raises DatabaseError for a path that leaves the root."""
        if relative.startswith("/") or ".." in relative.split("/") or "\0" in relative:
            raise DatabaseError(f"{relative!r} is not a path inside {self.url}; give a relative path without `..`")
        return f"{self.url}/{relative}" if relative else self.url

    # ---- reading

    def exists(self, relative: str) -> bool:
        with self._asking():
            return bool(self.fs.exists(self.full(relative)))

    def size(self, relative: str) -> int | None:
        """Bytes in the file, or None if there is none."""
        try:
            with self._asking():
                return int(self.fs.info(self.full(relative))["size"])
        except FileNotFoundError:
            return None

    def age_s(self, relative: str) -> float | None:
        """Seconds since the file was written, by the clock of the disk or store; None if there is no file."""
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
        """The whole file as text, or None if there is none.

        Bytes that are not UTF-8 become backslash escapes, so that the loader of a damaged file can describe the damage.
        """
        try:
            return self.read_bytes(relative).decode("utf-8", "backslashreplace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_json(self, relative: str, damaged: Callable[[str, str], DatabaseError]) -> object:
        """The value in a JSON file, or None if there is no file. If its text is not JSON, raises the error that
        `damaged(path, problem)` makes."""
        text = self.read_text(relative)
        if text is None:
            return None
        try:
            return cast("object", json.loads(text))
        except (ValueError, RecursionError) as error:
            raise damaged(relative, f"it is not JSON: {error}") from error

    def require(self, artifact: Artifact) -> None:
        """Raise DamagedError unless the file has the artifact's size and, up to VERIFIED bytes on a disk, its checksum.

        An object store verifies its objects itself. The message does not name the file.
        """
        size = self.size(artifact.path)
        if size is None:
            raise DamagedError("the file is missing")
        if size != artifact.bytes:
            raise DamagedError(f"expected {artifact.bytes:,} bytes, found {size:,}")
        if (
            self.is_local
            and size <= VERIFIED
            and hashlib.sha256(self.read_bytes(artifact.path)).hexdigest() != artifact.sha256
        ):
            raise DamagedError(f"its checksum is not the version's, {artifact.sha256[:12]}...")

    def open(self, relative: str) -> BinaryIO:
        with self._asking():
            return cast("BinaryIO", self.fs.open(self.full(relative), "rb"))

    def sha256(self, relative: str) -> str:
        """The hex sha256 of a file, read in blocks. Raises FileNotFoundError."""
        digest = hashlib.sha256()
        with self.open(relative) as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def list(self, relative: str = "", suffix: str = "") -> list[str]:
        """Sorted file and directory names directly below `relative` that end in `suffix`, without files of operating
        systems."""
        fs = self.fs
        fs.invalidate_cache()
        try:
            with self._asking():
                found = fs.ls(self.full(relative), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        itself = str(
            fs._strip_protocol(self.full(relative))
        )  # a store lists a file, or a folder's marker, below itself
        names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found if str(path).rstrip("/") != itself}
        return sorted(name for name in names if name.endswith(suffix) and name != TEMPORARY and not is_litter(name))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the root, by relative path, without scratch files, locks and a store's probe object."""
        fs = self.fs
        fs.invalidate_cache()
        itself = str(fs._strip_protocol(self.url)).rstrip("/") + "/"
        with self._asking():
            found = fs.find(self.url, detail=True)
        files = {str(path).removeprefix(itself): int(about["size"]) for path, about in found.items()}
        return {
            path: size
            for path, size in files.items()
            if not path.startswith(f"{TEMPORARY}/") and not path.endswith((".lock", f"/{PROBE}")) and path != PROBE
        }

    def local(self, artifact: Artifact) -> Path:
        """A local path of a finished file, for memory mapping: on a disk the file itself, else a copy cached by checksum."""
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
                    raise DamagedError(
                        f"{self.full(artifact.path)}: its checksum is not the one that the version names: it is damaged. "
                        "`rdmpipe check NAME --repair` rebuilds what can be rebuilt"
                    )
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return target

    def forget(self, artifact: Artifact) -> None:
        """Remove this machine's cached copy of a store's file. Files on a disk have no copy."""
        if not self.is_local:
            (cache_dir() / "objects" / artifact.sha256[:2] / artifact.sha256).unlink(missing_ok=True)

    # ---- writing

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private local directory, on the same disk as a local root. It is removed at the end of the block."""
        parent = None
        with self._asking():
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
        """Move a finished local file to `relative`. It appears whole; the local file is gone afterwards."""
        artifact = Artifact(relative, sha256_file(local), local.stat().st_size)
        target = self.full(relative)
        with disk_full_is_an_error(target), self._asking():
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

    def copy_to(self, relative: str, other: Storage) -> None:
        """Copy a file to the same path of another root on the same disk or store. On a store, its bytes stay in the store.

        Raises FileNotFoundError.
        """
        if not self.is_local:
            with self._asking():
                self.fs.cp_file(self.full(relative), other.full(relative))
            return
        with other.scratch() as scratch:
            part = scratch / "part"
            shutil.copyfile(self.full(relative), part)
            other.publish(part, relative)

    def remove(self, relative: str) -> None:
        """Remove a file, or a directory and everything in it. A missing file is not an error."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            self.fs.rm(self.full(relative), recursive=True)

    def clear_scratch(self) -> None:
        """Remove the temporary files of killed writers. Only the holder of this root's lease may call it."""
        if self.is_local:
            shutil.rmtree(Path(self.url) / TEMPORARY, ignore_errors=True)

    def swap(self, relative: str, expected: str | None, new: str) -> bool:
        """Set a small text file to `new` if it now reads `expected` (None: if it is absent). Returns whether it was set."""
        if not self.is_local:
            with self._asking():
                return swap_object(self.fs, self.full(relative), expected, new)
        target = Path(self.full(relative))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = (target.parent / f".{target.name}.lock").open("a")
        except OSError as error:  # every writer takes its lease first, so a home that cannot be written is found here
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DatabaseError(
                f"{target.parent} cannot be written ({error.strerror}). Give a folder that can be written, with --home FOLDER "
                "or RDMPIPE_HOME"
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
