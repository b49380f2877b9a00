"""The families of models for which IP-Adapters exist, and the calls of diffusers' pipeline of each.

    sd15, sdxl    a U-Net; one vector or, for `plus` adapters, the patches of a picture become tokens of a second attention
    flux          a transformer with rectified flow; vectors of CLIP ViT-L/14 (XLabs' adapters)
    sd3           a transformer with rectified flow; SigLIP's patches (InstantX's adapter for SD 3.5)

Reads and writes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pipeline.generation.requests import NEIGHBOURS, PictureRequest, Weighting
from pipeline.generation.sampling import Sampling, known

if TYPE_CHECKING:
    import torch

Pipeline: TypeAlias = Any  # one of diffusers' pipelines, which have no types

Samplers: TypeAlias = Mapping[str, tuple[str, Mapping[str, object]]]
"""Sampler -> diffusers' class, and what is set beside the base's own schedule."""

_UNET_SAMPLERS: Samplers = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}

_FLOW_SAMPLERS: Samplers = {"euler": ("FlowMatchEulerDiscreteScheduler", {})}

_UNET_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@dataclass(frozen=True)
class Family:
    """The properties that all models of a family share.

    pipeline    diffusers' class, as a base's model_index.json names it
    denoiser    the base's part with the denoiser
    parts       the base's folders that are read
    side        pictures' sides are multiples of this many pixels
    weightings  how several image prompts can be weighted
    precision   precision in which the base is published; the default on a GPU
    options     of `from_pretrained`
    batched     whether diffusers draws several pictures, each with its own image prompts, in one call
    blocks      how sets of blocks are given: tables of a U-Net's blocks, or one number for each layer
    """

    pipeline: str
    denoiser: Literal["unet", "transformer"]
    parts: tuple[str, ...]
    sampling: Sampling
    samplers: Samplers
    side: int
    weightings: tuple[Weighting, ...]
    precision: Literal["fp16", "bf16"] = "fp16"
    options: Mapping[str, object] = field(default_factory=dict)
    batched: bool = True
    blocks: Literal["tables", "layers", "none"] = "tables"

    @property
    def with_weights(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if not part.startswith(("tokenizer", "scheduler")))


FAMILIES: Mapping[str, Family] = {
    "sd15": Family(
        "StableDiffusionPipeline", "unet", _UNET_PARTS, Sampling("dpmpp_2m", 30, 7.5, 0.0, 512, 512), _UNET_SAMPLERS, 8,
        ("equal", "similarity", "mean"), options={"safety_checker": None, "requires_safety_checker": False},
    ),
    "sdxl": Family(
        "StableDiffusionXLPipeline", "unet", _UNET_PARTS, Sampling("dpmpp_2m", 30, 5.0, 0.0, 1024, 1024), _UNET_SAMPLERS, 8,
        ("equal", "similarity", "mean"), options={"add_watermarker": False},
    ),
    # For these two, diffusers repeats image prompts by the batch's size: each picture would see all image prompts.
    "flux": Family(
        "FluxPipeline", "transformer",
        ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        Sampling("euler", 28, 3.5, 0.0, 1024, 1024), _FLOW_SAMPLERS, 16, ("equal", "mean"), "bf16", batched=False,
        blocks="layers",
    ),
    "sd3": Family(
        "StableDiffusion3Pipeline", "transformer",
        ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3",
         "scheduler"),
        Sampling("euler", 28, 4.5, 0.0, 1024, 1024), _FLOW_SAMPLERS, 16, ("equal",), "bf16", batched=False, blocks="none",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ImagePrompts:
    """The image prompts of a batch of equal counts.

    features    (B, m, D) vectors, or (B, m, P, D) patches
    blank       the same shape without B: the unconditional input of guidance
    weights     (m,), or None if all count alike
    scale       strength relative to the text; 0 if there are no image prompts
    """

    features: torch.Tensor
    blank: torch.Tensor
    weights: torch.Tensor | None
    scale: float


Told: TypeAlias = "Callable[[int, int, Callable[[], torch.Tensor]], None]"
"""Called after each step: the step (from 1), their number, and a function that decodes the pictures (B, 3, H, W) in -1..1."""


def call(
    family: str,
    pipe: Pipeline,
    pictures: Sequence[PictureRequest],
    prompts: ImagePrompts,
    negative_scale: float,
    tell: Told | None = None,
) -> torch.Tensor:
    """Pictures (B, 3, H, W) in 0..1 of one call of diffusers' pipeline; B is 1 if the family is not batched.

    negative_scale: strength of the guidance away from a negative prompt, if the family has it in addition to `scale` (Flux).
    """
    import torch

    sampling = pictures[0].sampling
    height, width = sampling.size
    common = {
        "prompt": ["" if picture.use == NEIGHBOURS else picture.prompt for picture in pictures],
        "height": height, "width": width, "num_inference_steps": known(sampling.steps),
        "guidance_scale": known(sampling.scale), "output_type": "pt",
        # Noise is drawn on the CPU from each picture's own seed, so that a batch does not change a picture.
        "generator": [torch.Generator().manual_seed(picture.seed) for picture in pictures],
    }  # fmt: skip
    own = {"flux": _flux, "sd3": _sd3}.get(family, _unet)(pipe, pictures, prompts, negative_scale)
    if tell is not None:

        def after_step(_: Pipeline, step: int, time: object, state: Mapping[str, torch.Tensor]) -> dict[str, object]:
            steps = int(pipe.num_timesteps)
            tell(min(step + 1, steps), steps, lambda: _preview(pipe, state["latents"], height, width))
            return {}  # changes nothing: a picture is the same with and without a watcher

        common["callback_on_step_end"] = after_step
    images: torch.Tensor = pipe(**common, **own).images
    return images


def _preview(pipe: Pipeline, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The pictures at this step, from the sampler's estimate of the final latents if it keeps one, else from the noisy
    latents."""
    import torch

    kept = getattr(
        pipe.scheduler, "model_outputs", None
    )  # DPM-Solver++ and UniPC keep their estimates, the newest last
    if kept and isinstance(kept[-1], torch.Tensor) and kept[-1].shape == latents.shape:
        latents = kept[-1]
    with torch.inference_mode():
        if latents.ndim == 3:  # Flux packs squares of latents into one token
            latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        config = pipe.vae.config
        latents = latents.to(pipe.vae.dtype) / config.scaling_factor + (config.shift_factor or 0.0)
        decoded: torch.Tensor = pipe.vae.decode(latents, return_dict=False)[0]
    return decoded.float().cpu()


def _unet(pipe: Pipeline, pictures: Sequence[PictureRequest], prompts: ImagePrompts, _: float) -> dict[str, object]:
    import torch

    sampling, features = pictures[0].sampling, prompts.features
    height, width = sampling.size
    if known(sampling.scale) > 1:
        features = torch.cat([prompts.blank.expand_as(features), features])
    attention = {}
    if prompts.weights is not None:  # a mask with a single value is a weight
        masks = prompts.weights[None, :, None, None].expand(1, -1, height // 8, width // 8)
        attention = {"cross_attention_kwargs": {"ip_adapter_masks": [masks.to(pipe.device)]}}
    return {
        "negative_prompt": [picture.negative for picture in pictures],
        "eta": known(sampling.eta),
        "ip_adapter_image_embeds": [features],
        **attention,
    }


def _flux(
    pipe: Pipeline, pictures: Sequence[PictureRequest], prompts: ImagePrompts, negative_scale: float
) -> dict[str, object]:
    """Flux is trained to follow `scale` with one evaluation a step; a negative prompt needs a second evaluation."""
    (picture,) = pictures
    negative = picture.negative if known(picture.sampling.scale) != 1 else ""
    guidance = {"negative_prompt": [negative], "true_cfg_scale": negative_scale} if negative else {}
    return {
        "ip_adapter_image_embeds": [prompts.features],
        "negative_ip_adapter_image_embeds": [prompts.blank.expand_as(prompts.features)],
        **guidance,
    }


def _sd3(pipe: Pipeline, pictures: Sequence[PictureRequest], prompts: ImagePrompts, _: float) -> dict[str, object]:
    """The resampler of SD 3's adapter reads one sequence, in which several pictures are concatenated."""
    import torch

    (picture,) = pictures
    images: dict[str, object] = {}
    if prompts.scale:
        features = prompts.features.flatten(1, 2)
        if known(picture.sampling.scale) > 1:
            features = torch.cat([prompts.blank.flatten(0, 1)[None], features])
        images = {"ip_adapter_image_embeds": features}
    return {"negative_prompt": [picture.negative], **images}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and progress bars of diffusers and transformers in the block.

    They warn that no image encoder is loaded, of modules that keep a type, and of unused weights of a tower. A run has
    its own progress display.
    """
    from diffusers.utils import logging
    from transformers.utils import logging as other

    before, theirs = logging.get_verbosity(), other.get_verbosity()
    for one in (logging, other):
        one.set_verbosity_error()
        one.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        other.set_verbosity(theirs)
        for one in (logging, other):
            one.enable_progress_bar()
