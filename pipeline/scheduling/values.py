"""Typed readers for JSON values: run summaries, progress files and answers of the Kubernetes API.

A reader returns the value if it has the wanted type, and an empty value if it does not. The files come from earlier runs and
from other programs, so a wrong type in them must not end a run. Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.config import parse_json


def parsed(text: str | None) -> object:
    """The JSON value in `text`; None if there is no text or it is not JSON."""
    try:
        return parse_json(text or "")
    except ValueError:
        return None


def mapping(value: object) -> Mapping[str, object]:
    """`value` if it is a JSON object, otherwise an empty mapping."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[object]:
    """`value` if it is a list or tuple, otherwise an empty tuple."""
    return value if isinstance(value, list | tuple) else ()


def mappings(value: object) -> list[Mapping[str, object]]:
    """The JSON objects in a list; items of other types are left out."""
    return [item for item in sequence(value) if isinstance(item, Mapping)]


def text(value: object) -> str:
    """`value` if it is a string, otherwise an empty string."""
    return value if isinstance(value, str) else ""


def number(value: object) -> float:
    """`value` if it is a finite number, otherwise 0."""
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else 0.0
