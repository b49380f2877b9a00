"""The files of a folder on this machine: those that a reader wants, and counts of the others.

Reads: directories. Links to folders are never followed. Files that operating systems leave behind (`._x`, `.DS_Store`,
Thumbs.db, hidden files) are never wanted.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.sources.names import is_junk, kind_of_name, printable, same_name


@dataclass(frozen=True)
class Listing:
    """Paths inside the folder, sorted, and how many files are left out by kind (a suffix, `system files`, ...)."""

    names: list[str]
    left_out: dict[str, int]


def list_files(root: Path, wanted: Callable[[str], bool]) -> Listing:
    """List a folder with its subfolders. Raises SourceError if a folder cannot be listed."""
    names: list[str] = []
    left_out: Counter[str] = Counter()
    for name, is_linked_folder in _walk(root, ""):
        if is_linked_folder:
            left_out["links to folders"] += 1
        elif is_junk(name):
            left_out["system files"] += 1
        elif wanted(name):
            names.append(name)
        else:
            left_out[kind_of_name(name)] += 1
    return Listing(sorted(names), dict(sorted(left_out.items())))


def is_glob(pattern: str) -> bool:
    """Whether a pattern has wildcards."""
    return any(mark in pattern for mark in "*?[")


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches one of the glob patterns, ignoring case and the Unicode form of accents."""
    path = same_name(name).lower()
    return any(fnmatch.fnmatchcase(path, same_name(pattern).lower()) for pattern in patterns)


def _walk(root: Path, below: str) -> Iterator[tuple[str, bool]]:
    """(path inside `root`, whether it is a link to a folder) of everything except folders."""
    try:
        entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(
            f"{printable(str(root / below))}: this folder cannot be listed ({error.strerror}); make it readable, or move it"
        ) from error
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name)
        else:
            yield name, entry.is_symlink() and Path(entry).is_dir()  # DirEntry.is_dir raises for a circular link
