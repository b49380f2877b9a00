"""Contexts: their content, and the properties that make batches, weights and null contexts correct."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from rdm.conditioning import Context, assemble, join, null_context
from rdm.errors import RequestError
from tests.rdm_reference import noise, relative, tiny_model, unit

CONFIG = tiny_model().config
RAW = dataclasses.replace(CONFIG, context_norm="raw")
X = noise(3, 4, 8, 8)
SAMPLING: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0}


def eps(tokens: Tensor, mask: Tensor | None = None, x: Tensor = X) -> Tensor:
    return tiny_model().denoise(x[: len(tokens)], 481, tokens, mask)


def test_prompts_with_unequal_neighbours_in_one_batch_equal_each_alone() -> None:
    prompts, neighbours = unit(3, 12), [unit(4, 12, seed=1), None, unit(1, 12, seed=2)]
    batch = assemble(CONFIG, prompts, neighbours)
    assert batch.tokens.shape == (3, 5, 12)
    together = tiny_model().sample(batch.tokens, x_T=X, mask=batch.mask, **SAMPLING)
    for i, near in enumerate(neighbours):
        alone = assemble(CONFIG, prompts[i : i + 1], [near])
        assert alone.mask is None
        found = tiny_model().sample(alone.tokens, x_T=X[i : i + 1], **SAMPLING)
        assert relative(together[i : i + 1], found) < 1e-5


def test_zero_padding_without_a_mask_is_not_neutral() -> None:
    tokens = unit(1, 3, 12)
    padded = torch.cat([tokens, torch.zeros(1, 2, 12)], dim=1)
    assert relative(eps(padded), eps(tokens)) > 1e-3
    mask = torch.tensor([[True, True, True, False, False]])
    assert relative(eps(padded, mask), eps(tokens)) < 1e-5
    padded[:, 3:] = torch.tensor([float("nan"), float("inf")])[:, None]
    assert relative(eps(padded, mask), eps(tokens)) < 1e-5, "whatever padding holds"
    sampled = tiny_model().sample(padded, x_T=X[:1], mask=mask, **SAMPLING)
    assert relative(sampled, tiny_model().sample(tokens, x_T=X[:1], **SAMPLING)) < 1e-4


@pytest.mark.parametrize("copies", [2, 5])
def test_a_prompt_of_weight_r_acts_as_r_copies_of_it(copies: int) -> None:
    prompt, neighbours = unit(1, 12), unit(1, 3, 12, seed=1)
    weighted = assemble(CONFIG, prompt, neighbours, prompt_weight=copies)
    repeated = torch.cat([prompt[:, None].expand(-1, copies, -1), neighbours], dim=1)
    assert relative(eps(*weighted), eps(repeated)) < 1e-5
    assert relative(eps(*weighted), eps(assemble(CONFIG, prompt, neighbours).tokens)) > 1e-4


def test_a_prompt_of_weight_zero_is_absent_and_fractions_lie_between() -> None:
    prompt, neighbours = unit(1, 12), unit(1, 3, 12, seed=1)
    only = eps(assemble(CONFIG, None, neighbours).tokens)
    assert relative(eps(*assemble(CONFIG, prompt, neighbours, prompt_weight=0)), only) < 1e-5
    half, full = (eps(*assemble(CONFIG, prompt, neighbours, prompt_weight=w)) for w in (0.5, 1.0))
    assert 0 < float((half - only).norm()) < float((full - only).norm())


def test_a_lone_token_may_be_repeated_without_effect() -> None:
    assert relative(eps(unit(1, 1, 12).expand(-1, 4, -1)), eps(unit(1, 1, 12))) < 1e-5


def test_the_order_of_tokens_does_not_matter() -> None:
    tokens = unit(2, 5, 12)
    assert relative(eps(tokens[:, torch.tensor([3, 0, 4, 1, 2])]), eps(tokens)) < 1e-5


@pytest.mark.parametrize("count", [1, 3, 20])
def test_a_null_context_of_zeros_does_not_depend_on_the_number_of_tokens(count: int) -> None:
    assert relative(eps(torch.zeros(2, count, 12)), eps(null_context(CONFIG, 2).tokens)) < 1e-6


@pytest.mark.parametrize("count", [1, 7])
def test_guidance_away_from_zeros_given_or_implied_is_the_same(count: int) -> None:
    tokens = unit(3, 4, 12)
    implied = tiny_model().sample(tokens, x_T=X, **SAMPLING)
    given = tiny_model().sample(tokens, x_T=X, null_context=torch.zeros(1, count, 12), **SAMPLING)
    assert relative(given, implied) < 1e-5


def test_a_negative_prompt_takes_the_null_contexts_place() -> None:
    tokens, negative = unit(3, 4, 12), unit(3, 2, 12, seed=9)
    steered = tiny_model().sample(tokens, x_T=X, null_context=negative, **SAMPLING)
    assert relative(steered, tiny_model().sample(tokens, x_T=X, **SAMPLING)) > 1e-3
    mask = torch.tensor([[True, False]] * 3)
    masked = tiny_model().sample(tokens, x_T=X, null_context=negative, null_mask=mask, **SAMPLING)
    single = tiny_model().sample(tokens, x_T=X, null_context=negative[:, :1], **SAMPLING)
    assert relative(masked, single) < 1e-5


def test_unit_models_get_unit_tokens_and_raw_models_stored_vectors_times_norm() -> None:
    prompt, near, norms = 3 * unit(2, 12), unit(2, 3, 12, seed=1), torch.tensor([[9.0, 10, 11], [1, 2, 3]])
    normalised = assemble(CONFIG, prompt, 7 * near).tokens
    assert torch.allclose(normalised.norm(dim=-1), torch.ones(2, 4))
    raw = assemble(RAW, prompt, near, norms=norms).tokens
    assert torch.allclose(raw[:, 0], prompt)
    assert torch.allclose(raw[:, 1:].norm(dim=-1), norms)
    assert torch.allclose(assemble(RAW, prompt, near).tokens[:, 1:], near)
    assert torch.allclose(assemble(CONFIG, prompt, near, norms=norms).tokens, normalised)


def test_stored_half_precision_is_normalised_in_single() -> None:
    tokens = assemble(CONFIG, unit(1, 12).half(), unit(1, 3, 12).half()).tokens
    assert tokens.dtype == torch.float32
    assert (tokens.norm(dim=-1) - 1).abs().max() < 1e-6


def test_contexts_join_into_one_batch() -> None:
    first, second = Context(unit(1, 2, 12), None), Context(unit(2, 4, 12), torch.tensor([[1.0, 1, 2, 0]] * 2))
    both = join([first, second])
    assert both.tokens.shape == (3, 4, 12)
    assert both.mask is not None
    assert both.mask.tolist() == [[1, 1, 0, 0], [1, 1, 2, 0], [1, 1, 2, 0]]


@pytest.mark.parametrize(
    ("prompt", "neighbours", "complaint"),
    [
        (None, None, "neither was given"),
        (unit(2, 12), unit(1, 3, 12), "2 prompts but neighbours for 1"),
        (unit(1, 1, 12), None, r"\(B, D\) was expected"),
        (unit(1, 12), unit(1, 7, 12), "7 neighbours; tiny takes at most 6"),
        (unit(1, 13), None, "12.*tiny-clip"),
        (None, [None], "no token"),
        (unit(1, 12) * float("nan"), None, "not finite"),
    ],
)
def test_an_invalid_context_is_refused(prompt: Any, neighbours: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        assemble(CONFIG, prompt, neighbours)


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (torch.ones(1, 4), "mask has shape"),
        (torch.zeros(1, 3), "without any token"),
        (torch.tensor([[1.0, -1, 1]]), "negative"),
        (torch.tensor([[1.0, float("inf"), 1]]), "finite"),
    ],
)
def test_an_invalid_mask_is_refused(mask: Tensor, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        eps(unit(1, 3, 12), mask)
