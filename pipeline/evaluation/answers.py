"""From scored pictures to answers: accuracies with intervals, paired differences, sweeps. Pure functions over rows.

Every number of the report is computed here or in evaluation/measures.py, and written to summary.json unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from pipeline.evaluation.plan import ABSENT, CONDITIONS, SWAP, Setting
from pipeline.evaluation.records import (
    Grid,
    GridPoint,
    LevelAnswer,
    Measured,
    Score,
    SeparateAnswer,
    SwapAnswer,
    SweepAnswer,
    Unstyled,
    by_value,
    mapped,
)
from pipeline.evaluation.scores import goodness
from pipeline.evaluation.statistics import Estimate, best, estimate, paired


def pick(rows: Iterable[Score], **wanted: object) -> list[Score]:
    """The rows with these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def measured(rows: Sequence[Score]) -> Measured | None:
    """Each measure over the rows with its interval; None if there are no rows."""
    if not rows:
        return None
    styled = all(row.style_hit is not None for row in rows)
    return Measured(
        style_hit=estimate(*_values(rows, "style_hit")) if styled else None,
        found=estimate(*_values(rows, "found")),
        nearly=estimate(*_values(rows, "nearly")),
    )


def grouped(rows: Sequence[Score], column: str, order: Sequence[str] = ()) -> dict[str, Measured]:
    """`measured` for each value of a column, in `order` or in order of appearance."""
    values = order or by_value(rows, column)
    return mapped({value: measured(pick(rows, **{column: value})) for value in values})


# ---- choosing


def choose_settings(rows: Sequence[Score]) -> tuple[dict[str, Setting], dict[str, Grid]]:
    """Each condition's best setting on the validation captions, and the whole grid for the report."""
    chosen, grids = {}, {}
    for condition in CONDITIONS:
        points: dict[Setting, list[Score]] = {}
        for row in pick(rows, condition=condition):
            points.setdefault(Setting(row.k, row.guidance), []).append(row)
        scores = {setting: sum(map(goodness, some)) / len(some) for setting, some in points.items()}
        chosen[condition] = best(scores)
        grid = tuple(
            GridPoint(
                **asdict(setting), score=scores[setting], pictures=len(some),
                style=sum(float(row.style_hit or 0) for row in some) / len(some),
                found=sum(row.found for row in some) / len(some),
            )
            for setting, some in points.items()
        )  # fmt: skip
        grids[condition] = Grid(chosen[condition].k, chosen[condition].guidance, grid)
    return chosen, grids


# ---- the questions


def answer_swap(rows: Sequence[Score], styles: Sequence[str], never_seen: Sequence[str]) -> SwapAnswer:
    """RQ1: is the picture in the style whose database was swapped in, and does it show the requested content?"""
    own = [row for row in pick(rows, phase="swap", condition=SWAP) if row.style]
    others = [row for row in pick(rows, phase="swap", condition=SWAP) if not row.style]
    return SwapAnswer(
        all=measured(own),
        seen_styles=measured([row for row in own if row.style not in never_seen]),
        styles_never_seen=measured([row for row in own if row.style in never_seen]),
        content_absent=measured(pick(rows, phase="swap", condition=ABSENT)),
        by_style=grouped(own, "style", styles),
        confusion=[[len(pick(own, style=aim, guess=guess)) for guess in styles] for aim in styles],
        without_a_style=Unstyled(
            grouped(others, "level"),
            {name: _shares([row.guess for row in pick(others, level=name)]) for name in by_value(others, "level")},
        ),
    )


def _shares(values: Sequence[str]) -> dict[str, float]:
    return {value: values.count(value) / len(values) for value in sorted(set(values))}


def answer_postfix(rows: Sequence[Score]) -> dict[str, LevelAnswer]:
    """RQ2, RQ3: for each level of the general database, the conditions and swap minus each of the others, paired by caption."""
    own = pick(rows, phase="postfix")
    made = {}
    for level in by_value(own, "level"):
        there = pick(own, level=level)
        swap = pick(there, condition=SWAP)
        made[level] = LevelAnswer(
            conditions=grouped(there, "condition", CONDITIONS),
            by_style={
                style: grouped(pick(there, style=style), "condition", CONDITIONS) for style in by_value(there, "style")
            },
            swap_minus={
                condition: Measured(*(_difference(swap, other, name) for name in ("style_hit", "found", "nearly")))
                for condition in CONDITIONS
                if condition != SWAP and (other := pick(there, condition=condition))
            },
        )
    return made


def _difference(one: Sequence[Score], other: Sequence[Score], name: str) -> Estimate:
    return paired(_values(one, name), _values(other, name))


def _values(rows: Sequence[Score], name: str) -> tuple[list[str], list[float]]:
    return [row.caption for row in rows], [float(getattr(row, name)) for row in rows]


def answer_sweeps(rows: Sequence[Score]) -> SweepAnswer:
    """RQ4: one number changed at a time, and filter against separate database, including a comparison of neighbours."""
    one, other, third = (grouped(pick(rows, phase=name), "level") for name in ("neighbours", "guidance", "size"))
    pairs = pick(rows, phase="separate")
    return SweepAnswer(one, other, third, _answer_separate(pairs) if pairs else None)


def _answer_separate(pairs: Sequence[Score]) -> SeparateAnswer:
    place: Callable[[Score], tuple[str, str]] = lambda row: (row.caption, row.style)  # noqa: E731
    filtered, separate = pick(pairs, level="filter"), {place(row): row for row in pick(pairs, level="separate")}
    alike = sum(row.neighbour_pictures == separate[place(row)].neighbour_pictures for row in filtered)
    return SeparateAnswer(grouped(pairs, "level"), alike / len(filtered), len(filtered))
