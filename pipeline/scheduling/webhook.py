"""Send a run's summary to a webhook: an HTTP POST to an address that the operator allows.

Reads: RDMPIPE_WEBHOOK_ALLOW. Writes no file. Does not follow redirects, and does not promise delivery.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.sources import retry_after

# The variable holds allowed addresses, separated by commas. A webhook must have the scheme, host and port of one of them, and
# its path must be that address's path or below it.
ALLOWED = "RDMPIPE_WEBHOOK_ALLOW"

ATTEMPTS = 3

LONGEST_WAIT_S = 60.0  # before another attempt; a server that asks for more gets none


def check_webhook(address: str) -> str:
    """`address`, if the operator's environment allows it. Raises ConfigError otherwise; the error hides the path, a secret."""
    if not address:
        return ""
    asked = _parts(address)
    if asked is not None:
        for text in os.environ.get(ALLOWED, "").split(","):
            allowed = _parts(text.strip())
            if allowed is None or allowed[:3] != asked[:3]:
                continue
            if (asked[3] + "/").startswith(allowed[3].rstrip("/") + "/"):
                return address
    found = f"{asked[0]}://{asked[1]}" if asked else "(not an http or https address that can be used)"
    raise ConfigError(
        f"webhook {found}: not an allowed address. Set {ALLOWED}=https://host/path in the environment of the process that runs "
        "the job (separate several addresses by commas); a job file cannot allow one."
    )


def _parts(address: str) -> tuple[str, str, int, str] | None:
    """Scheme, host, port and path of an address, decoded as a server may decode them; None for one that is not plain.

    Not plain: another scheme, credentials, a path with `..` in any spelling, characters that a request line cannot hold.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        path = _decoded(parts.path)
    except (ValueError, KeyError):
        return None
    plain = address.isascii() and address.isprintable() and not set(address) & set(" \\") and "@" not in parts.netloc
    if not plain or not parts.hostname or ".." in re.split(r"[/\\;]", path):
        return None
    return parts.scheme, parts.hostname, port, path


def _decoded(path: str) -> str:
    """A path without percent-encoding, also if it was encoded several times. Raises ValueError for more levels than allowed."""
    for _ in range(5):
        once = urllib.parse.unquote(path, errors="strict")
        if once == path:
            return path
        path = once
    raise ValueError("encoded too many times")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **options: object) -> None:
        return None


def post_json(address: str, value: Mapping[str, object], timeout_s: float = 10.0) -> str:
    """POST `value` as JSON, in up to three attempts. Returns `sent`, or `not sent: ...` with the reason of the last failure.

    An answer of 429 or 5xx, or none, leads to another attempt: after 2 and 4 seconds, or after the answer's Retry-After.
    timeout_s: the longest time of one attempt, for any behaviour of the server. The answer's body is not read.
    """
    # A lone surrogate, which a command may print, has no encoding; backslashreplace writes it as a JSON escape.
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
    said = ""
    for attempt in range(1, ATTEMPTS + 1):
        said, again, asked_s = _attempt(request, timeout_s)
        if not again or attempt == ATTEMPTS:
            break
        if asked_s is not None and asked_s > LONGEST_WAIT_S:
            return f"{said}; the server asks to wait {asked_s:,.0f} s"
        time.sleep(2.0**attempt if asked_s is None else asked_s)
    return said


def _attempt(request: urllib.request.Request, timeout_s: float) -> tuple[str, bool, float | None]:
    """One attempt: its result, whether another may help, and the seconds that the server asks to wait before that.

    It runs in a thread that is abandoned after its time limit, because a socket's timeout starts again with every byte: a
    server that sends one byte at a time would otherwise block the run forever.
    """
    found: list[tuple[str, bool, float | None]] = [(f"not sent: no answer within {timeout_s:g} s", True, None)]

    def post() -> None:
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=timeout_s):
                found.append(("sent", False, None))
        except urllib.error.HTTPError as error:
            again = error.code == 429 or error.code >= 500
            found.append((f"not sent: HTTP {error.code}", again, retry_after(error.headers.get("Retry-After"))))
            error.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            found.append((f"not sent: {getattr(error, 'reason', error)}"[:300], True, None))

    thread = threading.Thread(target=post, daemon=True, name="webhook")
    thread.start()
    thread.join(timeout_s)
    return found[-1]
