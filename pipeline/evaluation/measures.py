"""Reference measurements: the judges' results on real pictures, and distances between sets of pictures.

Reads and writes no files: tensors and judged features in, records out. A share or a mean over captions has an
interval. Kernel distances (KID) use the features of this evaluation's judges, so they can only be compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.data import Caption, Labelled, split_by_content
from pipeline.evaluation.judges import HELD_OUT, Judged
from pipeline.evaluation.plan import SWAP
from pipeline.evaluation.records import Copies, Distance, Measured, Retrieved, Score, StyleDistances, StyleReference
from pipeline.evaluation.scores import TOP, Nearest, Panel
from pipeline.evaluation.statistics import confusion, diversity, estimate, kid
from pipeline.intervals import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.evaluation.plan import Study
    from pipeline.generation import ModelInfo

    Floats = NDArray[np.float64]

MOST = 400  # real pictures of a style for kernel distances


def style_reference(panel: Panel, labelled: Labelled, held_out: Sequence[int]) -> StyleReference:
    """The style judge on real pictures of contents that it never saw: accuracy with Wilson's interval, confusion, each
    style's accuracy."""
    pictures = labelled.pictures
    of = {style: i for i, style in enumerate(panel.styles)}
    rows = [row for row in held_out if pictures.styles[row] in of]
    truth = [of[pictures.styles[row]] for row in rows]
    guesses = panel.judge(pictures.pixels[rows]).styles.argmax(axis=1)
    table = confusion(truth, guesses.tolist(), len(of))
    hits = int(np.trace(table))
    low, high = wilson(hits / len(rows), len(rows))
    by_style = {style: float(table[i, i] / max(1, table[i].sum())) for style, i in of.items()}
    return StyleReference(hits / len(rows), low, high, len(rows), panel.styles, table.tolist(), by_style)


@dataclass(frozen=True)
class Reference:
    """Pictures with the captions that they are compared with; `styles` as aims, empty if style is not judged."""

    name: str
    pixels: Tensor
    captions: Sequence[str]
    styles: Sequence[str] = ()


def references(
    labelled: Labelled, captions: Sequence[Caption], styles: Sequence[str], unseen: Sequence[int]
) -> list[Reference]:
    """Real pictures of the requested contents, compared with their own captions and with those of others.

    Only pictures of the evaluated styles, if there are any. `unseen`: rows on which the content judge was not trained.
    """
    pictures, text = labelled.pictures, {caption.content: caption.text for caption in captions if caption.content}
    rows = [row for row, content in enumerate(pictures.contents) if content in text]
    if set(pictures.styles) & set(styles):
        rows = [row for row in rows if pictures.styles[row] in styles]
    order = list(text)
    following = {content: text[order[(i + 1) % len(order)]] for i, content in enumerate(order)}
    fresh = set(unseen)
    groups = {
        "real pictures that the content judge never saw": ([row for row in rows if row in fresh], text),
        "real pictures that it was trained on": ([row for row in rows if row not in fresh], text),
        "real pictures, held against another's caption": (rows, following),
    }
    return [
        Reference(name, pictures.pixels[some], [words[pictures.contents[row]] for row in some],
                  [pictures.styles[row] for row in some])
        for name, (some, words) in groups.items()
        if some
    ]  # fmt: skip


def through_first_stage(reference: Reference, model: ModelInfo, device: str) -> Reference:
    """The reference's pictures after the model's own first stage, an upper bound for the model."""
    import torch
    from torch.nn import functional as F

    from pipeline.generation import load_model

    loaded = load_model(model, "fp32", device)
    size, side, made = model.default_size, reference.pixels.shape[-1], []
    for some in torch.split(reference.pixels, 32 if size < 512 else 4):
        values = F.interpolate(some.float() / 127.5 - 1, size=(size, size), mode="bicubic", antialias=True)
        back = loaded.through_first_stage(values.clamp(-1, 1)).clamp(-1, 1)
        back = F.interpolate(back, size=(side, side), mode="bicubic", antialias=True) if side != size else back
        made.append((back.clamp(-1, 1) * 127.5 + 127.5).round().byte())
    return Reference("the same, through the model's first stage", torch.cat(made), reference.captions, reference.styles)


def judge_reference(panel: Panel, reference: Reference) -> Measured:
    """The judges' results on a reference: captions found among the candidates, and styles named."""
    judged = panel.judge(reference.pixels)
    ranks = panel.ranks(judged.content_features, reference.captions)
    hits = None
    if reference.styles and set(reference.styles) <= set(panel.styles):
        aims = np.array([panel.styles.index(style) for style in reference.styles])
        right = (judged.styles.argmax(axis=1) == aims).astype(float)
        hits = estimate(reference.captions, right.tolist())
    return Measured(
        style_hit=hits,
        found=estimate(reference.captions, (ranks == 1).astype(float).tolist()),
        nearly=estimate(reference.captions, (ranks <= TOP).astype(float).tolist()),
    )


# ---- sets of pictures


def distances(
    generated: Mapping[str, Judged], real: Mapping[str, Judged], asked: Mapping[str, Judged]
) -> dict[str, StyleDistances]:
    """By style: KID to real pictures of generated pictures, of real pictures of the requested contents, and of the
    nearest other style.

    real: held-out pictures of other contents; asked: real pictures of the requested contents.
    """
    made = {}
    for style, mine in generated.items():
        if style not in real or min(len(mine.styles), len(real[style].styles)) < 2:
            continue
        target, there = real[style], asked.get(style)
        others = [judged for other, judged in real.items() if other != style and len(judged.styles) > 1]
        same = there if there is not None and len(there.styles) > 1 else None
        made[style] = StyleDistances(
            style_judge=_distance(
                mine.style_features, target.style_features, same.style_features if same else None,
                [other.style_features for other in others],
            ),
            content_judge=_distance(
                mine.content_features, target.content_features, same.content_features if same else None,
                [other.content_features for other in others],
            ),
            diversity=diversity(mine.content_features),
            diversity_of_real_pictures=diversity(target.content_features),
        )  # fmt: skip
    return made


def _distance(mine: Floats, target: Floats, same: Floats | None, others: Sequence[Floats]) -> Distance:
    return Distance(
        kid=kid(mine, target),
        same_contents=kid(same, target) if same is not None else None,
        nearest_other_style=min(kid(other, target) for other in others) if others else None,
    )


def seed_diversity(groups: Mapping[tuple[str, ...], Floats]) -> float | None:
    """Mean diversity of the pictures of one prompt and style over the seeds; None if there is one seed."""
    found = [diversity(features) for features in groups.values() if len(features) > 1]
    return float(np.mean(found)) if found else None


def copies(rows: Sequence[Score], nearest: Nearest, asked: Sequence[int]) -> Copies:
    """Whether pictures are copies of real ones, in comparison with real pictures (the rows `asked` of the labelled ones)."""
    own = np.array([row.nearest_distance for row in rows])
    among = [row.nearest_picture in row.neighbour_pictures for row in rows]
    first = [row.neighbour_pictures[:1] == [row.nearest_picture] for row in rows]
    shares = (len(rows), float(np.median(own)), float(np.mean(among)), float(np.mean(first)))
    if not asked:
        return Copies(*shares)
    real, _ = nearest.find(nearest.labelled.pictures.pixels[list(asked)], asked)
    bound = float(np.percentile(real, 5))
    return Copies(*shares, float(np.median(real)), bound, float((own < bound).mean()))


@dataclass(frozen=True)
class SetMeasures:
    """The summary's parts about sets of pictures."""

    retrieved: Retrieved | None
    distances: Mapping[str, StyleDistances]
    diversity_over_seeds: float | None
    copies: Copies


def measure_pictures(study: Study, panel: Panel, rows: Sequence[Score], judged: Judged) -> SetMeasures:
    """The measures of the test's pictures."""
    labelled = study.labelled
    pictures = labelled.pictures
    places = [i for i, row in enumerate(rows) if row.phase == "swap" and row.condition == SWAP and row.style]
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

    generated = {style: _take(judged, [i for i in places if rows[i].style == style]) for style in panel.styles}
    generated = {style: found for style, found in generated.items() if len(found.styles) > 1}
    seeds: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row.phase == "postfix" and row.condition == SWAP:
            seeds.setdefault((row.caption, row.style, row.level), []).append(i)
    return SetMeasures(
        retrieved=_retrieved(study, panel, swap),
        distances=distances(generated, by_style(others), by_style(asked)),
        diversity_over_seeds=seed_diversity({at: judged.content_features[some] for at, some in seeds.items()}),
        copies=copies(swap, Nearest.of(labelled), asked),
    )


def _take(judged: Judged, rows: Sequence[int]) -> Judged:
    some = np.array(rows, int)
    return Judged(judged.styles[some], judged.style_features[some], judged.content_features[some])


def _retrieved(study: Study, panel: Panel, swap: Sequence[Score]) -> Retrieved | None:
    """The judges' results on the first picture of each search; None if none of them is among the labelled ones."""
    place, pictures = study.labelled.rows(), study.labelled.pictures
    firsts = [(row, place.get(row.neighbour_pictures[0])) for row in swap if row.neighbour_pictures]
    found = [(row, at) for row, at in firsts if at is not None]
    if not found:
        return None
    captions = [row.caption for row, _ in found]
    reference = Reference(
        "retrieved", pictures.pixels[[at for _, at in found]], captions, [row.style for row, _ in found]
    )
    right = [float(pictures.contents[at] == row.content) for row, at in found]
    known = all(row.content for row, _ in found)
    return Retrieved(judge_reference(panel, reference), estimate(captions, right) if known else None)
