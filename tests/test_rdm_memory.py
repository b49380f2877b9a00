"""Memory is computed without a GPU, and the full-size model fits its intended GPUs."""

from __future__ import annotations

import pytest
import torch

from rdm import RDM
from rdm.config import read_config
from rdm.memory import count_memory
from tests.rdm_reference import noise, relative, tiny_config, tiny_model, unit

pytestmark = pytest.mark.process

GIB = 2**30


def test_weights_are_counted_to_the_byte() -> None:
    config = read_config(tiny_config())
    model = RDM.from_config(config)
    unet, first_stage = (sum(p.numel() for p in n.parameters()) for n in (model.unet, model.first_stage))
    assert count_memory(config, batch=1).weights == 4 * (unet + first_stage)
    assert count_memory(config, batch=1, dtype=torch.float16).weights == 2 * unet + 4 * first_stage


def test_what_is_alive_grows_with_the_batch_the_size_and_the_precision() -> None:
    config = read_config(tiny_config())
    one, four = count_memory(config, batch=1), count_memory(config, batch=4)
    assert 3.5 < four.denoiser / one.denoiser < 4.5
    assert 3.5 < four.decoder / one.decoder < 4.5  # so small, they are decoded together
    wide = [count_memory(config, batch=batch, height=1024, width=1024).decoder for batch in (1, 4)]
    assert wide[1] < 1.2 * wide[0]  # one picture at a time
    large = count_memory(config, batch=1, height=64, width=64)
    assert 3.5 < large.denoiser / one.denoiser < 4.5
    assert 1.8 < one.denoiser / count_memory(config, batch=1, dtype=torch.float16).denoiser < 2.2
    assert one.denoiser > 1.7 * count_memory(config, batch=1, guided=False).denoiser


def test_the_count_has_the_order_of_what_the_allocator_sees() -> None:
    """Against the profiler's record of a real call on the CPU, where attention is fused as well."""
    model, config = tiny_model(), tiny_model().config
    x, context = noise(2, 4, 32, 32), unit(2, 7, 12)
    with torch.profiler.profile(profile_memory=True) as profile:
        model.denoise(x, 5, context)
    alive = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    counted = count_memory(config, batch=2, height=128, width=128, guided=False).denoiser
    assert 0.7 < counted / most < 1.3


def test_rdm_768_fits_a_24_gib_card_with_a_batch_of_four_in_half_precision() -> None:
    count = count_memory(read_config("rdm-768"), batch=4, dtype=torch.float16)
    assert count.weights == 2 * 1_335_480_400 + 4 * 69_610_963
    assert count.peak + 2 * GIB < 24 * GIB  # what is not counted is 1 to 2 GiB


def test_compiled_sampling_gives_the_same_latents() -> None:
    """Traced, and run without code generation, which takes a minute."""
    config = tiny_config()
    config["unet"] |= {"channel_mult": [1], "attention_resolutions": [1]}  # the time grows with the number of blocks
    model = RDM.from_config(config)
    x, context = noise(1, 4, 8, 8), unit(1, 3, 12)
    plain = model.sample(context, x_T=x, steps=3)
    assert relative(model.compile(backend="eager").sample(context, x_T=x, steps=3), plain) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sampling_on_a_gpu_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    x, context = noise(2, 4, 8, 8), unit(2, 3, 12)
    expected = tiny_model().sample(context, x_T=x, steps=5)
    model = RDM.from_config(tiny_config())
    model.unet.load_state_dict(tiny_model().unet.state_dict())
    found = model.to("cuda", dtype).sample(context, x_T=x, steps=5).cpu()
    assert relative(found, expected) < {torch.float32: 1e-2, torch.float16: 0.05, torch.bfloat16: 0.2}[dtype]
