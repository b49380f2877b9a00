"""POST a run's summary to an address the operator allowed. Writes nothing else; follows no redirect."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pipeline.errors import ConfigError

# Addresses, separated by commas: scheme, host and port have to be equal, and the path has to begin the same.
ALLOWED = "RDMPIPE_WEBHOOK_ALLOW"

ATTEMPTS = 3


def check_webhook(address: str) -> str:
    """The address again, if the operator's environment allows it. Raises ConfigError, which does not show its path."""
    if not address:
        return ""
    asked = urllib.parse.urlsplit(address)
    if asked.scheme in ("http", "https") and asked.hostname and not asked.username:
        for text in os.environ.get(ALLOWED, "").split(","):
            allowed = urllib.parse.urlsplit(text.strip())
            same = (allowed.scheme, allowed.hostname, allowed.port) == (asked.scheme, asked.hostname, asked.port)
            folder = allowed.path.rstrip("/") + "/"
            if same and (asked.path + "/").startswith(folder) and ".." not in asked.path.split("/"):
                return address
    raise ConfigError(
        f"webhook {asked.scheme}://{asked.hostname or '?'}: not an allowed address. Whoever runs the job allows it with "
        f"{ALLOWED}=https://host/path (several: separated by commas); job files cannot."
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def post_json(address: str, value: dict[str, Any], timeout_s: float = 10.0) -> str:
    """`sent`, or what went wrong at the last of three attempts."""
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(
        address, json.dumps(value, ensure_ascii=False).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    said = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt)
        try:
            with opener.open(request, timeout=timeout_s):
                return "sent"
        except urllib.error.HTTPError as error:
            said = f"not sent: HTTP {error.code}"
            if error.code < 500:
                return said
        except OSError as error:
            said = f"not sent: {getattr(error, 'reason', error)}"
    return said
