"""A model's folder in the whole of diffusers: its parts load there, and as a pipeline it draws what RDM draws, with any
scheduler, neighbours and databases.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.installation import asset
from rdm import RDM
from rdm.conditioning import assemble
from rdm.distillation import embed_guidance
from tests.builds import folder_of, quiet_build
from tests.generations import quiet_generate
from tests.rdm_reference import lively, noise, tiny_config, tiny_model, tiny_vq_config, whole_diffusers
from tests.test_rdm_distillation import distilled
from tests.test_rdm_prediction import FOLDED


def opened(folder: Path) -> Any:
    pipe = whole_diffusers().DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(folder), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def folded() -> RDM:
    """A model of patches that predicts the clean picture and adds the context to the time embedding."""
    return lively(RDM.from_config(FOLDED))


MODELS = {
    "kl": tiny_model,
    "vq, raw vectors": lambda: lively(RDM.from_config(tiny_vq_config())),
    "folded": folded,
    "distilled guidance": distilled,
}


@pytest.mark.parametrize("kind", MODELS)
def test_it_draws_what_the_model_draws(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    pipe = opened(tmp_path)
    prompts, near = unit(2, 12), [unit(2, 12, seed=3), unit(4, 12, seed=4)]
    context = assemble(model.config, prompts, near)
    size = model.config.downsample_factor * 8
    options: dict[str, Any] = {"height": size, "width": size, "guidance_scale": 2.0}
    latents = model.sample(context.tokens, mask=context.mask, steps=4, generator=generators(), **options)
    drawn = pipe(
        prompt_embeds=prompts,
        retrieved_embeds=near,
        num_inference_steps=4,
        generator=generators(),
        output_type="latent",
        **options,
    ).images
    torch.testing.assert_close(drawn, latents, atol=1e-4, rtol=0)  # of latents that reach some 5
    shown = pipe(
        prompt_embeds=prompts,
        retrieved_embeds=near,
        num_inference_steps=4,
        generator=generators(),
        output_type="pt",
        **options,
    ).images
    # Both differ from the result in double precision by as much as from each other.
    torch.testing.assert_close(shown, model.decode(latents).clamp(-1, 1) / 2 + 0.5, atol=1e-5, rtol=0)


def test_plain_diffusers_loads_what_is_saved(tmp_path: Path) -> None:
    model, library = tiny_model(), whole_diffusers()
    model.save_pretrained(tmp_path)
    unet = library.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert type(unet).__module__ == "diffusers.models.unets.unet_2d_condition"
    vae = library.AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    scheduler = library.DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    x, context = noise(1, 4, 8, 8), unit(1, 3, 12)
    scheduler.set_timesteps(5)
    latents = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = unet(latents, t, encoder_hidden_states=context).sample
            latents = scheduler.step(eps, t, latents).prev_sample
        image = vae.decode(latents / vae.config.scaling_factor).sample
    ours = model.sample(context, x_T=x, steps=5, guidance_scale=1.0)
    assert (ours - latents).abs().max() < 1e-4 * latents.abs().max()
    assert (model.decode(ours) - image).abs().max() < 1e-4


def test_plain_diffusers_loads_the_parts_of_the_rdm() -> None:
    folder, library = asset("models", "rdm-mini"), whole_diffusers()
    unet = library.UNet2DConditionModel.from_pretrained(folder / "unet")
    first_stage = library.AutoencoderKL.from_pretrained(folder / "vae")
    scheduler = library.DDIMScheduler.from_pretrained(folder / "scheduler")
    ours = RDM.from_pretrained(folder)
    x, context, t = torch.randn(2, 16, 8, 8), torch.randn(2, 3, 192), torch.tensor([500, 500])
    with torch.no_grad():
        theirs = unet.float()(x, t, encoder_hidden_states=context).sample
    torch.testing.assert_close(ours.denoise(x, t, context), theirs, rtol=1e-4, atol=1e-4)
    assert scheduler.config.beta_start == pytest.approx(ours.config.beta_start)
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        again = first_stage.float().decode(first_stage.float().encode(pictures).latent_dist.mean).sample
    assert again.shape == pictures.shape
    assert ours.config.encoder == "mini"


def test_the_embedding_of_a_guidance_scale_is_that_of_latent_consistency_models() -> None:
    whole_diffusers()
    from diffusers.models.embeddings import get_timestep_embedding

    scale = torch.tensor([1.0, 1.5, 6.0])
    # The sines come first and the last frequency is 1/10000 of the first, as in the pipelines of diffusers.
    wanted = get_timestep_embedding(1000 * (scale - 1), 256, downscale_freq_shift=1)
    made = embed_guidance(distilled().config, scale)
    torch.testing.assert_close(made, wanted, atol=1e-3, rtol=0)  # of angles up to 5000


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    return opened(folder)


SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}


def test_any_scheduler_and_a_callback_are_taken(pipe: Any) -> None:
    library, before, seen = whole_diffusers(), pipe.scheduler, []
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        pipe.scheduler = getattr(library, name).from_config(before.config)
        drawn = pipe(
            prompt_embeds=unit(1, 12), generator=torch.Generator().manual_seed(0), **SMALL,
            callback_on_step_end=lambda pipe, index, t, given: seen.append(index) or given,
        ).images  # fmt: skip
        assert torch.isfinite(drawn).all()
    pipe.scheduler = before
    assert seen == [0, 1, 2] * 3


def test_several_pictures_a_prompt_are_those_of_their_generators(pipe: Any) -> None:
    prompts, many = unit(2, 12), [torch.Generator().manual_seed(seed) for seed in (5, 6, 7, 8)]
    drawn = pipe(prompt_embeds=prompts, num_images_per_prompt=2, generator=many, **SMALL).images
    alone = pipe(prompt_embeds=prompts[1:], generator=torch.Generator().manual_seed(7), **SMALL).images
    assert drawn.shape[0] == 4
    torch.testing.assert_close(drawn[2:3], alone, atol=1e-4, rtol=0)


def test_what_is_wrong_is_named(pipe: Any) -> None:
    for options, message in (
        ({}, "give a prompt"),
        ({"prompt_embeds": unit(1, 9)}, "this model takes 12"),
        ({"prompt_embeds": unit(1, 12), "retrieved_embeds": unit(1, 7, 12)}, "at most 6"),
        ({"prompt_embeds": unit(1, 12), "retrieved_embeds": unit(2, 3, 12)}, "2 rows for 1 prompts"),
        ({"prompt_embeds": unit(2, 12), "generator": generators()[:1]}, "1 generators for 2"),
        ({"prompt_embeds": unit(1, 12), "height": 33}, "multiples of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**{**SMALL, **options})


def test_texts_without_rdmpipe_say_what_to_install(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pipeline.encoders", None)
    with pytest.raises(ImportError, match="pip install rdmpipe"):
        pipe("a red boat", **SMALL)


def test_every_folder_has_the_same_program_and_names_its_parts(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    shipped = asset("models", "rdm-mini")
    assert (shipped / "pipeline.py").read_bytes() == (tmp_path / "pipeline.py").read_bytes()
    index = json.loads((shipped / "model_index.json").read_text())
    assert (
        index["vae"] == ["diffusers", "AutoencoderKL"] and index["vqvae"] == [None, None] and index["encoder"] == "mini"
    )
    assert json.loads((tmp_path / "model_index.json").read_text())["max_neighbours"] == tiny_config()["max_neighbours"]


@pytest.mark.long
def test_it_draws_what_generate_draws_from_a_database(home: Path, tmp_path: Path) -> None:
    quiet_build(folder_of(tmp_path / "pictures", 12), name="mine", home=str(home), encoder="mini")
    quiet_generate(
        "a red boat", model="rdm-mini", db=("mine",), k=4, steps=10, seed=3, out=str(tmp_path / "run"), gallery=False
    )
    theirs = Image.open(next((tmp_path / "run").rglob("*.png")))
    pipe = opened(asset("models", "rdm-mini"))
    noise = torch.Generator().manual_seed(3)
    ours = pipe(
        "a red boat", database=home / "databases" / "mine", k=4, num_inference_steps=10, generator=noise
    ).images[0]
    difference = np.abs(np.asarray(ours, np.int16) - np.asarray(theirs.convert("RGB"), np.int16))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001
    near = pipe(retrieved_images=[Image.new("RGB", (64, 64), "red")], num_inference_steps=2).images[0]
    assert near.size == (64, 64)
