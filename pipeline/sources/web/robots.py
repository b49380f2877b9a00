"""What a site asks of robots: robots.txt (RFC 9309) and the X-Robots-Tag header.

Reads and writes nothing. Of robots.txt, allow and disallow lines with `*` and `$`, of the groups that name us (else of `*`);
the longest matching line decides, allow among equals. Crawl-delay, which is not in the RFC, is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

MAX_ROBOTS_BYTES = 512 << 10  # RFC 9309, 2.5: at least 500 KiB are read

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})


@dataclass(frozen=True)
class Rules:
    """The lines of robots.txt that hold for us: (path pattern, whether it allows), for each of our names."""

    groups: tuple[tuple[tuple[str, bool], ...], ...] = ()

    def allows(self, path: str) -> bool:
        """Whether every one of our names may fetch a path (with its query)."""
        path = _normal(path)
        return path == "/robots.txt" or all(_allows(lines, path) for lines in self.groups)


def parse_robots(text: str, agents: Sequence[str]) -> Rules:
    """The rules of a robots.txt for our names, in lower case."""
    named: dict[str, list[tuple[str, bool]]] = {}
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
                    named[name].append((_normal(value), field == "allow"))
    return Rules(tuple(tuple(named.get(agent, named.get("*", ()))) for agent in agents))


def _allows(lines: Iterable[tuple[str, bool]], path: str) -> bool:
    matching = [(len(pattern), allow) for pattern, allow in lines if _matches(pattern, path)]
    return max(matching, default=(0, True))[1]


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for any characters, a `$` at the end for the path's end. No backtracking: sites write these patterns."""
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


def _normal(path: str) -> str:
    """One spelling of a path: percent-encoded where it has to be, nowhere else."""
    return quote(unquote(path), safe="/?&=:;,@!$*'()+~%")


def opts_out(headers: Iterable[str], agents: Sequence[str]) -> str:
    """The directive among X-Robots-Tag headers that tells us to leave a picture alone; empty where there is none.

    `noai, noindex` is meant for everybody, `name: noai` for that name and all that follow in the header.
    """
    for header in headers:
        name = ""
        for part in header.lower().split(","):
            left, colon, right = part.partition(":")
            directive = part.strip()
            if colon and left.strip() not in _WITH_VALUE:
                name, directive = left.strip(), right.strip()
            if directive in OPT_OUTS and (not name or name in agents or name == "*"):
                return directive
    return ""


_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
