"""Tar archives of sources, read in place: the members are listed once, and their bytes are read by seeking.

Reads: a local archive, or one at a URL (fetched into the cache and checked). Writes into the cache only: the list of members,
and an unpacked .tar of a compressed archive. No member is written to disk under its own name, so none can leave the cache.
Links, devices and sparse files are listed with an error and never followed.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from pipeline.config import cache_dir, digest
from pipeline.errors import SourceError
from pipeline.schema import read_parquet
from pipeline.sources.base import SourceOptions
from pipeline.sources.names import HEAD_BYTES, MAX_PICTURE_BYTES, is_junk, printable, safe_path
from pipeline.sources.web.download import fetch, locked
from pipeline.storage import TarMember, behind_headers, disk_full_is_an_error, next_archive, tar_members

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 20

_LIST_FORMAT = 2  # increase it when the code lists members differently

_UNPACK_RATIO, _UNPACK_FREE = 200, 1 << 30  # pictures hardly compress: a .gz with a higher ratio is a bomb

_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MB

Chunks = Callable[[Path], Iterator[bytes]]


def _chunks(handle: IO[bytes]) -> Iterator[bytes]:
    while chunk := handle.read(_CHUNK):
        yield chunk


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as packed:
        yield from _chunks(cast("IO[bytes]", packed))


def _bzip2_chunks(path: Path) -> Iterator[bytes]:
    with bz2.open(path) as packed:
        yield from _chunks(cast("IO[bytes]", packed))


def _xz_chunks(path: Path) -> Iterator[bytes]:
    """Like lzma.open, with a limit on the memory that the file may demand."""
    unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    with path.open("rb") as handle:
        rest = b""
        while True:
            if unpack.eof:
                rest = (unpack.unused_data or handle.read(_CHUNK)).lstrip(b"\0")  # zeros pad a stream
                if not rest:
                    return
                unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            elif unpack.needs_input:
                rest = handle.read(_CHUNK)
                if not rest:
                    raise EOFError("the compressed file ended before its end mark")
            else:
                rest = b""
            yield unpack.decompress(rest, _CHUNK)


_COMPRESSED: dict[bytes, Chunks] = {b"\x1f\x8b": _gzip_chunks, b"BZh": _bzip2_chunks, b"\xfd7zXZ\0": _xz_chunks}


@dataclass(frozen=True)
class Archive:
    """A tar archive on this machine. `identity` names its content, independent of its path."""

    path: Path
    identity: str
    name: str  # for people: the last part of its address

    def members(self) -> pa.Table:
        """Regular files in archive order (columns name, offset, bytes, error). If names are equal, the last member counts.

        `left_out` counts the others. `error` says why a member cannot be read: unsafe_name, not_a_file, too_large. Raises
        SourceError if the archive is damaged or truncated.
        """
        import pyarrow.parquet as pq

        folder = cache_dir() / "members"
        cached = folder / f"{digest([_LIST_FORMAT, self.name, self.identity, str(self.path)], 24)}.parquet"
        with locked(folder):
            if not cached.exists():
                table = _scan(self.path, self.name)
                part = cached.with_suffix(".part")
                with disk_full_is_an_error(str(part)):
                    pq.write_table(table, part)
                part.replace(cached)
        return read_parquet(cached)

    def left_out(self) -> dict[str, int]:
        """How many members are not in `members()`, by kind: system files, and members that a later one of the same name
        replaces."""
        written = (self.members().schema.metadata or {}).get(b"left_out", b"{}")
        return {str(kind): int(count) for kind, count in json.loads(written).items()}

    def head(self, row: Mapping[str, object]) -> bytes:
        """The first bytes of a member; empty for one with an error."""
        if row["error"]:
            return b""
        with self.path.open("rb") as handle:
            handle.seek(cast("int", row["offset"]))
            return handle.read(min(cast("int", row["bytes"]), HEAD_BYTES))

    def read(self, rows: Sequence[Mapping[str, object]]) -> Iterator[bytes | None]:
        """The bytes of each row of `members()`; None for rows with an error."""
        with self.path.open("rb") as handle:
            for row in rows:
                if row["error"]:
                    yield None
                    continue
                offset, size = cast("int", row["offset"]), cast("int", row["bytes"])
                handle.seek(offset)
                data = handle.read(size)
                if len(data) != size:
                    raise SourceError(f"{self.name}: cut short at {row['name']}; fetch it again")
                yield data


def open_archive(
    *, path: str = "", url: str = "", md5: str = "", sha256: str = "", identity: str = "", options: SourceOptions
) -> Archive:
    """A local or fetched archive, checked against its checksum and, if it is compressed, unpacked to a plain tar."""
    if url:
        cached = fetch(
            url, md5=md5, sha256=sha256, identity=identity, base_url=options.base_url, offline=options.offline
        )
        found, name = Archive(cached.path, cached.identity, cached.path.name), cached.path.name
    else:
        local = Path(path).expanduser()
        if not local.is_file():
            raise SourceError(f"no archive at {path!r}; check `path` in the manifest")
        name = local.name
        found = Archive(local, _local_identity(local, md5, sha256), name)
        if identity and identity != found.identity:
            raise SourceError(f"{path}: changed since the plan was made; run the same command again to make a new plan")
    with found.path.open("rb") as handle:
        magic = handle.read(6)
    for beginning, chunks in _COMPRESSED.items():
        if magic.startswith(beginning):
            return Archive(_unpacked(found, chunks), found.identity, name)
    return found


def _local_identity(path: Path, md5: str, sha256: str) -> str:
    """The checksum, verified once for a file of this size and time; else size and time."""
    status = path.stat()
    seen = f"{status.st_size}-{status.st_mtime_ns}"
    if not (md5 or sha256):
        return seen
    algorithm, expected = ("sha256", sha256.lower()) if sha256 else ("md5", md5.lower())
    wanted = f"{algorithm}:{expected}"
    note = cache_dir() / "checked" / f"{digest([str(path.resolve()), seen, wanted], 24)}.json"
    if not note.exists():
        with path.open("rb") as handle:
            actual = hashlib.file_digest(handle, algorithm).hexdigest()
        if actual != expected:
            raise SourceError(
                f"{path}: wrong checksum: expected {algorithm} {expected}, found {actual} over {status.st_size} bytes. "
                "Fetch the file again, or put the new checksum in the manifest."
            )
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"path": str(path), "identity": wanted}))
    return wanted


def _unpacked(archive: Archive, chunks: Chunks) -> Path:
    """The plain tar of a compressed one, made once in the cache. Refuses an archive that grows to more than 200 times
    its size."""
    folder = cache_dir() / "unpacked"
    target = folder / f"{digest([archive.name, archive.identity, str(archive.path)], 24)}.tar"
    with locked(folder):
        if target.exists():
            return target
        size = archive.path.stat().st_size
        most = min(size * _UNPACK_RATIO + (64 << 20), shutil.disk_usage(folder).free - _UNPACK_FREE)
        part = target.with_suffix(".part")
        written = 0
        try:
            with part.open("wb") as out, disk_full_is_an_error(str(part)):
                for chunk in chunks(archive.path):
                    written += len(chunk)
                    if written > most:
                        raise SourceError(
                            f"{archive.name}: {size} bytes unpack to more than {most}: more than the disk has room for, or "
                            "not an archive of pictures"
                        )
                    out.write(chunk)
            part.replace(target)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, ValueError, OSError) as error:
            raise SourceError(f"{archive.name}: damaged or cut short: {error}. Fetch it again.") from error
        finally:
            part.unlink(missing_ok=True)
    return target


def _scan(path: Path, name: str) -> pa.Table:
    """Read all headers of a plain tar, once, in order."""
    import pyarrow as pa

    rows: dict[str, tuple[int, int, str | None]] = {}
    left_out: Counter[str] = Counter()
    with path.open("rb") as handle:
        start: int | None = 0
        while start is not None:  # archives may be concatenated: each has its own end mark
            end = start
            for member in tar_members(handle, name, SourceError, start):
                end = member.offset + (member.size if member.kind in ("file", "sparse") else 0)
                error = _member_error(member)
                if member.kind == "folder":
                    continue
                if is_junk(member.name) and error != "unsafe_name":
                    left_out["system files"] += 1
                    continue
                key = printable(member.name) if error else printable(safe_path(member.name) or member.name)
                if rows.pop(key, None) is not None:
                    left_out["replaced by a later member"] += 1
                rows[key] = (member.offset, member.size, f"{error}: {key}" if error else None)
            # An archive may have headers and no member: continue after them, not at them again.
            start = next_archive(handle, behind_headers(handle, start) if end == start else end)
    return pa.table(
        {
            "name": pa.array(list(rows), pa.string()),
            "offset": pa.array([row[0] for row in rows.values()], pa.int64()),
            "bytes": pa.array([row[1] for row in rows.values()], pa.int64()),
            "error": pa.array([row[2] for row in rows.values()], pa.string()),
        }
    ).replace_schema_metadata({"left_out": json.dumps(left_out)})


def _member_error(member: TarMember) -> str | None:
    if safe_path(member.name) is None:
        return "unsafe_name"
    if member.kind != "file":
        return "not_a_file"
    return "too_large" if member.size > MAX_PICTURE_BYTES else None
