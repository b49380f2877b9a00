"""From scored pictures to answers: accuracies with intervals, paired differences, sweeps. Pure functions over rows.

Every number that a reader sees is made here (or in evaluation/measures.py) and goes into summary.json as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.evaluation.plan import ABSENT, CONDITIONS, SWAP, Setting
from pipeline.evaluation.scores import goodness
from pipeline.evaluation.statistics import best, estimate, paired

Row = Mapping[str, Any]

MEASURES = ("style_hit", "found", "nearly")


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def measured(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Each measure over the rows with its interval; None where there are none. A style is measured where one was aimed at."""
    if not rows:
        return None
    captions = [str(row["caption"]) for row in rows]
    names = [name for name in MEASURES if name != "style_hit" or all(row["style_hit"] is not None for row in rows)]
    return {name: asdict(estimate(captions, [float(row[name]) for row in rows])) for name in names}


def grouped(rows: Sequence[Row], column: str, order: Sequence[str] = ()) -> dict[str, Any]:
    """`measured` for each value of a column, in `order` or as they come."""
    values = order or list(dict.fromkeys(str(row[column]) for row in rows))
    found = {value: measured(pick(rows, **{column: value})) for value in values}
    return {value: made for value, made in found.items() if made is not None}


# ---- choosing


def choose_settings(rows: Sequence[Row]) -> tuple[dict[str, Setting], dict[str, Any]]:
    """Each condition's best setting on the validation captions, and the whole grid for the report."""
    chosen, grids = {}, {}
    for condition in CONDITIONS:
        own = pick(rows, condition=condition)
        points: dict[Setting, list[Row]] = {}
        for row in own:
            points.setdefault(Setting(int(row["k"]), float(row["guidance"])), []).append(row)
        scores = {setting: sum(map(goodness, some)) / len(some) for setting, some in points.items()}
        chosen[condition] = best(scores)
        grids[condition] = {
            "k": chosen[condition].k,
            "guidance": chosen[condition].guidance,
            "grid": [
                {
                    **asdict(setting), "score": scores[setting], "pictures": len(some),
                    "style": sum(float(row["style_hit"]) for row in some) / len(some),
                    "found": sum(float(row["found"]) for row in some) / len(some),
                }
                for setting, some in points.items()
            ],
        }  # fmt: skip
    return chosen, grids


# ---- the questions


def answer_swap(rows: Sequence[Row], styles: Sequence[str], never_seen: Sequence[str]) -> dict[str, Any]:
    """RQ1: is the picture in the style whose database was swapped in, and does it show what was asked for?"""
    own = [row for row in pick(rows, phase="swap", condition=SWAP) if row["style"]]
    others = [row for row in pick(rows, phase="swap", condition=SWAP) if not row["style"]]
    guesses = {name: _shares([str(row["guess"]) for row in pick(others, level=name)]) for name in
               dict.fromkeys(str(row["level"]) for row in others)}  # fmt: skip
    return {
        "all": measured(own),
        "seen styles": measured([row for row in own if row["style"] not in never_seen]),
        "styles never seen": measured([row for row in own if row["style"] in never_seen]),
        "content absent": measured(pick(rows, phase="swap", condition=ABSENT)),
        "by style": grouped(own, "style", styles),
        "confusion": [[len(pick(own, style=aim, guess=guess)) for guess in styles] for aim in styles],
        "without a style": {"measured": grouped(others, "level"), "guesses": guesses},
    }


def _shares(values: Sequence[str]) -> dict[str, float]:
    return {value: values.count(value) / len(values) for value in sorted(set(values))}


def answer_postfix(rows: Sequence[Row]) -> dict[str, Any]:
    """RQ2, RQ3: for each level of the general database the conditions, and swap minus each of the others, paired by caption."""
    own = pick(rows, phase="postfix")
    made: dict[str, Any] = {}
    for level in dict.fromkeys(str(row["level"]) for row in own):
        there = pick(own, level=level)
        swap = pick(there, condition=SWAP)
        made[level] = {
            "conditions": grouped(there, "condition", CONDITIONS),
            "by style": {style: grouped(pick(there, style=style), "condition", CONDITIONS) for style in
                         dict.fromkeys(str(row["style"]) for row in there)},
            "swap minus": {
                condition: {name: asdict(paired(_values(swap, name), _values(other, name))) for name in MEASURES}
                for condition in CONDITIONS
                if condition != SWAP and (other := pick(there, condition=condition))
            },
        }  # fmt: skip
    return made


def _values(rows: Sequence[Row], name: str) -> tuple[list[str], list[float]]:
    return [str(row["caption"]) for row in rows], [float(row[name]) for row in rows]


def answer_sweeps(rows: Sequence[Row]) -> dict[str, Any]:
    """RQ4: one number changed at a time; and filter against separate database, down to the neighbours."""
    made: dict[str, Any] = {
        name: grouped(pick(rows, phase=name), "level") for name in ("neighbours", "guidance", "size")
    }
    pairs = pick(rows, phase="separate")
    if pairs:
        filtered, separate = pick(pairs, level="filter"), pick(pairs, level="separate")
        count = len(filtered)
        alike = sum(
            one["neighbour_pictures"] == other["neighbour_pictures"] for one, other in _both(filtered, separate)
        )
        made["separate"] = {**grouped(pairs, "level"), "same neighbours": alike / count, "pairs": count}
    return made


def _both(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row, Row]]:
    place: Callable[[Row], tuple[str, str]] = lambda row: (row["caption"], row["style"])  # noqa: E731
    theirs = {place(row): row for row in other}
    return [(row, theirs[place(row)]) for row in one]
