"""A proxy to a loopback server whose connection can be cut: after a number of bytes, for a while or until it is repaired."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit


class Wire:
    """Forwards connections to `upstream` (a URL); `carried` counts the bytes that came back."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.carried = self.cuts = self.refused = 0
        self.limit, self.seconds, self.down_until = float("inf"), 0.0, 0.0
        self.ends: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int, seconds: float) -> None:
        """After this many more bytes, break all connections and refuse new ones for this many seconds."""
        with self.lock:
            self.limit, self.seconds = self.carried + count, seconds

    def repair(self) -> None:
        with self.lock:
            self.limit, self.down_until = float("inf"), 0.0

    def close(self) -> None:
        self.listener.close()
        self._break()

    def _break(self) -> None:
        for end in list(self.ends):
            with contextlib.suppress(OSError):  # with a reset, as when a machine goes away
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
        self.ends.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # closed
                return
            if time.monotonic() < self.down_until:
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(self.upstream)
            self.ends |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2048):
                if back and self._over(len(data)):
                    self._break()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _over(self, count: int) -> bool:
        with self.lock:
            self.carried += count
            if self.carried < self.limit:
                return False
            self.cuts += 1
            self.limit, self.down_until = float("inf"), time.monotonic() + self.seconds
            return True


@contextlib.contextmanager
def wire(upstream: str) -> Iterator[Wire]:
    made = Wire(upstream)
    try:
        yield made
    finally:
        made.close()
