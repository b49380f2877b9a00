"""diffusers' schedulers by name: equal to our own samplers where both exist, seeded, and refused with the known names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.generation.prompts import read_prompts
from pipeline.generation.rdm_model import check_scheduler
from pipeline.generation.sampling import Sampling
from rdm.errors import RequestError
from rdm.sampling import sampler_steps
from rdm.schedule import Schedule
from rdm.schedulers import is_scheduler, make_scheduler, scheduler_names
from tests.rdm_reference import noise, relative, tiny_model, unit
from tests.test_rdm_sampling import Mixture

SCHEDULE = Schedule(0.0015, 0.015)


def last(sampler: str, steps: int) -> torch.Tensor:
    return list(sampler_steps(sampler, Mixture(), noise(2, 4, 8, 8), SCHEDULE, steps))[-1].x


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_ddim_by_its_class_is_ddim(steps: int) -> None:
    assert relative(last("DDIMScheduler", steps), last("ddim", steps)) < 1e-4


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ("DPMSolverMultistepScheduler:karras", 20),
        ("UniPCMultistepScheduler:karras", 20),
        ("EulerDiscreteScheduler:karras", 60),
        ("EulerDiscreteScheduler:trailing", 60),
        ("HeunDiscreteScheduler", 30),
        ("DEISMultistepScheduler", 30),
        ("LMSDiscreteScheduler", 40),
    ],
)
def test_deterministic_schedulers_come_to_the_same_limit(sampler: str, steps: int) -> None:
    limit = list(sampler_steps("unipc", Mixture(), noise(2, 4, 8, 8).double(), SCHEDULE, 900))[-1].x
    assert float((last(sampler, steps).double() - limit).norm() / limit.norm()) < 0.06


def test_noise_of_a_scheduler_comes_from_each_pictures_own_generator() -> None:
    def sample(seeds: list[int], rows: slice) -> torch.Tensor:
        return tiny_model().sample(
            unit(2, 3, 12)[rows],
            steps=5,
            sampler="EulerAncestralDiscreteScheduler",
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=32,
            width=32,
        )

    both = sample([1, 2], slice(0, 2))
    torch.testing.assert_close(sample([2], slice(1, 2)), both[1:], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sample([3], slice(1, 2)), both[1:], atol=0.1)


@pytest.mark.parametrize(
    ("sampler", "complaint"),
    [
        ("EulerScheduler", "did you mean 'Euler"),
        ("EulerDiscreteScheduler:karas", "did you mean 'karras'"),
        ("DDIMScheduler:karras", "it takes leading, trailing, linspace"),
        ("FlowMatchEulerDiscreteScheduler", "diffusers has no scheduler"),
    ],
)
def test_what_diffusers_does_not_have_is_refused_with_what_it_has(sampler: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        make_scheduler(sampler, SCHEDULE)


def test_names_of_schedulers_are_told_from_our_own() -> None:
    assert {"DDIMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"} <= set(scheduler_names())
    assert is_scheduler("EulerDiscreteScheduler:karras") and not is_scheduler("ddim") and not is_scheduler("Euler")


def test_prompt_lists_and_flags_take_them_and_say_early_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,sampler\na,UniPCMultistepScheduler:karras\nb,DDIM\n")
    rows = read_prompts(str(tmp_path / "p.csv")).rows
    assert [row.sampling.sampler for row in rows] == ["UniPCMultistepScheduler:karras", "ddim"]
    Sampling(sampler="HeunDiscreteScheduler").check()
    check_scheduler("HeunDiscreteScheduler", "--")
    with pytest.raises(
        ModelError, match=r"^--sampler: diffusers has no scheduler 'HeunScheduler'.*did you mean 'HeunDis"
    ):
        check_scheduler("HeunScheduler", "--")
    with pytest.raises(ConfigError, match="expected one of ddim"):
        Sampling(sampler="HeunDiscrete").check()
