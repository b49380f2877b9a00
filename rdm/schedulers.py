"""diffusers' schedulers as samplers: any class that takes a table of betas, by its name, with a choice of times.

`DPMSolverMultistepScheduler:karras` is a class and, after the colon, the spacing of its times: `karras`, `exponential` or
`beta` (spacings of sigma), or `leading`, `trailing` or `linspace` (spacings of t). The scheduler always receives
predicted noise, even if the model predicts v or the clean picture. Reads and writes nothing. It does not promise the
same pictures with another version of diffusers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rdm.errors import RequestError, nearest
from rdm.networks import diffusers
from rdm.schedule import Schedule

if TYPE_CHECKING:
    from rdm.untyped import Untyped

NAME = re.compile(r"(?P<name>[A-Za-z0-9]+Scheduler)(:(?P<times>[a-z]+))?")

TIMES: Mapping[str, Mapping[str, object]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
}


def is_scheduler(sampler: str) -> bool:
    """Whether a sampler's name has the form of a diffusers scheduler's."""
    return NAME.fullmatch(sampler) is not None


def scheduler_names() -> list[str]:
    """The schedulers of the installed diffusers that can sample a latent diffusion model, because they take a table of
    betas."""
    library = diffusers()
    found = [name for name in dir(library) if name.endswith("Scheduler") and not name.startswith("Flax")]
    return [name for name in found if "trained_betas" in _parameters(getattr(library, name))]


def _parameters(function: object) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []


def make_scheduler(sampler: str, schedule: Schedule) -> Untyped:
    """The scheduler for a sampler's name. Raises RequestError for a name or times that it does not have."""
    parts = NAME.fullmatch(sampler)
    cls: Untyped = getattr(diffusers(), parts["name"], None) if parts else None
    if parts is None or cls is None or "trained_betas" not in _parameters(cls):
        name, known = sampler.partition(":")[0], scheduler_names()
        raise RequestError(f"diffusers has no scheduler {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    cumulative = schedule.alphas_cumprod
    betas = 1 - cumulative / torch.cat([torch.ones(1, dtype=cumulative.dtype), cumulative[:-1]])
    takes = _parameters(cls)
    wanted = {
        "num_train_timesteps": schedule.train_steps,
        "trained_betas": betas.tolist(),
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,  # the last step ends at the noise level of t = 0, as in the original release
        "steps_offset": 1,
    }
    options = {name: value for name, value in wanted.items() if name in takes}
    if parts["times"]:
        chosen = TIMES.get(parts["times"], {})
        if not chosen or not set(chosen) <= set(takes):
            usable = [name for name, option in TIMES.items() if set(option) <= set(takes)]
            raise RequestError(
                f"{sampler!r}: {parts['name']} has no times {parts['times']!r}{nearest(parts['times'], usable)}; it takes "
                f"{', '.join(usable) or 'none'}"
            )
        options |= chosen
    try:
        return cls(**options)
    except (ImportError, ValueError) as error:  # some need another package
        raise RequestError(f"{sampler!r}: diffusers refuses it: {error}") from error


def scheduler_steps(
    sampler: str,
    model: Callable[[Tensor, int], Tensor],
    x: Tensor,
    schedule: Schedule,
    steps: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Iterator[tuple[int, int, int, Tensor, Tensor]]:
    """(index, number of steps, t, x, x0) after every call of the model, as in rdm.sampling.Step.

    Schedulers that call the model twice in each step (Heun, KDPM2) yield up to twice as many. `generator` draws the noise of
    schedulers that add some.
    """
    scheduler = make_scheduler(sampler, schedule)
    try:
        scheduler.set_timesteps(steps, device=x.device)
    except ValueError as error:
        raise RequestError(f"{sampler!r} with {steps} steps: {error}") from error
    noisy = {"generator": generator} if "generator" in _parameters(scheduler.step) else {}
    if isinstance(generator, Sequence) and noisy:
        noisy = {"generator": list(generator)}
    x = x * scheduler.init_noise_sigma
    times: list[Tensor] = list(scheduler.timesteps)
    for index, t in enumerate(times):
        at = round(float(t))  # the model takes whole steps, and Karras' spacing has fractions
        scaled = scheduler.scale_model_input(x, t)
        eps = model(scaled, at)
        x0 = (scaled - schedule.sigma(at) * eps) / schedule.alpha(at)
        x = scheduler.step(eps, t, x, **noisy).prev_sample
        yield index, len(times), at, x, x0
