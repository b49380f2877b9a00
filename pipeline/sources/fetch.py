"""Cached downloads over http(s): resumed where they broke off, retried with growing waits, checked, bounded.

Reads: one address. Writes: `<cache>/files/<hash>/<name>` and, beside it, a small JSON that says what it is. A file is
in the cache whole or not at all; what was received of a broken download is kept as `<name>.part` and continued when the
server still has the same file. Does not promise to notice that a file changed on the server while `identity` or a checksum
says which one is wanted: then the cached one is the right one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.config import cache_dir, digest
from pipeline.errors import BudgetError, SourceError
from pipeline.storage import disk_full_is_an_error

if TYPE_CHECKING:
    import requests

T = TypeVar("T")

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Patience:
    """How long to keep trying: attempts in a row that bring nothing new, the first wait (doubled each time), silence."""

    attempts: int = 5
    first_wait_s: float = 0.5
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Cached:
    """A file in the cache. `identity` names its content: a checksum, else the server's ETag or date and size."""

    path: Path
    identity: str


class Broken(Exception):
    """An attempt that failed in a way another attempt may mend."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def rebase(url: str, base_url: str) -> str:
    """`url` with scheme and host (and a path in front) from `base_url`, where that is given."""
    if not base_url:
        return url
    base, parts = urlsplit(base_url), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


def patiently(action: Callable[[], T], what: str, patience: Patience, progress: Callable[[], int] = lambda: 0) -> T:
    """Run `action` until it does not raise Broken. An attempt that made progress does not count against the attempts."""
    tried, reached = 0, progress()
    while True:
        try:
            return action()
        except Broken as error:
            tried = 1 if progress() > reached else tried + 1
            reached = max(reached, progress())
            if tried >= patience.attempts:
                raise SourceError(
                    f"{what}: gave up after {tried} attempt(s): {error}. What was received is kept: check the connection "
                    "and run the same command again."
                ) from error
            wait = patience.first_wait_s * 2 ** (tried - 1) * random.uniform(0.75, 1.25)
            time.sleep(min(max(wait, error.wait_s), 120.0))


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
    folder = cache_dir() / "files" / digest(address, 24)
    name = unquote(PurePosixPath(urlsplit(address).path).name) or "file"
    target = folder / name.replace("/", "_")[-120:]
    with locked(folder):
        have = _cached(target)
        if have and (have.identity == wanted if wanted else offline):
            return have
        if offline:
            raise SourceError(f"{address}: not in the cache ({cache_dir()}); run once without --offline")
        with disk_full_is_an_error(str(target)):
            found = patiently(
                lambda: _receive(address, target, have if not wanted else None, wanted, max_bytes, patience),
                address,
                patience,
                lambda: _size(_part(target)),
            )
        if identity and not (md5 or sha256) and found != identity:
            raise SourceError(f"{address}: changed while it was being read; run the same command again to plan anew")
    return Cached(target, found)


def remote_size(url: str, base_url: str = "", patience: Patience | None = None) -> int:
    """Bytes of the file at `url` as the server announces them; 0 where it does not say."""
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
        _check_status(answer, address)
        return int(answer.headers.get("Content-Length") or 0)

    return patiently(ask, address, patience)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a cache folder alone: two workers that want one file fetch it once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _read_note(path: Path) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _cached(target: Path) -> Cached | None:
    note = _read_note(_note(target))
    if target.exists() and note.get("bytes") == str(target.stat().st_size):
        return Cached(target, note.get("identity", ""))
    return None


def _receive(address: str, target: Path, have: Cached | None, wanted: str, max_bytes: int, patience: Patience) -> str:
    """One attempt: ask for what is missing, append it, check the whole, put it in place. Returns its identity."""
    import requests

    part = _part(target)
    start, validator = _size(part), _read_note(_note(part)).get("validator", "")
    headers = {"Accept-Encoding": "identity", "User-Agent": "rdmpipe"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        with requests.get(address, headers=headers, stream=True, timeout=(15.0, patience.timeout_s)) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                raise Broken("the server has less of the file than was received before")
            _check_status(answer, address)
            resumed = answer.status_code == 206
            known = _identity(answer, resumed)
            if have and not resumed and known and known == have.identity:
                return have.identity
            total = _write(answer, part, resumed, start, max_bytes, address)
    except requests.RequestException as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    if total is not None and _size(part) != total:
        raise Broken(f"the connection ended after {_size(part)} of {total} bytes")
    found = known or f"sha256:{_checksum(part, 'sha256')}"
    if wanted.startswith(("md5:", "sha256:")):
        algorithm, expected = wanted.split(":", 1)
        actual = _checksum(part, algorithm)
        if actual != expected:
            size = _size(part)
            part.unlink()
            if resumed:
                raise Broken("the resumed file had a wrong checksum; starting again from nothing")
            raise SourceError(
                f"{address}: wrong checksum: expected {algorithm} {expected}, found {actual} over {size} bytes. The file "
                "changed or is not the one the manifest means: check the address, or put the new checksum in the manifest."
            )
        found = wanted
    _note(part).unlink(missing_ok=True)
    _note(target).unlink(missing_ok=True)
    size = _size(part)
    part.replace(target)
    _note(target).write_text(json.dumps({"url": address, "identity": found, "bytes": size}))
    return found


def _write(
    answer: requests.Response, part: Path, resumed: bool, start: int, max_bytes: int, address: str
) -> int | None:
    """Append the answer to the part file. Returns the size the whole should have, where the server says so."""
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
    part.with_name(part.name + ".json").write_text(json.dumps({"validator": _validator(answer)}))
    received = start if resumed else 0
    with part.open("ab" if resumed else "wb") as out:
        for chunk in answer.iter_content(_CHUNK):
            out.write(chunk)
            received += len(chunk)
            if received > limit:
                raise SourceError(f"{address}: went on after {limit} bytes, more than are allowed; check the address")
    return total


def _check_status(answer: requests.Response, address: str) -> None:
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
