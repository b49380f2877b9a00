"""Cached downloads over http(s): resumed, retried with growing waits, checked against a checksum, bounded in size.

Reads: one address. Writes: `<cache>/files/<hash>/<name>` and beside it a small JSON file with the identity of its
content. During a download the file is <name>.part, which is kept after a broken connection and continued if the server
still has the same file. A file is in the cache completely or not at all. If a checksum or an `identity` names the wanted
content, the cached file is used without asking the server for changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.config import cache_dir, digest
from pipeline.errors import BudgetError, SourceError
from pipeline.sources.web.retries import TRANSIENT_STATUS, Broken, Patience, patiently
from pipeline.storage import disk_full_is_an_error

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 16  # bytes; after a broken connection, at most this much is received twice

_CONNECT_S = 15.0


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def note_of(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def read_note(path: Path) -> dict[str, str]:
    """The JSON beside a file, with values as text; empty if it is absent or damaged."""
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def receive(address: str, target: Path, have: str, wanted: str, max_bytes: int, timeout_s: float) -> str:
    """Receive `address` into `target`. Returns the identity of its content: a checksum, else the server's ETag, or date
    and size.

    `have` is the identity of a file that is already there: if the server still has that file, nothing is received.
    Raises Broken (try again), SourceError, BudgetError.
    """
    import requests

    part = part_of(target)
    start, validator = size_of(part), read_note(note_of(part)).get("validator", "")
    headers = {"Accept-Encoding": "identity", "User-Agent": "rdmpipe"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with requests.get(address, headers=headers, stream=True, timeout=(_CONNECT_S, timeout_s)) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise Broken("the server has less of the file than was received before")
            check_status(answer, address)
            resumed = answer.status_code == 206
            known = _identity(answer, resumed)
            if have and not resumed and known == have:
                return have
            total = _write(answer, part, resumed, start, max_bytes, address)
    except requests.RequestException as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    if total is not None and size_of(part) != total:
        raise Broken(f"the connection ended after {size_of(part)} of {total} bytes")
    found = known or f"sha256:{_checksum(part, 'sha256')}"
    if wanted.startswith(("md5:", "sha256:")):
        algorithm, expected = wanted.split(":", 1)
        actual = _checksum(part, algorithm)
        if actual != expected:
            size = size_of(part)
            part.unlink()
            if resumed:
                raise Broken("the resumed file had a wrong checksum; starting again from nothing")
            raise SourceError(
                f"{address}: wrong checksum: expected {algorithm} {expected}, found {actual} over {size} bytes. The file "
                "changed or is not the one the manifest means: check the address, or put the new checksum in the manifest."
            )
        found = wanted
    note_of(part).unlink(missing_ok=True)
    note_of(target).unlink(missing_ok=True)
    size = size_of(part)
    part.replace(target)
    note_of(target).write_text(json.dumps({"url": address, "identity": found, "bytes": size}))
    return found


def _write(
    answer: requests.Response, part: Path, resumed: bool, start: int, max_bytes: int, address: str
) -> int | None:
    """Append the answer to the part file. Returns the size of the whole file if the server states it."""
    total: int | None = None
    if resumed:
        span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span.split("-")[0] != str(start):
            part.unlink(missing_ok=True)
            raise Broken(f"asked for bytes from {start}, got {span or 'an answer that does not say which'}")
        total = int(whole) if whole.isdigit() else None
    elif answer.headers.get("Content-Length", "").isdigit():
        total = int(answer.headers["Content-Length"])
    free = shutil.disk_usage(part.parent).free
    limit = max_bytes or free + (start if resumed else 0)
    if total is not None and total > limit:
        if max_bytes:
            raise SourceError(f"{address}: {total} bytes, more than the {max_bytes} that are allowed")
        raise BudgetError(
            f"{address}: {total} bytes, but {part.parent} has room for {free}. Free some space or point RDMPIPE_CACHE "
            "at a larger disk."
        )
    note_of(part).write_text(json.dumps({"validator": _validator(answer)}))
    received = start if resumed else 0
    with part.open("ab" if resumed else "wb") as out:
        for chunk in answer.iter_content(_CHUNK):
            out.write(chunk)
            received += len(chunk)
            if received > limit:
                part.unlink()
                raise SourceError(f"{address}: more than the allowed {limit} bytes; check the address")
    return total


def check_status(answer: requests.Response, address: str) -> None:
    status = answer.status_code
    if status in TRANSIENT_STATUS:
        after = answer.headers.get("Retry-After", "")
        raise Broken(f"HTTP {status} {answer.reason}", float(after) if after.isdigit() else 0.0)
    if status >= 400:
        fix = {
            401: "it needs a login",
            403: "access is refused",
            404: "there is no such file; check the address in the manifest",
            410: "it was taken down",
        }.get(status, "the server refuses it")
        raise SourceError(f"{address}: HTTP {status} {answer.reason}: {fix}")


def _validator(answer: requests.Response) -> str:
    """What If-Range may carry: a strong ETag, else the date."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _identity(answer: requests.Response, resumed: bool) -> str:
    if answer.headers.get("ETag"):
        return "etag:" + answer.headers["ETag"].removeprefix("W/").strip('"')
    size = (
        answer.headers.get("Content-Range", "").rpartition("/")[2] if resumed else answer.headers.get("Content-Length")
    )
    date = answer.headers.get("Last-Modified")
    return f"date:{date} size:{size}" if date and size else ""


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


@dataclass(frozen=True)
class Cached:
    """A file in the cache. `identity` names its content: a checksum, else the server's ETag or date and size."""

    path: Path
    identity: str


def rebase(url: str, base_url: str) -> str:
    """`url` with its scheme and host replaced by those of `base_url` (and its path prefixed), if that is given."""
    if not base_url:
        return url
    base, parts = urlsplit(base_url), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


def cached_place(address: str) -> Path:
    """Where the cache has, or would have, the file at an address."""
    name = unquote(PurePosixPath(urlsplit(address).path).name) or "file"
    return cache_dir() / "files" / digest(address, 24) / name.replace("/", "_")[-120:]


def fetch(
    url: str,
    *,
    md5: str = "",
    sha256: str = "",
    identity: str = "",
    base_url: str = "",
    offline: bool = False,
    max_bytes: int = 0,
    patience: Patience | None = None,
) -> Cached:
    """The file at `url`, from the cache or the network.

    With a checksum or an `identity` (from an earlier call) a cached file that has it is used without asking the server;
    otherwise the server is asked whether it changed. `max_bytes` refuses a larger file (0: what the disk has room for).
    Raises SourceError (gone, forbidden, wrong checksum, endless), BudgetError (too large for the disk), DiskFullError.
    """
    patience = patience or Patience()
    address = rebase(url, base_url)
    if urlsplit(address).scheme not in ("http", "https"):
        raise SourceError(f"{address}: expected an http(s) address")
    wanted = f"sha256:{sha256.lower()}" if sha256 else f"md5:{md5.lower()}" if md5 else identity
    target = cached_place(address)
    with locked(target.parent):
        have = _cached(target)
        if have and (have.identity == wanted if wanted else offline):
            return have
        if offline:
            raise SourceError(f"{address}: not in the cache ({cache_dir()}); run once without --offline")
        with disk_full_is_an_error(str(target)):
            found = patiently(
                lambda: receive(
                    address, target, have.identity if have and not wanted else "", wanted, max_bytes, patience.timeout_s
                ),
                address,
                patience,
                lambda: size_of(part_of(target)),
            )
        if identity and not (md5 or sha256) and found != identity:
            raise SourceError(
                f"{address}: changed while it was being read; run the same command again to make a new plan"
            )
    return Cached(target, found)


def remote_size(url: str, base_url: str = "", patience: Patience | None = None) -> int:
    """Bytes of the file at `url` as the server announces them; 0 if it does not say."""
    import requests

    patience = patience or Patience()
    address = rebase(url, base_url)

    def ask() -> int:
        try:
            answer = requests.head(
                address,
                headers={"Accept-Encoding": "identity"},
                timeout=patience.timeout_s,
                allow_redirects=True,
            )
        except requests.RequestException as error:
            raise Broken(str(error)) from error
        check_status(answer, address)
        return int(answer.headers.get("Content-Length") or 0)

    return patiently(ask, address, patience)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a cache folder, so that two workers that want one file fetch it once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(target: Path) -> Cached | None:
    note = read_note(note_of(target))
    if target.exists() and note.get("bytes") == str(target.stat().st_size):
        return Cached(target, note.get("identity", ""))
    return None
