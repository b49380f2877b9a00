"""The kind `rdm`: retrieval-augmented diffusion models, conditioned on vectors of the prompt and its neighbours.

Reads: folders that `save_pretrained` or `rdmpipe convert` wrote, and the Hub's copies. Writes nothing.

Recipe 2 (`UNIFORM`): on a CPU, a picture's pixels do not depend on the batch that it is computed in. The weights are
channels_last, which is also faster. Pictures that are computed together have equally many tokens of context, because a mask
changes the last digits. A picture of at most `LARGE` pixels is computed beside at least one other (a copy if it is the
only one), a larger one by itself, because a product of one row is summed in another order than a product of several.
tests/test_uniform.py checks this. Recipe 1 computes batches without these rules; runs of older releases keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import digest
from pipeline.errors import BudgetError, ModelError
from pipeline.execution import raise_if_stopped
from pipeline.generation.checksums import weights_of
from pipeline.generation.kinds import Given, ModelInfo, to_arrays, too_little_memory, torch_dtype
from pipeline.generation.previews import current_watcher
from pipeline.generation.requests import NEIGHBOURS, PictureRequest
from pipeline.generation.sampling import Sampling, known

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from rdm.conditioning import Context
    from rdm.config import RDMConfig
    from rdm.model import RDM
    from rdm.sampling import Step


UNIFORM = 2  # the recipe

LARGE = 2**15  # pixels: 181 x 181


def outline(folder: Path, name: str) -> ModelInfo:
    """The facts of the RDM in this folder, without its hash. Raises ModelError."""
    return info_of(_read(folder, name), str(folder.absolute()))


def describe(folder: Path, name: str) -> ModelInfo:
    """The facts of the RDM in this folder. Raises ModelError."""
    config = _read(folder, name)
    return info_of(config, str(folder.absolute()), _hash(folder, config))


def _read(folder: Path, name: str) -> RDMConfig:
    from rdm.errors import RDMError
    from rdm.folder import read_folder_config

    try:
        return read_folder_config(folder)
    except RDMError as error:
        raise ModelError(f"model {name!r}: {error}") from error


def info_of(config: RDMConfig, folder: str = "", checksum: str = "") -> ModelInfo:
    """The ModelInfo of an RDM's description; without a folder, of a model that is not on this machine."""
    from rdm.sampling import SAMPLERS

    size = config.default_size
    return ModelInfo(
        name=config.name,
        kind="rdm",
        folder=folder,
        hash=checksum,
        encoder=config.encoder,
        dim=config.context_dim,
        norm="raw" if config.context_norm == "raw" else "unit",
        prompt="vector",
        max_neighbours=config.max_neighbours,
        default_k=config.default_k,
        samplers=tuple(SAMPLERS),
        sampling=Sampling("ddim", 50, float(config.default_guidance), 0.0, size, size),
        side=config.image_factor,
        recipe=UNIFORM,
        guidance_range=config.guidance_range,
    )


def check_scheduler(name: str, dashes: str) -> None:
    """Raise ModelError for a diffusers scheduler, or a spacing of its times, that the installed diffusers does not have."""
    from rdm.errors import RDMError
    from rdm.schedule import Schedule
    from rdm.schedulers import make_scheduler

    try:
        make_scheduler(name, Schedule(0.0015, 0.015))
    except RDMError as error:
        raise ModelError(f"{dashes}sampler: {error}") from error


def _hash(folder: Path, config: RDMConfig) -> str:
    """sha256 over the description and the checksums of the weights' files, in order of their paths."""
    return digest([config.to_dict(), weights_of(folder, ("unet", "vae", "vqvae", "folded"))], 64)


def load(info: ModelInfo, precision: str, device: str, recipe: int = 1) -> LoadedRDM:
    """The model on its device; the first stage stays in single precision. Raises ModelError."""
    from rdm import RDM
    from rdm.errors import RDMError

    try:
        model = RDM.from_pretrained(info.folder, dtype=None)
    except RDMError as error:
        raise ModelError(f"model {info.folder}: {error}") from error
    return place(model, precision, device, recipe)


def place(model: RDM, precision: str, device: str, recipe: int) -> LoadedRDM:
    """Move a model to its device, for pictures of this recipe."""
    import torch

    where = torch.device(device)
    uniform = recipe >= UNIFORM and where.type == "cpu"
    last = True if uniform else None
    model.to(where, torch_dtype(precision), first_stage_dtype=torch.float32, channels_last=last)
    return LoadedRDM(model, uniform)


def count_bytes(info: ModelInfo, precision: str, batch: int, height: int, width: int) -> int:
    """Peak bytes of weights and activations while `batch` pictures are made."""
    from rdm.folder import read_folder_config
    from rdm.memory import count_memory

    config = read_folder_config(Path(info.folder))
    return count_memory(config, batch=batch, height=height, width=width, dtype=torch_dtype(precision)).peak


@dataclass(frozen=True)
class LoadedRDM:
    """An RDM in a worker. `uniform`: a picture has the same pixels in every batch."""

    model: RDM
    uniform: bool = False

    def paint(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> list[NDArray[np.uint8] | None]:
        """Pixels (H, W, 3) of a batch of one shape; None for a picture with non-finite values."""
        if not self.uniform:
            return self._paint(pictures, given)
        height, width = pictures[0].sampling.size
        large = height * width > LARGE
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, (picture, found) in enumerate(zip(pictures, given, strict=True)):
            groups.setdefault((*_context_shape(picture, found), place if large else -1), []).append(place)
        made: dict[int, NDArray[np.uint8] | None] = {}
        for places in groups.values():
            rows = places * 2 if len(places) == 1 and not large else places
            painted = self._paint([pictures[place] for place in rows], [given[place] for place in rows], len(places))
            made.update(zip(places, painted, strict=True))
        return [made[place] for place in range(len(pictures))]

    def _paint(
        self, pictures: Sequence[PictureRequest], given: Sequence[Given], wanted: int | None = None
    ) -> list[NDArray[np.uint8] | None]:
        """One batch. Returns the first `wanted` pictures; the others are computed beside them."""
        import torch

        from rdm.errors import RDMError

        sampling = pictures[0].sampling
        try:
            context = self.context(pictures, given)
            latents = self.model.sample(
                context.tokens, mask=context.mask, null_context=self._null(given), steps=known(sampling.steps),
                sampler=known(sampling.sampler), eta=known(sampling.eta), guidance_scale=known(sampling.scale),
                height=known(sampling.height), width=known(sampling.width),
                generator=[torch.Generator().manual_seed(picture.seed) for picture in pictures],
                callback=self._watched(pictures[:wanted]),
            )  # fmt: skip
            return to_arrays(self.model.decode(latents)[:wanted].cpu())
        except RDMError as error:
            raise ModelError(str(error)) from error
        except torch.cuda.OutOfMemoryError as error:
            raise BudgetError(too_little_memory(pictures)) from error

    def _watched(self, pictures: Sequence[PictureRequest]) -> Callable[[Step], None]:
        """The function that the sampler calls after each step: it ends a stopped run, and informs the watcher, if any."""
        watcher = current_watcher()

        def tell(step: Step) -> None:
            raise_if_stopped()
            if watcher is not None:
                shown = step.x0[: len(pictures)]
                watcher(pictures, step.index + 1, step.steps, lambda: to_arrays(self.model.decode(shown).cpu()))

        return tell

    def through_first_stage(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 after the first stage's encoder and decoder, on the CPU."""
        latents = self.model.encode(images.to(self.model.device)) * self.model.config.scale_factor
        return self.model.decode(latents).float().cpu()

    def context(self, pictures: Sequence[PictureRequest], given: Sequence[Given]) -> Context:
        """The context of the denoiser: one row for each picture; shorter rows are masked."""
        import torch

        from rdm.conditioning import assemble, join

        made = []
        for picture, found in zip(pictures, given, strict=True):
            assert found.prompt is not None, "an RDM is given the prompt's vector"
            prompt = None
            if picture.use != NEIGHBOURS or not len(found.vectors):
                prompt = torch.from_numpy(self._as_taken(found.prompt, found.prompt_norm))[None]
            made.append(
                assemble(
                    self.model.config,
                    prompt,
                    torch.from_numpy(found.vectors)[None] if len(found.vectors) else None,
                    norms=torch.from_numpy(found.norms)[None] if len(found.vectors) else None,
                    prompt_weight=picture.text_weight,
                )
            )
        return join(made)

    def _null(self, given: Sequence[Given]) -> torch.Tensor | None:
        """The unconditional input of guidance: the negative prompts (B, 1, D), or None for the model's own."""
        import torch

        rows = [self._as_taken(one.negative, one.negative_norm) for one in given if one.negative is not None]
        return torch.from_numpy(np.stack(rows))[:, None] if rows else None  # all of a batch or none

    def _as_taken(self, unit: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
        taken = unit * np.float32(norm) if self.model.config.context_norm == "raw" else unit
        return taken.astype(np.float32)


def _context_shape(picture: PictureRequest, given: Given) -> tuple[object, ...]:
    """The properties on which the arithmetic of attention depends: the number of tokens, and whether they have weights."""
    prompted = picture.use != NEIGHBOURS or not len(given.vectors)
    return prompted + len(given.vectors), prompted and picture.text_weight != 1
