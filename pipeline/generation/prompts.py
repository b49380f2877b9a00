"""Prompt lists: a file, one literal prompt, or rows from a program.

Reads: the list, with generation/prompt_files.py. Known columns are those of COLUMNS; every other column is copied to the
results, with a warning if it looks like a misspelt known column. A row that cannot be used becomes a `BadRow`
with its line number; `accept_rows` turns all of them into one error, or leaves them out. Writes nothing. Does not check values
against models or databases; generation/expand.py does.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import PromptError, nearest
from pipeline.generation.prompt_files import Record, is_list, read_records, unwritable
from pipeline.generation.sampling import BOUNDS, SAMPLERS, SETTINGS, Sampling, is_scheduler

SHOWN = 20  # bad rows that an error lists

# Whole-number columns: lowest and highest value for any model.
_WHOLE = {
    "seed": (0, 2**62),
    "k": (0, 1000),
    "n": (1, 10_000),
    **{name: (int(low), int(high)) for name, (low, high) in BOUNDS.items() if name in ("steps", "width", "height")},
}

_TEXT = ("id", "where", "negative", "image")

COLUMNS = ("prompt", "id", "seed", "db", "where", "k", "steps", "scale", "sampler", "n", "width", "height", "negative",
           "image")  # fmt: skip

# Names of our columns in other programs, which a comparison of spelling would not find.
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
    """One row as written. None (or empty): the flag's value applies. `line` is its first line, from 1."""

    line: int
    prompt: str
    id: str = ""
    seed: int | None = None
    db: tuple[str, ...] = ()
    where: str = ""
    k: int | None = None
    n: int | None = None
    negative: str = ""
    image: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    extra: Record = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class PromptList:
    """A list as read. `folder`: to which image paths are relative; `unit`: what `line` counts."""

    source: str
    rows: tuple[PromptRow, ...]
    bad: tuple[BadRow, ...] = ()
    warnings: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # names of the other columns, in order
    folder: str = ""
    unit: str = "line"


def read_prompts(source: str | Sequence[PromptRow]) -> PromptList:
    """A prompt list: from a file, from rows, or from `source` itself as the only prompt if it does not have a list's suffix.

    Raises PromptError if the whole list is unreadable: no such file, no `prompt` column, not text, no rows.
    """
    if not isinstance(source, str):
        if not source:
            raise PromptError("the list of prompts is empty: give at least one row")
        extra = tuple(dict.fromkeys(name for row in source for name in row.extra))
        return PromptList("the rows", tuple(source), extra=extra, unit="row")
    if not is_list(source):
        if not source.strip():
            raise PromptError("the prompt is empty: give a text in quotes, or the file of a list")
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
        warnings.append(f"{source}: {len(twice)} id(s) are on several rows: {shown}; results tell them apart by row")
    extra = tuple(name.strip() for name in names if columns[name] is None and name.strip())
    folder = source.rsplit("/", 1)[0] if "://" in source else str(Path(source).absolute().parent)
    return PromptList(Path(source).name, tuple(rows), tuple(bad), tuple(warnings), extra, folder, unit)


def prompt_rows(rows: Sequence[str | Mapping[str, object]]) -> tuple[PromptRow, ...]:
    """Rows from a program: prompts, or mappings with the columns of a list, checked like rows of a file.

    Raises PromptError with all rows that cannot be used, counted from 1.
    """
    records = [{"prompt": row} if isinstance(row, str) else dict(row) for row in rows]
    columns, _ = _columns("the rows", list(dict.fromkeys(name for record in records for name in record)))
    made = [_row(number, record, columns) for number, record in enumerate(records, 1)]
    usable = tuple(row for row in made if isinstance(row, PromptRow))
    bad = tuple(row for row in made if isinstance(row, BadRow))
    return accept_rows(PromptList("the rows", usable, bad, unit="row"))


def accept_rows(prompts: PromptList, more: Iterable[BadRow] = (), skip_bad: bool = False) -> tuple[PromptRow, ...]:
    """The usable rows. Raises one PromptError for all bad rows, unless `skip_bad`, and if no row is usable."""
    bad = sorted({*prompts.bad, *more}, key=lambda row: (row.line, row.problem))
    lines = {row.line for row in bad}
    rows = tuple(row for row in prompts.rows if row.line not in lines)
    if bad and (not skip_bad or not rows):
        total = len(prompts.rows) + len(prompts.bad)
        listed = "\n".join(f"  {prompts.unit} {row.line}: {row.problem}" for row in bad[:SHOWN])
        rest = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        advice = "Fix them, or leave them out with --skip-bad." if rows else "No row is left to work on: fix them."
        raise PromptError(f"{prompts.source}: {len(lines)} of {total} row(s) cannot be used:\n{listed}{rest}\n{advice}")
    return rows


# ---- columns and cells


def _columns(source: str, names: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """For each column of the file its known column, or None, ignoring case and blanks around a name."""
    found: dict[str, str | None] = {}
    warnings = []
    for name in names:
        plain = name.strip().lower()
        found[name] = plain if plain in COLUMNS else None
        likely = _ELSEWHERE.get(plain) or next(iter(difflib.get_close_matches(plain, COLUMNS, 1, 0.74)), "")
        if found[name] is None and likely:
            warnings.append(
                f"{source}: column {name!r} is not used (did you mean {likely!r}?); it is copied to the results"
            )
    known, bare = [value for value in found.values() if value], [name.strip() for name in names]
    twice = sorted({value for value in known if known.count(value) > 1} | {n for n in bare if n and bare.count(n) > 1})
    if twice:
        raise PromptError(f"{source}: column {twice[0]!r} is there twice; keep one of them")
    if "prompt" not in known and "image" not in known:
        raise PromptError(
            f"{source}: no column 'prompt'{nearest('prompt', names)}; the first line names the columns, and it has: "
            f"{', '.join(names) or 'none'}"
        )
    return found, warnings


def _row(line: int, record: Mapping[str, object], columns: Mapping[str, str | None]) -> PromptRow | BadRow:
    values: dict[str, object] = {}
    extra: Record = {}
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
    if "prompt" not in values and "image" not in values and not problems:
        problems.append("no prompt (and no image in its place)")
    if problems:
        return BadRow(line, "; ".join(problems))
    sampling = Sampling(**{name: values.pop(name) for name in SETTINGS if name in values})  # type: ignore[arg-type]
    return PromptRow(line, **{"prompt": "", **values}, sampling=sampling, extra=extra)  # type: ignore[arg-type]


def _cell(name: str, value: object) -> object:
    """The value of a known column, which is not blank. The text of a ValueError is the expected value."""
    if name in _WHOLE:
        low, high = _WHOLE[name]
        number = _number(value)
        if number is None or number != int(number) or not low <= int(number) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(number)
    if name in BOUNDS:
        (least, most), number = BOUNDS[name], _number(value)
        if number is None or not least <= number <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return float(number)
    if name == "db":
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
    if not isinstance(value, str) and (name == "prompt" or name in _TEXT[1:] or not isinstance(value, int | float)):
        raise ValueError("text")
    text = str(value).removeprefix("\ufeff").strip().replace("\r\n", "\n")
    if "\0" in text:
        raise ValueError("text without NUL characters")
    if name == "sampler" and not is_scheduler(text) and (text := text.lower()) not in SAMPLERS:
        raise ValueError(f"one of {', '.join(SAMPLERS)}{nearest(text, SAMPLERS)}")
    return text


def _number(value: object) -> float | int | None:
    """A finite number; whole numbers stay exact (a seed may not fit a float); None for anything else."""
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
