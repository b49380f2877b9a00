"""A retrieval-augmented diffusion model (RDM, arXiv 2204.11824) as a pipeline of diffusers.

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    pipe("a red boat", database="harbours").images[0].save("boat.png")

rdmpipe writes this file into a model's folder. With vectors (`prompt_embeds`, `retrieved_embeds`) it needs only torch and
diffusers; texts, pictures and databases need rdmpipe, which encodes with the encoder that the model was trained with. With the
folder's own scheduler, a number of steps that divides 1000 and the same generators, the results are those of `rdmpipe
generate`, up to the rounding of single precision.
"""

import importlib
import inspect
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F


class RDMPipeline(DiffusionPipeline):
    """Draws pictures from a prompt's vector and the vectors of its neighbours, which together are the denoiser's context.

    unet, scheduler  diffusers' UNet2DConditionModel, and any scheduler of diffusers
    vae or vqvae     the first stage, AutoencoderKL or VQModel; with neither, latents are `fold` x `fold` patches of pixels
    scale_factor     latents = scale_factor * first-stage latents (the first stage's own config may have another value)
    encoder          rdmpipe's name of the encoder whose vectors the model takes
    context_norm     "unit": vectors are normalised; "raw": vectors are used as the encoder returns them
    guidance_range   scales of a model with guidance in one pass, by distillation; None: guidance takes two passes
    """

    model_cpu_offload_seq = "unet->vae->vqvae"
    _optional_components = ["vae", "vqvae"]  # noqa: RUF012 (diffusers' own attributes)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        unet,
        scheduler,
        vae=None,
        vqvae=None,
        scale_factor: float = 1.0,
        fold: int = 0,
        encoder: str = "",
        context_norm: str = "unit",
        max_neighbours: int = 20,
        default_k: int = 19,
        default_size: int = 768,
        default_guidance: float = 5.0,
        guidance_range: list | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, vqvae=vqvae)
        self.register_to_config(
            scale_factor=scale_factor,
            fold=fold,
            encoder=encoder,
            context_norm=context_norm,
            max_neighbours=max_neighbours,
            default_k=default_k,
            default_size=default_size,
            default_guidance=default_guidance,
            guidance_range=guidance_range,
        )
        stage = vae or vqvae
        self.vae_scale_factor = fold if stage is None else 2 ** (len(stage.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._encoders = {}

    @torch.no_grad()
    def __call__(
        self,
        prompt=None,
        *,
        database=None,
        k: int | None = None,
        where: str = "",
        retrieved_images=None,
        retrieved_embeds=None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        num_images_per_prompt: int = 1,
        generator=None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end=None,
        callback_on_step_end_tensor_inputs=("latents",),
    ):
        """Draw pictures.

        Args:
            prompt: A text or a list of B texts. It may be left out if `prompt_embeds` or neighbours are given.
            database: An rdmpipe database to search for neighbours: its name, `name@version`, the folder of one, or a Searcher.
            k: The number of neighbours from the database for each prompt; the model's own number if None.
            where: A SQL filter over the database's columns.
            retrieved_images: Pictures as neighbours: one list for all prompts, or a list for each prompt.
            retrieved_embeds: Vectors as neighbours: (B, k, D), or B tensors (k_i, D).
            prompt_embeds: The prompts' vectors, (B, D), in place of texts.
            negative_prompt_embeds: Vectors (1 or B, D) that guidance leads away from; else the model's null context of zeros.
            height, width: The size of the pictures in pixels; the model's own size if None.
            guidance_scale: The output is null + scale * (conditional - null); 1 leaves the null branch out. The model's
            own if None. eta: Noise that DDIM adds in each step, 0 to 1.
            generator: One for all pictures, or one for each; with one for each, a picture does not depend on the others.
            latents: Starting noise (B, C, h, w).
            output_type: "pil", "np", "pt" or "latent".

        Returns:
            ImagePipelineOutput, or a tuple with the pictures if `return_dict` is False.
        """
        size = self.config.default_size
        height, width = height or size, width or size
        factor = self.vae_scale_factor
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor}, not {height} and {width}")
        contexts = self._contexts(prompt, database, k, where, retrieved_images, retrieved_embeds, prompt_embeds)
        contexts = [row for row in contexts for _ in range(num_images_per_prompt)]
        scale = self.config.default_guidance if guidance_scale is None else guidance_scale
        nulls = None
        distilled = self.config.guidance_range
        if distilled and not distilled[0] <= scale <= distilled[1]:
            raise ValueError(
                f"guidance_scale is {scale}; this model was distilled for {distilled[0]} to {distilled[1]}"
            )
        if distilled and negative_prompt_embeds is not None:
            raise ValueError("this model takes no negative prompt, because its guidance was distilled into one pass")
        if scale != 1 and not distilled:
            nulls = [torch.zeros_like(row[:1]) for row in contexts]
            if negative_prompt_embeds is not None:
                given = negative_prompt_embeds.repeat_interleave(
                    num_images_per_prompt if len(negative_prompt_embeds) > 1 else len(contexts), dim=0
                )
                nulls = [self._taken(row[None]) for row in given]
        tokens, mask = _padded([*(nulls or []), *contexts])
        device = self._execution_device
        shape = (len(contexts), self.unet.config.in_channels, height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} pictures; give one, or one each")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; {shape} was expected")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        network = _Denoiser(self.unet, tokens.to(device), mask.to(device), nulls is not None, scale, bool(distilled))
        latents = self._denoised(
            latents, network, eta, generator, callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        images = latents if output_type == "latent" else self._decoded(latents)
        if output_type != "latent":
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoised(self, latents, network, eta, generator, callback, names):
        """The latents after all steps of the scheduler."""
        takes = set(inspect.signature(self.scheduler.step).parameters)
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in takes}
        for index, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            output = network(self.scheduler.scale_model_input(latents, t), t)
            latents = self.scheduler.step(output, t, latents, **extra).prev_sample
            if callback is not None:
                changed = callback(self, index, t, {"latents": latents} if "latents" in names else {})
                latents = changed.get("latents", latents)
        return latents

    def _decoded(self, latents):
        """Pictures (B, 3, H, W) in -1..1. The first stage works in single precision: half precision can give blank pictures."""
        latents = latents / self.config.scale_factor
        stage = self.vae or self.vqvae
        if stage is None:
            return F.pixel_shuffle(latents, self.config.fold)
        if stage.dtype != torch.float32:
            stage.to(torch.float32)
        return torch.cat(
            [stage.decode(one).sample for one in latents.split(1)]
        )  # the peak of memory is that of one picture

    # ---- what the denoiser attends to

    def _contexts(self, prompt, database, k, where, retrieved_images, retrieved_embeds, prompt_embeds):
        """A list of (1 + k_i, D) float32 rows: the prompt's vector if there is one, then the neighbours'."""
        texts = [prompt] if isinstance(prompt, str) else prompt
        if texts is None and prompt_embeds is None and retrieved_embeds is None and not retrieved_images:
            raise ValueError("give a prompt, prompt_embeds, retrieved_images or retrieved_embeds")
        with ExitStack() as stack:
            searcher = self._searcher(database, stack)
            encoder = None
            if texts is not None and prompt_embeds is None:
                encoder = self._encoder(searcher)
                # One by one, as `rdmpipe generate` does: the other texts of a batch would change the last digits.
                unit, norms = (
                    np.concatenate(part) for part in zip(*(encoder.text_vectors([text]) for text in texts), strict=True)
                )
                prompt_embeds = torch.from_numpy(unit * norms[:, None] if self.config.context_norm == "raw" else unit)
            given = next((len(one) for one in (prompt_embeds, texts, retrieved_embeds) if one is not None), 1)
            rows = [[] if prompt_embeds is None else [prompt_embeds[i : i + 1].float().cpu()] for i in range(given)]
            for row, pictures in zip(rows, _lists(retrieved_images, given), strict=True):
                if pictures:
                    encoder = encoder or self._encoder(searcher)
                    row.append(self._as_taken(*encoder.picture_vectors([one.convert("RGB") for one in pictures])))
            if retrieved_embeds is not None:
                if len(retrieved_embeds) != given:
                    raise ValueError(f"retrieved_embeds has {len(retrieved_embeds)} rows for {given} prompts")
                for row, near in zip(rows, retrieved_embeds, strict=True):
                    row.append(torch.as_tensor(near).float().cpu())
            if searcher is not None:
                if prompt_embeds is None:
                    raise ValueError("searching a database takes a prompt or prompt_embeds")
                for row, near in zip(rows, self._neighbours(searcher, prompt_embeds, k, where), strict=True):
                    row.append(near)
        return [self._checked(torch.cat(row), prompt_embeds is not None) for row in rows]

    def _checked(self, row, prompted):
        """A row of vectors as the model takes them."""
        most, dim = self.config.max_neighbours + prompted, self.unet.config.cross_attention_dim
        if row.shape[1] != dim:
            raise ValueError(
                f"vectors have {row.shape[1]} numbers; this model takes {dim} (encoder {self.config.encoder})"
            )
        if not 0 < len(row) <= most:
            raise ValueError(f"{len(row) - prompted} neighbours; this model takes at most {self.config.max_neighbours}")
        return self._taken(row)

    def _taken(self, row):
        return F.normalize(row.float(), dim=-1) if self.config.context_norm == "unit" else row.float()

    def _as_taken(self, unit, norms):
        raw = self.config.context_norm == "raw"
        return torch.from_numpy(np.ascontiguousarray(unit * norms[:, None] if raw else unit))

    # ---- rdmpipe

    def _searcher(self, database, stack):
        """rdmpipe's Searcher over a database by name or folder, closed at the end. An open Searcher stays open; None
        gives None."""
        if database is None or hasattr(database, "search"):
            return database
        retrieval, home, name = _rdmpipe("retrieval", "a database"), None, str(database)
        folder = Path(database).expanduser()
        if folder.is_dir() and folder.parent.name == "databases":
            home, name = str(folder.absolute().parent.parent), folder.name
        return stack.enter_context(retrieval.open_database(name, home))

    def _encoder(self, searcher):
        """The encoder of the database that is searched, else the model's own."""
        encoders = _rdmpipe("encoders", "a text or a picture (or give prompt_embeds and retrieved_embeds)")
        name = self.config.encoder if searcher is None else searcher.version.encoder.name
        if name not in self._encoders:
            device = str(self._execution_device)
            record = None if searcher is None else searcher.version.encoder
            loaded = encoders.load_encoder(name, device) if record is None else encoders.load_recorded(record, device)
            self._encoders[name] = loaded
        return self._encoders[name]

    def _neighbours(self, searcher, prompts, k, where):
        """The nearest rows of each prompt, (k, D) each, best first: as they are stored, in float32."""
        k = self.config.default_k if k is None else k
        if not k:
            return [prompts[:0].float().cpu()] * len(prompts)
        found = []
        queries = F.normalize(prompts.float().cpu(), dim=-1).numpy()
        for query, keys in zip(queries, searcher.search(queries, k, where).keys, strict=True):
            unit, norms = searcher.vectors(keys)
            order = np.lexsort((keys, -(unit.astype(np.float64) @ query.astype(np.float64))))
            found.append(self._as_taken(unit[order], norms[order]))
        return found


class _Denoiser:
    """The denoiser with its context and guidance: output = network(latents, t)."""

    def __init__(self, unet, tokens, mask, guided, scale, distilled):
        self.unet, self.guided, self.scale = unet, guided, scale
        self.embedded = None
        if distilled:  # the scale is an input of the denoiser
            length = unet.config.time_cond_proj_dim
            frequencies = 1000 * 10_000 ** (-torch.arange(length // 2, device=tokens.device) / max(length // 2 - 1, 1))
            angles = (scale - 1) * frequencies
            self.embedded = torch.cat([angles.sin(), angles.cos()])[None].to(unet.dtype)
        self.tokens = tokens.to(unet.dtype)
        self.mask = None if bool((mask == 1).all()) else mask
        self.pooled = None
        if (
            unet.config.class_embed_type == "projection"
        ):  # adds the first token and the mean of all tokens to the time embedding
            mean = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            self.pooled = torch.cat([tokens[:, 0], mean], dim=1).to(unet.dtype)

    def __call__(self, latents, t):
        batch = torch.cat([latents, latents]) if self.guided else latents
        output = self.unet(
            batch.to(self.unet.dtype),
            t,
            encoder_hidden_states=self.tokens,
            encoder_attention_mask=self.mask,
            class_labels=self.pooled,
            timestep_cond=self.embedded,
        ).sample.float()
        if self.guided:
            null, conditional = output.chunk(2)
            output = null + self.scale * (conditional - null)
        return output


def _padded(rows):
    """Rows (T_i, D) as (B, T, D), and the mask (B, T): 0 where a row was padded. Without the mask, a token of zeros
    would receive attention."""
    longest = max(len(row) for row in rows)
    tokens = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    mask = torch.stack([(torch.arange(longest) < len(row)).float() for row in rows])
    return tokens, mask


def _lists(pictures, count):
    """A list of pictures for each of `count` prompts."""
    if not pictures:
        return [[] for _ in range(count)]
    if isinstance(pictures[0], (list, tuple)):
        if len(pictures) != count:
            raise ValueError(f"retrieved_images has {len(pictures)} lists for {count} prompts")
        return [list(one) for one in pictures]
    return [list(pictures) for _ in range(count)]


def _rdmpipe(package, purpose):
    """A package of rdmpipe. Raises ImportError with the pip command if rdmpipe is not installed."""
    try:
        return importlib.import_module(f"pipeline.{package}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{purpose} needs rdmpipe, which is not installed here. Run: pip install rdmpipe") from error
