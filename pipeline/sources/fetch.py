"""Cached downloads over http(s): resumed where they broke off, retried with growing waits, checked, bounded.

Reads: one address. Writes: `<cache>/files/<hash>/<name>` and, beside it, a small JSON that says what it is. A file is
in the cache whole or not at all; what was received of a broken download is kept as `<name>.part` and continued when the
server still has the same file. Does not promise to notice that a file changed on the server while `identity` or a checksum
says which one is wanted: then the cached one is the right one.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.config import cache_dir, digest
from pipeline.errors import SourceError
from pipeline.sources.patience import Broken, Patience, patiently
from pipeline.sources.transfer import check_status, note_of, part_of, read_note, receive, size_of
from pipeline.storage import disk_full_is_an_error


@dataclass(frozen=True)
class Cached:
    """A file in the cache. `identity` names its content: a checksum, else the server's ETag or date and size."""

    path: Path
    identity: str


def rebase(url: str, base_url: str) -> str:
    """`url` with scheme and host (and a path in front) from `base_url`, where that is given."""
    if not base_url:
        return url
    base, parts = urlsplit(base_url), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + parts.path, parts.query, ""))


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
                lambda: receive(
                    address, target, have.identity if have and not wanted else "", wanted, max_bytes, patience.timeout_s
                ),
                address,
                patience,
                lambda: size_of(part_of(target)),
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
        check_status(answer, address)
        return int(answer.headers.get("Content-Length") or 0)

    return patiently(ask, address, patience)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a cache folder alone: two workers that want one file fetch it once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(target: Path) -> Cached | None:
    note = read_note(note_of(target))
    if target.exists() and note.get("bytes") == str(target.stat().st_size):
        return Cached(target, note.get("identity", ""))
    return None
