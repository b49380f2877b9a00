"""Models of the kind ip-adapter on small pipelines: our pictures equal diffusers' own, and adapters that do not fit are
refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.generation import ModelInfo, Sampling, find_model
from pipeline.generation.ip_adapter import LoadedAdapter, load, similarity_weights
from pipeline.generation.kinds import Given
from pipeline.generation.previews import watched
from pipeline.generation.requests import ImagePrompting, PictureRequest
from tests.adapters import DIM, small_adapter_model
from tests.encoders import RANDOM

pytestmark = pytest.mark.process

SIZE, STEPS, SCALE, IMAGE_SCALE = 32, 2, 5.0, 0.7


@dataclass(frozen=True)
class Small:
    """A small model of a family, loaded by rdmpipe, and the same files loaded only by diffusers."""

    info: ModelInfo
    ours: LoadedAdapter
    theirs: Any


def _theirs(folder: Path, family: str) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionPipeline if family == "sd15" else StableDiffusionXLPipeline
    pipe = kind.from_pretrained(folder / "base", use_safetensors=True)
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = small_adapter_model(tmp_path_factory.mktemp("models") / request.param, request.param, RANDOM)
    info = find_model(str(folder))
    yield Small(info, load(info, "fp32", "cpu"), _theirs(folder, request.param))
    torch.set_num_threads(threads)


def asked(seed: int = 5, negative: str = "", prompting: ImagePrompting | None = None, **changes: Any) -> PictureRequest:
    sampling = Sampling("ddim", STEPS, SCALE, 0.0, SIZE, SIZE)
    picture = PictureRequest("a red fox", negative, "", "both", 1.0, seed, None, 0, sampling,
                             prompting or ImagePrompting(IMAGE_SCALE))  # fmt: skip
    return replace(picture, **changes)


def found(count: int, seed: int = 0, prompt: bool = False) -> Given:
    """Neighbours as a database stores them: unit vectors and norms."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count + prompt, DIM)).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / norms[:, None]
    records = tuple({"key": i, "score": 0.3 - 0.01 * i} for i in range(count))
    return Given(
        unit[-1] if prompt else None, float(norms[-1]) if prompt else 1.0, unit[:count], norms[:count], records
    )


def embeds(given: Given, rows: int = 1) -> torch.Tensor:
    raw = torch.from_numpy(given.vectors * given.norms[:, None])[None].expand(rows, -1, -1)
    return torch.cat([torch.zeros_like(raw), raw])


def direct(pipe: Any, image_embeds: torch.Tensor, seeds: list[int], *, scale: object = IMAGE_SCALE, negative: str = "",
           **more: Any) -> torch.Tensor:  # fmt: skip
    """The arguments that a user of diffusers would pass."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_ip_adapter_scale(scale)
    images: torch.Tensor = pipe(
        prompt=["a red fox"] * len(seeds), negative_prompt=[negative] * len(seeds), num_inference_steps=STEPS,
        guidance_scale=SCALE, height=SIZE, width=SIZE, ip_adapter_image_embeds=[image_embeds], output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], **more,
    ).images  # fmt: skip
    return images


@pytest.mark.parametrize("negative", ["", "blurry"])
@pytest.mark.parametrize("k", [1, 4])
def test_pictures_are_those_of_a_direct_call_of_diffusers(small: Small, k: int, negative: str) -> None:
    given = found(k)
    ours = small.ours.images([asked(negative=negative)], [given])
    theirs = direct(small.theirs, embeds(given), [5], negative=negative)
    assert ours.shape == (1, 3, SIZE, SIZE)
    assert (ours - theirs).abs().max() <= 1e-5
    assert ours.std() > 0.01, "the picture shows something"
    other = small.ours.images([asked(negative=negative)], [found(k, seed=1)])
    assert (ours - other).abs().max() > 1e-3, "other neighbours make another picture"


def test_a_batch_is_one_call_and_unequal_counts_of_neighbours_are_drawn_apart(small: Small) -> None:
    first, second, third = found(3), found(3, seed=1), found(2, seed=2)
    ours = small.ours.images([asked(1), asked(2), asked(3)], [first, third, second])
    raw = torch.cat([embeds(first), embeds(second)])[[0, 2, 1, 3]]
    theirs = direct(small.theirs, raw, [1, 3])
    assert (ours[[0, 2]] - theirs).abs().max() <= 1e-5
    assert (ours[1:2] - direct(small.theirs, embeds(third), [2])).abs().max() <= 1e-5


def test_the_mean_of_the_neighbours_is_one_image(small: Small) -> None:
    given = found(4)
    ours = small.ours.images([asked(prompting=ImagePrompting(IMAGE_SCALE, "mean"))], [given])
    theirs = direct(small.theirs, embeds(given).mean(dim=1, keepdim=True), [5])
    assert (ours - theirs).abs().max() <= 1e-5


def test_weights_by_similarity_are_diffusers_masks_of_one_value(small: Small) -> None:
    given = found(3)
    weights = similarity_weights(given.scores)
    assert weights.sum() == pytest.approx(1) and weights[0] > weights[1] > weights[2]
    ours = small.ours.images([asked(prompting=ImagePrompting(IMAGE_SCALE, "similarity"))] * 2, [given, found(1)])
    masks = torch.from_numpy(weights)[None, :, None, None].expand(1, 3, SIZE // 8, SIZE // 8)
    theirs = direct(small.theirs, embeds(given), [5], cross_attention_kwargs={"ip_adapter_masks": [masks]})
    assert (ours[:1] - theirs).abs().max() <= 1e-5
    assert (ours[1:] - direct(small.theirs, embeds(found(1)), [5])).abs().max() <= 1e-5


def test_blocks_are_scaled_as_diffusers_takes_them(small: Small) -> None:
    given, block = found(2), "block_1" if small.info.name == "sd15" else "block_0"
    ours = small.ours.images([asked(prompting=ImagePrompting(IMAGE_SCALE, "equal", "style"))], [given])
    theirs = direct(small.theirs, embeds(given), [5], scale={"up": {block: [0.0, IMAGE_SCALE, 0.0]}})
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - small.ours.images([asked()], [given])).abs().max() > 1e-4


def test_every_step_is_told_with_a_preview_and_changes_nothing(small: Small) -> None:
    given, told = found(2), list[tuple[int, int, tuple[int, ...]]]()
    for sampler in ("ddim", "dpmpp_2m"):
        wanted = asked(sampling=Sampling(sampler, STEPS, SCALE, 0.0, SIZE, SIZE))
        alone = small.ours.images([wanted], [given])

        def watch(pictures: Any, step: int, steps: int, pixels: Any) -> None:
            (shown,) = pixels()
            told.append((step, steps, shown.shape))

        told.clear()
        with watched(watch):
            seen = small.ours.images([wanted], [given])
        assert told == [(step + 1, STEPS, (SIZE, SIZE, 3)) for step in range(STEPS)]
        assert torch.equal(alone, seen)


def test_without_neighbours_the_adapter_says_nothing(small: Small) -> None:
    ours = small.ours.images([asked()], [found(0)])
    pipe = small.theirs
    zeros = torch.zeros(2, 1, DIM)
    assert (ours - direct(pipe, zeros, [5], scale=0.0)).abs().max() <= 1e-5


def test_a_picture_prompt_stands_before_the_neighbours_and_the_text_stays(small: Small) -> None:
    given = found(2, prompt=True)
    assert given.prompt is not None
    ours = small.ours.images([asked()], [given])
    first = torch.from_numpy(given.prompt * np.float32(given.prompt_norm))[None, None]
    raw = torch.cat([torch.cat([torch.zeros_like(first), first]), embeds(given)], dim=1)
    assert (ours - direct(small.theirs, raw, [5])).abs().max() <= 1e-5
    wordless = small.ours.images([asked(use="neighbours")], [given])
    assert (ours - wordless).abs().max() > 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpmpp_2m", "unipc", "euler", "euler_a"])
def test_every_sampler_draws_and_a_picture_is_the_same_twice(small: Small, sampler: str) -> None:
    picture = asked(sampling=Sampling(sampler, 3, SCALE, 0.0, SIZE, SIZE))
    one, two = (small.ours.paint([picture], [found(2)])[0] for _ in range(2))
    assert one is not None and two is not None
    assert one.shape == (SIZE, SIZE, 3) and (one == two).all()


def test_a_lora_is_merged_into_the_base(small: Small, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "with-lora"
    shutil.copytree(small.info.folder, folder)
    weight = small.theirs.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").weight
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {f"{name}.lora_A.weight": torch.randn(2, weight.shape[1], generator=generator),
         f"{name}.lora_B.weight": torch.randn(weight.shape[0], 2, generator=generator)},
        folder / "lora.safetensors",
    )  # fmt: skip
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(
        text.replace("[sampling]", '[[lora]]\nfile = "lora.safetensors"\nweight = 0.5\n[sampling]')
    )
    info = find_model(str(folder))
    assert info.hash != small.info.hash
    merged = load(info, "fp32", "cpu")
    ours = merged.images([asked()], [found(1)])
    assert (ours - small.ours.images([asked()], [found(1)])).abs().max() > 1e-5


# ---- what does not fit


def changed_adapter(small: Small, folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    shutil.copytree(small.info.folder, folder)
    save_file(tensors, folder / "adapter.safetensors")
    return str(folder)


def test_adapters_that_one_vector_cannot_drive_are_refused_with_the_reason(small: Small, tmp_path: Path) -> None:
    own = load_file(Path(small.info.folder) / "adapter.safetensors")
    kinds = {
        "plus": (
            {"image_proj.latents": torch.zeros(1, 16, 32)},
            "`plus` adapter.*257 vectors a picture.*without `plus`",
        ),
        "full": ({"image_proj.proj.3.weight": torch.zeros(8)}, "`full-face`"),
        "face": ({"image_proj.proj.0.weight": torch.zeros(8, 8)}, "FaceID.*face recogniser"),
        "none": ({"weight": torch.zeros(8)}, "is no IP-Adapter"),
    }
    for name, (tensors, says) in kinds.items():
        with pytest.raises(ModelError, match=says):
            find_model(changed_adapter(small, tmp_path / name, tensors))
    wide = {**own, "ip_adapter.1.to_k_ip.weight": torch.zeros(32, 128)}
    with pytest.raises(ModelError, match=r"made for another base: its keys take 128 numbers"):
        find_model(changed_adapter(small, tmp_path / "wide", wide))
    with pytest.raises(ModelError, match="takes vectors of 24 numbers; the description says 16"):
        longer = {**own, "image_proj.proj.weight": torch.zeros(own["image_proj.proj.weight"].shape[0], 24)}
        find_model(changed_adapter(small, tmp_path / "longer", longer))


def test_pickled_weights_and_another_familys_base_are_refused(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small.info.folder, folder)
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace("adapter.safetensors", "adapter.bin"))
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        find_model(str(folder))
    family = "sdxl" if small.info.name == "sd15" else "sd15"
    (folder / "model.toml").write_text(text.replace(f'family = "{small.info.name}"', f'family = "{family}"'))
    with pytest.raises(ModelError, match="draws with a StableDiffusion"):
        find_model(str(folder))
    (folder / "model.toml").write_text(text)
    weights = folder / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"no safetensors file\. Pickled weights are never loaded"):
        find_model(str(folder))


def test_a_hub_that_cannot_be_reached_is_an_error_with_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ModelError, match=r"its base stable-diffusion-v1-5/.* cannot be fetched.*Put the files on this disk"
    ):
        find_model("sd15-ip-adapter")
