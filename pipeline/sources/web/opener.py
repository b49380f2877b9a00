"""An opener for untrusted picture addresses: public addresses only, limits on size, time and redirects, robots rules first.

Reads: http(s) addresses; robots.txt and tdmrep.json of their sites, which are cached. Writes nothing. Every hop
of a redirect is checked like the first address. Proxies from the environment are not used, because they would resolve names
themselves. A connection stays open for further pictures of its host, and goes to the address that was checked when it was
made. Memory: one picture of at most `max_bytes` for each thread. The time for resolving a name is not limited.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pipeline.sources.web.addresses import Refused, networks, resolve_address
from pipeline.sources.web.robots import MAX_ROBOTS_BYTES, Rules, opts_out, parse_robots
from pipeline.sources.web.tdm import MAX_TDM_BYTES, TDM_PATH, Reservations, parse_tdm, reserved_by_header

AGENTS = ("rdmpipe", "img2dataset")  # a rule for either name is followed

REDIRECTS = frozenset({301, 302, 303, 307, 308})

PASSING = frozenset({500, 502, 503, 504})  # status codes after which a second attempt may succeed

AGAIN_S = 0.5

ASKS_TOO_MUCH = "host_refused: "  # prefix of the reason of a site that is set aside

_ASCII = "".join(map(chr, range(33, 127)))

_BODILESS = frozenset({204, 304})  # a server that sends a body with these would put it before the next answer

_SITES = 2048  # number of sites whose robots.txt is cached

_IDLE_S = 15.0  # how long an idle connection is reused: servers close them after about that time


@dataclass(frozen=True)
class FetchRules:
    """Limits for every address; a manifest may set others in its options. Times in seconds, sizes in bytes."""

    max_bytes: int = 20 << 20
    silence_s: float = 10.0  # without receiving a byte
    total_s: float = 30.0  # for one address with its redirects and second attempt; also for a site's robots.txt
    redirects: int = 5
    attempts: int = 2  # if the connection broke or the answer was 5xx
    robots: bool = True
    opt_out: bool = True  # follow X-Robots-Tag and reservations for text and data mining
    connections: int = 2  # to one host at a time, by all processes of this machine together
    pause_s: float = 0.05  # between requests to one host; longer while the host asks for it
    refusals: int = 8  # after this many in a row, a host is set aside
    most_wait_s: float = 300.0  # a host that asks for a longer pause is set aside
    contact: str = ""  # address or page of the operator, for the User-Agent; empty: RDMPIPE_CONTACT

    def user_agent(self) -> str:
        """The User-Agent of requests: the project and a contact."""
        contact = self.contact or os.environ.get("RDMPIPE_CONTACT", "")
        told = f"; contact: {contact}" if contact else ""
        return "".join(c for c in f"Mozilla/5.0 (compatible; rdmpipe/0.1; img2dataset{told})" if " " <= c <= "~")


@dataclass(frozen=True)
class Answer:
    """A response with the methods that callers of `urlopen` use."""

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
    """The rules in one origin's robots.txt and tdmrep.json, requested once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None
    reserved: Reservations = field(default_factory=Reservations)
    error: str = ""


@dataclass
class _Connection:
    """An open connection to an address that was checked."""

    http: http.client.HTTPConnection
    sock: socket.socket
    used: float  # time.monotonic() of the last answer


class SafeOpener:
    """The opener. Shared by threads; `until` (time.monotonic()) ends all fetching: later addresses fail at once."""

    def __init__(self, rules: FetchRules, allow_private: Sequence[str] = (), until: float = float("inf")) -> None:
        self.rules, self.until = rules, until
        self._allowed = networks(allow_private)
        self._sites: dict[tuple[str, str], _Site] = {}
        self._lock = threading.Lock()
        self._tls = ssl.create_default_context()
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}
        self._watched: dict[socket.socket, float] = {}
        self._agent = rules.user_agent()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def open(self, address: str | urllib.request.Request, data: object = None, timeout: object = None) -> Answer:
        """The answer to a GET. Raises Refused, whose text is `reason: detail`."""
        url = address if isinstance(address, str) else address.full_url
        deadline = self._deadline()
        for attempt in range(1, self.rules.attempts + 1):
            try:
                return self._follow(url, deadline)
            except Refused as refused:
                if not may_pass(refused) or attempt == self.rules.attempts or time.monotonic() + AGAIN_S >= deadline:
                    raise
                time.sleep(AGAIN_S)
        raise AssertionError("unreachable")

    def prepare(self, url: str) -> float:
        """Read the rules of an address's site, unless they are known. Returns its Crawl-delay in seconds. Raises Refused."""
        if not (self.rules.robots or self.rules.opt_out):
            return 0.0
        site = self._site(_split(url))
        return site.rules.delay_s if site.rules else 0.0

    def visit(self, url: str, deadline: float) -> Answer:
        """The answer to one GET, with any status, if the site's rules allow the request. Raises Refused."""
        parts = _split(url)
        self._ask_site(parts)
        answer = self._get(parts, deadline, self.rules.max_bytes)
        if self.rules.opt_out and answer.status < 400:
            told = opts_out(answer.headers.get_all("X-Robots-Tag") or (), AGENTS)
            if told:
                raise Refused(f"opt_out: X-Robots-Tag: {told}")
            if reserved_by_header(answer.headers.get_all("tdm-reservation") or ()):
                raise Refused("tdm: the header tdm-reservation reserves it")
        return answer

    # ---- one address and its redirects

    def _follow(self, url: str, deadline: float) -> Answer:
        for _ in range(self.rules.redirects + 1):
            answer = self.visit(url, deadline)
            if answer.status == 200:
                return answer
            moved = moved_to(answer)
            if not moved:
                raise Refused(f"http_{answer.status}: {answer.url}")
            url = moved
        raise Refused(f"too_many_redirects: more than {self.rules.redirects}")

    def _ask_site(self, parts: SplitResult) -> None:
        """Raise Refused if the site's robots.txt or tdmrep.json excludes a path."""
        if not (self.rules.robots or self.rules.opt_out):
            return
        site = self._site(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self.rules.robots:
            if site.rules is None:
                raise Refused(f"{site.error} (robots.txt)")
            if not site.rules.allows(path):
                raise Refused(f"robots: {parts.netloc}/robots.txt disallows it")
        if self.rules.opt_out and site.reserved.covers(path):
            raise Refused(f"tdm: {parts.netloc}{TDM_PATH} reserves it")

    def _site(self, parts: SplitResult) -> _Site:
        with self._lock:
            site = self._sites.setdefault((parts.scheme, parts.netloc.lower()), _Site())
            if len(self._sites) > _SITES:
                del self._sites[next(iter(self._sites))]
        with site.lock:
            if site.rules is None and not site.error:
                try:
                    rules = self._robots_of(parts, self._deadline()) if self.rules.robots else Rules()
                    pause = max(rules.delay_s, self.rules.pause_s)
                    if pause > self.rules.most_wait_s:
                        raise Refused(f"{ASKS_TOO_MUCH}{parts.netloc} asks for {pause:.0f} s between requests")
                    if self.rules.robots:
                        self._rest_a_while(pause)
                    if self.rules.opt_out:
                        site.reserved = self._tdm_of(parts, self._deadline())
                        self._rest_a_while(pause)
                    site.rules = rules
                except Refused as refused:
                    site.error = str(refused)
        return site

    def _deadline(self) -> float:
        return min(time.monotonic() + self.rules.total_s, self.until)

    def _rest_a_while(self, seconds: float) -> None:
        """Wait between two requests to a site."""
        time.sleep(max(0.0, min(seconds, self.until - time.monotonic())))

    def _robots_of(self, parts: SplitResult, deadline: float) -> Rules:
        """RFC 9309, 2.3.1: an answer 4xx allows everything, a server error allows nothing; five redirects are followed."""
        answer = self._read_small(f"{parts.scheme}://{parts.netloc}/robots.txt", deadline, MAX_ROBOTS_BYTES)
        if answer is None:
            return Rules()
        if answer.status >= 500 or answer.status == 429:
            raise Refused(f"robots_unreachable: HTTP {answer.status}")
        return parse_robots(answer.body.decode("utf-8", "replace"), AGENTS) if answer.status == 200 else Rules()

    def _tdm_of(self, parts: SplitResult, deadline: float) -> Reservations:
        """The reservations in /.well-known/tdmrep.json; none if the file is missing or cannot be read."""
        try:
            answer = self._read_small(f"{parts.scheme}://{parts.netloc}{TDM_PATH}", deadline, MAX_TDM_BYTES)
        except Refused:
            return Reservations()
        if answer is None or answer.status != 200:
            return Reservations()
        return parse_tdm(answer.body.decode("utf-8", "replace"))

    def _read_small(self, url: str, deadline: float, most: int) -> Answer | None:
        """A small file of the site, after at most five redirects; None if there are more."""
        for _ in range(6):
            answer = self._get(_split(url), deadline, most, cut=True)
            moved = moved_to(answer)
            if not moved:
                return answer
            url = moved
        return None

    # ---- one request

    def _get(self, parts: SplitResult, deadline: float, most: int, cut: bool = False) -> Answer:
        """One request without redirects. The body is read only for status 200; `cut` keeps the beginning of a long one."""
        try:
            return self._exchange(parts, _request_path(parts), deadline, most, cut)
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

    def _exchange(self, parts: SplitResult, path: str, deadline: float, most: int, cut: bool) -> Answer:
        """Send one request and read its answer, over an idle connection if there is one."""
        place = (parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        connection = self._idle_connection(place)
        is_used = connection is not None
        while True:
            if connection is None:
                connection = self._new_connection(parts.scheme, place[1], place[2], deadline)
            keep = False
            with self._lock:
                self._watched[connection.sock] = deadline
            try:
                connection.http.request(
                    "GET",
                    path,
                    headers={"User-Agent": self._agent, "Accept-Encoding": "identity", "Host": parts.netloc},
                )
                response = connection.http.getresponse()
                is_used = False
                body = self._body(response, deadline, most, cut) if response.status == 200 else self._rest(response)
                if response.length == 0:
                    response.close()  # it was read to its end, which http.client's read1 does not notice
                keep = response.isclosed() and not response.will_close and response.status not in _BODILESS
                return Answer(response.status, response.headers, body, parts.geturl())
            except ConnectionError:
                if not is_used or time.monotonic() >= deadline:
                    raise
                is_used = False  # the server closed the idle connection: once more over a new one
            finally:
                with self._lock:
                    self._watched.pop(connection.sock, None)
                    if keep:
                        connection.used = time.monotonic()
                        self._idle.setdefault(place, []).append(connection)
                if not keep:
                    connection.sock.close()
            connection = None

    def _idle_connection(self, place: tuple[str, str, int]) -> _Connection | None:
        with self._lock:
            waiting = self._idle.get(place, [])
            while waiting:
                connection = waiting.pop()
                if time.monotonic() - connection.used < _IDLE_S:
                    return connection
                connection.sock.close()
            return None

    def _new_connection(self, scheme: str, host: str, port: int, deadline: float) -> _Connection:
        """A connection to an address that was checked. Raises Refused, OSError."""
        if time.monotonic() >= deadline:
            raise self._too_late(deadline)
        sock = self._connect(resolve_address(host, port, self._allowed), port, deadline)
        if scheme == "https":
            with self._lock:
                self._watched[sock] = deadline
            plain = sock
            try:
                sock = self._tls.wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
            finally:
                with self._lock:
                    self._watched.pop(plain, None)
        made = http.client.HTTPConnection(host, port)
        made.auto_open = 0  # a closed connection is an error here, not a reason to connect unchecked
        made.sock = sock
        return _Connection(made, sock, time.monotonic())

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

    @staticmethod
    def _rest(response: http.client.HTTPResponse) -> bytes:
        """Read a short unwanted body, so that the connection can be used again; do not read a long one."""
        if response.length is not None and response.length <= 1 << 16:
            response.read()
        return b""

    def _body(self, response: http.client.HTTPResponse, deadline: float, most: int, cut: bool) -> bytes:
        announced = response.length
        if announced is not None and announced > most and not cut:
            raise Refused(f"too_large: {announced} bytes announced, at most {most}")
        if announced is None or announced > most:
            body = self._pieces(response, deadline, most)
        else:  # in one call: the watch ends a body that arrives too slowly
            body = response.read(announced) if announced else b""
        if len(body) > most:
            if not cut:
                raise Refused(f"too_large: more than {most} bytes")
            body = body[:most]
        elif announced is None or len(body) < announced:
            if time.monotonic() >= deadline:  # the watch ended it
                raise TimeoutError()
            if announced is not None:
                raise Refused(f"truncated: {len(body)} of {announced} bytes")
        return body

    @staticmethod
    def _pieces(response: http.client.HTTPResponse, deadline: float, most: int) -> bytes:
        """A body of unknown length: at most one byte more than `most`."""
        body = bytearray()
        while len(body) <= most:
            if time.monotonic() >= deadline:
                raise TimeoutError()
            piece = response.read1(min(1 << 16, most + 1 - len(body)))
            if not piece:
                break
            body += piece
        return bytes(body)

    def _watch(self) -> None:
        """Shut sockets that exceed their time limit: a body that arrives byte by byte never times out by itself."""
        while True:
            time.sleep(0.25)
            now = time.monotonic()
            with self._lock:
                late = [sock for sock, deadline in self._watched.items() if now >= deadline]
                for sock in late:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)


def may_pass(refused: Refused) -> bool:
    """Whether a second attempt at an address may succeed."""
    return str(refused).startswith(("connection:", *(f"http_{status}" for status in PASSING)))


def moved_to(answer: Answer) -> str:
    """The address that a redirect leads to; empty for another answer. Some servers send it as raw UTF-8."""
    location = answer.headers.get("Location") or ""
    if answer.status not in REDIRECTS or not location:
        return ""
    with contextlib.suppress(UnicodeEncodeError):
        raw = location.encode("latin-1")  # http.client decodes headers as Latin-1
        try:
            location = raw.decode("utf-8")
        except UnicodeDecodeError:  # another encoding: keep the server's bytes
            location = quote(raw, safe=_ASCII)
    return urljoin(answer.url, location)


def host_of(url: str) -> str:
    """The host of an address, with its port if that is not the default: the key of limits. Raises Refused."""
    parts = _split(url)
    usual = {"http": 80, "https": 443}[parts.scheme]
    return (parts.hostname or "") + ("" if parts.port in (None, usual) else f":{parts.port}")


def _request_path(parts: SplitResult) -> str:
    """The path and query of an address for a request line."""
    query = "?" + quote(parts.query, safe="/%:=&?~+!$,;'@()*[]") if parts.query else ""
    return quote(parts.path or "/", safe="/%:=&~+!$,;'@()*") + query


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
