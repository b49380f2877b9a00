"""Measures over sets of pictures: kernel distance by style, diversity, copies, and what the first neighbour would score.

Reads nothing and writes nothing. Whatever is a share or a mean over captions comes with its interval.

What generated pictures are measured against: what the judges say of real ones, and distances between sets of pictures.

Reads nothing and writes nothing: tensors and judged features in, plain numbers out. Kernel distances (KID) are taken on the
features of this evaluation's own judges and are named after them; they compare with nothing but each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.data import Caption, Labelled, split_by_content
from pipeline.evaluation.judges import HELD_OUT, Judged
from pipeline.evaluation.plan import SWAP
from pipeline.evaluation.scores import Nearest, Panel
from pipeline.evaluation.statistics import confusion, diversity, estimate, kid, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.evaluation.plan import Study

FEATURES = {"style judge": "style_features", "content judge": "content_features"}


def style_reference(panel: Panel, labelled: Labelled, held_out: Sequence[int]) -> dict[str, Any]:
    """The style judge on real pictures of contents it never saw: accuracy with Wilson's interval, confusion, each style's."""
    pictures = labelled.pictures
    of = {style: i for i, style in enumerate(panel.styles)}
    rows = [row for row in held_out if pictures.styles[row] in of]
    truth = [of[pictures.styles[row]] for row in rows]
    guesses = panel.judge(pictures.pixels[rows]).styles.argmax(axis=1)
    table = confusion(truth, guesses.tolist(), len(of))
    hits = int(np.trace(table))
    low, high = wilson(hits, len(rows))
    by_style = {style: float(table[i, i] / max(1, table[i].sum())) for style, i in of.items()}
    return {"accuracy": hits / len(rows), "low": low, "high": high, "pictures": len(rows), "styles": list(panel.styles),
            "confusion": table.tolist(), "by style": by_style}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Pictures with the captions that they are held against; `styles` as aims, empty where style is not judged."""

    name: str
    pixels: Tensor
    captions: Sequence[str]
    styles: Sequence[str] = ()


def references(
    labelled: Labelled, captions: Sequence[Caption], styles: Sequence[str], unseen: Sequence[int]
) -> list[Reference]:
    """Real pictures of the contents asked for, against their own captions and against those of others.

    Only those of the styles, where the pictures have any of them. `unseen`: rows that the content judge was not trained on.
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


def through_first_stage(reference: Reference, folder: str, size: int, device: str) -> Reference:
    """The reference's pictures as the model's own first stage gives them back: the best that the model could do."""
    import torch
    from torch.nn import functional as F

    from rdm import RDM

    model = RDM.from_pretrained(folder, dtype=None)
    model.to(torch.device(device), torch.float32)
    made = []
    with torch.inference_mode():
        for some in torch.split(reference.pixels, 32):
            values = F.interpolate(some.float() / 127.5 - 1, size=(size, size), mode="bicubic", antialias=True)
            back = (
                model.decode(model.encode(values.clamp(-1, 1).to(device)) * model.config.scale_factor)
                .float()
                .cpu()
                .clamp(-1, 1)
            )
            side = some.shape[-1]
            back = F.interpolate(back, size=(side, side), mode="bicubic", antialias=True) if side != size else back
            made.append((back.clamp(-1, 1) * 127.5 + 127.5).round().byte())
    return Reference("the same, through the model's first stage", torch.cat(made), reference.captions, reference.styles)


def judge_reference(panel: Panel, reference: Reference) -> dict[str, Any]:
    """What the judges say of a reference: captions found among the candidates, and styles named."""
    judged = panel.judge(reference.pixels)
    ranks = panel.ranks(judged.content_features, reference.captions)
    made: dict[str, Any] = {
        "found": asdict(estimate(reference.captions, (ranks == 1).astype(float).tolist())),
        "nearly": asdict(estimate(reference.captions, (ranks <= 10).astype(float).tolist())),
    }
    if reference.styles and set(reference.styles) <= set(panel.styles):
        aims = np.array([panel.styles.index(style) for style in reference.styles])
        hits = (judged.styles.argmax(axis=1) == aims).astype(float)
        made["style_hit"] = asdict(estimate(reference.captions, hits.tolist()))
    return made


# ---- sets of pictures


def distances(
    generated: Mapping[str, Judged], real: Mapping[str, Judged], asked: Mapping[str, Judged]
) -> dict[str, dict[str, Any]]:
    """By style: KID of generated to real pictures, and what it is for real ones of the contents asked for and of other styles.

    real: held-out pictures of other contents; asked: real pictures of the contents asked for.
    """
    made: dict[str, dict[str, Any]] = {}
    for style, mine in generated.items():
        if style not in real or min(len(mine.styles), len(real[style].styles)) < 2:
            continue
        entry: dict[str, Any] = {}
        for name, field in FEATURES.items():
            target = getattr(real[style], field)
            others = [kid(getattr(judged, field), target) for other, judged in real.items()
                      if other != style and len(judged.styles) > 1]  # fmt: skip
            there = asked.get(style)
            entry[name] = {
                "kid": kid(getattr(mine, field), target),
                "real pictures of the same contents": kid(getattr(there, field), target)
                if there is not None and len(there.styles) > 1
                else None,
                "nearest other style": min(others) if others else None,
            }
        entry["diversity"] = diversity(mine.content_features)
        entry["diversity of real pictures"] = diversity(real[style].content_features)
        made[style] = entry
    return made


def seed_diversity(groups: Mapping[Any, NDArray[Any]]) -> float | None:
    """Mean diversity of the pictures of one prompt and style over the seeds; None where there is one seed."""
    found = [diversity(features) for features in groups.values() if len(features) > 1]
    return float(np.mean(found)) if found else None


def copies(rows: Sequence[Mapping[str, Any]], nearest: Nearest, asked: Sequence[int]) -> dict[str, Any]:
    """Are pictures copies? Distances to the nearest real picture, beside those of real pictures `asked` to the nearest other.

    A generated picture nearer to a real one than 95 % of real pictures are to each other counts as near.
    """
    own = np.array([float(row["nearest_distance"]) for row in rows])
    among, first = zip(
        *[
            (
                row["nearest_picture"] in row["neighbour_pictures"],
                row["neighbour_pictures"][:1] == [row["nearest_picture"]],
            )
            for row in rows
        ],
        strict=True,
    )
    made: dict[str, Any] = {
        "pictures": len(rows),
        "median distance": float(np.median(own)),
        "nearest is one of its neighbours": float(np.mean(among)),
        "nearest is its first neighbour": float(np.mean(first)),
    }
    if asked:
        real, _ = nearest.find(nearest.labelled.pictures.pixels[list(asked)], asked)
        bound = float(np.percentile(real, 5))
        made |= {"median distance of real pictures": float(np.median(real)), "near means below": bound,
                 "share that is near": float((own < bound).mean())}  # fmt: skip
    return made


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
