"""Send a run's summary to a webhook: an HTTP POST to an address that the operator allows.

Reads: RDMPIPE_WEBHOOK_ALLOW. Writes no file. Does not follow redirects, and does not promise delivery.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from pipeline.errors import ConfigError

# The variable holds allowed addresses, separated by commas. A webhook must have the scheme, host and port of one of them, and
# its path must be that address's path or lie below it.
ALLOWED = "RDMPIPE_WEBHOOK_ALLOW"

ATTEMPTS = 3


def check_webhook(address: str) -> str:
    """`address`, if the operator's environment allows it. Raises ConfigError otherwise; the error hides the path, a secret."""
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
        f"webhook {asked.scheme}://{asked.hostname or '?'}: not an allowed address. Set {ALLOWED}=https://host/path in the "
        "environment of the process that runs the job (separate several addresses by commas); a job file cannot allow one."
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **options: object) -> None:
        return None


def post_json(address: str, value: Mapping[str, object], timeout_s: float = 10.0) -> str:
    """POST `value` as JSON, in up to three attempts. Returns `sent`, or `not sent: ...` with the reason of the last failure."""
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
