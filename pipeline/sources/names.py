"""What counts as a picture file, which names are safe, and what a file's first bytes say it is.

Reads and writes nothing. Does not decode: a file that begins like a JPEG may still be cut short, which embedding finds.
"""

from __future__ import annotations

from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})

MAX_PICTURE_BYTES = 256 << 20  # a larger file is a failed row, so that one row cannot take a worker's memory

_JUNK_NAMES = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


def is_junk(path: str) -> bool:
    """Files that operating systems leave behind (AppleDouble `._x`, `__MACOSX`, hidden files). Never rows."""
    return any(
        part in _JUNK_NAMES or (part.startswith(".") and part not in (".", "..")) for part in PurePosixPath(path).parts
    )


def is_picture(path: str) -> bool:
    """True where the name's suffix is one of `IMAGE_SUFFIXES`."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def safe_path(path: str) -> str | None:
    """The path normalised (`./a//b` is `a/b`), or None where it is absolute or climbs out with `..`."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        return None
    return str(pure)


def printable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are not are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sniff(data: bytes) -> tuple[str, str | None]:
    """(extension, None) of a picture file's bytes, or ("", `reason: detail`) where they are not one."""
    if not data:
        return "", "empty: zero bytes"
    head = data[:32]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg", None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp", None
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif", None
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tif", None
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "avif", None
    if head.startswith(b"BM") and len(data) >= 26:
        return "bmp", None
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "", "not_an_image: an HTML page"
    if text.startswith((b"<?xml", b"<svg")):
        return "", "not_an_image: XML or SVG"
    return "", f"not_an_image: unknown format, begins with {head[:8].hex()}"
