"""The exceptions of rdm. A message states what was expected, what was found, and what to do.

RDMError                 any error that rdm raises on purpose
|- ConfigError           a model description that is wrong: unknown name or key, unsupported network
|- CheckpointError       weights that cannot be read, or that do not fit the described model
|- RequestError          arguments that do not fit the model: shapes, numbers of steps, sampler names
'- DivergedError         a loss or gradient that is not finite; also a FloatingPointError
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import SupportsFloat, SupportsIndex


class RDMError(ValueError):
    pass


class ConfigError(RDMError):
    pass


class CheckpointError(RDMError):
    pass


class RequestError(RDMError):
    pass


class DivergedError(RDMError, FloatingPointError):
    pass


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def is_number(value: object) -> bool:
    """Whether the value of a description is a finite number. True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_number(name: str, value: object) -> float:
    """An argument as a finite float: a number of Python, NumPy or torch. Raises RequestError."""
    try:
        number = float(value) if isinstance(value, SupportsFloat | SupportsIndex) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RequestError(f"{name} is {value!r}; a number was expected")
    return number


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, sorted, and the number of the others."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
