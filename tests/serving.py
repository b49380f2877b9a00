"""The server of `rdmpipe browse` on a port of this machine, for tests that need a real address."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from pipeline.serving import ServeOptions, create_app


@contextlib.contextmanager
def running(home: Path, **options: object) -> Iterator[str]:
    """Serve a home from a thread of this process, and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = create_app(ServeOptions(home=str(home), port=port, **options))  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join()
