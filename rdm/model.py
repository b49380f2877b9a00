"""RDM: denoiser, first stage and noise schedule in one class.

Reads checkpoints and saved folders through rdm.checkpoint and rdm.folder; writes only in `save_pretrained`. Holds the
weights once. Does not encode prompts, search neighbours, or turn images into files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm import denoiser
from rdm.checkpoint import LoadReport, load_compvis
from rdm.conditioning import Context, join, mask_bias, without_masked
from rdm.config import RDMConfig, read_config
from rdm.distillation import embed_guidance
from rdm.errors import RequestError, as_number
from rdm.folded import home
from rdm.folder import find_folder, load_folder, read_folder_config, save_folder
from rdm.networks import PIXELS_AT_ONCE, at_once, build
from rdm.prediction import to_epsilon
from rdm.sampling import Step, sampler_steps
from rdm.schedule import Schedule
from rdm.untyped import Arguments, FirstStage, UNet, Untyped

Generators = torch.Generator | Sequence[torch.Generator] | None


class RDM:
    """A retrieval-augmented diffusion model. `unet` and `first_stage` are networks that can be trained."""

    def __init__(
        self, config: RDMConfig, unet: UNet, first_stage: FirstStage, report: LoadReport | None = None
    ) -> None:
        self.config = config
        self.unet = unet
        self.first_stage = first_stage
        self.report = report
        self.schedule = Schedule(config.beta_start, config.beta_end, config.train_steps)
        self._forward: Callable[..., Tensor] = denoiser.forward

    @classmethod
    def from_config(cls, config: str | Path | Arguments | RDMConfig, *, device: str | torch.device = "cpu") -> RDM:
        """A model with fresh weights, for training; on the device "meta" without weights."""
        description = read_config(config)
        return cls(description, *build(description, device))

    @classmethod
    def from_compvis(
        cls,
        ckpt_path: str | Path,
        config: str | Path | Arguments | RDMConfig,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> RDM:
        """The original release's checkpoint, on the CPU; `report` says what was loaded and what was not used.

        config is a model name ("rdm-768"), a description, or the path of one. Pickled code in the file is never run. EMA
        weights are preferred. `dtype` None keeps the file's type. Raises CheckpointError, which names missing, misshapen or
        unknown keys.
        """
        model = cls.from_config(config, device="meta")
        model.report = load_compvis(ckpt_path, model.config, model.unet, model.first_stage, dtype=dtype)
        return model

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | Path, *, dtype: torch.dtype | None = torch.float32, revision: str | None = None
    ) -> RDM:
        """A folder that `save_pretrained` wrote, or the diffusers layout of the Hub's copies (local, or by Hub id).

        Raises CheckpointError for files that are missing or do not fit.
        """
        folder = find_folder(folder_or_hub_id, revision)
        description = read_folder_config(folder)
        unet, first_stage = build(description, "meta")
        report = load_folder(folder, description, unet, first_stage, dtype=dtype)
        return cls(description, unet, first_stage, report)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write unet/, vae/ (or vqvae/, folded/), scheduler/ and rdm.json: safetensors that diffusers can also load.

        The same weights give the same files.
        """
        save_folder(Path(folder), self.config, self.unet, self.first_stage)

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        first_stage_dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
    ) -> RDM:
        """Move the model in place, and return it. `dtype` is that of the denoiser.

        `channels_last` is the layout of the weights; None: on a GPU. On a CPU it is about a tenth faster, changes the last
        digits of the results, which then depend less on the batch, and copies a mapped file.

        The first stage stays in single precision unless `first_stage_dtype` is given: it has a twentieth of the weights, and
        half precision can give blank pictures.
        """
        # Module.to, not diffusers' method, which warns about modules that these networks lack.
        nn.Module.to(self.unet, device=device, dtype=dtype)
        nn.Module.to(self.first_stage, device=device, dtype=first_stage_dtype)
        last = self.device.type == "cuda" if channels_last is None else channels_last
        layout = torch.channels_last if last else torch.contiguous_format
        for network in (self.unet, self.first_stage):
            nn.Module.to(network, memory_format=layout)  # type: ignore[call-overload]
        return self

    def compile(self, **options: Untyped) -> RDM:
        """Sample through torch.compile with these options. Compiling takes about a minute, which is worth it for long
        runs on a GPU."""
        self._forward = torch.compile(denoiser.forward, **options)
        return self

    def weights_hash(self) -> str:
        """SHA-256 over names, shapes, types and values of all weights: the same for the same model in any format."""
        digest = hashlib.sha256()
        for part, network in (("unet", self.unet), ("first_stage", self.first_stage)):
            for name, value in sorted(network.state_dict().items()):
                digest.update(f"{part}.{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return torch.device(self.unet.conv_in.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return self.unet.conv_in.weight.dtype

    def _bias(self, context: Tensor, mask: Tensor | None) -> Tensor | None:
        if context.dim() != 3 or context.shape[2] != self.config.context_dim or not context.numel():
            raise RequestError(
                f"context has shape {tuple(context.shape)}; (B, T, {self.config.context_dim}) was expected, not empty"
            )
        return mask_bias(context, mask)

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor | int, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """The noise that the model predicts for latents x (B, C, h, w) at time t (one, or B of them): float32, like x.

        context is (B, T, D), mask (B, T) as in rdm.conditioning. Inference only; train `unet` directly. Without guidance; a
        model with distilled guidance uses its smallest scale.
        """
        self._check_latents(x, context)
        bias = self._bias(context, mask)
        embedded = self._embedded((self.config.guidance_range or (1.0,))[0])
        prepared = denoiser.prepare(self.unet, without_masked(context, mask), bias, guidance=embedded)
        times = torch.as_tensor(t, device=self.device).reshape(-1)
        if len(times) not in (1, len(x)):
            raise RequestError(f"t holds {len(times)} times for {len(x)} latents; one, or one each, was expected")
        if not bool(((times >= 0) & (times < self.schedule.train_steps)).all()):
            raise RequestError(f"t is {times.tolist()}; times from 0 to {self.schedule.train_steps - 1} were expected")
        x = x.to(self.device)
        output = self._forward(self.unet, x.to(self.dtype), times, prepared).float()
        return to_epsilon(self.config.prediction_type, output, x.float(), times, self.schedule)

    def _check_latents(self, x: Tensor, context: Tensor) -> None:
        channels = self.config.latent_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise RequestError(f"latents have shape {tuple(x.shape)}; (B, {channels}, h, w) was expected")
        if len(x) != len(context):
            raise RequestError(f"{len(x)} latents but {len(context)} rows of context; as many were expected")

    def steps(
        self,
        context: Tensor,
        *,
        x_T: Tensor | None = None,
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance_scale: float = 5.0,
        mask: Tensor | None = None,
        generator: Generators = None,
        null_context: Tensor | None = None,
        null_mask: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Iterator[Step]:
        """The sampling run as a generator of Steps, for progress and previews. Arguments as in `sample`."""
        if x_T is None:
            size = self.config.default_size
            latent = self.config.latent_size(height or size, width or size)
            x_T = noise_like((len(context), self.config.latent_channels, *latent), generator)
        self._check_latents(x_T, context)
        scale, eta = as_number("guidance_scale", guidance_scale), as_number("eta", eta)
        embedded = self._embedded(scale, null_context)
        guided = scale != 1 and embedded is None
        mask = None if mask is None else mask.to(context.device)
        bias = self._bias(context, mask)
        tokens = without_masked(context, mask)
        if guided and null_context is not None:
            tokens, bias = self._with_null(Context(context, mask), null_context, null_mask)
        silent = guided and null_context is None
        with torch.inference_mode():
            prepared = denoiser.prepare(self.unet, tokens, bias, guided=guided, silent_null=silent, guidance=embedded)
        shape = tuple(x_T.shape)

        @torch.inference_mode()
        def model(x: Tensor, t: int) -> Tensor:
            times = torch.tensor([t], device=self.device)
            output = self._forward(self.unet, x.to(self.dtype), times, prepared).float()
            if guided:
                null, conditional = output.chunk(2)
                output = null + scale * (conditional - null)
            return to_epsilon(self.config.prediction_type, output, x, torch.tensor([t]), self.schedule)

        def noise() -> Tensor:
            return noise_like(shape, generator).to(self.device)

        x = x_T.to(self.device, torch.float32)
        return sampler_steps(sampler, model, x, self.schedule, steps, eta=eta, noise=noise, generator=generator)

    def _embedded(self, scale: float, null_context: Tensor | None = None) -> Tensor | None:
        """The embedding (1, time_cond_proj_dim) of a guidance scale, for a model with distilled guidance; else None.

        Raises RequestError for a scale, or a negative prompt, that the model was not distilled for.
        """
        if self.config.guidance_range is None:
            return None
        low, high = self.config.guidance_range
        if not low <= scale <= high:
            raise RequestError(
                f"guidance_scale is {scale:g}; {self.config.name} was distilled for scales from {low:g} to {high:g}"
            )
        if null_context is not None:
            raise RequestError(
                f"{self.config.name} takes no negative prompt, because its guidance was distilled into one pass: leave it out, "
                "or use the model that it was distilled from"
            )
        return embed_guidance(self.config, torch.tensor([scale]))

    def _with_null(self, context: Context, null: Tensor, null_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens and bias of both branches, null rows first, the shorter ones masked."""
        self._bias(null, null_mask)  # for its checks
        rows = len(context.tokens)
        if len(null) not in (1, rows):
            raise RequestError(f"null_context has {len(null)} rows; 1 or {rows} were expected")
        null = null.to(context.tokens).expand(rows, -1, -1)
        mask = None if null_mask is None else null_mask.to(null.device).expand(rows, -1)
        both = join([Context(null, mask), context])
        return without_masked(both.tokens, both.mask), mask_bias(both.tokens, both.mask)

    def sample(
        self,
        context: Tensor,
        *,
        x_T: Tensor | None = None,
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance_scale: float = 5.0,
        mask: Tensor | None = None,
        generator: Generators = None,
        null_context: Tensor | None = None,
        null_mask: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        callback: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w), float32, scaled as `decode` takes them.

        context         (B, T, D), and mask (B, T), bool or weights: see rdm.conditioning
        x_T             starting noise; None: drawn for height x width pixels (default: the model's size)
        generator       CPU generator(s) for x_T and eta; with one for each picture, a picture is independent of its batch
        sampler, steps  "ddim", "plms", "dpmpp_2m", "unipc", or a diffusers scheduler; 1 to 1000 steps
        guidance_scale  the output is null + scale * (conditional - null); 1 leaves the null branch out. A model with distilled
                        guidance approximates this in one pass, for scales in its guidance_range
        null_context    (1 or B, T', D) and null_mask: a negative prompt in place of zeros
        callback        a function that is called with every Step
        """
        x: Tensor | None = None
        for step in self.steps(
            context, x_T=x_T, steps=steps, sampler=sampler, eta=eta, guidance_scale=guidance_scale, mask=mask,
            generator=generator, null_context=null_context, null_mask=null_mask, height=height, width=width,
        ):  # fmt: skip
            x = step.x
            if callback is not None:
                callback(step)
        assert x is not None  # samplers take at least one step
        return x

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """First-stage latents of images (B, 3, H, W) in [-1, 1]: the posterior's mean, unscaled, float32.

        For a VQ first stage: the encoder's output before quantisation. Sampling and training use
        `config.scale_factor` times this.
        """
        channels = int(self.config.first_stage.get("in_channels", 3))
        if images.dim() != 4 or images.shape[1] != channels or not len(images):
            raise RequestError(f"images have shape {tuple(images.shape)}; (B, {channels}, H, W) was expected")
        self.config.latent_size(*images.shape[-2:])
        encoded = self.first_stage.encode(images.to(*(home(self.first_stage) or (self.device, torch.float32))))
        latents: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents.float()

    @torch.no_grad()
    def decode(self, latents: Tensor, *, pixels_at_once: int = PIXELS_AT_ONCE) -> Tensor:
        """Images (B, 3, H, W), float32, for latents from `sample`; in [-1, 1] except for overshoot: clamp before use.

        A VQ first stage quantises first: each latent becomes its nearest codebook entry. Pictures are decoded in
        groups of at most `pixels_at_once` (but at least one picture): one at a time at 768 x 768, where the first
        stage's activations determine the peak of memory, and many at a time if they are small.
        """
        if latents.dim() != 4 or latents.shape[1] != self.config.latent_channels or not latents.numel():
            raise RequestError(
                f"latents have shape {tuple(latents.shape)}; (B, {self.config.latent_channels}, h, w) was expected"
            )
        z = latents.float() / self.config.scale_factor
        z = z.to(*(home(self.first_stage) or (z.device, torch.float32)))
        pixels = z.shape[2] * z.shape[3] * self.config.downsample_factor**2
        groups = torch.split(z, at_once(pixels, pixels_at_once))
        return torch.cat([self.first_stage.decode(group).sample.float() for group in groups])


def noise_like(shape: Sequence[int], generator: Generators = None) -> Tensor:
    """Standard normal noise of `shape` (B, C, h, w), float32, drawn on the CPU so that every device gets the same.

    With a sequence of B generators, each image's noise comes from its own generator.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator)
    if len(generator) != shape[0]:
        raise RequestError(f"{len(generator)} generators for {shape[0]} images; one, or one each, was expected")
    return torch.stack([torch.randn(tuple(shape[1:]), generator=own) for own in generator])
