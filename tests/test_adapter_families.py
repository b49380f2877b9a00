"""Adapters for Flux and SD 3, and `plus` adapters, on small pipelines: our pictures are diffusers' own, within 1e-5."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError, ModelError
from pipeline.generation import Sampling, find_model
from pipeline.generation.ip_adapter import LoadedAdapter, load
from pipeline.generation.kinds import Given, kind_named
from pipeline.generation.previews import watched
from pipeline.generation.requests import ImagePrompting, PictureRequest
from tests.adapters import DIM, small_adapter_model
from tests.builds import picture
from tests.encoders import RANDOM

pytestmark = pytest.mark.process

SIZE, STEPS, SCALE, IMAGE_SCALE = 32, 2, 4.0, 0.7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def opened(folder: Path) -> LoadedAdapter:
    return load(find_model(str(folder)), "fp32", "cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_adapter_model(tmp_path_factory.mktemp("models") / "flux", "flux", RANDOM)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_adapter_model(tmp_path_factory.mktemp("models") / "sd3", "sd3")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def plus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_adapter_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def asked(seed: int = 5, sampler: str = "euler", **changes: Any) -> PictureRequest:
    sampling = Sampling(sampler, STEPS, SCALE, 0.0, SIZE, SIZE)
    picture = PictureRequest("a red fox", "", "", "both", 1.0, seed, None, 0, sampling, ImagePrompting(IMAGE_SCALE))
    return replace(picture, **changes)


def vectors(count: int, seed: int = 0) -> Given:
    made = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    norms = np.linalg.norm(made, axis=1)
    records = tuple({"key": i, "score": 0.3 - 0.01 * i} for i in range(count))
    return Given(None, 1.0, made / norms[:, None], norms, records)


def shown(count: int, first: int = 0) -> Given:
    """Neighbours with their pictures, for a model that takes pictures."""
    return replace(vectors(count), pictures=tuple(picture(first + i, 40) for i in range(count)))


def images_of(given: Given) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in given.pictures]


def common(picture: PictureRequest) -> dict[str, Any]:
    """The arguments that a user of diffusers would pass."""
    return {
        "prompt": picture.prompt, "num_inference_steps": STEPS, "guidance_scale": SCALE, "height": SIZE, "width": SIZE,
        "output_type": "pt", "generator": torch.Generator().manual_seed(picture.seed),
    }  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    pipe.set_ip_adapter_scale(IMAGE_SCALE)
    return pipe


# ---- Flux


def flux_of_diffusers(folder: Path) -> Any:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder / "base")
    pipe.load_ip_adapter(
        str(folder), weight_name="adapter.safetensors", image_encoder_pretrained_model_name_or_path=None
    )
    return quiet(pipe)


@pytest.mark.parametrize("k", [1, 4])
def test_flux_draws_what_a_direct_call_draws(flux: Path, k: int) -> None:
    ours, pipe = opened(flux), flux_of_diffusers(flux)
    given = vectors(k)
    raw = torch.from_numpy(given.vectors * given.norms[:, None])[None]
    zeros = torch.zeros_like(raw)
    for negative, more in (("", {}), ("blurry", {"negative_prompt": "blurry", "true_cfg_scale": 4.0})):
        wanted = asked(negative=negative)
        made = ours.images([wanted], [given])
        theirs = pipe(
            **common(wanted), ip_adapter_image_embeds=[raw], negative_ip_adapter_image_embeds=[zeros], **more
        ).images
        assert made.shape == (1, 3, SIZE, SIZE) and made.std() > 0.005
        assert (made - theirs).abs().max() <= 1e-5
        assert (made - ours.images([wanted], [vectors(k, seed=1)])).abs().max() > 1e-4
    two = ours.images([asked(1), asked(2)], [vectors(k), vectors(k, seed=1)])
    assert (two[1:] - ours.images([asked(2)], [vectors(k, seed=1)])).abs().max() == 0, "neighbours of one picture alone"


def test_previews_of_transformers_are_decoded_from_their_latents(flux: Path, sd3: Path) -> None:
    told: list[tuple[int, ...]] = []
    with watched(lambda pictures, step, steps, pixels: told.append((step, *pixels()[0].shape))):
        for folder, given in ((flux, vectors(1)), (sd3, shown(1))):
            opened(folder).images([asked()], [given])
    assert len(told) >= 4 and {one[1:] for one in told} == {(SIZE, SIZE, 3)}


def test_flux_takes_layers_the_mean_and_its_own_sampler(flux: Path) -> None:
    ours, pipe, given = opened(flux), flux_of_diffusers(flux), vectors(3)
    raw = torch.from_numpy(given.vectors * given.norms[:, None])[None]
    layered = ours.images([asked(prompting=ImagePrompting(IMAGE_SCALE, "equal", "style"))], [given])
    pipe.set_ip_adapter_scale([0.0, IMAGE_SCALE])
    none = {"negative_ip_adapter_image_embeds": [torch.zeros_like(raw)]}
    assert (layered - pipe(**common(asked()), ip_adapter_image_embeds=[raw], **none).images).abs().max() <= 1e-5
    mean = ours.images([asked(prompting=ImagePrompting(IMAGE_SCALE, "mean"))], [given])
    pipe.set_ip_adapter_scale(IMAGE_SCALE)
    one = raw.mean(dim=1, keepdim=True)
    none = {"negative_ip_adapter_image_embeds": [torch.zeros_like(one)]}
    assert (mean - pipe(**common(asked()), ip_adapter_image_embeds=[one], **none).images).abs().max() <= 1e-5
    alone = ours.images([asked()], [vectors(0)])
    assert (alone - layered).abs().max() > 1e-4 and torch.isfinite(alone).all()
    info = find_model(str(flux))
    assert (info.samplers, info.weightings, info.side) == (("euler",), ("equal", "mean"), 16)
    assert info.gpu_precision == "bf16"


# ---- SD 3


def test_sd3_draws_what_diffusers_draws_of_the_same_picture(sd3: Path) -> None:
    from diffusers import StableDiffusion3Pipeline
    from transformers import SiglipImageProcessor, SiglipVisionModel

    ours = opened(sd3)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        sd3 / "base",
        image_encoder=SiglipVisionModel.from_pretrained(sd3 / "tower"),
        feature_extractor=SiglipImageProcessor.from_pretrained(sd3 / "tower"),
    )
    pipe.load_ip_adapter(str(sd3), weight_name="adapter.safetensors", subfolder="", image_encoder_folder=None)
    quiet(pipe)
    for negative in ("", "blurry"):
        wanted = asked(negative=negative)
        given = shown(1)
        made = ours.images([wanted], [given])
        theirs = pipe(**common(wanted), negative_prompt=negative, ip_adapter_image=images_of(given)[0]).images
        assert made.shape == (1, 3, SIZE, SIZE) and made.std() > 0.005
        assert (made - theirs).abs().max() <= 1e-5
        assert (made - ours.images([wanted], [shown(1, first=9)])).abs().max() > 1e-4
    four = shown(4)
    sequence = torch.cat(list(pipe.encode_image(images_of(four), "cpu")))[None]
    embeds = torch.cat([torch.zeros_like(sequence), sequence])
    theirs = pipe(**common(asked()), negative_prompt="", ip_adapter_image_embeds=embeds).images
    assert (ours.images([asked()], [four]) - theirs).abs().max() <= 1e-5
    pair = ours.images([asked(1), asked(2)], [four, shown(2)])
    assert (pair[1:] - ours.images([asked(2)], [shown(2)])).abs().max() == 0
    assert torch.isfinite(ours.images([asked()], [vectors(0)])).all()
    info = find_model(str(sd3))
    assert (info.takes, info.weightings, info.blocks) == ("pictures", ("equal",), ("all",))


# ---- `plus`


@pytest.mark.parametrize("k", [1, 3])
def test_plus_draws_what_diffusers_draws_of_the_neighbours_pictures(plus: Path, k: int) -> None:
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    ours = opened(plus)
    kind = getattr(diffusers, ours.family.pipeline)
    pipe = kind.from_pretrained(
        plus / "base",
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(plus / "tower"),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )
    pipe.load_ip_adapter(str(plus), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    quiet(pipe)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    for negative in ("", "blurry"):
        wanted, given = asked(sampler="ddim", negative=negative), shown(k)
        made = ours.images([wanted], [given])
        theirs = pipe(**common(wanted), negative_prompt=negative, ip_adapter_image=[images_of(given)]).images
        assert (made - theirs).abs().max() <= 1e-5
        assert (made - ours.images([wanted], [shown(k, first=9)])).abs().max() > 1e-4
    weighted = replace(wanted, prompting=ImagePrompting(IMAGE_SCALE, "similarity"))
    assert torch.isfinite(ours.images([weighted], [given])).all()
    assert torch.isfinite(ours.images([wanted], [vectors(0)])).all()


def test_the_memory_of_a_vision_tower_is_counted_with_the_model(plus: Path, flux: Path) -> None:
    for folder in (plus, flux):
        ours, model = opened(folder), find_model(str(folder))
        tower = sum(one.numel() * 4 for one in ours.tower.network.parameters()) if ours.tower else 0
        counted = kind_named("ip-adapter").count_bytes(model, "fp32", 1, SIZE, SIZE)
        own = (getattr(ours.pipe, name) for name in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
               if getattr(ours.pipe, name, None) is not None)  # fmt: skip
        weights = sum(one.numel() * 4 for network in own for one in network.parameters())
        assert weights + tower < counted < 3 * (weights + tower)


# ---- what does not fit


def changed(folder: Path, target: Path, *pairs: tuple[str, str]) -> str:
    shutil.copytree(folder, target)
    text = (target / "model.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (target / "model.toml").write_text(text)
    return str(target)


def test_adapters_of_other_families_and_towers_are_refused(flux: Path, sd3: Path, plus: Path, tmp_path: Path) -> None:
    takes = f'encoder = "{RANDOM}"\ndim = {DIM}'
    with pytest.raises(
        ModelError, match=r"is a `plus` adapter.*257 vectors a picture.*image_encoder = .*without `plus`"
    ):
        find_model(changed(plus, tmp_path / "a", ('image_encoder = "tower"', takes)))
    with pytest.raises(ModelError, match=r"takes one vector of 16 numbers a picture: write `encoder` and `dim`"):
        shutil.copytree(sd3 / "tower", tmp_path / "b" / "tower")
        shutil.copytree(flux, tmp_path / "b", dirs_exist_ok=True)
        text = (tmp_path / "b" / "model.toml").read_text()
        (tmp_path / "b" / "model.toml").write_text(text.replace(takes, 'image_encoder = "tower"'))
        find_model(str(tmp_path / "b"))
    with pytest.raises(ConfigError, match="state what the adapter takes"):
        find_model(changed(flux, tmp_path / "c", (takes, "")))
    with pytest.raises(ConfigError, match=r"\[blocks\] style: family 'flux' takes a list of numbers, one a layer"):
        find_model(changed(flux, tmp_path / "d", ("[0.0, 1.0]", "{ up = { block_0 = [1.0] } }")))
    with pytest.raises(ConfigError, match=r"family 'sd3' takes no \[blocks\]"):
        find_model(changed(sd3, tmp_path / "e", ("[blocks]", "[blocks]\nstyle = [1.0]")))
    with pytest.raises(
        ModelError, match="base base is a FluxPipeline; family 'sd3' draws with a StableDiffusion3Pipeline"
    ):
        find_model(changed(flux, tmp_path / "f", ('"flux"', '"sd3"'), ("style = [0.0, 1.0]", "")))
    broken = Path(changed(flux, tmp_path / "g"))
    tensors = load_file(broken / "adapter.safetensors")
    wide = {key: torch.zeros(32, 48) if key.endswith("0.processor.ip_adapter_double_stream_k_proj.weight") else value
            for key, value in tensors.items()}  # fmt: skip
    save_file(wide, broken / "adapter.safetensors")
    with pytest.raises(ModelError, match="made for another base: its keys take 48 numbers, those of base 32"):
        find_model(str(broken))
    tower = Path(changed(plus, tmp_path / "h"))
    next((tower / "tower").glob("*.safetensors")).rename(tower / "tower" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no safetensors file\. Pickled weights are never loaded"):
        find_model(str(tower))
    with pytest.raises(ModelError, match="weighting is 'mean'; expected one of equal, similarity"):
        find_model(changed(plus, tmp_path / "i", ("licence =", 'weighting = "mean"\nlicence =')))
