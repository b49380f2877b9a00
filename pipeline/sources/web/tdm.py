"""Reservations of a site against text and data mining: the TDM Reservation Protocol (W3C community group report, 2024).

Reads and writes nothing. A site reserves a picture by a header (`tdm-reservation: 1`), or paths in
/.well-known/tdmrep.json: a list of rules with a `location`, whose patterns are those of robots.txt. The first rule that
matches a path decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.sources.web.robots import matches, normal

TDM_PATH = "/.well-known/tdmrep.json"

MAX_TDM_BYTES = 512 << 10


@dataclass(frozen=True)
class Reservations:
    """The rules of a tdmrep.json: (path pattern, whether it is reserved)."""

    rules: tuple[tuple[str, bool], ...] = ()

    def covers(self, path: str) -> bool:
        """Whether a path (with its query) is reserved."""
        path = normal(path)
        return next((reserved for pattern, reserved in self.rules if matches(pattern, path)), False)


def parse_tdm(text: str) -> Reservations:
    """The rules of a tdmrep.json. Entries of another form are ignored."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return Reservations()
    if not isinstance(entries, list):
        return Reservations()
    return Reservations(
        tuple(
            (normal(entry["location"]), str(entry.get("tdm-reservation", "0")).strip() == "1")
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("location"), str)
        )
    )


def reserved_by_header(values: Sequence[str]) -> bool:
    """Whether any `tdm-reservation` header reserves the picture that came with it."""
    return any(word.strip() == "1" for value in values for word in value.split(","))
