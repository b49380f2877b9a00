"""Keep secrets out of output: remove their values from text, and recognize values in a job file that look like secrets.

Reads and writes nothing. `scrub` finds a value unchanged, in the forms of JSON, HTML, URLs, Python's repr, the shell, hex and
base64, with one of these forms inside another, line by line, and inside a longer text that was encoded in base64
(as in `Authorization: Basic`). It does not promise to find a value that a program changes in another way.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import urllib.parse
from collections.abc import Callable, Iterator, Mapping

SHORTEST = 4  # characters; a shorter value would match in too much ordinary text

_FORMS: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    lambda text: html.escape(text),
    lambda text: html.escape(text).replace("&#x27;", "&#39;"),
    lambda text: html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),  # as templates write it
    lambda text: html.escape(text, quote=False),
    lambda text: text.encode("ascii", "xmlcharrefreplace").decode(),
    lambda text: urllib.parse.quote(text, safe=""),
    lambda text: urllib.parse.quote(text),
    lambda text: urllib.parse.quote_plus(text),
    lambda text: re.sub("%[0-9A-F]{2}", lambda found: found.group().lower(), urllib.parse.quote(text, safe="")),
    lambda text: repr(text)[1:-1],
    lambda text: ascii(text)[1:-1],
    lambda text: text.replace("\\", "\\\\").replace("'", "\\'"),
    lambda text: text.replace("\\", "\\\\").replace('"', '\\"'),
    lambda text: repr(text.encode("utf-8", "surrogateescape"))[2:-1],
    lambda text: shlex.quote(text)[1:-1] if shlex.quote(text) != text else text,
    lambda text: base64.b64encode(text.encode("utf-8", "surrogateescape")).decode(),
    lambda text: base64.urlsafe_b64encode(text.encode("utf-8", "surrogateescape")).decode(),
    lambda text: text.encode("utf-8", "surrogateescape").hex(),
    lambda text: text.encode("utf-8", "surrogateescape").hex().upper(),
)

_INSIDE = 6  # the shortest secret that is searched inside other base64, where only a part of it can be matched

# Words in a variable's name that mark its value as a secret. A word ends at an underscore or before a capital letter.
_NAMES = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|APIKEY|(?<!BY)(?<!COM)PASS(?![A-Z])|PWD(?![A-Z])"
    r"|TOKENS?(?![A-Z])|(API|ACCESS|PRIVATE|SECRET|SIGNING|ENCRYPTION|SSH|AUTH|DEPLOY|MASTER|ACCOUNT|STORAGE)_?KEY(?![A-Z])"
    r"|(?<![A-Z])(AUTHORIZATION|BEARER|COOKIE|DSN|SAS|CONNECTION_?STRING|KEYFILE_JSON)(?![A-Z])"
)

_NUMBER = re.compile(r"[0-9.]{0,12}|true|false|on|off|yes|no", re.IGNORECASE)

_SHAPES = (
    ("a URL with a password", re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@:]*:[^/\s@]+@")),
    ("a URL with a user or token", re.compile(r"https?://[^/\s@]+@")),
    (
        "a URL with a signature or token",
        re.compile(
            r"[?&](access_?token|token|sig|signature|password|passwd|secret|api_?key|x-amz-signature)=[^&\s]+",
            re.IGNORECASE,
        ),
    ),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{16,}")),
    ("a GitHub token", re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    ("an API key", re.compile(r"\b(sk-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,})")),
    ("an AWS key", re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("a signed token (JWT)", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("an Authorization header", re.compile(r"\b(Bearer|Basic) [A-Za-z0-9+/=._~-]{8,}")),
)


def secret_name(name: str, value: str) -> bool:
    """Whether a variable's name says that it holds a secret. A number or a switch is not a secret: MAX_TOKENS = "77"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()
    return bool(_NAMES.search(words)) and not _NUMBER.fullmatch(value)


def secret_shape(value: str) -> str:
    """The kind of secret that a value looks like; empty if it looks like none."""
    return next((what for what, shape in _SHAPES if shape.search(value)), "")


def hidden_forms(secrets: Mapping[str, str]) -> dict[str, str]:
    """Every form of the secrets' values -> the secret's name, longest form first, for `scrub`. secrets: name -> value."""
    found: dict[str, str] = {}
    for name, value in secrets.items():
        for part in (value, *value.splitlines(), *(line.strip() for line in value.splitlines())):
            for form in (*_forms(part), *_inside_base64(part)):
                if len(form) >= SHORTEST:
                    found.setdefault(form, name)
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))


def _forms(text: str) -> Iterator[str]:
    """The text, each form of it, and each form of each form."""
    yield text
    for outer in _FORMS:
        once = outer(text)
        yield once
        yield from (inner(once) for inner in _FORMS)


def _inside_base64(text: str) -> Iterator[str]:
    """The characters of the text in the base64 of a longer text, independent of the text before and after it."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) < _INSIDE:
        return
    for before in range(3):  # three bytes give four characters, so the position determines the bits of a character
        whole = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        sure = whole[-(-before * 4 // 3) : (before + len(data)) * 8 // 6]
        yield sure
        yield sure.replace("+", "-").replace("/", "_")


def scrub(text: str, hidden: Mapping[str, str]) -> str:
    """The text with every form of the secrets replaced by `[NAME]`. hidden: from `hidden_forms`."""
    for form, name in hidden.items():
        if form in text:
            text = text.replace(form, f"[{name}]")
    return text


def scrub_value(value: object, hidden: Mapping[str, str]) -> object:
    """A JSON value with every string in it scrubbed, keys included. A number that equals a secret becomes `[NAME]`."""
    if isinstance(value, str):
        return scrub(value, hidden)
    if isinstance(value, dict):
        return {scrub(str(key), hidden): scrub_value(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_value(item, hidden) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) in hidden:
        return f"[{hidden[str(value)]}]"
    return value
