"""A real S3-protocol server (moto's) in a separate process, and a proxy in front of it that makes errors on request.

python -m tests.s3server PORT_FILE      serve until standard input closes
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the server's process needs no pytest
    import pytest

BUCKET = "homes"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server with one empty bucket."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3server", host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parent.parent,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, "the S3 server did not start"
        yield line
    finally:
        process.kill()
        process.wait()


def _serve(host: str) -> None:
    from moto.server import ThreadedMotoServer

    os.environ.update(KEYS)
    server = ThreadedMotoServer(host, 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    request = http.client.HTTPConnection(host, port)
    request.request("PUT", f"/{BUCKET}")
    assert request.getresponse().status == 200
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


class Proxy:
    """Forwards to a server; the next requests of a method fail as listed in `faults`.

    Faults: "500", "503" (SlowDown): answered without reaching the server. "cut": closed before the server sees the
    request. "lost": the server does it, the answer never comes. "half": the answer's body is cut in the middle.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self.target = target.removeprefix("http://")
        self.faults: dict[str, deque[str]] = {}
        self.seen: Counter[str] = Counter()  # requests by method, and faults by name
        self.down = False  # True: every connection is cut
        self.unconditional = False  # True: conditions of a PUT are ignored, as some stores do
        self.lock = threading.Lock()
        self.conditional = threading.Lock()
        self.server = ThreadingHTTPServer((host, 0), self._handler())
        self.server.daemon_threads = True
        self.address = f"http://{host}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def order(self, method: str, *faults: str) -> None:
        with self.lock:
            self.faults.setdefault(method, deque()).extend(faults)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _next(self, method: str) -> str:
        with self.lock:
            self.seen[method] += 1
            queue = self.faults.get(method)
            fault = "cut" if self.down else queue.popleft() if queue else ""
            if fault:
                self.seen[fault] += 1
            return fault

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._forward()

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

            def _forward(self) -> None:
                fault = proxy._next(self.command)
                if fault == "cut":
                    return self._drop()
                body = self._body()
                if fault in ("500", "503"):
                    return self._error(int(fault))
                conditional = "If-Match" in self.headers or "If-None-Match" in self.headers
                # S3 decides a conditional PUT in one step; moto looks and then writes, so such requests go to it one by one.
                with proxy.conditional if conditional else contextlib.nullcontext():
                    connection = http.client.HTTPConnection(proxy.target, timeout=60)
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        ignored = proxy.unconditional and name.lower() in ("if-match", "if-none-match")
                        hop = name.lower() in ("transfer-encoding", "content-length", "connection", "expect")
                        if not hop and not ignored:
                            connection.putheader(name, value)
                    connection.putheader("Content-Length", str(len(body)))
                    connection.endheaders(body)
                    answer = connection.getresponse()
                    data = answer.read()
                    connection.close()
                if fault == "lost":
                    return self._drop()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if fault == "half":
                    self.wfile.write(data[: len(data) // 2])
                    return self._drop()
                self.wfile.write(data)
                return None

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _error(self, status: int) -> None:
                code = {500: "InternalError", 503: "SlowDown"}[status]
                data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} on purpose</Message></Error>".encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _drop(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.wfile.flush()
                    self.connection.shutdown(2)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@contextlib.contextmanager
def proxied(server: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Proxy]:
    """A proxy in front of the server, for the stores of this process, with a separate cache."""
    made = Proxy(server)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
    monkeypatch.setenv("RDMPIPE_CACHE", str(cache))
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    _serve(sys.argv[1])
