"""The memory that sampling needs, computed without running it.

Builds the model on the meta device, passes shapes through the code that samples and decodes, and counts the bytes that
are alive at the same time. Attention counts as its output, as in the fused kernels that torch uses on GPUs and CPUs. Not
counted: the workspaces of convolutions, the allocator's fragmentation and the CUDA context, together 1 to 2 GiB.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdm import denoiser
from rdm.config import RDMConfig
from rdm.distillation import embed_guidance
from rdm.imports import no_compiler
from rdm.networks import at_once, build
from rdm.untyped import UNet, Untyped

Keywords = dict[str, object] | None


@dataclass(frozen=True)
class MemoryCount:
    """Bytes: the weights, and the additional peak in a call of the denoiser and in decoding."""

    weights: int
    denoiser: int
    decoder: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.denoiser, self.decoder)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators allocate, until they are freed."""

    def __init__(self, network: nn.Module, known: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: int = 0
        self.most: int = 0
        # A view of a weight needs no memory.
        self._known = weakref.WeakSet(p.untyped_storage() for p in (*network.parameters(), *known))

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: Keywords = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage not in self._known:
                    size = storage.nbytes()
                    self._known.add(storage)
                    self.alive += size
                    self.most = max(self.most, self.alive)
                    weakref.finalize(storage, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.alive -= size


class _Fused(torch.autograd.Function):
    """Attention whose backward pass needs only its inputs and its output."""

    @staticmethod
    def forward(ctx: Untyped, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        *batch, heads, places, _ = query.shape
        # The layout of the fused kernels: the heads of a position are contiguous.
        made = query.new_empty((*batch, places, heads, value.shape[-1])).transpose(-3, -2)
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Untyped, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(given) for given in ctx.saved_tensors[:3])


def _checkpoint(layer: Callable[..., object], *given: object) -> object:
    """torch's checkpointing. The autograd engine leaves the modes of torch functions, so they are entered again."""
    return torch.utils.checkpoint.checkpoint(
        layer, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), _FusedAttention())
    )


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[torch.Tensor, ...] = (), kwargs: Keywords = None
    ) -> object:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return cast("Tensor", _Fused.apply(given["query"], given["key"], given["value"]))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def peak_bytes(network: nn.Module, call: Callable[[], object]) -> int:
    """The peak bytes during `call`, which runs `network` on the meta device, without the network's weights."""
    with _FusedAttention(), _LiveBytes(network) as counted:
        call()
    return int(counted.most)


@no_compiler()
def count_training(
    unet: UNet, config: RDMConfig, rows: int, latent: tuple[int, int], tokens: int, checkpointing: bool
) -> int:
    """The peak bytes, without weights and gradients, in the forward and backward pass of a batch.

    unet is on the meta device, in the precision that it computes in.
    """
    kind = unet.conv_in.weight.dtype
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing(_checkpoint)
    for value in unet.parameters():  # gradients exist from the start, so they are counted with the weights
        value.grad = torch.empty_like(value)
    with torch.device("meta"):
        noise, latents = (torch.empty(rows, config.latent_channels, *latent, dtype=kind) for _ in range(2))
        context = torch.empty(rows, tokens, config.context_dim, dtype=kind)
        times = torch.empty(rows, dtype=torch.long)
    known = [value.grad for value in unet.parameters() if value.grad is not None]
    with _FusedAttention(), _LiveBytes(unet, known) as counted:
        extra = {"class_labels": denoiser.pool(context)} if config.pooled else {}
        if config.guidance_range is not None:
            extra["timestep_cond"] = embed_guidance(config, torch.empty(rows, device="meta")).to(kind)
        made = unet(latents, times, encoder_hidden_states=context, **extra).sample
        (made.float() - noise).square().mean().backward()
    return int(counted.most)


@no_compiler()
@torch.no_grad()
def count_memory(
    config: RDMConfig,
    *,
    batch: int,
    height: int | None = None,
    width: int | None = None,
    tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    guided: bool = True,
) -> MemoryCount:
    """Bytes for sampling `batch` pictures of height x width pixels at once, with the first stage in single precision.

    tokens is the number of context tokens of a picture (default: the largest that the model takes). Decoding counts as many
    pictures at once as `RDM.decode` uses.
    """
    size = config.default_size
    latent = config.latent_size(height or size, width or size)
    unet, first_stage = build(config, "meta")
    nn.Module.to(unet, dtype=dtype)
    weights = sum(p.numel() * p.element_size() for network in (unet, first_stage) for p in network.parameters())
    context = torch.empty(batch, tokens or config.max_neighbours + 1, config.context_dim, device="meta", dtype=dtype)
    shape = (batch, config.latent_channels, *latent)
    with _FusedAttention(), _LiveBytes(unet) as sampling:
        x = torch.empty(shape, device="meta")
        distilled = config.guidance_range is not None  # then one pass is guided
        guided = guided and not distilled
        scale = embed_guidance(config, torch.empty(1, device="meta")) if distilled else None
        prepared = denoiser.prepare(unet, context, None, guided=guided, silent_null=guided, guidance=scale)
        denoiser.forward(unet, x.to(dtype), torch.empty(1, device="meta"), prepared).float()
    with _FusedAttention(), _LiveBytes(first_stage) as decoding:
        high, wide = height or size, width or size
        z = torch.empty(shape, device="meta")
        images = torch.empty(batch, 3, high, wide, device="meta")
        first_stage.decode(z[: at_once(high * wide)])
        del images
    return MemoryCount(weights, sampling.most, decoding.most)
