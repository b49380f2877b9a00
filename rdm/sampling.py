"""Samplers: from noise to latents, with one or two calls of the denoiser in each step.

A sampler is a generator. It takes a model `eps = model(x, t)` that includes guidance, the starting noise and a schedule,
and yields a Step after every step: the caller's `for` loop shows progress or previews, or stops. Reads and writes nothing.
Arithmetic is in the dtype of x with float64 coefficients.

DDIM (arXiv 2010.02502) and PLMS (arXiv 2202.09778) equal the original release's if the number of steps divides the
1000 of training. DPM-Solver++(2M) (arXiv 2211.01095) and UniPC (arXiv 2302.04867, order 2, B2) need fewer steps.
All end at the noise level of t = 0, as the original does, so that they converge to the same result. Any other sampler is one of
diffusers' schedulers (rdm/schedulers.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.errors import RequestError, is_number, nearest
from rdm.schedule import Schedule
from rdm.schedulers import is_scheduler, scheduler_steps

Model = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """The state after step `index` (from 0) of `steps`: the latents `x`, and `x0`, the estimate of the final latents."""

    index: int
    steps: int
    t: int
    x: Tensor
    x0: Tensor


def ddim(
    model: Model, x: Tensor, schedule: Schedule, steps: int, *, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """DDIM. eta = 0 is deterministic, eta = 1 is ancestral sampling. `noise` draws noise like x; it is used when eta > 0."""
    times = schedule.leading(steps)
    for i, t in enumerate(times):
        eps = model(x, t)
        x, x0 = _ddim_step(x, eps, schedule, t, _next(times, i), eta, noise)
        yield Step(i, steps, t, x, x0)


def _next(times: list[int], i: int) -> int:
    return times[i + 1] if i + 1 < len(times) else 0


def _ddim_step(
    x: Tensor, eps: Tensor, schedule: Schedule, t: int, t_next: int, eta: float = 0.0, noise: Noise | None = None
) -> tuple[Tensor, Tensor]:
    a, a_next = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_next)
    x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    variance = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)
    x = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - variance) * eps
    if variance > 0:
        if noise is None:
            raise RequestError("eta > 0 draws noise at every step, but no source was given: pass `noise`")
        x = x + math.sqrt(variance) * noise()
    return x, x0


_ADAMS_BASHFORTH = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def plms(model: Model, x: Tensor, schedule: Schedule, steps: int) -> Iterator[Step]:
    """PLMS: Adams-Bashforth on the predicted noise, of order 4 from the fourth step on. The first step calls the model
    twice."""
    times = schedule.leading(steps)
    history: list[Tensor] = []  # newest first
    for i, t in enumerate(times):
        eps = model(x, t)
        history = [eps, *history[:3]]
        if len(history) == 1:
            ahead, _ = _ddim_step(x, eps, schedule, t, _next(times, i))
            eps = (eps + model(ahead, times[min(i + 1, len(times) - 1)])) / 2
        else:
            weights = _ADAMS_BASHFORTH[len(history)]
            eps = torch.stack([weight * old for weight, old in zip(weights, history, strict=True)]).sum(dim=0)
        x, x0 = _ddim_step(x, eps, schedule, t, _next(times, i))
        yield Step(i, steps, t, x, x0)


# With fewer steps than this the last step of a multistep solver has lower order, because it is long.
_FEW = 15


def dpmpp_2m(model: Model, x: Tensor, schedule: Schedule, steps: int) -> Iterator[Step]:
    """DPM-Solver++(2M): a second-order exponential integrator on the predicted x0, with one call in each step."""
    times = schedule.multistep(steps)
    previous: Tensor | None = None
    h_previous = 0.0
    for i, t in enumerate(times):
        t_next = _next(times, i)
        x0 = _predict_x0(x, model(x, t), schedule, t)
        h = schedule.log_snr_half(t_next) - schedule.log_snr_half(t)
        if h > 0:
            target = x0
            if previous is not None and not (t_next == 0 and steps < _FEW):
                target = x0 + (x0 - previous) * (0.5 * h / h_previous)
            x = schedule.sigma(t_next) / schedule.sigma(t) * x - schedule.alpha(t_next) * math.expm1(-h) * target
        previous, h_previous = x0, h
        yield Step(i, steps, t, x, x0)


def _predict_x0(x: Tensor, eps: Tensor, schedule: Schedule, t: int) -> Tensor:
    return (x - schedule.sigma(t) * eps) / schedule.alpha(t)


def unipc(model: Model, x: Tensor, schedule: Schedule, steps: int) -> Iterator[Step]:
    """UniPC of order 2: a second-order predictor, and a third-order corrector that uses the call of the next step."""
    times = schedule.multistep(steps)
    x0s: list[Tensor] = []  # newest first, two at most
    lambdas: list[float] = []
    start = x  # x at the start of the last predictor step
    order = 0
    for i, t in enumerate(times):
        x0 = _predict_x0(x, model(x, t), schedule, t)
        if order:
            x = _unipc_correct(start, x0, x0s, lambdas, schedule, times[i - 1], t, order)
        x0s, lambdas = [x0, *x0s[:1]], [schedule.log_snr_half(t), *lambdas[:1]]
        t_next = _next(times, i)
        start, order = x, min(2, len(x0s), len(times) - i)
        h = schedule.log_snr_half(t_next) - lambdas[0]
        if h > 0:
            growth = math.expm1(-h)
            x = schedule.sigma(t_next) / schedule.sigma(t) * start - schedule.alpha(t_next) * growth * x0
            if order == 2:
                slope = (x0s[1] - x0) * (h / (lambdas[1] - lambdas[0]))
                x = x - schedule.alpha(t_next) * growth * 0.5 * slope
        yield Step(i, steps, t, x, x0)


def _unipc_correct(
    start: Tensor, x0: Tensor, x0s: list[Tensor], lambdas: list[float], schedule: Schedule, t_from: int, t: int,
    order: int,
) -> Tensor:  # fmt: skip
    # UniC, equations (3) and (9), with B(h) = e^-h - 1 and data prediction: weights of the differences from the previous
    # point to the one before it (order 2) and to the new one.
    h = schedule.log_snr_half(t) - lambdas[0]
    growth = math.expm1(-h)
    base = schedule.sigma(t) / schedule.sigma(t_from) * start - schedule.alpha(t) * growth * x0s[0]
    new = x0 - x0s[0]
    if order == 1:
        return base - schedule.alpha(t) * growth * 0.5 * new
    r = (lambdas[1] - lambdas[0]) / h
    phi_1 = growth / -h - 1
    phi_2 = phi_1 / -h - 0.5
    b_1, b_2 = phi_1 / growth, 2 * phi_2 / growth
    behind = (b_2 - b_1) / (r - 1)  # of [[1, 1], [r, 1]] (behind, ahead) = (b_1, b_2)
    ahead = b_1 - behind
    return base - schedule.alpha(t) * growth * (behind / r * (x0s[1] - x0s[0]) + ahead * new)


SAMPLERS = ("ddim", "plms", "dpmpp_2m", "unipc")


def sampler_steps(
    sampler: str,
    model: Model,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Iterator[Step]:
    """The generator of a named sampler: one of SAMPLERS, or a diffusers scheduler (rdm.schedulers), which uses `generator`.

    Raises RequestError for an unknown name, or steps or eta out of range.
    """
    steps = schedule.check(steps)
    by_diffusers = isinstance(sampler, str) and is_scheduler(sampler)
    if sampler not in SAMPLERS and not by_diffusers:
        raise RequestError(
            f"unknown sampler {sampler!r}{nearest(str(sampler), SAMPLERS)}; known: {', '.join(SAMPLERS)}, and diffusers' "
            "schedulers, such as DPMSolverMultistepScheduler:karras"
        )
    if not is_number(eta) or not 0 <= eta <= 1:
        raise RequestError(f"eta is {eta}; a number in 0..1 was expected")
    if sampler == "ddim":
        return ddim(model, x, schedule, steps, eta=eta, noise=noise)
    if eta != 0:
        raise RequestError(f"{sampler} is deterministic: eta must be 0, not {eta} (ddim takes an eta)")
    if by_diffusers:
        return (Step(*one) for one in scheduler_steps(sampler, model, x, schedule, steps, generator))
    return {"plms": plms, "dpmpp_2m": dpmpp_2m, "unipc": unipc}[sampler](model, x, schedule, steps)
