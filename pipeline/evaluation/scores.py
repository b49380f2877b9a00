"""The judges' results on every picture, as rows of pictures.parquet.

Pure functions over tensors and trials; writes nothing. The wrong captions for a picture depend only on its right
caption, so that the question is the same for all conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.data import Caption, Labelled, digest_order
from pipeline.evaluation.judges import Backbone, ContentNetwork, Judged, StyleNetwork, judge_pictures
from pipeline.evaluation.pictures import Made
from pipeline.evaluation.plan import Trial
from pipeline.evaluation.records import Score
from pipeline.evaluation.statistics import rank_of_first

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

NEAR_SIDE = 16  # pixels a side to which pictures are reduced for the comparison with real ones

TOP = 10  # a caption among this many first ones counts as nearly found


@dataclass(frozen=True)
class Panel:
    """The two judges, the order of the styles, and the pool of captions."""

    style: StyleNetwork | Backbone
    content: ContentNetwork
    styles: tuple[str, ...]
    pool: tuple[str, ...]
    candidates: int

    def judge(self, pixels: Tensor) -> Judged:
        return judge_pictures(self.style, self.content, pixels)

    def ranks(self, features: Floats, captions: Sequence[str]) -> NDArray[np.int64]:
        """(n,) the rank of each picture's caption among `candidates`, from 1."""
        import torch

        questions = {text: self.question(text) for text in dict.fromkeys(captions)}
        texts = list(dict.fromkeys(text for asked in questions.values() for text in asked))
        with torch.inference_mode():
            vectors = self.content.captions(texts).double().numpy() if texts else np.zeros((0, features.shape[1]))
        place = {text: i for i, text in enumerate(texts)}
        scores = [
            vectors[[place[text] for text in questions[caption]]] @ feature
            for caption, feature in zip(captions, features, strict=True)
        ]
        return rank_of_first(np.stack(scores))

    def question(self, caption: str) -> list[str]:
        """The caption, followed by wrong ones: the captions of the pool whose hash with it is smallest."""
        wrong = [text for text in self.pool if text != caption]
        wrong.sort(key=lambda text: digest_order(f"{caption}:{text}"))
        return [caption, *wrong[: self.candidates - 1]]


@dataclass(frozen=True)
class Nearest:
    """Real pictures among which copies are searched, as small float pixels (N, d)."""

    small: NDArray[np.float32]
    labelled: Labelled

    @staticmethod
    def of(labelled: Labelled) -> Nearest:
        return Nearest(shrunk(labelled.pictures.pixels), labelled)

    def find(self, pixels: Tensor, without: Sequence[int] | None = None) -> tuple[Floats, NDArray[np.int64]]:
        """(distance, row) of the nearest real picture of each, by root mean square of grey levels in 0..1.

        `without`: for each picture a row to leave out, for example the picture itself.
        """
        small = shrunk(pixels)
        squares = np.square(self.small).sum(axis=1)
        distances, rows = [], []
        for start in range(0, len(small), 256):
            some = small[start : start + 256]
            apart = np.square(some).sum(axis=1)[:, None] + squares - 2 * some @ self.small.T
            if without is not None:
                apart[np.arange(len(some)), np.array(without[start : start + 256])] = np.inf
            nearest = apart.argmin(axis=1)
            rows.append(nearest)
            distances.append(np.sqrt(apart[np.arange(len(some)), nearest].clip(0) / small.shape[1]))
        return np.concatenate(distances), np.concatenate(rows)


def shrunk(pixels: Tensor) -> NDArray[np.float32]:
    """(n, 3 * 16 * 16) float32 in 0..1 of uint8 pictures: small enough to match a copy after the first stage's blur."""
    from torch.nn import functional as F

    small: NDArray[np.float32] = F.adaptive_avg_pool2d(pixels.float() / 255, NEAR_SIDE).flatten(1).numpy()
    return small


def score_trials(
    trials: Sequence[Trial], made: Sequence[Made], pixels: Tensor, panel: Panel, nearest: Nearest
) -> tuple[list[Score], Judged]:
    """One row for each picture, and the judges' features in the same order."""
    judged = panel.judge(pixels)
    ranks = panel.ranks(judged.content_features, [trial.caption.text for trial in trials])
    distances, places = nearest.find(pixels)
    of = {style: i for i, style in enumerate(panel.styles)}
    guesses = judged.styles.argmax(axis=1)
    rows = []
    for i, (trial, one) in enumerate(zip(trials, made, strict=True)):
        aim = of.get(trial.style)
        k = trial.setting.k
        rows.append(
            Score(
                phase=trial.phase, condition=trial.condition, level=trial.level, style=trial.style,
                caption=trial.caption.text, content=trial.caption.content, prompt=trial.prompt,
                database=trial.database if k else "", where=trial.where if k else "",
                k=k, guidance=trial.setting.guidance, seed=trial.seed,
                key=one.key, file=one.file, neighbours=list(one.neighbours), neighbour_pictures=list(one.checksums),
                guess=panel.styles[guesses[i]],
                style_hit=None if aim is None else float(guesses[i] == aim),
                style_probability=None if aim is None else float(judged.styles[i, aim]),
                rank=int(ranks[i]), found=float(ranks[i] == 1), nearly=float(ranks[i] <= TOP),
                nearest=nearest.labelled.keys[places[i]],
                nearest_picture=nearest.labelled.checksums[places[i]], nearest_distance=float(distances[i]),
            )
        )  # fmt: skip
    return rows, judged


def goodness(row: Score) -> float:
    """The score for choosing k and guidance: half the style's probability plus half the right caption's reciprocal rank."""
    assert row.style_probability is not None, "settings are chosen with pictures that aim at a style"
    return 0.5 * row.style_probability + 0.5 / row.rank


def pool_of(labelled: Sequence[Caption], captions: Sequence[str], candidates: int) -> tuple[str, ...]:
    """The requested captions, then others of the database by hash, until there are enough wrong captions."""
    asked = list(dict.fromkeys(caption.text for caption in labelled))
    more = sorted(set(captions) - set(asked), key=digest_order)
    return tuple(asked + more[: max(0, candidates - len(asked))])
