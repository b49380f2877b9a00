"""Checksums of files that no version lists; readers of such a file and `rdmpipe check` compare it with them.

Reads and writes .checksums/ of a database: lists that `sha256sum -c` can read.

    .checksums/<path>                  the last two contents of a small file or a plan: manifest.json, blocked.txt,
                                       plan/<id>.*, versions/<id>.json, index/<encoder>/<id>/entry.json
    .checksums/receipts/<version id>   the receipts of a version's shards (database/receipts.py)

The first line of a list is a comment with the checksum of the other lines. A new content's checksum is written before the
content, so that a writer that is killed in between leaves the older content, whose checksum is still listed. A file
without a list was written by an older rdmpipe and is not checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from pipeline.storage import Storage

FOLDER = ".checksums"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

_CONTENTS = 2  # number of contents of a file whose checksums are listed


def list_path(name: str) -> str:
    """The list of a file of the database's folder."""
    return f"{FOLDER}/{name}"


def read_list(storage: Storage, name: str) -> list[tuple[str, str]]:
    """The (sha256, path) pairs of a list; none if there is no list. Raises ValueError for a list that is damaged."""
    text = storage.read_text(list_path(name))
    if text is None:
        return []
    first, _, rest = text.partition("\n")
    matches = [_LINE.fullmatch(line) for line in rest.split("\n")[:-1]]
    found = [(match[1], match[2]) for match in matches if match is not None]
    if first != f"# {text_sum(rest)}" or len(found) != len(matches):
        raise ValueError("its first line is not the checksum of the others")
    return found


def write_list(storage: Storage, name: str, lines: Iterable[tuple[str, str]]) -> None:
    text = "".join(f"{checksum}  {path}\n" for checksum, path in lines)
    storage.write_text(list_path(name), f"# {text_sum(text)}\n{text}")


def text_sum(text: str) -> str:
    """The hex sha256 of a text's UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---- one file


def record_sum(storage: Storage, name: str, checksum: str) -> None:
    """List the checksum of a content that will be written to the file `name`. One process writes at a time."""
    try:
        known = read_list(storage, name)
    except ValueError:
        known = []
    if not known:  # an older rdmpipe wrote the file: its present content is valid until it is replaced
        there = storage.read_bytes(name) if storage.exists(name) else None
        known = [] if there is None else [(hashlib.sha256(there).hexdigest(), name)]
    new = (checksum, name)
    if known[-1:] != [new]:
        write_list(storage, name, [*[line for line in known if line != new][1 - _CONTENTS :], new])


def write_recorded(storage: Storage, name: str, text: str) -> None:
    """Write the checksum of a small file of the database's folder, then the file."""
    record_sum(storage, name, text_sum(text))
    storage.write_text(name, text)


def recorded_problem(storage: Storage, name: str, text: str | None) -> str:
    """The fault of a file, given its text; empty if there is none or no checksum is recorded."""
    return sum_problem(storage, name, None if text is None else text_sum(text))


def sum_problem(storage: Storage, name: str, checksum: str | None) -> str:
    """The fault of a file, given its checksum (None: the file is missing); empty if there is none or no checksum is
    recorded."""
    try:
        known = read_list(storage, name)
    except ValueError:
        return ""  # the list is damaged and not the file: `rdmpipe check` reports it
    if not known or checksum in {listed for listed, _ in known}:
        return ""
    if checksum is None:
        return "the file is missing"
    return f"its checksum is not in {list_path(name)} (if you changed it on purpose, remove that list)"


def remove_recorded(storage: Storage, name: str) -> None:
    """Remove a file and the list of its checksums, in this order."""
    storage.remove(name)
    if storage.exists(list_path(name)):
        storage.remove(list_path(name))
