"""The exceptions of rdm. Every message says what was expected, what was found, and what to do.

RDMError                 anything raised here on purpose
|- ConfigError           a model description that cannot be used: unknown name or key, unsupported network
|- CheckpointError       weights that cannot be read, or that are not the described model's
'- RequestError          arguments that do not fit the model: shapes, step counts, sampler names
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


class RDMError(ValueError):
    pass


class ConfigError(RDMError):
    pass


class CheckpointError(RDMError):
    pass


class RequestError(RDMError):
    pass


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def is_number(value: object) -> bool:
    """Whether a description's value is a finite number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_number(name: str, value: Any) -> float:
    """An argument as a finite float: Python's, numpy's or torch's. Raises RequestError."""
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{name} is {value!r}; a number was expected")
    return number


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, sorted, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
