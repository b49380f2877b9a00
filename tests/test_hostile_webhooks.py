"""Webhooks: no spelling of an address bypasses the operator's list, and no server blocks or breaks a run."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.scheduling import webhook
from pipeline.scheduling.run import JobSummary, _reported
from pipeline.scheduling.webhook import check_webhook, post_json
from pipeline.storage import Storage

ALLOWED = "https://hooks.example/team, http://10.1.2.3:8080/in/"

REFUSED = [
    "https://hooks.example/", "https://hooks.example/teams", "https://hooks.example/other", "https://hooks.example:444/team",
    "http://hooks.example/team", "https://hooks.example.evil/team", "https://evil/hooks.example/team",
    "https://user@hooks.example/team", "https://user:pw@hooks.example/team", "https://:pw@hooks.example/team",
    "https://@hooks.example/team", "https://hooks.example@evil/team", "https://evil#@hooks.example/team",
    "https://hooks.example/team/../other", "https://hooks.example/team/%2e%2e/other", "https://hooks.example/team/%2E./other",
    "https://hooks.example/team/%252e%252e/other", "https://hooks.example/team/..%2fother",
    "https://hooks.example/team/..\\other",
    "https://hooks.example/team/..;/other", "https://hooks.example/team%2f..%2f..", "https://hooks.example\\@evil/team",
    "https://hooks.example/team\n/x", "https://hooks.example/team\r\nX: y", "https://hooks.example/team\t",
    "https://hooks.example/ team",
    "https://hooks.example/te\x00am", "https://hooks.example/teäm", "https://hooks。example/team",
    "https://hooks.example\u2044team",
    "https:/hooks.example/team", "https:hooks.example/team", "//hooks.example/team", "hooks.example/team", "https://",
    "https:///team",
    "file:///etc/passwd", "ftp://hooks.example/team", "gopher://hooks.example/team", "javascript:alert(1)",
    "https://[::1", "https://[/team",
    "https://hooks.example:port/team", "https://hooks.example:99999/team", "https://hooks.example:-1/team",
    "http://10.1.2.3/in/x",
    "http://10.1.2.3:8080/inn", "http://0x0a010203:8080/in/", "http://167838211:8080/in/", "http://10.1.515:8080/in/",
    "https://hooks.example/team/" + ("%" + "25" * 30 + "2e") * 2 + "/other",
]  # fmt: skip

TAKEN = [
    "https://hooks.example/team", "https://hooks.example/team/", "https://hooks.example/team/a?b=c",
    "https://HOOKS.example/team/a",
    "https://hooks.example:443/team", "http://10.1.2.3:8080/in", "http://10.1.2.3:8080/in/a..b",
    "http://10.1.2.3:8080/in/%", "https://hooks.example/team/a%20b",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_past_the_list_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", ALLOWED)
    with pytest.raises(ConfigError, match="not an allowed address") as error:
        check_webhook(address)
    assert "/team" not in str(error.value).replace("https://host/path", "")  # the path is a secret


@pytest.mark.parametrize("address", TAKEN)
def test_an_address_on_the_list_is_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", ALLOWED)
    assert check_webhook(address) == address


@pytest.mark.parametrize(
    "allowed", ["", ",", "https://", "*", "https://*/", "hooks.example", "https://[", "https://@x/"]
)
def test_a_list_that_names_nothing_allows_nothing(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDMPIPE_WEBHOOK_ALLOW", allowed)
    for address in (
        "https://hooks.example/team",
        "https://x/",
        "https://[",
    ):
        with pytest.raises(ConfigError):
            check_webhook(address)


ANSWERS = {
    "nothing": b"", "garbage": b"\x00\xff\x80 no http\r\n\r\n", "no status": b"HTTP/1.1\r\n\r\n",
    "a large status": b"HTTP/1.1 99999 x\r\n\r\n",
    "a long line": b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    "a long header": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    "endless continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
    "redirect": b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "redirect to nothing": b"HTTP/1.1 301 x\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    "sign in": b"HTTP/1.1 401 x\r\nWWW-Authenticate: Basic\r\n\r\n",
    "proxy": b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc",
}  # fmt: skip


@contextlib.contextmanager
def answering(answer: bytes, every_s: float = 0.0) -> Iterator[str]:
    """A server that gives every client `answer`, one byte after each pause if the pause is not 0."""
    listening = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.recv(65_536)
                if not every_s:
                    connection.sendall(answer)
                for byte in answer if every_s else b"":
                    connection.sendall(bytes([byte]))
                    if stopped.wait(every_s):
                        break

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
    finally:
        stopped.set()
        listening.close()


@pytest.mark.parametrize("name", ANSWERS)
def test_every_webhook_answer_is_reported_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ATTEMPTS", 1)
    with answering(ANSWERS[name]) as address:
        said = post_json(address, {"text": "done"}, timeout_s=3.0)
    assert said == "sent" or (said.startswith("not sent: ") and len(said) < 320)


def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "ATTEMPTS", 1)
    with answering(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000, every_s=0.1) as address:
        began = time.monotonic()
        assert post_json(address, {}, timeout_s=0.5) == "not sent: no answer within 0.5 s"
        assert time.monotonic() - began < 30  # it would have taken 100 s


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/", "http://name.invalid/", "http://127.0.0.1:0/", "http://x\ny/"]
)
def test_an_address_that_does_not_answer_is_reported_in_a_sentence(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "ATTEMPTS", 1)
    assert post_json(address, {}, timeout_s=5.0).startswith("not sent: ")


def test_what_a_command_printed_cannot_keep_the_report_from_being_written(tmp_path: Path) -> None:
    from pipeline.scheduling import load_job

    (tmp_path / "job.toml").write_text('command = "list"\n')
    result: dict[str, object] = {
        "name": "\ud800\x00\x1b[2J", "input": 10**40, "ok": float("inf"), "reasons": {"\udfff": float("nan"), "a": [1]},
        "warnings": ["<script>", {"a": "\u202e"}, None], "index": {"recall": {"text": {"value": "many"}}}, "shards": [7],
        "changes": {"x": float("-inf")},
    }  # fmt: skip
    when = "2026-01-01T00:00:00+00:00"
    made = JobSummary("job", "s", "r", "succeeded", 0, ("list",), when, when, "h", str(tmp_path), result=result)
    said: list[str] = []
    _reported(made, load_job(str(tmp_path / "job.toml")), Storage(str(tmp_path)), "", {}, said.append)
    assert said == []
    written = json.loads((tmp_path / "runs" / "s.json").read_text())
    assert written["result"]["name"] == result["name"]
    page = (tmp_path / "runs" / "s.html").read_text()
    assert "<script>" not in page and "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    ("status", "after", "waits", "said"),
    [
        (429, "7", [7.0, 7.0], "not sent: HTTP 429"),
        (503, "0", [0.0, 0.0], "not sent: HTTP 503"),
        (500, "", [2.0, 4.0], "not sent: HTTP 500"),
        (429, "soon", [2.0, 4.0], "not sent: HTTP 429"),
        (503, "86400", [], "not sent: HTTP 503; the server asks to wait 86,400 s"),
        (404, "7", [], "not sent: HTTP 404"),
    ],
)
def test_a_server_that_says_when_to_come_back_is_asked_then(
    monkeypatch: pytest.MonkeyPatch, status: int, after: str, waits: list[float], said: str
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(webhook.time, "sleep", waited.append)
    header = f"Retry-After: {after}\r\n" if after else ""
    with answering(f"HTTP/1.1 {status} x\r\n{header}Content-Length: 0\r\n\r\n".encode()) as address:
        assert post_json(address, {"text": "done"}, timeout_s=20.0) == said
    assert waited == waits


def test_a_date_says_when_to_come_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(webhook.time, "sleep", waited.append)
    date = email.utils.formatdate(time.time() + 40, usegmt=True)
    with answering(f"HTTP/1.1 429 x\r\nRetry-After: {date}\r\nContent-Length: 0\r\n\r\n".encode()) as address:
        assert post_json(address, {}, timeout_s=20.0) == "not sent: HTTP 429"
    assert len(waited) == 2 and all(0 < wait <= 40 for wait in waited)
