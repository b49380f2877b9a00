"""Prompt lists: .csv, .tsv, .parquet, .jsonl, .txt, or one literal prompt.

Reads: the list, by generation/prompts.py. Known columns are `prompt` and, where wanted, those of COLUMNS; every other
column is carried through to the results, and one that looks like a misspelt known column is warned about by name. A row
that cannot be used becomes a `BadRow` with its line number; `accept` turns all of them into one error, or leaves them out.
Writes nothing. Does not know models or databases: whether a `k` or a `db` can be had is checked in generation/expand.py.

The files that hold prompt lists: .csv, .tsv, .parquet, .jsonl, .txt into rows of names and values.

Reads: a file or an address that fsspec knows, UTF-8 (or UTF-16 with its mark). A row that cannot be read becomes a text that
says why; a file that cannot, a PromptError. Does not know what the columns mean.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PromptError, nearest

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".txt")

Records = Iterator[tuple[int, "dict[str, Any] | str"]]  # line, and the row or what is wrong with it


def read_records(source: str) -> tuple[list[str], Records, str]:
    """The names of the columns, the rows, and what their numbers count: "line" or "row". Raises PromptError."""
    data, suffix = _read(source), Path(source).suffix.lower()
    if suffix == ".parquet":
        return *_parquet(source, data), "row"
    return *{".jsonl": _jsonl, ".txt": _txt}.get(suffix, _csv)(source, _decode(source, data)), "line"


def unwritable(text: str) -> bool:
    """Whether a text has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can say "\\ud800"
        return True
    return False


def _read(source: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(source if "://" in source else str(Path(source).expanduser()), "rb") as handle:
            return bytes(handle.read())
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
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
    except csv.Error as error:
        raise PromptError(f"{source}: the header cannot be read: {error}") from error

    def rows() -> Records:
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                through = f", lines {line} to {reader.line_num}" if reader.line_num > line else ""
                yield (
                    line,
                    f"not a CSV row ({error}{through}): a quote is opened and not closed, or stands inside a cell undoubled",
                )
                continue  # with the next line: a reader starts afresh after an error
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                yield (
                    line,
                    f"{len(cells)} cells where the header has {len(names)}: quote a cell that holds {delimiter!r}",
                )
            else:
                yield line, dict(zip(names, cells, strict=False))

    return names, rows()


def _txt(source: str, text: str) -> tuple[list[str], Records]:
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return ["prompt"], ((number, {"prompt": line}) for number, line in lines if line.strip())


def _jsonl(source: str, text: str) -> tuple[list[str], Records]:
    names: dict[str, None] = {}
    records: list[tuple[int, dict[str, Any] | str]] = []
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
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise PromptError(f"{source}: not a readable Parquet file: {error}") from error
    return list(table.column_names), iter(enumerate(rows, 1))


SAMPLERS = ("ddim", "plms", "dpmpp_2m", "unipc")  # those of rdm.sampling, which costs an import of torch

SHOWN = 20  # bad rows an error spells out

# Whole-number columns: lowest and highest value that makes sense for any model.
_WHOLE = {
    "seed": (0, 2**62),
    "k": (0, 1000),
    "steps": (1, 1000),
    "n": (1, 10_000),
    "width": (8, 8192),
    "height": (8, 8192),
}

_TEXT = ("id", "where", "negative", "image")

COLUMNS = ("prompt", "id", "seed", "db", "where", "k", "steps", "scale", "sampler", "n", "width", "height", "negative",
           "image")  # fmt: skip

# What other programs call our columns; a plain comparison of letters would not find these.
_ELSEWHERE = {
    "text": "prompt",
    "database": "db",
    "databases": "db",
    "filter": "where",
    "neighbours": "k",
    "neighbors": "k",
    "cfg": "scale",
    "guidance": "scale",
    "guidance_scale": "scale",
    "cfg_scale": "scale",
    "num_inference_steps": "steps",
    "negative_prompt": "negative",
    "num_images": "n",
    "count": "n",
    "image_prompt": "image",
    "init_image": "image",
}


@dataclass(frozen=True)
class PromptRow:
    """One row as written: None (or empty) where the row leaves the choice to the flags. `line` is where it starts, from 1."""

    line: int
    prompt: str
    id: str = ""
    seed: int | None = None
    db: tuple[str, ...] = ()
    where: str = ""
    k: int | None = None
    steps: int | None = None
    scale: float | None = None
    sampler: str = ""
    n: int | None = None
    width: int | None = None
    height: int | None = None
    negative: str = ""
    image: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    line: int
    problem: str


@dataclass(frozen=True)
class PromptList:
    """A list as read. `folder` is where relative image paths start; `unit` is what `line` counts."""

    source: str
    rows: tuple[PromptRow, ...]
    bad: tuple[BadRow, ...] = ()
    warnings: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # names of the carried-through columns, in order
    folder: str = ""
    unit: str = "line"


def read_prompts(source: str) -> PromptList:
    """Read a prompt list, or take `source` itself as the prompt where it does not end like a list's file name.

    Raises PromptError for what makes the whole list unreadable: no such file, no `prompt` column, not text.
    """
    if Path(source).suffix.lower() not in SUFFIXES or "\n" in source:
        if not source.strip():
            raise PromptError("the prompt is empty: give a text in quotes, or a .csv, .parquet, .jsonl or .txt file")
        if unwritable(source):
            raise PromptError(f"the prompt {source!r} is not UTF-8 text")
        return PromptList(source="the prompt", rows=(PromptRow(line=1, prompt=source.strip()),))
    names, records, unit = read_records(source)
    columns, warnings = _columns(source, names)
    rows: list[PromptRow] = []
    bad: list[BadRow] = []
    for line, record in records:
        made = BadRow(line, record) if isinstance(record, str) else _row(line, record, columns)
        if isinstance(made, PromptRow):
            rows.append(made)
        else:
            bad.append(made)
    if not rows and not bad:
        raise PromptError(f"{source}: holds no prompts")
    ids = Counter(row.id for row in rows if row.id)
    if twice := [name for name, count in ids.items() if count > 1]:
        shown = ", ".join(repr(name) for name in twice[:3]) + (", ..." if len(twice) > 3 else "")
        warnings.append(f"{source}: {len(twice)} id(s) stand on several rows: {shown}; results tell them apart by row")
    extra = tuple(name.strip() for name in names if columns[name] is None and name.strip())
    folder = source.rsplit("/", 1)[0] if "://" in source else str(Path(source).absolute().parent)
    return PromptList(Path(source).name, tuple(rows), tuple(bad), tuple(warnings), extra, folder, unit)


def accept_rows(prompts: PromptList, more: Iterable[BadRow] = (), skip_bad: bool = False) -> tuple[PromptRow, ...]:
    """The usable rows. All bad rows together are one PromptError, unless `skip_bad`; no usable row always is."""
    bad = sorted({*prompts.bad, *more}, key=lambda row: (row.line, row.problem))
    lines = {row.line for row in bad}
    rows = tuple(row for row in prompts.rows if row.line not in lines)
    if bad and (not skip_bad or not rows):
        total = len(prompts.rows) + len(prompts.bad)
        listed = "\n".join(f"  {prompts.unit} {row.line}: {row.problem}" for row in bad[:SHOWN])
        rest = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        advice = "Mend them, or leave them out with --skip-bad." if rows else "No row is left to work on: mend them."
        raise PromptError(f"{prompts.source}: {len(lines)} of {total} row(s) cannot be used:\n{listed}{rest}\n{advice}")
    return rows


# ---- columns and cells


def _columns(source: str, names: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """For each column of the file: which known column it is, or None. Case and blanks around a name do not matter."""
    found: dict[str, str | None] = {}
    warnings = []
    for name in names:
        plain = name.strip().lower()
        found[name] = plain if plain in COLUMNS else None
        likely = _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, COLUMNS, 1, 0.74)), "")
        if found[name] is None and likely:
            warnings.append(
                f"{source}: column {name!r} is not used (did you mean {likely!r}?); it is carried through to the results"
            )
    known, bare = [value for value in found.values() if value], [name.strip() for name in names]
    twice = sorted({value for value in known if known.count(value) > 1} | {n for n in bare if n and bare.count(n) > 1})
    if twice:
        raise PromptError(f"{source}: column {twice[0]!r} stands there twice; keep one of them")
    if "prompt" not in known and "image" not in known:
        raise PromptError(
            f"{source}: no column 'prompt'{nearest('prompt', names)}; the first line names the columns, and it has: "
            f"{', '.join(names) or 'none'}"
        )
    return found, warnings


def _row(line: int, record: Mapping[str, Any], columns: Mapping[str, str | None]) -> PromptRow | BadRow:
    values: dict[str, Any] = {"prompt": ""}
    extra: dict[str, Any] = {}
    problems = []
    for name, value in record.items():
        known = columns[name]
        if known is None:
            if name.strip():
                extra[name.strip()] = value
            continue
        if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN: a table's gap
            continue
        try:
            values[known] = _cell(known, value)
        except ValueError as error:
            problems.append(f"{known} is {value!r}; expected {error}")
    if not values["prompt"] and "image" not in values and not problems:
        problems.append("no prompt (and no image in its place)")
    return BadRow(line, "; ".join(problems)) if problems else PromptRow(line=line, extra=extra, **values)


def _cell(name: str, value: Any) -> Any:
    """The value of a known column; ValueError's text is what was expected. Blank values do not come here."""
    if name in _WHOLE:
        low, high = _WHOLE[name]
        number = _number(value)
        if number is None or number != int(number) or not low <= int(number) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(number)
    if name == "scale":
        number = _number(value)
        if number is None or not 0 <= number <= 1000:
            raise ValueError("a number from 0 to 1000")
        return float(number)
    if name == "db":
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
    if not isinstance(value, str) and (name == "prompt" or name in _TEXT[1:] or not isinstance(value, int | float)):
        raise ValueError("text")
    text = str(value).strip().replace("\r\n", "\n")
    if "\0" in text:
        raise ValueError("text without NUL characters")
    if name == "sampler" and (text := text.lower()) not in SAMPLERS:
        raise ValueError(f"one of {', '.join(SAMPLERS)}{nearest(text, SAMPLERS)}")
    return text


def _number(value: Any) -> float | int | None:
    """A finite number, whole numbers kept exact (a seed may not fit a float); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    return value if isinstance(value, int) or math.isfinite(value) else None  # a large int is no float
