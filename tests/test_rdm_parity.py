"""The model equals the original implementation: reference tensors, published sizes, published names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rdm import RDM
from rdm.checkpoint import denoiser_entries, first_stage_entries
from tests.rdm_reference import (
    lively,
    noise,
    reference_model,
    reference_tensors,
    relative,
    tiny_config,
    tiny_model,
    unit,
)

TOLERANCE = 1e-4  # of the largest value; first stage: absolute


@pytest.fixture(scope="module", params=["from the checkpoint", "converted and loaded again"])
def model(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RDM:
    model = reference_model(shared)
    if request.param == "from the checkpoint":
        return model
    folder = tmp_path_factory.mktemp("converted")
    model.save_pretrained(folder)
    return RDM.from_pretrained(folder)


def test_denoiser_equals_the_original(model: RDM, shared: Path) -> None:
    z = reference_tensors(shared)
    assert relative(model.denoise(z["x_T"], 481, z["context"]), z["eps_t481"]) < TOLERANCE
    each = model.denoise(z["x_T"], torch.tensor([481, 481]), z["context"], mask=torch.ones(2, 5, dtype=torch.bool))
    assert relative(each, z["eps_t481"]) < TOLERANCE


def test_encoder_gives_the_originals_unscaled_posterior_mean(model: RDM, shared: Path) -> None:
    z = reference_tensors(shared)
    assert (model.encode(z["image"]) - z["encode_mean"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_decoder_equals_the_original(model: RDM, shared: Path, sampler: str) -> None:
    z = reference_tensors(shared)
    assert (model.decode(z[f"{sampler}10_latent"]) - z[f"{sampler}10_image"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_sampler_equals_the_original(model: RDM, shared: Path, sampler: str) -> None:
    sampled_as_the_original(model, shared, sampler, 10)


@pytest.mark.parametrize(
    "model", ["from the checkpoint", pytest.param("converted and loaded again", marks=pytest.mark.long)], indirect=True
)
@pytest.mark.parametrize("sampler", ["ddim", "plms"])
@pytest.mark.process
def test_sampler_equals_the_original_after_fifty_steps(model: RDM, shared: Path, sampler: str) -> None:
    sampled_as_the_original(model, shared, sampler, 50)


def sampled_as_the_original(model: RDM, shared: Path, sampler: str, steps: int) -> None:
    z = reference_tensors(shared)
    latents = model.sample(z["context"], x_T=z["x_T"], steps=steps, sampler=sampler)
    assert relative(latents, z[f"{sampler}{steps}_latent"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "denoiser", "first_stage"),
    [("rdm-768", 1_335_480_400, 69_610_963), ("rdm-imagenet", 400_920_579, None)],
)
def test_full_size_models_have_the_published_parameter_counts(
    name: str, denoiser: int, first_stage: int | None
) -> None:
    model = RDM.from_config(name, device="meta")
    assert sum(p.numel() for p in model.unet.parameters()) == denoiser
    if first_stage is not None:
        assert sum(p.numel() for p in model.first_stage.parameters()) == first_stage


def test_every_key_of_the_published_checkpoint_maps_and_maps_back(shared: Path) -> None:
    lines = (shared / "reference" / "rdm768_keys.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    published = {key: tuple(int(n) for n in shape.strip("[]").split(",") if n.strip()) for key, shape, _ in rows}
    model = RDM.from_config("rdm-768", device="meta")
    entries = denoiser_entries(model.unet, model.config) + first_stage_entries(model.first_stage, model.config)
    assert len(published) == 1030
    assert {entry.original: entry.original_shape for entry in entries} == published
    ours = {f"unet.{name}": tuple(v.shape) for name, v in model.unet.state_dict().items()}
    ours |= {f"first_stage.{name}": tuple(v.shape) for name, v in model.first_stage.state_dict().items()}
    back = {("unet." if e.original.startswith("model.") else "first_stage.") + e.name: e.shape for e in entries}
    assert back == ours


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5)])
def test_optimised_forward_pass_equals_diffusers_own(size: tuple[int, int]) -> None:
    model = tiny_model()
    x, context, t = noise(3, 4, *size), unit(3, 5, 12), torch.tensor([7, 400, 990])
    with torch.no_grad():
        expected = model.unet(x, t, encoder_hidden_states=context).sample
    assert relative(model.denoise(x, t, context), expected) < 1e-5


def late_attention() -> RDM:
    """The first level has no attention to the context (as in the ImageNet model), and transformers have two blocks."""
    config = tiny_config()
    config["unet"] |= {"attention_resolutions": [2], "transformer_depth": 2}
    return lively(RDM.from_config(config))


@pytest.mark.parametrize("make", [tiny_model, late_attention])
@pytest.mark.parametrize("null_tokens", [None, 1, 4])
def test_guided_sampling_equals_two_plain_denoiser_calls_a_step(
    make: Callable[[], RDM], null_tokens: int | None
) -> None:
    """Attention is not computed for a null branch of zeros; any other null branch is padded and masked."""
    model = make()
    x, context, schedule = noise(2, 4, 8, 8), unit(2, 3, 12), model.schedule
    null = torch.zeros(2, 3, 12) if null_tokens is None else unit(2, null_tokens, 12, seed=5)
    found = model.sample(
        context, x_T=x, steps=4, guidance_scale=3.0, null_context=None if null_tokens is None else null
    )
    for t, t_next in zip([751, 501, 251, 1], [501, 251, 1, 0], strict=True):
        with torch.no_grad():
            eps_null, eps = (model.unet(x, t, encoder_hidden_states=c).sample for c in (null, context))
        eps = eps_null + 3.0 * (eps - eps_null)
        a, a_next = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_next)
        x = a_next**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - a_next) ** 0.5 * eps
    assert relative(found, x) < 1e-5


def test_guidance_scale_one_leaves_the_null_branch_out() -> None:
    model = tiny_model()
    x, context = noise(2, 4, 8, 8), unit(2, 3, 12)
    one = model.sample(context, x_T=x, steps=3, guidance_scale=1.0)
    nearly = model.sample(context, x_T=x, steps=3, guidance_scale=1.0 + 1e-7)
    assert relative(one, nearly) < 1e-5


def test_the_benchmarks_transcription_is_the_original(shared: Path) -> None:
    """The code against which speed is measured gives the original's latents."""
    path = Path(__file__).parent.parent / "jobs" / "bench_sampling.py"
    spec = importlib.util.spec_from_file_location("bench_sampling", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    z = reference_tensors(shared)
    model = RDM.from_compvis(shared / "reference" / "rdm" / "model.ckpt", shared / "reference" / "rdm" / "config.json")
    bench.plain_attention(model, fused=False)
    latents = bench.published_sampling(model, z["context"], z["x_T"], 10, 5.0)
    assert relative(latents, z["ddim10_latent"]) < TOLERANCE
    assert (bench.published_decoding(model, latents) - z["ddim10_image"]).abs().max() < 1e-3
