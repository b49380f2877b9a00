"""Kinds of prediction, the folded first stage and pooled conditioning: separately, in samplers, and in saved folders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from rdm import RDM, denoiser
from rdm.config import PREDICTIONS, read_config
from rdm.errors import CheckpointError, ConfigError
from rdm.folded import Folded
from rdm.memory import count_memory
from rdm.prediction import error_by_level, levels, logit_normal_times, to_epsilon, velocity_error
from rdm.sampling import SAMPLERS, sampler_steps
from rdm.schedule import Schedule
from tests.rdm_reference import lively, noise, relative, unit

SCHEDULE = Schedule(0.0015, 0.015)
FOLDED: dict[str, Any] = {
    "name": "folded",
    "unet": {
        "sample_size": 4, "in_channels": 12, "out_channels": 12, "block_out_channels": [16, 32], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 12, "attention_head_dim": [1, 2], "norm_num_groups": 4,
        "class_embed_type": "projection", "projection_class_embeddings_input_dim": 24,
    },
    "first_stage": {"_class_name": "Folded", "factor": 2, "in_channels": 3, "latent_channels": 12},
    "prediction_type": "sample", "default_size": 8, "max_neighbours": 6, "default_k": 4, "encoder": "tiny-clip",
}  # fmt: skip


def folded(**changes: Any) -> RDM:
    return lively(RDM.from_config({**copy.deepcopy(FOLDED), **changes}))


def outputs(kind: str, latents: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    alpha, sigma = levels(SCHEDULE, t, latents)
    return {"epsilon": eps, "sample": latents, "v_prediction": alpha * eps - sigma * latents}[kind]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_noise_is_found_again_from_every_kind_of_output(kind: str) -> None:
    latents, eps, t = (
        noise(5, 3, 4, 4, seed=1).double(),
        noise(5, 3, 4, 4, seed=2).double(),
        torch.tensor([1, 50, 400, 800, 999]),
    )
    alpha, sigma = levels(SCHEDULE, t, latents)
    x = alpha * latents + sigma * eps
    torch.testing.assert_close(to_epsilon(kind, outputs(kind, latents, eps, t), x, t, SCHEDULE), eps)


def test_the_velocity_error_is_the_same_for_every_prediction_type() -> None:
    latents, eps, t = (
        noise(4, 3, 4, 4, seed=1).double(),
        noise(4, 3, 4, 4, seed=2).double(),
        torch.tensor([20, 300, 700, 980]),
    )
    alpha, sigma = levels(SCHEDULE, t, latents)
    guess = latents + 0.3 * noise(4, 3, 4, 4, seed=3)  # of the clean latents; the noise that goes with it
    with_it = (alpha * latents + sigma * eps - alpha * guess) / sigma
    found = [
        velocity_error(kind, outputs(kind, guess, with_it, t), latents, eps, t, SCHEDULE) for kind in PREDICTIONS
    ]  # fmt: skip
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    exact = [velocity_error(kind, outputs(kind, latents, eps, t), latents, eps, t, SCHEDULE) for kind in PREDICTIONS]
    assert max(float(error.max()) for error in exact) < 1e-20


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_end_alike_for_every_prediction_type(sampler: str) -> None:
    """A model that knows the exact noise of one Gaussian, with three types of prediction."""

    def eps_of(x: torch.Tensor, t: int) -> torch.Tensor:
        a = SCHEDULE.alpha_cumprod(t)
        return (1 - a) ** 0.5 * (x - a**0.5 * 0.5) / (a * 0.16 + 1 - a)

    def model(kind: str, x: torch.Tensor, t: int) -> torch.Tensor:
        times, eps = torch.tensor([t]), eps_of(x, t)
        alpha, sigma = levels(SCHEDULE, times, x)
        return to_epsilon(kind, outputs(kind, (x - sigma * eps) / alpha, eps, times), x, times, SCHEDULE)

    start = noise(2, 3, 4, 4, seed=4).double()
    ends = [
        [step.x for step in sampler_steps(sampler, lambda x, t, k=kind: model(k, x, t), start, SCHEDULE, 10)][-1]
        for kind in PREDICTIONS
    ]
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


def test_folding_loses_nothing() -> None:
    images = noise(2, 3, 8, 12)
    stage = Folded(4)
    latents = stage.encode(images).latents
    assert latents.shape == (2, 48, 2, 3)
    assert torch.equal(stage.decode(latents).sample, images)
    with pytest.raises(ConfigError, match="folded by 4 are 48, not 16"):
        Folded(4, 3, 16)


def test_a_folded_model_encodes_samples_and_decodes() -> None:
    model = folded(scale_factor=1.5)
    images = noise(2, 3, 8, 8)
    assert model.config.downsample_factor == 2
    torch.testing.assert_close(model.decode(model.encode(images) * 1.5), images)
    drawn = model.sample(unit(2, 3, 12), steps=3, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 12, 4, 4) and torch.isfinite(model.decode(drawn)).all()
    assert count_memory(model.config, batch=2).weights == sum(p.numel() * 4 for p in model.unet.parameters())


def test_denoise_gives_the_noise_for_every_prediction_type() -> None:
    x, t, context = noise(2, 12, 4, 4), torch.tensor([100, 700]), unit(2, 3, 12)
    model = folded()
    output = model.unet(
        x, t, encoder_hidden_states=context, class_labels=torch.cat([context[:, 0], context.mean(1)], 1)
    ).sample  # fmt: skip
    assert relative(model.denoise(x, t, context), to_epsilon("sample", output, x, t, model.schedule)) < 1e-5


def test_guidance_with_pooled_conditioning_is_that_of_two_passes() -> None:
    model = folded(prediction_type="epsilon")
    x, context, null = noise(2, 12, 4, 4), unit(2, 3, 12), torch.zeros(2, 1, 12)
    for t in (torch.tensor([500]), torch.tensor([500, 90])):
        prepared = denoiser.prepare(model.unet, context, None, guided=True, silent_null=True)
        with torch.inference_mode():
            both = denoiser.forward(model.unet, x, t, prepared)
        expected = torch.cat([model.denoise(x, t, null), model.denoise(x, t, context)])
        assert relative(both, expected) < 1e-5


def test_weights_pool_as_copies_do() -> None:
    tokens, weights = unit(2, 3, 12), torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    pooled = denoiser.pool(tokens, weights.log())
    torch.testing.assert_close(pooled[0], torch.cat([tokens[0, 0], (2 * tokens[0, 0] + tokens[0, 1]) / 3]))
    torch.testing.assert_close(pooled[1], torch.cat([tokens[1, 1], (tokens[1, 1] + 3 * tokens[1, 2]) / 4]))
    torch.testing.assert_close(denoiser.pool(tokens), denoiser.pool(tokens, torch.zeros(2, 3)))


def test_a_folded_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = folded()
    model.save_pretrained(tmp_path / "model")
    files = ["folded", "model_index.json", "pipeline.py", "rdm.json", "scheduler", "unet"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == files
    again = RDM.from_pretrained(tmp_path / "model")
    assert again.config.prediction_type == "sample" and again.weights_hash() == model.weights_hash()
    context = unit(2, 3, 12)
    x = noise(2, 12, 4, 4)
    torch.testing.assert_close(again.sample(context, x_T=x, steps=2), model.sample(context, x_T=x, steps=2))
    (tmp_path / "model" / "vae").mkdir()
    with pytest.raises(CheckpointError, match="vae/ and folded/"):
        RDM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "velocity"}, "prediction_type is 'velocity'"),
        ({"first_stage": {"_class_name": "Folded", "factor": 2}}, "lacks first_stage.latent_channels"),
        ({"first_stage": {"_class_name": "Folded", "factor": 2, "latent_channels": 10}}, "must be the same"),
        ({"unet": {**FOLDED["unet"], "projection_class_embeddings_input_dim": 12}}, "'projection' of 24"),
        ({"unet": {**FOLDED["unet"], "class_embed_type": "timestep"}}, "class_embed_type is 'timestep'"),
    ],
)
def test_invalid_descriptions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config({**copy.deepcopy(FOLDED), **change})


def test_times_and_errors_by_level() -> None:
    times = logit_normal_times(4000, SCHEDULE, torch.Generator().manual_seed(0))
    assert times.shape == (4000,) and set(times.clamp(0, 999).tolist()) == set(times.tolist())
    assert abs(float(times.float().mean()) - 500) < 15
    middle = ((times > 250) & (times < 750)).float().mean()
    assert 0.6 < float(middle) < 0.75  # 0.73 of a standard normal logit, half of the uniform fifth
    model = folded(prediction_type="v_prediction")
    context = unit(3, 2, 12)
    extra = {"class_labels": denoiser.pool(context)}
    first, second = (
        error_by_level(model.unet, "v_prediction", noise(3, 12, 4, 4), context, SCHEDULE, times=(900, 100), extra=extra)
        for _ in range(2)
    )
    assert first == second and list(first) == [900, 100] and min(first.values()) > 0


def test_a_model_that_predicts_the_noise_is_described_as_before(tmp_path: Path) -> None:
    """rdm.json, and the hash of a description, do not change for models without the field."""
    model = folded(prediction_type="epsilon")
    model.save_pretrained(tmp_path)
    assert "prediction_type" not in (tmp_path / "rdm.json").read_text()
    assert "prediction_type" not in model.config.to_dict()
    assert folded().config.to_dict()["prediction_type"] == "sample"


def test_the_pipeline_finds_a_folded_model(tmp_path: Path) -> None:
    from pipeline.generation import find_model

    folded().save_pretrained(tmp_path / "one")
    folded(prediction_type="v_prediction").save_pretrained(tmp_path / "two")
    one, two = (find_model(str(tmp_path / name)) for name in ("one", "two"))
    assert (one.kind, one.side, one.dim) == ("rdm", 2, 12)
    assert one.hash != two.hash


def test_a_folded_model_without_its_description_is_refused(tmp_path: Path) -> None:
    folded().save_pretrained(tmp_path)
    (tmp_path / "rdm.json").unlink()
    with pytest.raises(CheckpointError, match=r"rdm\.json is missing"):
        RDM.from_pretrained(tmp_path)


@pytest.mark.parametrize("factor", [0, 1.5, "two"])
def test_an_invalid_factor_is_refused(factor: object) -> None:
    stage = {"_class_name": "Folded", "factor": factor, "latent_channels": 12}
    with pytest.raises(ConfigError, match="factor is"):
        read_config({**copy.deepcopy(FOLDED), "first_stage": stage})


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_training_takes_the_error_of_v_where_noise_is_not_predicted_and_gives_the_pooled_context(kind: str) -> None:
    from types import SimpleNamespace

    from rdm.denoiser import pool
    from rdm.objectives import denoising_loss
    from rdm.prediction import velocity_error

    latents, noise, output, context = torch.randn(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    context, t, schedule, asked = (
        context[:, :, 0],
        torch.tensor([30, 800]),
        Schedule(0.0015, 0.015),
        list[torch.Tensor](),
    )

    def unet(x: torch.Tensor, times: torch.Tensor, *, encoder_hidden_states: torch.Tensor, class_labels: torch.Tensor):  # type: ignore[no-untyped-def]
        asked.append(class_labels)
        return SimpleNamespace(sample=output)

    loss, values = denoising_loss(unet, latents, context, noise, t, schedule, prediction=kind, pooled=True)  # type: ignore[arg-type]
    wanted = velocity_error(kind, output, latents, noise, t, schedule).mean()
    torch.testing.assert_close((loss, values["error"]), (wanted, wanted))
    assert torch.equal(asked[0], pool(context))
