"""Names and first bytes of files: which files are pictures, and which names are safe.

Reads and writes nothing. Does not decode: a file that begins like a JPEG may still be truncated, which embedding detects.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from pipeline.images import format_of, reads_format
from pipeline.storage import is_litter

# Files with these suffixes are rows. Some formats cannot be decoded: those are failed rows with that reason.
_DECODED = "jpg jpeg jpe jfif jif pjpeg pjp png apng webp gif bmp dib tif tiff avif avifs jp2 j2k j2c jpc jpf jpx jpm"
_NETPBM = "ppm pgm pbm pnm pfm"
_OTHER_PICTURES = "heic heif hif jxl svg psd tga ico eps exr hdr jxr cr2 nef arw dng"

IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_DECODED} {_NETPBM} {_OTHER_PICTURES}".split())

# Files with these suffixes are never rows and are not opened. Any other file is a row if its first bytes are a picture's.
_TEXTS = (
    "txt csv tsv json jsonl ndjson md html htm xml xmp pdf py sh log yaml yml toml ini cfg doc docx xls xlsx ppt pptx"
)
_ARCHIVES = "zip tar tgz gz bz2 xz zst 7z rar"
_TABLES = "db sqlite npy npz parquet feather arrow index md5 sha1 sha256 cls pth pt safetensors pkl pickle"
_MEDIA = "mp3 wav mp4 mov avi mkv webm"

_OTHER_SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_TEXTS} {_ARCHIVES} {_TABLES} {_MEDIA}".split())

HEAD_BYTES = 512  # that are read of a file to see whether it is a picture

MAX_PICTURE_BYTES = 256 << 20  # a larger file is a failed row, so that one row cannot take a worker's memory


def is_junk(path: str) -> bool:
    """Files that operating systems leave behind (AppleDouble `._x`, `__MACOSX`, hidden files). Never rows."""
    return any(
        is_litter(part) or (part.startswith(".") and part not in (".", "..")) for part in PurePosixPath(path).parts
    )


def is_picture(path: str) -> bool:
    """True if the name's suffix is one of `IMAGE_SUFFIXES`."""
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def is_row(path: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is a row of its source: by its suffix, or if that is unknown, by its first bytes."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    return looks_like_a_picture(head())


def kind_of_name(path: str) -> str:
    """The kind under which a left-out file is counted: its suffix, `system files`, or `no suffix`."""
    if is_junk(path):
        return "system files"
    return PurePosixPath(path).suffix.lower() or "no suffix"


def same_name(name: str) -> str:
    """A file name in NFC: macOS writes accents as separate characters (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def safe_path(path: str) -> str | None:
    """The path normalised (`./a//b` is `a/b`), or None if it is absolute or climbs out with `..`."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        return None
    return str(pure)


def printable(name: str) -> str:
    """A file name as valid UTF-8: other bytes are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")

_TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF

# brand of an ISO base media file -> extension, and the decoder's name for the format
_BRANDS = {b"avif": "avif", b"avis": "avif"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"), "heic"
)

_DECODERS = {"heic": ("HEIF", "HEIC"), "jxl": ("JXL", "JPEG XL")}  # formats that need a plugin

# Picture formats that are not decoded, by their first bytes.
_NOT_DECODED = {
    b"8BPS": "a Photoshop document",
    b"\0\0\1\0": "an icon (ICO)",
    b"%!PS": "PostScript or EPS",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"II\xbc\x01": "JPEG XR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"DDS ": "DirectDraw (DDS)",
    b"%PDF": "a PDF document",
    b"PF\n": "PFM in colour",
    b"P7\n": "PAM",
    b"\x59\xa6\x6a\x95": "Sun raster",
}

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # else the format's name


def sniff(data: bytes) -> tuple[str, str | None]:
    """(extension, None) for a picture file's bytes, or ("", `reason: detail`) if they cannot be decoded."""
    if not data:
        return "", "empty: zero bytes"
    extension = _known(data)
    if extension in _DECODERS:
        decoder, name = _DECODERS[extension]
        if not reads_format(decoder):
            return "", f"unsupported_format: {name}; `pip install 'rdmpipe[formats]'` adds it"
    if extension:
        return extension, None
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "", "not_an_image: an HTML page"
    if text.startswith((b"<?xml", b"<svg")):
        return "", "not_an_image: XML or SVG"
    for beginning, name in _NOT_DECODED.items():
        if data.startswith(beginning):
            return "", f"unsupported_format: {name}"
    if found := format_of(data):  # a format that the decoder reads is never refused here
        return _EXTENSIONS.get(found, found.lower()), None
    return "", f"not_an_image: unknown format, begins with {data[:8].hex()}"


def looks_like_a_picture(head: bytes) -> bool:
    """Whether a file with these first bytes has a format that `sniff` recognises."""
    return bool(_known(head)) or head.lstrip()[:4].lower() == b"<svg"


def _known(data: bytes) -> str:
    """The extension for these first bytes; empty if they are unknown."""
    head = data[:HEAD_BYTES]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(_TIFF):
        return "tif"
    if head.startswith(_JPEG2000):
        return "jp2"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "jxl"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "")
    if head.startswith(b"BM") and len(data) >= 26:
        return "bmp"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "ppm"
    return ""
