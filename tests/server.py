"""A small real HTTP server on the loopback: files with ranges and ETags, faults on request, and the Hub's paths for data sets.

    with serve(folder) as server:
        server.fail("/a.tar", Fault("status", 500), times=2)
        fetch(server.url + "/a.tar")
        server.requests                      # (method, path, Range header) of everything that was asked

A Hub data set is a folder `hub/<owner>/<name>` inside the served one; its commit is a hash over its files, large ones (Parquet,
tar) are announced as the Hub announces LFS files, by sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `status` (amount: the code), `cut` (connection closed after amount bytes), `slow` (amount: seconds
    before the answer), `html` (a page in place of the file), `endless` (no length, no end), `short` (amount bytes fewer than
    the file has, announced as if that were all), `announce` (amount: a length that never comes), `drip` (a byte now and then,
    without end). `headers` go with every answer; those of kind `headers` with the file as it is."""

    kind: str
    amount: float = 0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Server:
    folder: Path
    token: str = ""  # data sets need it if it is set
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def fail(self, path: str, fault: Fault, times: int = 1) -> None:
        """Make the next `times` answers to GETs of `path` fail; -1: all of them."""
        with self.lock:
            self.faults.setdefault(path, []).extend([fault] * times if times >= 0 else [fault] * 10_000)

    def repair(self) -> None:
        with self.lock:
            self.faults.clear()

    def asked(self, method: str, path: str) -> list[str]:
        """Range headers of the requests for a path."""
        return [span for verb, where, span in self.requests if (verb, where) == (method, path)]

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            waiting = self.faults.get(path)
            return waiting.pop(0) if waiting else None


@contextlib.contextmanager
def serve(folder: Path, token: str = "", host: str = "127.0.0.1", tls: Path | None = None) -> Iterator[Server]:
    """Serve a folder, over https if `tls` names a file with certificate and key."""
    server = Server(folder, token)

    class Handler(_Handler):
        state = server

    http = _Quiet((host, 0), Handler)
    server.url = f"{'https' if tls else 'http'}://{host}:{http.server_address[1]}"
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections, which some tests cause."""
        if not isinstance(sys.exc_info()[1], ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append((self.command, path, self.headers.get("Range", "")))
        fault = self.state.take_fault(path) if self.command == "GET" else None
        if fault and fault.kind == "status":
            return self._send(int(fault.amount), b"no", dict(fault.headers))
        if fault and fault.kind == "html":
            return self._send(200, HTML, {"Content-Type": "text/html"})
        if fault and fault.kind == "slow":
            self.state.stopped.wait(fault.amount)
        parts = path.strip("/").split("/")
        if parts[0] == "api" and parts[1:2] == ["datasets"]:
            return self._hub_api(parts[2:])
        headers = dict(fault.headers) if fault else {}
        target = self.state.folder / path.lstrip("/")
        if parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            dataset = self.state.folder / "hub" / parts[1] / parts[2]
            if not self._allowed() or not dataset.is_dir():
                return self._refused(dataset)
            if parts[4] not in ("main", commit(dataset)):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            target = dataset / "/".join(parts[5:])
            if not target.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit(dataset)})
            headers = {"X-Repo-Commit": commit(dataset), "ETag": f'"{identity(target)}"'}
        if not target.is_file():
            return self._send(404, b"not found")
        return self._file(target, headers, fault)

    def _allowed(self) -> bool:
        return not self.state.token or self.headers.get("Authorization") == f"Bearer {self.state.token}"

    def _refused(self, dataset: Path) -> None:
        if dataset.is_dir():
            return self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _hub_api(self, parts: list[str]) -> None:
        dataset = self.state.folder / "hub" / parts[0] / parts[1]
        if not self._allowed() or not dataset.is_dir():
            return self._refused(dataset)
        sha, verb, rest = commit(dataset), parts[2] if len(parts) > 2 else "", parts[3:]
        if verb in ("revision", "tree") and rest[0] not in ("main", sha):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
        if verb == "tree":
            entries = [describe(dataset, path) for path in files]
            return self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        name = f"{parts[0]}/{parts[1]}"
        siblings = [{"rfilename": path.relative_to(dataset).as_posix()} for path in files]
        about = {"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        return self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, target: Path, headers: dict[str, str], fault: Fault | None) -> None:
        data = target.read_bytes()
        if fault and fault.kind == "short":
            data = data[: len(data) - int(fault.amount)]
        headers.setdefault("ETag", f'"{hashlib.sha256(target.read_bytes()).hexdigest()[:20]}"')
        headers["Accept-Ranges"] = "bytes"
        span, status, body = self.headers.get("Range", ""), 200, data
        if span and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status, body = 206, data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if fault and fault.kind in ("endless", "drip"):
            return self._endless(*((1, 0.3) if fault.kind == "drip" else (65536, 0.001)))
        if fault and fault.kind == "announce":
            self.send_response(200)
            self.send_header("Content-Length", str(int(fault.amount)))
            self.end_headers()
            self.close_connection = True
            return None
        return self._send(status, body, headers, int(fault.amount) if fault and fault.kind == "cut" else None)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _endless(self, size: int, wait_s: float) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.state.stopped.is_set():
                self.wfile.write(b"x" * size)
                time.sleep(wait_s)


def identity(path: Path) -> str:
    """The Hub's identifier of a file: sha256 of a large file, the git blob's sha1 of a small one."""
    data = path.read_bytes()
    if path.suffix in (".parquet", ".tar"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(dataset: Path, path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {"type": "file", "path": path.relative_to(dataset).as_posix(), "size": size}
    if path.suffix in (".parquet", ".tar"):
        return {**entry, "oid": "0" * 40, "lfs": {"oid": identity(path), "size": size, "pointerSize": 134}}
    return {**entry, "oid": identity(path)}


def commit(dataset: Path) -> str:
    """A commit id, which changes with any file of the data set."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    seen = [(path.relative_to(dataset).as_posix(), identity(path)) for path in files]
    return hashlib.sha1(repr(seen).encode()).hexdigest()
