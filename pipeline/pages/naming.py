"""The title and the maker of a picture on a page, from metadata columns that collections commonly have."""

from __future__ import annotations

from collections.abc import Mapping

TITLES = ("title", "name", "work")

MAKERS = ("artist", "artist_name", "author", "creator", "photographer")


def title_of(row: Mapping[str, object]) -> str:
    """The work's title; empty if no column has one."""
    return next((str(row[name]) for name in TITLES if row.get(name)), "")


def maker_of(row: Mapping[str, object]) -> str:
    """Who made it and when, such as `Hokusai, 1831`; empty if no column says."""
    maker = next((str(row[name]) for name in MAKERS if row.get(name)), "")
    return ", ".join(str(part) for part in (maker, row.get("date") or row.get("year")) if part)
