"""The rules of a site for robots: robots.txt (RFC 9309) and the X-Robots-Tag header.

Reads and writes nothing. From robots.txt it uses the allow, disallow and Crawl-delay lines of the groups that name us (else of
`*`), with `*` and `$` in patterns. The longest matching line decides; among equally long lines, allow. Crawl-delay is
not in the RFC, but sites use it.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

MAX_ROBOTS_BYTES = 512 << 10  # RFC 9309, 2.5: at least 500 KiB are read

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})


@dataclass(frozen=True)
class Rules:
    """The lines of robots.txt that apply to us: (path pattern, whether it allows), for each of our names.

    `delay_s` is the longest Crawl-delay that applies to us: seconds from one request to the next.
    """

    groups: tuple[tuple[tuple[str, bool], ...], ...] = ()
    delay_s: float = 0.0

    def allows(self, path: str) -> bool:
        """Whether every one of our names may fetch a path (with its query)."""
        path = normal(path).replace("*", "%2A")  # a star in a path is a literal star
        return path == "/robots.txt" or all(_allows(lines, path) for lines in self.groups)


def parse_robots(text: str, agents: Sequence[str]) -> Rules:
    """The rules of a robots.txt for our names, in lower case."""
    named: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    current: list[str] = []
    in_rules = False
    for line in text.lstrip("\ufeff").splitlines():
        field, colon, value = line.split("#", 1)[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field == "user-agent":
            if in_rules:
                current, in_rules = [], False
            token = re.match(r"\*|[a-z0-9_-]*", value.lower())
            current.append(token.group() if token else "")
            named.setdefault(current[-1], [])
        elif field in ("allow", "disallow"):
            in_rules = True
            if value:
                for name in current:
                    named[name].append((normal(value), field == "allow"))
        elif field == "crawl-delay":
            in_rules = True
            for name in current:
                delays[name] = max(delays.get(name, 0.0), _seconds(value))
    chosen = [agent if agent in named else "*" for agent in agents]
    return Rules(
        tuple(tuple(named.get(name, ())) for name in chosen),
        max((delays.get(name, 0.0) for name in chosen), default=0.0),
    )


def _seconds(value: str) -> float:
    """A Crawl-delay's value; 0 if it is not a number of seconds."""
    return float(value) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) else 0.0


def _allows(lines: Iterable[tuple[str, bool]], path: str) -> bool:
    matching = [(len(pattern), allow) for pattern, allow in lines if matches(pattern, path)]
    return max(matching, default=(0, True))[1]


def matches(pattern: str, path: str) -> bool:
    """`*` matches any characters, a `$` at the end the path's end. Without backtracking, because the patterns are untrusted."""
    whole = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(pieces[0]):
        return False
    position = len(pieces[0])
    last = len(pieces) - 1
    for number, piece in enumerate(pieces[1:], 1):
        if whole and number == last:
            return len(path) - len(piece) >= position and path.endswith(piece)
        found = path.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return not whole or position == len(path)


def normal(path: str) -> str:
    """A path or pattern in normal form: percent-encoded where necessary, with reserved characters as they are written.

    `/a%2Fb` is another path than `/a/b`, and `%2A` in a pattern is a literal star (RFC 9309, 2.2.2, 2.2.3).
    """
    return _ENCODED.sub(_decoded, quote(path, safe="/?&=:;,@!$*'()+~%[]"))


_ENCODED = re.compile("%[0-9A-Fa-f]{2}")

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")  # RFC 3986, 2.3


def _decoded(encoded: re.Match[str]) -> str:
    character = unquote(encoded.group(), "latin-1")
    return character if character in _UNRESERVED else encoded.group().upper()


def opts_out(headers: Iterable[str], agents: Sequence[str], now: datetime.datetime | None = None) -> str:
    """The directive among X-Robots-Tag headers that forbids the use of a picture; empty if there is none.

    `noai, noindex` applies to all agents; after `name:`, the following directives of the header apply to that name. A
    date after `unavailable_after` may contain commas and colons; a date that has passed counts as `noindex`.
    """
    for header in headers:
        name = ""
        header, past = _without_dates(header.lower(), now or datetime.datetime.now(datetime.UTC))
        for part in header.split(","):
            left, colon, right = part.partition(":")
            directive = part.strip()
            if colon and left.strip() not in _WITH_VALUE and _NAME.fullmatch(left.strip()):
                name, directive = left.strip(), right.strip()
            if directive in OPT_OUTS and (not name or name in agents or name == "*"):
                return directive
        if past and (not name or name in agents or name == "*"):
            return "unavailable_after"
    return ""


def _without_dates(header: str, now: datetime.datetime) -> tuple[str, bool]:
    """(the header without the values of `unavailable_after`, whether one of them has passed)."""
    kept, past = [], False
    skipping = False
    for part in header.split(","):
        word = part.strip()
        before, found, value = word.partition("unavailable_after:")
        if found:
            kept.append(before)
            skipping, written = True, value
            past = past or _has_passed(written, now)
            continue
        if skipping and re.match(r"[0-9]", word):  # Friday, 25-Jun-10 15:00:00 GMT
            written = f"{written},{part}"
            past = past or _has_passed(written, now)
            continue
        skipping = False
        kept.append(part)
    return ",".join(kept), past


def _has_passed(written: str, now: datetime.datetime) -> bool:
    written = written.strip()
    try:
        when = datetime.datetime.fromisoformat(written)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(written)
        except (ValueError, TypeError, IndexError):
            return False
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)) < now


_NAME = re.compile(r"\*|[a-z][a-z0-9_-]*")

_WITH_VALUE = ("max-snippet", "max-image-preview", "max-video-preview")
