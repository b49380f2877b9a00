"""Museum-like servers on loopback: each keeps a log of what it was asked, and how many requests it had at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.pictures import jpeg


@dataclass
class Museum:
    """How a host behaves, and its log: (time, path, status) of each request in order."""

    host: str
    robots: str = ""
    tdm: str = ""
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # path -> more headers
    slow_after: int = 0  # every so many pictures it answers 429 until a second has passed
    refuses: bool = False  # every picture is answered 429
    work_s: float = 0.0  # for each picture
    url: str = ""
    log: list[tuple[float, str, int]] = field(default_factory=list)
    connections: int = 0
    most_at_once: int = 0
    agents: set[str] = field(default_factory=set)

    def pictures(self) -> list[str]:
        """Paths of the pictures that were given."""
        return [path for _, path, status in self.log if status == 200 and path.endswith(".jpg")]


@contextmanager
def open_museums(*museums: Museum) -> Iterator[None]:
    """Serve all of them, each on its own address, until the block ends."""
    servers = []
    for museum in museums:
        server = ThreadingHTTPServer((museum.host, 0), _handler(museum))
        server.daemon_threads = True
        museum.url = f"http://{museum.host}:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(museum: Museum) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()
    state = {"now": 0, "given": 0, "closed_until": 0.0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            with lock:
                museum.connections += 1

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
            return 200, jpeg(int(self.path.split("/")[-1].split(".")[0])), dict(museum.headers.get(self.path, {}))

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
