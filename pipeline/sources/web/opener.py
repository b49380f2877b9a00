"""An opener for untrusted picture addresses: public ones only, limits on size, time and redirects, robots asked first.

Reads: http(s) addresses, robots.txt of their sites (once, while it is remembered). Writes nothing. It stands in for urllib's
own opener (`urllib.request.install_opener`), so that whatever calls `urlopen` in this process goes through it. Every hop of a
redirect is checked like the first address; proxies of the environment are not used: they would resolve names in our place.
Memory: one picture of at most `max_bytes` a thread. Resolving a name takes as long as the resolver lets it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pipeline.sources.web.addresses import Refused, networks, resolve_address
from pipeline.sources.web.robots import MAX_ROBOTS_BYTES, Rules, opts_out, parse_robots

AGENTS = ("rdmpipe", "img2dataset")  # robots that are told to stay away by either name do

USER_AGENT = "Mozilla/5.0 (compatible; rdmpipe/0.1; img2dataset)"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_PASSING = frozenset({500, 502, 503, 504})  # answers that a second attempt may mend

_AGAIN_S = 0.5

_SITES = 2048  # whose robots.txt is remembered at a time


@dataclass(frozen=True)
class FetchRules:
    """What is asked of every address; a manifest may say otherwise in its options. Times in seconds, sizes in bytes."""

    max_bytes: int = 20 << 20
    silence_s: float = 10.0  # without a byte
    total_s: float = 30.0  # of one address with its redirects and second attempt; a site's robots.txt has as long
    redirects: int = 5
    attempts: int = 2  # where the connection broke or the server said 5xx
    robots: bool = True
    opt_out: bool = True


@dataclass(frozen=True)
class Answer:
    """A response as `urlopen`'s callers use it."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    url: str

    def read(self) -> bytes:
        return self.body

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class _Site:
    """What one origin's robots.txt said, asked for once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None
    error: str = ""


class SafeOpener:
    """The opener. Shared by threads; `until` (time.monotonic()) ends all fetching: later addresses fail at once."""

    def __init__(self, rules: FetchRules, allow_private: Sequence[str] = (), until: float = float("inf")) -> None:
        self.rules, self.until = rules, until
        self._allowed = networks(allow_private)
        self._sites: dict[tuple[str, str], _Site] = {}
        self._lock = threading.Lock()
        self._tls = ssl.create_default_context()
        self._watched: dict[socket.socket, float] = {}
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def open(self, address: Any, data: Any = None, timeout: Any = None) -> Answer:
        """The answer to a GET. Raises Refused, whose text is `reason: detail`."""
        url = address if isinstance(address, str) else address.full_url
        deadline = min(time.monotonic() + self.rules.total_s, self.until)
        for attempt in range(1, self.rules.attempts + 1):
            try:
                return self._follow(url, deadline)
            except Refused as refused:
                passing = str(refused).startswith(("connection:", *(f"http_{status}" for status in _PASSING)))
                if not passing or attempt == self.rules.attempts or time.monotonic() + _AGAIN_S >= deadline:
                    raise
                time.sleep(_AGAIN_S)
        raise AssertionError("unreachable")

    # ---- one address and its redirects

    def _follow(self, url: str, deadline: float) -> Answer:
        for _ in range(self.rules.redirects + 1):
            parts = _split(url)
            if self.rules.robots:
                self._ask_robots(parts, deadline)
            answer = self._get(parts, deadline, self.rules.max_bytes)
            told = opts_out(answer.headers.get_all("X-Robots-Tag") or (), AGENTS) if self.rules.opt_out else ""
            if told and answer.status < 400:
                raise Refused(f"opt_out: X-Robots-Tag: {told}")
            if answer.status == 200:
                return answer
            if answer.status not in _REDIRECTS or not answer.headers.get("Location"):
                raise Refused(f"http_{answer.status}: {answer.url}")
            url = urljoin(url, answer.headers["Location"])
        raise Refused(f"too_many_redirects: more than {self.rules.redirects}")

    def _ask_robots(self, parts: SplitResult, deadline: float) -> None:
        with self._lock:
            site = self._sites.setdefault((parts.scheme, parts.netloc.lower()), _Site())
            if len(self._sites) > _SITES:
                del self._sites[next(iter(self._sites))]
        with site.lock:
            if site.rules is None and not site.error:
                try:
                    site.rules = self._robots_of(parts, min(time.monotonic() + self.rules.total_s, self.until))
                except Refused as refused:
                    site.error = str(refused)
        if site.rules is None:
            raise Refused(f"{site.error} (robots.txt)")
        if not site.rules.allows((parts.path or "/") + (f"?{parts.query}" if parts.query else "")):
            raise Refused(f"robots: {parts.netloc}/robots.txt disallows it")

    def _robots_of(self, parts: SplitResult, deadline: float) -> Rules:
        """RFC 9309, 2.3.1: an answer 4xx allows everything, a server error nothing; five redirects are followed."""
        url = f"{parts.scheme}://{parts.netloc}/robots.txt"
        for _ in range(6):
            answer = self._get(_split(url), deadline, MAX_ROBOTS_BYTES, cut=True)
            if answer.status in _REDIRECTS and answer.headers.get("Location"):
                url = urljoin(url, answer.headers["Location"])
                continue
            if answer.status >= 500 or answer.status == 429:
                raise Refused(f"robots_unreachable: HTTP {answer.status}")
            return parse_robots(answer.body.decode("utf-8", "replace"), AGENTS) if answer.status == 200 else Rules()
        return Rules()

    # ---- one request

    def _get(self, parts: SplitResult, deadline: float, most: int, cut: bool = False) -> Answer:
        """One request without redirects. The body is read for status 200 alone; `cut` keeps the beginning of a long one."""
        path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*") + (
            "?" + quote(parts.query, safe="/%:=&?~+!$,;'@()*[]") if parts.query else ""
        )
        try:
            with self._connected(parts, deadline) as connection:
                headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close"}
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                body = self._body(response, deadline, most, cut) if response.status == 200 else b""
                return Answer(response.status, response.headers, body, parts.geturl())
        except Refused:
            raise
        except (OSError, http.client.HTTPException, ValueError, UnicodeError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                raise self._too_late(deadline) from error
            if isinstance(error, ssl.SSLError):
                raise Refused(f"tls: {error}") from error
            if isinstance(error, http.client.IncompleteRead):
                raise Refused("truncated: the answer ended too early") from error
            kind = (
                "bad_answer" if isinstance(error, http.client.BadStatusLine | http.client.LineTooLong) else "connection"
            )
            raise Refused(f"{kind}: {type(error).__name__}: {error}") from error

    def _too_late(self, deadline: float) -> Refused:
        if time.monotonic() >= self.until:
            return Refused("deadline: the shard's time was up")
        over = time.monotonic() >= deadline
        return Refused(f"timeout: {f'not done after {self.rules.total_s:g} s' if over else 'silence'}")

    @contextlib.contextmanager
    def _connected(self, parts: SplitResult, deadline: float) -> Iterator[http.client.HTTPConnection]:
        """A connection to an address that was checked, closed by the watch where it is over its time."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if time.monotonic() >= deadline:
            raise self._too_late(deadline)
        found = resolve_address(host, port, self._allowed)
        sock = self._connect(found, port, deadline)
        try:
            with self._lock:
                self._watched[sock] = deadline
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            if parts.scheme == "https":
                plain, sock = sock, self._tls.wrap_socket(sock, server_hostname=host)
                with self._lock:
                    self._watched.pop(plain, None)
                    self._watched[sock] = deadline
                connection = http.client.HTTPSConnection(host, port, context=self._tls)
                connection.sock = sock
            yield connection
        finally:
            with self._lock:
                self._watched.pop(sock, None)
            sock.close()

    def _connect(self, found: list[str], port: int, deadline: float) -> socket.socket:
        last: OSError | None = None
        for address in found:
            left = min(self.rules.silence_s, deadline - time.monotonic())
            if left <= 0:
                break
            try:
                sock = socket.create_connection((address, port), timeout=left)
                sock.settimeout(self.rules.silence_s)
                return sock
            except OSError as error:
                last = error
        raise last or TimeoutError()

    def _body(self, response: http.client.HTTPResponse, deadline: float, most: int, cut: bool) -> bytes:
        announced = response.length
        if announced is not None and announced > most and not cut:
            raise Refused(f"too_large: {announced} bytes announced, at most {most}")
        body = bytearray()
        while len(body) <= most:
            if time.monotonic() >= deadline:
                raise TimeoutError()
            piece = response.read1(min(1 << 16, most + 1 - len(body)))
            if not piece:
                break
            body += piece
        if len(body) > most:
            if not cut:
                raise Refused(f"too_large: more than {most} bytes")
            del body[most:]
        elif announced is None or len(body) < announced:
            if time.monotonic() >= deadline:  # the watch ended it
                raise TimeoutError()
            if announced is not None:
                raise Refused(f"truncated: {len(body)} of {announced} bytes")
        return bytes(body)

    def _watch(self) -> None:
        """Shut sockets that are over their time: what comes a byte at a time never times out by itself."""
        while True:
            time.sleep(0.25)
            now = time.monotonic()
            with self._lock:
                late = [sock for sock, deadline in self._watched.items() if now >= deadline]
                for sock in late:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)


def _split(url: str) -> SplitResult:
    """The parts of an http(s) address, its host in ASCII. Raises Refused."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https"):
            raise Refused(f"bad_url: expected http or https, found {parts.scheme or 'no scheme'!r}")
        if not parts.hostname or parts.port == 0:
            raise Refused("bad_url: no host")
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    except (ValueError, UnicodeError) as error:
        raise Refused(f"bad_url: {error}") from error
    netloc = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
    return parts._replace(netloc=netloc)
