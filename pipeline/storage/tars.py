"""The headers of tar archives, read with bounds: the list of members and the positions of their bytes.

Reads: an open, seekable file. Writes nothing, and reads no member's bytes. Understands the v7, ustar, GNU and pax formats as
Python's tarfile does, and gives the same names, offsets and sizes for every valid archive. Unlike tarfile it raises for a
damaged header instead of treating it as the end, never moves backwards, and never holds more than `MOST_HEADER` bytes of a
header. Links, devices and sparse files are listed with their own kinds and are never followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO

from pipeline.errors import RdmpipeError

BLOCK = 512

MOST_HEADER = 1 << 20  # bytes of one long name or pax header

MOST_NAME = 1 << 14  # bytes of a member's name; file systems allow 4,096

MOST_NESTED = 32  # headers that describe one member

MOST_MEMBERS = 20_000_000

_FILES, _FOLDER = b"07\0", b"5"

_WITHOUT_BYTES = b"123456"  # links, devices, folders and pipes: their size field does not count bytes in the archive

_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"

_PAX, _PAX_GLOBAL = (b"x", b"X"), b"g"


@dataclass(frozen=True)
class TarMember:
    """One member. kind: file | folder | sparse | other (links, devices, pipes, unknown types). Bytes: `size` from `offset`."""

    name: str  # UTF-8; other bytes are surrogate escapes, as in Python's file names
    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Header:
    name: str
    type: bytes
    size: int
    extended: bool  # old GNU sparse: more blocks of its map follow


def tar_members(handle: IO[bytes], where: str, error: type[RdmpipeError], start: int = 0) -> Iterator[TarMember]:
    """The members of an uncompressed tar that begins at byte `start`, in order. The caller may seek in the file between
    two of them.

    Raises `error` (its text begins with `where`) for a damaged or truncated archive and for headers beyond the limits.
    """
    end = handle.seek(0, 2)
    place, count = start, 0
    while True:
        own: dict[str, str] = {}
        long_name = ""
        first = place
        for _ in range(MOST_NESTED):
            header = _header(handle, place, end, where, error)
            if header is None:
                return
            place += BLOCK
            if header.type not in (_LONG_NAME, _LONG_LINK, _PAX_GLOBAL, *_PAX):
                break
            body = _body(handle, place, end, header, where, error)
            place += _padded(header.size)
            if header.type == _LONG_NAME:
                long_name = _text(body)
            elif header.type in _PAX:  # a global header does not describe a single member
                own.update(_pax(body, f"{where}: header at byte {place}", error))
        else:
            raise error(f"{where}: damaged: more than {MOST_NESTED} headers for one member at byte {first}")
        while header.extended:
            block = _block(handle, place, end, header.name, where, error)
            header, place = replace(header, extended=block[504] != 0), place + BLOCK
        member = _member(header, long_name, own, place, where, error)
        has_bytes = header.type not in _WITHOUT_BYTES
        if has_bytes and member.size > end - place:
            raise error(
                f"{where}: damaged or cut short: {_shown(member.name)} has {member.size} bytes, and {end - place} are left. "
                "Fetch the archive again"
            )
        count += 1
        if count > MOST_MEMBERS:
            raise error(f"{where}: more than {MOST_MEMBERS:,} members; split the archive")
        yield member
        place += _padded(member.size) if has_bytes else 0


def read_member(handle: IO[bytes], member: TarMember, where: str, error: type[RdmpipeError]) -> bytes:
    """The bytes of a member of `tar_members`. Raises `error` if the file is now shorter."""
    handle.seek(member.offset)
    data = handle.read(member.size)
    if len(data) != member.size:
        raise error(f"{where}: cut short at {_shown(member.name)}. Fetch the archive again")
    return data


def next_archive(handle: IO[bytes], place: int) -> int | None:
    """Where another archive begins after `place`, the end of an archive's last member, as after `cat a.tar b.tar`.

    None if zeros follow, or anything that is not a header.
    """
    place = handle.seek(_padded(place))
    while chunk := handle.read(BLOCK << 11):
        content = chunk.lstrip(b"\0")
        if content:
            place += (len(chunk) - len(content)) // BLOCK * BLOCK
            handle.seek(place)
            block = handle.read(BLOCK)
            return place if len(block) == BLOCK and _sums_up(block) else None
        place += len(chunk)
    return None


def behind_headers(handle: IO[bytes], place: int) -> int:
    """The first block of zeros at or after `place`, for an archive with headers and no member; else the file's end."""
    handle.seek(place)
    while block := handle.read(BLOCK):
        if not block.strip(b"\0"):
            break
        place += len(block)
    return place


def _shown(name: str) -> str:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _block(handle: IO[bytes], place: int, end: int, name: str, where: str, error: type[RdmpipeError]) -> bytes:
    handle.seek(place)
    block = handle.read(BLOCK)
    if len(block) != BLOCK:
        raise error(f"{where}: damaged or cut short at {_shown(name)}: {end} bytes. Fetch the archive again")
    return block


def _header(handle: IO[bytes], place: int, end: int, where: str, error: type[RdmpipeError]) -> _Header | None:
    """The header at `place`; None at the end mark, a block of zeros."""
    handle.seek(place)
    block = handle.read(BLOCK)
    if len(block) == BLOCK and not block.strip(b"\0"):
        return None
    if place == 0 and (len(block) < BLOCK or not _sums_up(block)):
        head = block[:256].lstrip().lower()
        found = "an HTML page" if head.startswith((b"<!doctype html", b"<html")) else f"begins with {block[:16]!r}"
        raise error(f"{where}: not a whole tar archive ({end} bytes): {found}. Fetch it again, or check its address")
    if len(block) < BLOCK or not _sums_up(block):
        raise error(
            f"{where}: damaged or cut short: no header and no end mark at byte {place}. Members behind it would be lost "
            "without notice: fetch the archive again"
        )
    name, prefix, kind = _text(block[:100]), _text(block[345:500]), block[156:157]
    size = _number(block[124:136])
    if size is None or size < 0:
        found = "is not a number" if size is None else f"is {size}"
        raise error(f"{where}: damaged: the size of member {_shown(name)} {found} (header at byte {place})")
    if kind == b"\0" and name.endswith("/"):
        kind = _FOLDER
    if prefix and kind not in (_LONG_NAME, _LONG_LINK, _SPARSE):
        name = f"{prefix}/{name}"
    return _Header(name, kind, size, kind == _SPARSE and block[482] != 0)


def _sums_up(block: bytes) -> bool:
    """Whether the checksum fits the header: the sum of its bytes as unsigned or, in some old programs, as signed numbers."""
    wanted = _number(block[148:156])
    rest = block[:148] + b" " * 8 + block[156:]
    return wanted == sum(rest) or wanted == sum(byte - 256 if byte > 127 else byte for byte in rest)


def _number(field: bytes) -> int | None:
    """A number field: octal digits, or base 256 if the first bit is set. None: neither."""
    if field[0] in (0o200, 0o377):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0o200 else value - (256 ** (len(field) - 1))
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _body(handle: IO[bytes], place: int, end: int, header: _Header, where: str, error: type[RdmpipeError]) -> bytes:
    """The bytes of a long name or pax header."""
    if header.size > min(MOST_HEADER, end - place):
        raise error(
            f"{where}: damaged: the header {_shown(header.name)} at byte {place - BLOCK} has {header.size} bytes; at most "
            f"{MOST_HEADER} are read, and {end - place} are left"
        )
    handle.seek(place)
    return handle.read(header.size)


def _pax(body: bytes, where: str, error: type[RdmpipeError]) -> dict[str, str]:
    """pax records, each `LENGTH KEY=VALUE\\n`; only those that describe the member."""
    found: dict[str, str] = {}
    place = 0
    while place < len(body) and body[place] != 0:
        space = body.find(b" ", place, place + 10)
        digits = body[place : max(place, space)]
        length = int(digits) if re.fullmatch(rb"[0-9]+", digits) else 0
        record = body[space + 1 : place + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 2 or place + length > len(body) or not equals or not record.endswith(b"\n"):
            raise error(f"{where}: damaged: a pax record cannot be read")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        place += length
    return found


def _member(
    header: _Header, long_name: str, pax: Mapping[str, str], place: int, where: str, error: type[RdmpipeError]
) -> TarMember:
    name, size = long_name or header.name, header.size
    sparse = header.type == _SPARSE or any(key.startswith("GNU.sparse.") for key in pax)
    if pax.get("path"):
        name = pax["path"].rstrip("/")
    if pax.get("GNU.sparse.name"):
        name = pax["GNU.sparse.name"]
    if len(name) > MOST_NAME:
        raise error(
            f"{where}: damaged: the name of the member at byte {place} has {len(name):,} characters: {_shown(name)}"
        )
    if "size" in pax:
        if not re.fullmatch("[0-9]{1,19}", pax["size"]):
            raise error(f"{where}: damaged: the size of member {_shown(name)} is {pax['size'][:40]!r}")
        size = int(pax["size"])
    if header.type == _FOLDER:
        return TarMember(name.rstrip("/"), "folder", place, 0)
    return TarMember(name, "sparse" if sparse else "file" if header.type in _FILES else "other", place, size)
