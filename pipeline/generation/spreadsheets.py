"""Rows of an .xlsx file: the cells of its first sheet as texts.

Reads: Office Open XML (ECMA-376) with the standard library. The first sheet is the first visible tab. A formula's cell
has its stored value; a cell with an error is empty. Number formats are ignored: a date is its serial number.
An archive that unpacks to more than `MAX_BYTES`, or that declares entities, is refused.
"""

from __future__ import annotations

import io
import re
import zipfile
from xml.etree import ElementTree

from pipeline.errors import PromptError

MAX_BYTES = 64 << 20  # of one part of the file, unpacked

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"

_LINKS = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"

_TARGETS = "{http://schemas.openxmlformats.org/package/2006/relationships}"

_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")


def read_sheet(source: str, data: bytes) -> list[tuple[int, list[str]]]:
    """(row number, its cells) of the first sheet's rows that are not empty. Raises PromptError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = sorted((name for name in archive.namelist() if _SHEET.fullmatch(name)), key=_number)
            if not names:
                raise PromptError(f"{source}: a workbook without a sheet")
            shared = []
            if "xl/sharedStrings.xml" in archive.namelist():
                root = _parse(source, archive, "xl/sharedStrings.xml")
                shared = [_written(item) for item in root]
            first = _first_tab(source, archive)
            sheet = _parse(source, archive, first if first in names else names[0])
    except (zipfile.BadZipFile, ElementTree.ParseError, NotImplementedError, RuntimeError) as error:
        raise PromptError(f"{source}: not a readable .xlsx file: {error}; save it as .csv") from error
    rows = []
    for place, row in enumerate(sheet.iter(f"{_MAIN}row"), 1):
        cells: list[str] = []
        for cell in row.iter(f"{_MAIN}c"):
            column = _column(cell.get("r", "")) if cell.get("r") else len(cells)
            cells += [""] * (min(column, 16_384) - len(cells))
            cells.append(_text(cell, shared))
        if any(cell.strip() for cell in cells):
            rows.append((int(row.get("r") or place), cells))
    return rows


def _first_tab(source: str, archive: zipfile.ZipFile) -> str:
    """The file of the first visible tab, because tabs may be in another order than their files. Empty if none is named."""
    book, links = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
    if not {book, links} <= set(archive.namelist()):
        return ""
    shown = [
        tab for tab in _parse(source, archive, book).iter(f"{_MAIN}sheet") if tab.get("state", "visible") == "visible"
    ]
    wanted = shown[0].get(f"{_LINKS}id") if shown else None
    for link in _parse(source, archive, links).iter(f"{_TARGETS}Relationship"):
        if link.get("Id") == wanted:
            target = link.get("Target", "")
            return target.lstrip("/") if target.startswith("/") else f"xl/{target}"
    return ""


def _written(item: ElementTree.Element) -> str:
    """The text of a string and of its runs, without phonetic hints for East Asian words."""
    parts = [*item.findall(f"{_MAIN}t"), *item.findall(f"{_MAIN}r/{_MAIN}t")]
    return "".join(part.text or "" for part in parts)


def _number(name: str) -> int:
    found = _SHEET.fullmatch(name)
    return int(found.group(1)) if found else 0


def _parse(source: str, archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    with archive.open(name) as part:
        data = part.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise PromptError(f"{source}: its {name} unpacks to more than {MAX_BYTES} bytes; save it as .csv")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise PromptError(
            f"{source}: its {name} declares entities, which no spreadsheet program writes; save it as .csv"
        )
    return ElementTree.fromstring(data)


def _column(reference: str) -> int:
    """The position of a cell from its reference: A1 is 0, AA7 is 26."""
    letters = re.match(r"[A-Z]{1,3}", reference)
    position = 0
    for letter in letters.group() if letters else "A":
        position = position * 26 + ord(letter) - ord("A") + 1
    return position - 1


def _text(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(_written(part) for part in cell.findall(f"{_MAIN}is"))
    if kind == "e":
        return ""
    value = cell.findtext(f"{_MAIN}v") or ""
    if kind == "s":
        return shared[int(value)] if value.isdigit() and int(value) < len(shared) else ""
    if kind == "n" and re.fullmatch(r"-?\d+\.0", value):
        return value[:-2]
    return value
