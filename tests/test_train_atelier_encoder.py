"""The captions and losses of jobs/train_atelier_encoder.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.train_atelier_encoder import FIELDS, KINDS, Described, caption_of, style_loss, true_of
from pipeline.atelier.scene import sample


def scene(number: int, style: str = "woodcut") -> Described:
    drawn = sample(0, number)
    return Described(drawn.caption, style, drawn.subject, drawn.colour, drawn.number, drawn.setting, drawn.time_of_day)


def test_a_caption_is_true_of_every_picture_with_the_facts_that_it_asserts() -> None:
    #                     subject, colour, number, place, hour, style
    facts = torch.tensor([[0, 10, 20, 30, 40, 50], [0, 10, 20, 31, 41, 51], [0, 11, 20, 30, 40, 50]])
    asserted = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    assert true_of(facts, asserted).tolist() == [[True, True, False], [True, True, True], [True, False, True]]


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_captions_say_what_they_assert(kind: int) -> None:
    one, rng = scene(7, "random 5" if KINDS[kind] == "random" else "stained_glass"), np.random.default_rng(0)
    for _ in range(200):
        text, asserted = caption_of(one, kind, rng)
        assert len(asserted) == len(FIELDS) and any(asserted)
        assert ("stained glass" in text) == bool(asserted[-1]), text
        assert "random" not in text, "a style without a name is never named"
        if asserted[1] and KINDS[kind] != "real":
            assert one.colour in text
        if asserted[0] and not asserted[1] and KINDS[kind] != "real":
            assert one.colour not in text


def test_the_loss_of_styles_is_small_where_styles_are_apart() -> None:
    styles = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = torch.eye(2).repeat_interleave(3, dim=0)
    mixed = torch.eye(2).repeat(3, 1)
    assert float(style_loss(apart, styles)) == pytest.approx(float(np.log(2 + 3 * np.exp(-10))), abs=1e-4)
    assert float(style_loss(mixed, styles)) > 5
