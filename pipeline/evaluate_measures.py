"""Measures over sets of pictures: kernel distance by style, diversity, copies, and what the first neighbour would score.

Reads nothing and writes nothing. Whatever is a share or a mean over captions comes with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluate_data import split_by_content
from pipeline.evaluate_judges import HELD_OUT, Judged
from pipeline.evaluate_plan import SWAP
from pipeline.evaluate_references import Reference, copies, distances, judge_reference, seed_diversity
from pipeline.evaluate_score import Nearest, Panel
from pipeline.evaluate_statistics import estimate

if TYPE_CHECKING:
    from pipeline.evaluate_study import Study

MOST = 400  # real pictures a style that kernel distances are taken to


def measure_pictures(
    study: Study, panel: Panel, rows: Sequence[Mapping[str, Any]], judged: Judged
) -> dict[str, Any]:  # fmt: skip
    """The summary's parts `retrieved`, `distances`, `diversity over seeds` and `copies`, of the test rows."""
    labelled = study.labelled
    pictures = labelled.pictures
    places = [i for i, row in enumerate(rows) if row["phase"] == "swap" and row["condition"] == SWAP and row["style"]]
    swap = [rows[i] for i in places]
    contents = {caption.content for caption in study.test} - {""}
    asked = [row for row, content in enumerate(pictures.contents) if content in contents]
    own = [row for row, style in enumerate(pictures.styles) if style in panel.styles]
    _, held_out = split_by_content([pictures.contents[row] for row in own], HELD_OUT, "style judge")
    others = [own[i] for i in held_out if pictures.contents[own[i]] not in contents]

    def by_style(chosen: Sequence[int]) -> dict[str, Judged]:
        made = {}
        for style in panel.styles:
            some = [row for row in chosen if pictures.styles[row] == style][:MOST]
            if some:
                made[style] = panel.judge(pictures.pixels[some])
        return made

    generated = {style: _take(judged, [i for i in places if rows[i]["style"] == style]) for style in panel.styles}
    seeds: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        if row["phase"] == "postfix" and row["condition"] == SWAP:
            seeds.setdefault((row["caption"], row["style"], row["level"]), []).append(i)
    return {
        "retrieved": _retrieved(study, panel, swap),
        "distances": distances(
            {style: found for style, found in generated.items() if len(found.styles) > 1}, by_style(others), by_style(asked)
        ),
        "diversity over seeds": seed_diversity({at: judged.content_features[some] for at, some in seeds.items()}),
        "copies": copies(swap, Nearest.of(labelled), asked),
    }  # fmt: skip


def _take(judged: Judged, rows: Sequence[int]) -> Judged:
    some = np.array(rows, int)
    return Judged(judged.styles[some], judged.style_features[some], judged.content_features[some])


def _retrieved(study: Study, panel: Panel, swap: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the judges say of the real picture that came first in each search: what copying it would score.

    None where no neighbour's picture is among the labelled ones.
    """
    place = study.labelled.rows()
    found = [
        (row, place[row["neighbour_pictures"][0]])
        for row in swap
        if row["neighbour_pictures"] and row["neighbour_pictures"][0] in place
    ]
    if not found:
        return None
    pictures = study.labelled.pictures
    captions = [str(row["caption"]) for row, _ in found]
    reference = Reference("retrieved", pictures.pixels[[at for _, at in found]], captions,
                          [str(row["style"]) for row, _ in found])  # fmt: skip
    right = [float(pictures.contents[at] == row["content"]) for row, at in found]
    known = all(row["content"] for row, _ in found)
    return {
        **judge_reference(panel, reference),
        "is the content asked for": asdict(estimate(captions, right)) if known else None,
    }
