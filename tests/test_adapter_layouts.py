"""The published adapters' names and shapes on the real networks' configs, without weights; and the memory they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.generation.adapter_files import AdapterModel, check_adapter, read_description
from pipeline.generation.ip_adapter import count_pipeline, meta_unet
from pipeline.installation import asset

BASES = Path(__file__).parent / "data" / "bases"

# Widths of the attention layers that see the text, in the order of the files' numbers 1, 3, 5, ...: encoder, decoder, middle.
SD15 = [320, 320, 640, 640, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3, 1280]
SDXL = [*[640] * 4, *[1280] * 20, *[1280] * 30, *[640] * 6, *[1280] * 10]

PUBLISHED = {  # file: base, numbers in a vector, widths, millions of numbers in the file
    "ip-adapter_sd15.safetensors": ("sd15", 1024, SD15, 22.3),
    "ip-adapter_sd15_light.safetensors": ("sd15", 1024, SD15, 22.3),
    "ip-adapter_sdxl_vit-h.safetensors": ("sdxl", 1024, SDXL, 349.2),
    "ip-adapter_sdxl.safetensors": ("sdxl", 1280, SDXL, 351.3),
}


def layout(base: str, dim: int, widths: list[int]) -> dict[str, tuple[int, ...]]:
    context = {"sd15": 768, "sdxl": 2048}[base]
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.weight": (4 * context, dim), "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,),
    }  # fmt: skip
    for i, width in enumerate(widths):
        for part in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * i + 1}.{part}.weight"] = (width, context)
    return shapes


def described() -> dict[str, AdapterModel]:
    """The descriptions that come with the package, by the file of their adapter."""
    found = [read_description(path) for path in sorted(asset("models").glob("*/model.toml"))]
    return {Path(model.adapter).name: model for model in found}


def test_every_published_adapter_has_a_description_that_says_its_base_and_encoder() -> None:
    assert described().keys() == PUBLISHED.keys()
    for file, (base, dim, _, _) in PUBLISHED.items():
        model = described()[file]
        assert (model.family, model.dim, model.encoder) == (base, dim, "vit-h-14" if dim == 1024 else "vit-bigg-14")


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_names_and_shapes_load_into_the_real_networks(file: str) -> None:
    base, dim, widths, millions = PUBLISHED[file]
    shapes = layout(base, dim, widths)
    numbers = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert numbers / 1e6 == pytest.approx(millions, abs=0.1)
    unet = meta_unet(BASES / base / "unet", shapes)  # diffusers' own loader: a missing name or another shape raises
    own = {"sd15": 859.5, "sdxl": 2567.5}[base]
    assert sum(one.numel() for one in unet.parameters()) / 1e6 == pytest.approx(own + millions, abs=0.3)
    check_adapter(described()[file], shapes, unet.config.cross_attention_dim, file)
    with pytest.raises((RuntimeError, KeyError)):
        meta_unet(BASES / base / "unet", {**shapes, "ip_adapter.1.to_k_ip.weight": (8, 8)})


def test_an_adapter_of_the_other_base_is_refused() -> None:
    with pytest.raises(ModelError, match=r"its keys take 2048 numbers.*768"):
        check_adapter(described()["ip-adapter_sd15.safetensors"], layout("sdxl", 1024, SDXL), 768, "sd15")


def test_memory_is_counted_and_grows_with_pictures_and_pixels() -> None:
    sd15 = layout("sd15", 1024, SD15)
    counted = {
        (side, batch): count_pipeline(BASES / "sd15", sd15, "fp16", batch, (side, side), 4) / 2**30
        for side in (512, 1024)
        for batch in (1, 4)
    }
    assert 2.0 < counted[512, 1] < 4.0, "weights of 2.0 GiB, and what is alive beside them"
    assert counted[512, 1] < counted[512, 4] < counted[1024, 4]
    assert counted[512, 1] < counted[1024, 1]
    sdxl = count_pipeline(BASES / "sdxl", layout("sdxl", 1024, SDXL), "fp16", 1, (1024, 1024), 4) / 2**30
    assert 7.0 < sdxl < 16.0
