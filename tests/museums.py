"""Servers like those of museums, on loopback: each logs its requests with their times and its number of connections."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.pictures import jpeg


@dataclass
class Museum:
    """The behaviour of a host, and its log: (time, path, status) of each request in order."""

    host: str
    robots: str = ""
    tdm: str = ""
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # path -> more headers
    slow_after: int = 0  # every so many pictures it answers 429 until a second has passed
    refuses: bool = False  # every picture is answered 429
    work_s: float = 0.0  # for each picture
    size: int = 0  # bytes of a picture at least; what a JPEG lacks is zeros behind its end
    url: str = ""
    log: list[tuple[float, str, int]] = field(default_factory=list)
    connections: int = 0  # that were made in all
    most_open: int = 0  # connections at a time
    most_at_once: int = 0  # requests at a time
    agents: set[str] = field(default_factory=set)

    def pictures(self) -> list[str]:
        """The paths of the pictures that were served."""
        return [path for _, path, status in self.log if status == 200 and path.endswith(".jpg")]

    def pace(self, window: int = 20) -> float:
        """The mean seconds between requests, in the fastest `window` requests in a row."""
        times = [when for when, _, _ in self.log]
        window = min(window, len(times) - 1)
        return min((later - first) / window for first, later in zip(times, times[window:], strict=False))


@contextmanager
def open_museums(*museums: Museum, tls: Path | None = None) -> Iterator[None]:
    """Serve all of them, each on its own address, until the block ends. `tls`: a certificate with its key."""
    servers = []
    for museum in museums:
        server = ThreadingHTTPServer((museum.host, 0), _handler(museum))
        server.daemon_threads = True
        museum.url = f"http{'s' if tls else ''}://{museum.host}:{server.server_port}"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@lru_cache(maxsize=4096)
def picture(number: int, size: int = 0) -> bytes:
    """The file that hosts serve as /<number>.jpg."""
    data = jpeg(number)
    return data + bytes(max(0, size - len(data)))


def _handler(museum: Museum) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()
    state = {"open": 0, "now": 0, "given": 0, "closed_until": 0.0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                museum.connections += 1
                state["open"] += 1
                museum.most_open = max(museum.most_open, int(state["open"]))

        def finish(self) -> None:
            with lock:
                state["open"] -= 1
            super().finish()

        def do_GET(self) -> None:
            with lock:
                state["now"] += 1
                museum.most_at_once = max(museum.most_at_once, int(state["now"]))
                museum.agents.add(self.headers["User-Agent"])
                status, body, more = self._answer()
                museum.log.append((time.monotonic(), self.path, status))
            time.sleep(museum.work_s)
            with lock:
                state["now"] -= 1  # before the answer: the client may ask again as soon as it has it
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _answer(self) -> tuple[int, bytes, dict[str, str]]:
            texts = {"/robots.txt": museum.robots, "/.well-known/tdmrep.json": museum.tdm}
            if self.path in texts:
                return (200, texts[self.path].encode(), {}) if texts[self.path] else (404, b"", {})
            if museum.refuses:
                return 429, b"", {"Retry-After": "0"}
            if time.monotonic() < state["closed_until"]:
                return 429, b"", {"Retry-After": "1"}
            state["given"] += 1
            if museum.slow_after and state["given"] % museum.slow_after == 0:
                state["closed_until"] = time.monotonic() + 1.0
                return 429, b"", {"Retry-After": "1"}
            number = int(self.path.split("/")[-1].split(".")[0])
            return 200, picture(number, museum.size), dict(museum.headers.get(self.path, {}))

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
