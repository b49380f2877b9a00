"""The published adapters' names and shapes on the real networks' configs, without weights; and their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.generation.adapter_files import AdapterModel, Widths, check_adapter, read_description
from pipeline.generation.adapter_memory import Adapted, count_pipeline, meta_denoiser
from pipeline.installation import asset
from tests.adapters import flux_shapes, plus_shapes, sd3_shapes

pytestmark = pytest.mark.process

BASES = Path(__file__).parent / "data" / "bases"

# Widths of the attention layers that see the text, in the order of the files' numbers 1, 3, 5, ...: encoder, decoder, middle.
SD15 = [320, 320, 640, 640, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3, 1280]
SDXL = [*[640] * 4, *[1280] * 20, *[1280] * 30, *[640] * 6, *[1280] * 10]

CLIP_H, SIGLIP = (257, 1280), (729, 1152)  # patches of a picture, and numbers in one

Shapes = dict[str, tuple[int, ...]]


def keys_of(context: int, widths: list[int]) -> Shapes:
    return {
        f"ip_adapter.{2 * i + 1}.{part}.weight": (width, context)
        for i, width in enumerate(widths)
        for part in ("to_k_ip", "to_v_ip")
    }


def vectors(context: int, dim: int, widths: list[int]) -> Shapes:
    return {
        "image_proj.proj.weight": (4 * context, dim), "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,), **keys_of(context, widths),
    }  # fmt: skip


@dataclass(frozen=True)
class Published:
    """An adapter as published: its base, its input, its tensors, and the millions of numbers in its file."""

    base: str
    encoder: str
    layout: Callable[[], Shapes]  # called by tests only: some layouts import the whole of diffusers
    millions: float
    widths: Widths
    patches: tuple[int, int] | None = None

    @cached_property
    def shapes(self) -> Shapes:
        return self.layout()

    @property
    def adapted(self) -> Adapted:
        return Adapted(BASES / self.base, self.shapes, 4, self.patches)


PUBLISHED: Mapping[str, Published] = {
    "ip-adapter_sd15.safetensors": Published("sd15", "vit-h-14", lambda: vectors(768, 1024, SD15), 22.3, Widths(768)),
    "ip-adapter_sd15_light.safetensors": Published("sd15", "vit-h-14", lambda: vectors(768, 1024, SD15), 22.3, Widths(768)),
    "ip-adapter_sdxl_vit-h.safetensors": Published("sdxl", "vit-h-14", lambda: vectors(2048, 1024, SDXL), 349.2, Widths(2048)),
    "ip-adapter_sdxl.safetensors": Published("sdxl", "vit-bigg-14", lambda: vectors(2048, 1280, SDXL), 351.3, Widths(2048)),
    "ip-adapter-plus_sd15.safetensors": Published(
        "sd15", "", lambda: {**plus_shapes(1280, 768, 768, 16, 12), **keys_of(768, SD15)}, 49.1, Widths(768, 0, 1280), CLIP_H),
    "ip-adapter-plus_sdxl_vit-h.safetensors": Published(
        "sdxl", "", lambda: {**plus_shapes(1280, 2048, 1280, 16, 20), **keys_of(2048, SDXL)}, 423.8,
        Widths(2048, 0, 1280), CLIP_H),
    "ip_adapter.safetensors": Published(
        "flux", "vit-l-14", lambda: flux_shapes(768, 4096, 3072, 19), 490.9, Widths(4096, 3072)),
    "ip-adapter_diffusers.safetensors": Published(
        "sd3", "", lambda: sd3_shapes(1152, 2432, 64, 38, 1280, 64, 20, 320), 800.0, Widths(4096, 2432, 1152), SIGLIP),
}  # fmt: skip

NETWORKS = {"sd15": 859.5, "sdxl": 2567.5, "flux": 11901.4, "sd3": 8056.6}  # millions of numbers in the denoiser alone


def described() -> dict[str, AdapterModel]:
    """The descriptions that come with the package, by the file of their adapter."""
    found = [read_description(path) for path in sorted(asset("models").glob("*/model.toml"))]
    return {Path(model.adapter).name: model for model in found}


def test_every_published_adapter_has_a_description_that_says_its_base_and_what_it_takes() -> None:
    assert described().keys() == PUBLISHED.keys()
    for file, published in PUBLISHED.items():
        model = described()[file]
        assert (model.family, model.encoder) == (published.base, published.encoder)
        assert bool(model.image_encoder) == bool(published.patches) != bool(model.dim)
        assert model.licence and model.terms


# SDXL's other adapters, and the light one, differ from these in single shapes.
OFTEN = ("ip-adapter_sd15.safetensors", "ip-adapter_sdxl_vit-h.safetensors", "ip-adapter-plus_sd15.safetensors",
         "ip_adapter.safetensors", "ip-adapter_diffusers.safetensors")  # fmt: skip


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=() if file in OFTEN else pytest.mark.long) for file in PUBLISHED]
)
def test_published_names_and_shapes_load_into_the_real_networks(file: str) -> None:
    published = PUBLISHED[file]
    numbers = sum(map(prod, published.shapes.values()))
    assert numbers / 1e6 == pytest.approx(published.millions, rel=0.004)
    # diffusers' own loader: a missing name or another shape raises
    network: Any = meta_denoiser(BASES / published.base, published.shapes)
    assert sum(one.numel() for one in network.parameters()) / 1e6 == pytest.approx(
        NETWORKS[published.base] + numbers / 1e6, rel=0.001
    )
    check_adapter(described()[file], published.shapes, published.widths, file)
    key = next(name for name in published.shapes if name.endswith(("to_k_ip.weight", "k_proj.weight")))
    with pytest.raises((RuntimeError, KeyError)):
        meta_denoiser(BASES / published.base, {**published.shapes, key: (8, 8)})


def test_an_adapter_of_the_other_base_is_refused() -> None:
    sdxl = PUBLISHED["ip-adapter_sdxl_vit-h.safetensors"].shapes
    with pytest.raises(ModelError, match=r"its keys take 2048 numbers.*768"):
        check_adapter(described()["ip-adapter_sd15.safetensors"], sdxl, Widths(768), "sd15")


def gib(file: str, batch: int, side: int, precision: str = "fp16") -> float:
    return count_pipeline(PUBLISHED[file].adapted, precision, batch, (side, side)) / 2**30


def test_memory_is_counted_and_grows_with_pictures_and_pixels() -> None:
    sizes = ((512, 1), (512, 4), (1024, 4))
    counted = {(side, batch): gib("ip-adapter_sd15.safetensors", batch, side) for side, batch in sizes}
    assert 2.0 < counted[512, 1] < 4.0, "weights of 2.0 GiB, and what is alive beside them"
    assert counted[512, 1] < counted[512, 4] < counted[1024, 4]


@pytest.mark.long
def test_memory_of_the_large_models() -> None:
    assert gib("ip-adapter_sdxl_vit-h.safetensors", 1, 1024) == pytest.approx(10.3, abs=0.1)
    assert gib("ip-adapter-plus_sdxl_vit-h.safetensors", 1, 1024) == pytest.approx(10.4, abs=0.1)
    assert gib("ip_adapter.safetensors", 1, 1024, "bf16") == pytest.approx(35.5, abs=0.1)
    assert gib("ip-adapter_diffusers.safetensors", 1, 1024, "bf16") == pytest.approx(30.2, abs=0.1)
