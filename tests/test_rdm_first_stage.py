"""The VQ first stage against a transcription of the original's algorithm, on the original's weight names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rdm import RDM
from rdm.checkpoint import denoiser_entries, first_stage_entries
from tests.rdm_reference import lively, noise, relative, tiny_model, tiny_vq_config

CONFIG = tiny_vq_config()
LEVELS, BLOCKS = len(CONFIG["ddconfig"]["ch_mult"]), CONFIG["ddconfig"]["num_res_blocks"]


class Original:
    """The original's VQ autoencoder, written from its description: plain functions on a checkpoint's tensors."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {k.removeprefix("first_stage_model."): v for k, v in state.items()}

    def conv(self, x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def swish(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def block(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = self.conv(self.swish(self.norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + h

    def attention(self, x: Tensor, name: str) -> Tensor:
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")  # (B, C, N)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, dim=2)
        h = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
        return x + self.conv(h, f"{name}.proj_out")

    def level(self, x: Tensor, name: str, j: int) -> Tensor:
        x = self.block(x, f"{name}.block.{j}")
        return self.attention(x, f"{name}.attn.{j}") if f"{name}.attn.{j}.q.weight" in self.state else x

    def middle(self, x: Tensor, side: str) -> Tensor:
        x = self.block(x, f"{side}.mid.block_1")
        return self.block(self.attention(x, f"{side}.mid.attn_1"), f"{side}.mid.block_2")

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.conv_in", padding=1)
        for level in range(LEVELS):
            for j in range(BLOCKS):
                x = self.level(x, f"encoder.down.{level}", j)
            if level < LEVELS - 1:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
        x = self.swish(self.norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out", padding=1), "quant_conv")

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the codebook entry nearest to each latent, by |z|^2 + |e|^2 - 2 z.e: (B, h, w)."""
        e = self.state["quantize.embedding.weight"]
        flat = z.permute(0, 2, 3, 1).reshape(-1, e.shape[1])
        distance = (flat**2).sum(1, keepdim=True) + (e**2).sum(1) - 2 * flat @ e.T
        return distance.argmin(1).reshape(z.shape[0], *z.shape[2:])

    def decode(self, z: Tensor) -> Tensor:
        z = self.state["quantize.embedding.weight"][self.nearest(z)].permute(0, 3, 1, 2)
        x = self.middle(self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in", padding=1), "decoder")
        for level in reversed(range(LEVELS)):
            for j in range(BLOCKS + 1):
                x = self.level(x, f"decoder.up.{level}", j)
            if level > 0:
                x = self.conv(F.interpolate(x, scale_factor=2.0), f"decoder.up.{level}.upsample.conv", padding=1)
        return self.conv(self.swish(self.norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)


@pytest.fixture(scope="module", params=[[], [16, 8]], ids=["plain", "attention"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RDM, Original]:
    """A checkpoint with the original's names, loaded by rdm and by the transcription."""
    config = {**CONFIG, "ddconfig": {**CONFIG["ddconfig"], "attn_resolutions": request.param}}
    source = lively(RDM.from_config(config))
    weights = {**source.unet.state_dict(), **source.first_stage.state_dict()}
    entries = denoiser_entries(source.unet, source.config) + first_stage_entries(source.first_stage, source.config)
    state = {e.original: weights[e.name].reshape(e.original_shape).clone() for e in entries}
    path = tmp_path_factory.mktemp("vq") / "model.ckpt"
    torch.save({"state_dict": state}, path)
    assert any(".down.1.attn." in name for name in state) == bool(request.param)
    return RDM.from_compvis(path, config), Original(state)


def test_decoding_quantises_as_the_original_does(pair: tuple[RDM, Original]) -> None:
    model, original = pair
    z = 1.5 * noise(2, 3, 12, 12)
    with torch.no_grad():
        expected = original.decode(z)
    assert len(original.nearest(z).unique()) > 20  # many entries are in play
    assert (model.decode(z) - expected).abs().max() < 1e-4


def test_decoding_depends_on_the_codebook_entry_alone(pair: tuple[RDM, Original]) -> None:
    model, original = pair
    z = 1.5 * noise(1, 3, 8, 8)
    entries = original.state["quantize.embedding.weight"][original.nearest(z)].permute(0, 3, 1, 2)
    assert relative(model.decode(entries), model.decode(z)) < 1e-5
    unquantised = model.first_stage.decode(z, force_not_quantize=True).sample
    assert relative(unquantised, model.decode(z)) > 1e-2


def test_encoding_gives_the_originals_latents_before_quantisation(pair: tuple[RDM, Original]) -> None:
    model, original = pair
    images = noise(2, 3, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        expected = original.encode(images)
    assert (model.encode(images) - expected).abs().max() < 1e-4


def test_decoding_in_groups_changes_no_picture() -> None:
    """Groups limit the memory of decoding: here groups of two pictures, and of one if a single picture exceeds the limit."""
    model, z = tiny_model(), noise(5, 4, 8, 8)
    together = model.decode(z)
    for bound in (2 * 32 * 32, 1):
        assert relative(model.decode(z, pixels_at_once=bound), together) < 1e-5


def test_encode_undoes_the_scale_that_decode_takes(tmp_path: Path) -> None:
    model = tiny_model()
    z = noise(1, 4, 8, 8)
    with torch.no_grad():
        plain = model.first_stage.decode(z).sample
        mean = model.first_stage.encode(plain).latent_dist.mode()
    assert torch.equal(model.decode(z * model.config.scale_factor), plain)
    assert torch.equal(model.encode(plain), mean)
