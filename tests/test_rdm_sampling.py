"""Samplers: exact solutions if they are known, diffusers' schedulers as independent references, odd step counts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rdm import RDM
from rdm.errors import RequestError
from rdm.networks import diffusers
from rdm.sampling import SAMPLERS, Step, sampler_steps
from rdm.schedule import Schedule
from tests.rdm_reference import lively, noise, relative, tiny_config, tiny_model, unit

SCHEDULE = Schedule(0.0015, 0.015)
COUNTS = [1, 2, 3, 7, 9, 30, 36, 101, 250, 333, 501, 999, 1000]


class Gaussian:
    """Data of N(mean, spread^2) in every coordinate: the perfect noise prediction and the exact solution are known.

    x_t has variance v = a spread^2 + 1 - a, so eps = sqrt(1 - a) (x - sqrt(a) mean) / v, and the probability flow
    keeps (x - sqrt(a) mean) / sqrt(v) constant.
    """

    mean, spread = 0.7, 0.4

    def __call__(self, x: Tensor, t: int) -> Tensor:
        a = SCHEDULE.alpha_cumprod(t)
        return math.sqrt(1 - a) * (x - math.sqrt(a) * self.mean) / self._variance(a)

    def _variance(self, a: float) -> float:
        return a * self.spread**2 + 1 - a

    def flow(self, x: Tensor, t_from: int, t_to: int) -> Tensor:
        a, b = SCHEDULE.alpha_cumprod(t_from), SCHEDULE.alpha_cumprod(t_to)
        scaled = (x - math.sqrt(a) * self.mean) / math.sqrt(self._variance(a))
        return math.sqrt(b) * self.mean + math.sqrt(self._variance(b)) * scaled


class Mixture:
    """Two narrow Gaussians at +1 and -1: a curved flow, unlike one Gaussian's."""

    def __call__(self, x: Tensor, t: int) -> Tensor:
        a = SCHEDULE.alpha_cumprod(t)
        v = a * 0.05 + 1 - a
        x0 = torch.tanh(math.sqrt(a) * x / v)  # posterior mean of the sign
        return math.sqrt(1 - a) * (x - math.sqrt(a) * x0) / v


class EvenSteps(Schedule):
    """The default spacing of diffusers' multistep schedulers."""

    def multistep(self, steps: int) -> list[int]:
        return [round(999 * i / steps) for i in range(steps, 0, -1)]


def run(
    sampler: str, model: Any, x: Tensor, steps: int, *, schedule: Schedule = SCHEDULE, **options: Any
) -> list[Step]:
    return list(sampler_steps(sampler, model, x, schedule, steps, **options))


def error(sampler: str, steps: int) -> float:
    x, model = noise(64).double(), Gaussian()
    found = run(sampler, model, x, steps)
    start = found[0].t  # DDIM and PLMS with few steps take the noise to be of a lower level than the last
    return float((found[-1].x - model.flow(x, start, 0)).abs().max())


@pytest.mark.parametrize(
    ("sampler", "coarse", "fine"),
    [("ddim", 0.2, 0.06), ("plms", 0.04, 1e-3), ("dpmpp_2m", 0.02, 2e-3), ("unipc", 0.007, 1e-3)],
)
def test_sampler_converges_to_the_exact_solution(sampler: str, coarse: float, fine: float) -> None:
    """A quarter of DDIM's error is left with four times the steps, a tenth of the others' or less.

    Below 1e-3 the multistep solvers stay: the last interval of whole time steps, 1 to 0, is long in log-SNR.
    """
    assert error(sampler, 25) < coarse
    assert error(sampler, 100) < fine


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("model", [Gaussian(), Mixture()])
def test_twenty_steps_come_nearer_to_the_limit_than_fifty_of_ddim(model: Any, sampler: str) -> None:
    x = noise(256).double()
    truth = run("unipc", model, x, 900)[-1].x
    few = (run(sampler, model, x, 20)[-1].x - truth).abs().mean()
    many = (run("ddim", model, x, 50)[-1].x - truth).abs().mean()
    assert few < many


@pytest.fixture(scope="module")
def network() -> RDM:
    """A tiny model of one level."""
    config = tiny_config()
    config["unet"] |= {"channel_mult": [1], "attention_resolutions": [1]}
    return lively(RDM.from_config(config))


@pytest.fixture(scope="module")
def limit(network: RDM) -> Tensor:
    return network.sample(unit(1, 3, 12), x_T=noise(1, 4, 8, 8), steps=300, guidance_scale=2.0)


@pytest.mark.process
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [("dpmpp_2m", 15, 0.03), ("unipc", 15, 0.03), ("ddim", 100, 0.06), ("plms", 100, 0.06)],
)
def test_samplers_on_a_network_agree_with_many_steps_of_ddim(
    network: RDM, limit: Tensor, sampler: str, steps: int, tolerance: float
) -> None:
    found = network.sample(unit(1, 3, 12), x_T=noise(1, 4, 8, 8), steps=steps, sampler=sampler, guidance_scale=2.0)
    assert relative(found, limit) < tolerance


def _scheduler(sampler: str, steps: int) -> Any:
    common = {"num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.015, "beta_schedule": "scaled_linear"}
    library: Any = diffusers()
    if sampler == "ddim":
        made = library.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    elif sampler == "plms":
        made = library.PNDMScheduler(**common, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    elif sampler == "dpmpp_2m":
        made = library.DPMSolverMultistepScheduler(**common, final_sigmas_type="sigma_min")
    else:
        made = library.UniPCMultistepScheduler(**common, final_sigmas_type="sigma_min")
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("steps", [5, 8, 20, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_equals_diffusers_scheduler(sampler: str, steps: int) -> None:
    x, scheduler = noise(2, 4, 8, 8), _scheduler(sampler, steps)
    expected, model = x, Mixture()
    for t in scheduler.timesteps:
        expected = scheduler.step(model(expected, int(t)), t, expected).prev_sample
    found = run(sampler, model, x, steps, schedule=EvenSteps(0.0015, 0.015))
    assert relative(found[-1].x, expected) < 1e-4


def test_ddim_with_noise_equals_diffusers_scheduler() -> None:
    x, scheduler = noise(4, 16), _scheduler("ddim", 10)
    draws = [noise(4, 16, seed=10 + i) for i in range(10)]
    expected, left = x, iter(draws)
    for i, t in enumerate(scheduler.timesteps):
        drawn = draws[i]
        expected = scheduler.step(Gaussian()(expected, int(t)), t, expected, eta=0.7, variance_noise=drawn).prev_sample
    found = run("ddim", Gaussian(), x, 10, eta=0.7, noise=lambda: next(left))
    assert relative(found[-1].x, expected) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_leading_times_are_the_originals_where_steps_divide_a_thousand(steps: int) -> None:
    assert SCHEDULE.leading(steps) == [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]


@pytest.mark.parametrize("steps", COUNTS)
def test_times_are_as_many_as_asked_descending_and_within_the_schedule(steps: int) -> None:
    for times in (SCHEDULE.leading(steps), SCHEDULE.multistep(steps)):
        assert len(times) == steps
        assert all(later < earlier for earlier, later in pairwise(times))
        assert times[-1] >= 0 and times[0] <= 999


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_step_count_gives_sane_latents(sampler: str, steps: int) -> None:
    found = run(sampler, Gaussian(), noise(512).double(), steps)
    assert [step.index for step in found] == list(range(steps))
    assert all(torch.isfinite(step.x).all() for step in found)
    assert float(found[-1].x.abs().max()) < 6
    if steps >= 30:
        assert error(sampler, steps) < 8 / steps


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"steps": 0}, "1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"steps": 2.5}, "1 to 1000"),
        ({"sampler": "dim"}, "did you mean 'ddim'"),
        ({"sampler": "plms", "eta": 0.5}, "eta must be 0"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"sampler": None}, "unknown sampler None"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "5"}, "guidance_scale is '5'"),
    ],
)
def test_bad_requests_are_refused_before_any_work(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        tiny_model().sample(unit(1, 2, 12), x_T=noise(1, 4, 8, 8), **arguments)


def test_numbers_may_be_numpys_or_torchs() -> None:
    settings = {"context": unit(1, 2, 12), "x_T": noise(1, 4, 8, 8)}
    found = tiny_model().sample(**settings, steps=np.int64(3), guidance_scale=torch.tensor(2.0), eta=np.float32(0))
    assert torch.equal(found, tiny_model().sample(**settings, steps=3, guidance_scale=2))


@pytest.mark.parametrize(
    ("context", "x", "complaint"),
    [
        (unit(1, 2, 13), noise(1, 4, 8, 8), "context has shape"),
        (unit(1, 12), noise(1, 4, 8, 8), "context has shape"),
        (unit(2, 2, 12), noise(1, 4, 8, 8), "1 latents but 2 rows"),
        (unit(1, 2, 12), noise(1, 3, 8, 8), "latents have shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(context: Tensor, x: Tensor, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        tiny_model().sample(context, x_T=x)
    with pytest.raises(RequestError, match=complaint):
        tiny_model().denoise(x, 5, context)


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([1000])])
def test_times_and_shapes_that_no_model_was_trained_for_are_refused(t: Any) -> None:
    with pytest.raises(RequestError, match="times from 0 to 999"):
        tiny_model().denoise(noise(1, 4, 8, 8), t, unit(1, 2, 12))
    with pytest.raises(RequestError, match="not empty"):
        tiny_model().sample(torch.zeros(1, 0, 12), x_T=noise(1, 4, 8, 8))
    with pytest.raises(RequestError, match=r"\(0, 4, 8, 8\)"):
        tiny_model().decode(torch.zeros(0, 4, 8, 8))


def test_a_run_reports_every_step_and_can_be_left_in_the_middle() -> None:
    seen: list[Step] = []
    model, x = tiny_model(), noise(1, 4, 8, 8)
    last = model.sample(unit(1, 2, 12), x_T=x, steps=5, callback=seen.append)
    assert [(step.index, step.steps) for step in seen] == [(i, 5) for i in range(5)]
    assert torch.equal(seen[-1].x, last)
    taken = next(iter(model.steps(unit(1, 2, 12), x_T=x, steps=5)))
    assert torch.equal(taken.x, seen[0].x)


def test_a_picture_depends_on_its_own_generator_and_not_on_its_batch() -> None:
    """Noise, also that of eta > 0, is drawn image by image on the CPU."""
    model, context = tiny_model(), unit(3, 2, 12)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    options: dict[str, Any] = {"steps": 4, "eta": 1.0, "height": 32, "width": 48}
    together = model.sample(context, generator=generators(1, 2, 3), **options)
    assert together.shape == (3, 4, 8, 12)
    for i, seed in enumerate((1, 2, 3)):
        alone = model.sample(context[i : i + 1], generator=generators(seed), **options)
        assert relative(alone, together[i : i + 1]) < 1e-5
    again = model.sample(context, generator=generators(1, 2, 3), **options)
    assert torch.equal(again, together)
    assert not torch.allclose(model.sample(context, generator=generators(1, 2, 4), **options)[2], together[2])


def test_sampled_latents_are_ordinary_tensors() -> None:
    """They can be used for training."""
    latents = tiny_model().sample(unit(1, 2, 12), x_T=noise(1, 4, 8, 8), steps=2)
    weight = torch.ones(1, requires_grad=True)
    (latents * weight).sum().backward()
    assert weight.grad is not None
