"""Which licences allow redistribution, and the rows of a version whose licence does not.

Reads the column `licence` of a version's shards. Writes nothing. It recognises names, SPDX identifiers and addresses of common
licences; a text that it does not recognise counts as no permission. This is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipeline.database import RetrievalDatabase, Version
from pipeline.schema import OK

NOT_STATED = "not stated"

_SHOWN = 3  # row names kept for each licence

# Creative Commons without "no derivatives": thumbnails and vectors are made from the pictures.
_CREATIVE_COMMONS = re.compile(r"cc-?(by(?:-nc)?(?:-sa)?)(?:-([1-4]\.\d))?(?:-(?:[a-z]{2}|igo))?")

_PUBLIC_DOMAIN = re.compile(r"(?:cc-?)?(?:public-?domain(?:-mark)?|pdm|pd)(?:-1\.0)?")

_CC0 = re.compile(r"cc-?(?:0|zero)(?:-1\.0)?(?:-universal)?")

_OTHERS = re.compile(
    r"mit|isc|unlicense|zlib|apache-2\.0|bsd-[23]-clause|ofl-1\.1|odc-by(?:-1\.0)?|odbl(?:-1\.0)?|pddl(?:-1\.0)?|mpl-2\.0"
    r"|a?l?gpl-[23]\.[01](?:\+|-only|-or-later)?|(?:creativeml-|bigscience-)?openrail(?:\+\+|-m|\+\+-m)?|artistic-2\.0|cdla-permissive-[12]\.0"
)

# Names in the Hub's cards that differ from ours.
_HUB_NAMES = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl", "pdm-1.0": "other"}


@dataclass(frozen=True)
class RowsOfLicence:
    """The rows of one licence: their number, and the names of the first few."""

    licence: str  # as the rows state it
    rows: int
    names: tuple[str, ...]
    allows: bool  # whether copies may be given to others


def identify(text: str) -> str:
    """The identifier of a licence that allows redistribution, such as `cc-by-sa-4.0`; empty for any other text."""
    name = _of_address(text) or re.sub(r"[\s_]+", "-", text.strip().lower()).removesuffix(".")
    name = re.sub(r"^(?:the-)?(.*?)-licen[cs]e$", r"\1", name)
    name = name.replace("creative-commons-", "cc-").replace("attribution", "by")
    name = name.replace("noncommercial", "nc").replace("sharealike", "sa")
    if match := _CREATIVE_COMMONS.fullmatch(name):
        return f"cc-{match[1]}" + (f"-{match[2]}" if match[2] else "")
    if _CC0.fullmatch(name):
        return "cc0-1.0"
    if _PUBLIC_DOMAIN.fullmatch(name):
        return "pdm-1.0"
    return name if _OTHERS.fullmatch(name) else ""


def _of_address(text: str) -> str:
    """The name in a Creative Commons address such as https://creativecommons.org/licenses/by-sa/4.0/; else empty."""
    parts = urlsplit(text.strip().lower())
    if parts.scheme not in ("http", "https") or (parts.hostname or "").removeprefix("www.") != "creativecommons.org":
        return ""
    match PurePosixPath(parts.path).parts[1:]:
        case ("licenses" | "licences", kind, *rest):
            return "-".join(["cc", kind, *rest[:1]])
        case ("publicdomain", "zero", *_):
            return "cc0-1.0"
        case ("publicdomain", "mark", *_):
            return "pdm-1.0"
        case _:
            return ""


def hub_licence(text: str) -> str:
    """The licence by its name in the Hub's cards; `other` if it has none."""
    found = identify(text)
    return _HUB_NAMES.get(found, found) or "other"


def licences_of(db: RetrievalDatabase, version: Version) -> list[RowsOfLicence]:
    """The licences of a version's ok rows: first those that do not allow redistribution, then by descending number of rows.

    Rows that later left the database are included, because its shards hold them. A row without a licence has the collection's.
    """
    counts: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    default = str(version.manifest.get("licence") or NOT_STATED)
    for name, licence in _rows(db, version):
        text = licence or default
        counts[text] = counts.get(text, 0) + 1
        if len(known := names.setdefault(text, [])) < _SHOWN:
            known.append(name)
    found = [RowsOfLicence(text, count, tuple(names[text]), bool(identify(text))) for text, count in counts.items()]
    return sorted(found, key=lambda one: (one.allows, -one.rows, one.licence))


def _rows(db: RetrievalDatabase, version: Version) -> Iterator[tuple[str, str]]:
    """(item id, licence) of the ok rows."""
    for shard in version.shards:
        table = db.read_table(shard.artifact, ["item_id", "status", "licence"])
        columns = [table[name].to_pylist() for name in ("item_id", "status", "licence")]
        for name, status, licence in zip(*columns, strict=True):
            if status == OK:
                yield str(name), str(licence or "")
