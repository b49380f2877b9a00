"""Distilled guidance: a student gives its teacher's guided output in one pass, for the scales that it was distilled for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rdm import RDM
from rdm.config import read_config
from rdm.distillation import describe_student, distillation_loss, embed_guidance, start_student
from rdm.errors import ConfigError, RequestError
from rdm.memory import count_memory
from rdm.networks import build
from tests.rdm_reference import lively, noise, tiny_model, unit
from tests.test_rdm_prediction import FOLDED


def student_of(teacher: RDM, low: float = 1.0, high: float = 6.0) -> RDM:
    config = describe_student(teacher.config, low, high)
    unet, _ = build(config)
    start_student(unet, teacher.unet)
    return RDM(config, unet, copy.deepcopy(teacher.first_stage))  # `tiny_model` is one model for all tests


def distilled() -> RDM:
    """A student whose output depends on the scale."""
    return lively(student_of(tiny_model()))


@pytest.mark.parametrize("make", [tiny_model, lambda: lively(RDM.from_config(FOLDED))], ids=["plain", "pooled"])
def test_a_student_starts_as_its_teacher_without_guidance(make: Callable[[], RDM]) -> None:
    teacher = make()
    student = student_of(teacher)
    x, context = noise(2, teacher.config.latent_channels, 4, 4), unit(2, 3, teacher.config.context_dim)
    plain = teacher.sample(context, x_T=x, steps=2, guidance_scale=1)
    for scale in (1, 4):
        torch.testing.assert_close(
            student.sample(context, x_T=x, steps=2, guidance_scale=scale), plain, atol=1e-5, rtol=0
        )


def test_the_scale_enters_as_it_does_in_diffusers_network() -> None:
    model = distilled()
    x, context = noise(2, model.config.latent_channels, 8, 8), unit(2, 3, model.config.context_dim)
    with torch.no_grad():
        wanted = model.unet(
            x, torch.tensor([999, 999]), encoder_hidden_states=context,
            timestep_cond=embed_guidance(model.config, torch.tensor([3.0, 3.0])),
        ).sample  # fmt: skip
    step = next(model.steps(context, x_T=x, steps=1, sampler="dpmpp_2m", guidance_scale=3))
    alpha, sigma = model.schedule.alpha(step.t), model.schedule.sigma(step.t)
    assert step.t == 999
    torch.testing.assert_close(step.x0, (x - sigma * wanted) / alpha, atol=1e-4, rtol=1e-4)
    other = next(model.steps(context, x_T=x, steps=1, sampler="dpmpp_2m", guidance_scale=5))
    assert (other.x0 - step.x0).abs().max() > 1e-3


def test_training_teaches_the_guidance_of_the_teacher() -> None:
    teacher = tiny_model()
    student = student_of(teacher)
    student.unet.train()
    config = student.config
    latents, added = noise(4, config.latent_channels, 4, 4), noise(4, config.latent_channels, 4, 4, seed=5)
    context, times, scale = unit(4, 3, config.context_dim), torch.tensor([900, 700, 400, 100]), torch.full((4,), 3.0)
    optimizer = torch.optim.Adam(student.unet.parameters(), lr=2e-3)
    missed = []
    for _ in range(15):
        loss, values = distillation_loss(
            student.unet, teacher.unet, config, latents, context, added, times, scale, student.schedule
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        missed.append(float(values["missed"]))
    assert missed[0] == pytest.approx(1.0, abs=1e-3), "a new student ignores the scale"
    assert missed[-1] < 0.5


def test_a_student_is_saved_and_loaded_with_its_range(tmp_path: Path) -> None:
    model = distilled()
    model.save_pretrained(tmp_path)
    again = RDM.from_pretrained(tmp_path)
    assert again.config.guidance_range == (1.0, 6.0)
    x, context = noise(1, model.config.latent_channels, 8, 8), unit(1, 3, model.config.context_dim)
    assert torch.equal(again.sample(context, x_T=x, steps=2), model.sample(context, x_T=x, steps=2))


def test_a_scale_or_a_negative_prompt_that_was_not_distilled_is_refused() -> None:
    model = distilled()
    context = unit(1, 3, model.config.context_dim)
    with pytest.raises(RequestError, match=r"guidance_scale is 8; .* was distilled for scales from 1 to 6"):
        model.sample(context, steps=1, guidance_scale=8)
    with pytest.raises(RequestError, match="takes no negative prompt"):
        model.sample(context, steps=1, null_context=context)


def test_one_pass_needs_less_memory_than_two() -> None:
    teacher, options = tiny_model().config, {"batch": 4, "height": 64, "width": 64}
    assert count_memory(describe_student(teacher, 1, 6), **options).denoiser < count_memory(teacher, **options).denoiser


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_range": None}, "guidance_range is missing"),
        ({"guidance_range": (6.0, 1.0)}, "smallest < largest"),
        ({"guidance_range": 5.0}, "two numbers were expected"),
        ({"default_guidance": 9.0}, "must lie in guidance_range"),
    ],
)
def test_a_description_whose_parts_disagree_is_refused(changes: dict[str, object], message: str) -> None:
    described = replace(describe_student(tiny_model().config, 1, 6)).to_dict()
    with pytest.raises(ConfigError, match=message):
        read_config({**described, **changes})


def test_a_student_is_not_distilled_again() -> None:
    with pytest.raises(ConfigError, match="has distilled guidance already"):
        describe_student(distilled().config, 1, 6)


def test_a_description_without_a_range_is_written_as_before() -> None:
    assert "guidance_range" not in tiny_model().config.to_dict()
