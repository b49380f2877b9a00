"""The files that hold prompt lists: .csv, .tsv, .parquet, .json, .jsonl, .xlsx and .txt, as rows of names and values.

Reads: a file, an address that fsspec knows, or standard input (`-`), in UTF-8 (or UTF-16 with its mark). A row that cannot be
read becomes a text with the reason; a file that cannot be read is a PromptError. Does not interpret the columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from pipeline.errors import PromptError
from pipeline.generation.spreadsheets import read_sheet
from pipeline.schema import read_parquet
from pipeline.storage import read_url

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".xlsx", ".txt")

STANDARD_INPUT = "-"

# Suffixes that mean a file, but not a list that can be read.
_OTHER_FILES = (
    *(".xls", ".xlsm", ".ods", ".numbers", ".doc", ".docx", ".odt", ".rtf", ".pdf", ".md", ".yaml", ".yml", ".toml", ".xml"),
    *(".html", ".htm", ".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".zip", ".gz", ".py", ".ndjson", ".feather"),
)  # fmt: skip

_PATH = re.compile(r"(\.{0,2}|~[\w-]*)[/\\]")  # the beginning of a text that is a path and not a prompt

Record = dict[str, object]

Records = Iterator[tuple[int, "Record | str"]]  # line, and the row or its fault


def read_records(source: str) -> tuple[list[str], Records, str]:
    """The names of the columns, the rows, and the unit of their numbers: "line" or "row". Raises PromptError."""
    is_piped = source == STANDARD_INPUT
    data, suffix = (_standard_input(), "") if is_piped else (_read(source), Path(source).suffix.lower())
    if is_piped:
        source, suffix = "standard input", _suffix_of_data(data)
        if not suffix:
            text = _decode(source, data)
            return _of_text(source, _suffix_of_text(text), text)
    if suffix == ".parquet":
        return *_parquet(source, data), "row"
    if suffix == ".xlsx":
        return *_xlsx(source, data), "row"
    return _of_text(source, suffix, _decode(source, data))


def is_list(source: str) -> bool:
    """Whether a text names a prompt list: `-`, or a name with the suffix of a list.

    Raises PromptError for any other file or folder and for a path that does not exist, because its name would be drawn.
    """
    if source == STANDARD_INPUT:
        return True
    if "\n" in source or len(source) > 1000 or not source.strip():
        return False
    suffix = Path(source).suffix.lower()
    if suffix in SUFFIXES:
        return True
    is_path = _PATH.match(source) is not None or suffix in _OTHER_FILES
    if (is_path and " " not in source.strip()) or _exists(source):
        raise PromptError(
            f"{source}: a file or folder that is no prompt list; expected a name that ends in {', '.join(SUFFIXES)}, `-` for "
            "standard input, or a prompt that is not the name of a file"
        )
    return False


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # the text cannot be a path
        return False


@cache
def _standard_input() -> bytes:
    return sys.stdin.buffer.read()


def _suffix_of_data(data: bytes) -> str:
    """The suffix of the format of piped binary data; empty for text."""
    return ".xlsx" if data.startswith(b"PK\x03\x04") else ".parquet" if data.startswith(b"PAR1") else ""


def _suffix_of_text(text: str) -> str:
    """The suffix of the format of a text: JSON, JSON lines, CSV with a column `prompt`, or one prompt in each line."""
    begin = text.lstrip()
    if begin.startswith("["):
        return ".json"
    if begin.startswith("{"):
        return ".jsonl"
    first = begin.splitlines()[0] if begin else ""
    cells = [cell.strip().strip('"').lower() for cell in first.replace(";", ",").replace("\t", ",").split(",")]
    return ".csv" if "prompt" in cells else ".txt"


def _of_text(source: str, suffix: str, text: str) -> tuple[list[str], Records, str]:
    if suffix == ".json":
        return *_json(source, text), "row"
    return *{".jsonl": _jsonl, ".txt": _txt}.get(suffix, _csv)(source, text), "line"


def _json(source: str, text: str) -> tuple[list[str], Records]:
    """A JSON list of prompts or of objects, or an object whose `prompts` is one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{source}: not JSON: {error}; one object a line is a .jsonl file") from error
    listed = value.get("prompts", [value]) if isinstance(value, dict) else value
    if not isinstance(listed, list):
        raise PromptError(f"{source}: expected a list of prompts or of objects, found {text.strip()[:40]!r}")
    names: dict[str, None] = {}
    records: list[tuple[int, Record | str]] = []
    for number, entry in enumerate(listed, 1):
        row = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(row, dict):
            records.append((number, f"expected a text or an object, found {json.dumps(entry)[:40]}"))
        elif unwritable(json.dumps(row, ensure_ascii=False)):
            records.append((number, "holds half a surrogate pair, which is no character"))
        else:
            names.update(dict.fromkeys(row))
            records.append((number, row))
    return list(names) or ["prompt"], iter(records)


def _xlsx(source: str, data: bytes) -> tuple[list[str], Records]:
    rows = read_sheet(source, data)
    if not rows:
        raise PromptError(f"{source}: the first sheet is empty")
    names = rows[0][1]

    def records() -> Records:
        for number, cells in rows[1:]:
            if any(cell.strip() for cell in cells[len(names) :]):
                yield number, f"{len(cells)} cells where the header has {len(names)}"
            else:
                yield number, dict(zip(names, [*cells, *[""] * len(names)], strict=False))

    return names, records()


def unwritable(text: str) -> bool:
    """Whether a text has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can say "\\ud800"
        return True
    return False


def _read(source: str) -> bytes:
    try:
        return read_url(source if "://" in source else str(Path(source).expanduser()))
    except (OSError, ImportError, ValueError) as error:
        raise PromptError(
            f"{source}: cannot be read ({error}). Give the path of a prompt list, or a prompt that does not end in "
            f"{', '.join(SUFFIXES)}."
        ) from error


def _decode(source: str, data: bytes) -> str:
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # spreadsheets call this "Unicode text"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PromptError(
            f"{source}: line {line} is not UTF-8 text ({error.reason}); save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise PromptError(f"{source}: line {line} holds a NUL character: this is not a text file")
    return text


def _csv(source: str, text: str) -> tuple[list[str], Records]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=lambda mark: (first.count(mark), mark == ","))
    if source.lower().endswith(".tsv"):
        delimiter = "\t"
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
    except csv.Error as error:
        raise PromptError(f"{source}: the header cannot be read: {error}") from error
    return names, _csv_rows(lines, reader.line_num, names, delimiter)


def _csv_rows(lines: Sequence[str], begin: int, names: Sequence[str], delimiter: str) -> Records:
    """The rows from line `begin` on (0 is the first). An open quote affects only its own row."""
    reader, offset = csv.reader(itertools.islice(lines, begin, None), delimiter=delimiter, strict=True), begin
    while True:
        first = offset + reader.line_num
        problem = ""
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells, problem = [], str(error)
        if cells is None:
            return
        behind = offset + reader.line_num
        swallowed = _whole_row(lines, first + 1, behind, names, delimiter, is_open="unexpected end" in problem)
        if swallowed:
            behind = swallowed
            problem = problem or "a quote is closed in a later row"
            reader, offset = csv.reader(itertools.islice(lines, behind, None), delimiter=delimiter, strict=True), behind
        if problem:
            through = f", lines {first + 1} to {behind}" if behind > first + 1 else ""
            yield (
                first + 1,
                f"not a CSV row ({problem}{through}): a quote is never closed, or a quote inside a cell is not doubled",
            )
        elif len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
            yield (
                first + 1,
                f"{len(cells)} cells where the header has {len(names)}: quote a cell that holds {delimiter!r}",
            )
        elif any(cell.strip() for cell in cells):
            yield first + 1, dict(zip(names, cells, strict=False))


def _whole_row(
    lines: Sequence[str], first: int, behind: int, names: Sequence[str], delimiter: str, *, is_open: bool
) -> int:
    """The first of the lines after an open quote that is a separate row; 0 if none is.

    In prose a comma is followed by a space, so a line of a prompt is not mistaken for a row; nor is one that closes the
    quote. In a list of one column every line may be a row: this counts only if the quote `is_open` to the end of the file.
    """
    for number in range(first, behind):
        if lines[number].count('"') % 2:
            continue
        cells = lines[number].rstrip("\r\n").split(delimiter)
        if len(names) == 1:
            if is_open and lines[number].strip():
                return number
        elif len(cells) == len(names) and cells[0].strip() and not any(cell.startswith(" ") for cell in cells[1:]):
            return number
    return 0


def _txt(source: str, text: str) -> tuple[list[str], Records]:
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return ["prompt"], ((number, {"prompt": line}) for number, line in lines if line.strip())


def _jsonl(source: str, text: str) -> tuple[list[str], Records]:
    names: dict[str, None] = {}
    records: list[tuple[int, Record | str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            records.append((number, f"not JSON: {error}"))
            continue
        if unwritable(json.dumps(value, ensure_ascii=False)):
            records.append((number, "holds half a surrogate pair, which is no character"))
            continue
        if isinstance(value, dict):
            names.update(dict.fromkeys(value))
        records.append((number, value if isinstance(value, dict) else f"expected an object, found {line.strip()[:40]}"))
    return list(names), iter(records)


def _parquet(source: str, data: bytes) -> tuple[list[str], Records]:
    import pyarrow as pa

    try:
        table = read_parquet(io.BytesIO(data))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise PromptError(f"{source}: not a readable Parquet file: {error}") from error
    return list(table.column_names), iter(enumerate(rows, 1))
