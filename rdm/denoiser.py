"""The denoiser's forward pass, optimised for sampling: same weights, same result, less work.

Runs diffusers' modules of a UNet2DConditionModel in their order; work that is the same in all steps is done once:

- keys and values of the context are computed once for a whole sampling run (they do not depend on x or t);
- a null context of zeros needs no attention at all: keys and values have no bias, so its values are zero and the layer
  only adds its output bias, for any number of tokens;
- with guidance both branches run in one batch, and as a single branch up to the first layer that uses the context,
because until there
  they are equal. A denoiser with a class embedding uses the context (its first token and its mean) from the start.

Inference only: it works in place if possible. Any latent size with at least one pixel at the deepest level is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdm.untyped import Attention, Transformer, TransformerBlock, UNet


@dataclass(frozen=True)
class LayerContext:
    """Keys and values (R, heads, T, d) of one cross-attention layer and their bias (R, 1, 1, T) or None.

    R is the number of rows that attend: the batch, or twice the batch if the null branch has its own tokens.
    """

    key: Tensor
    value: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Prepared:
    """A context, prepared for any number of denoiser calls.

    guided: the batch is doubled at the first cross-attention, null branch first. silent_null: the null branch is
    zeros, and `layers` are only for the conditional rows. pooled: (R, 2 D) for a denoiser with a class embedding, for both
    branches if guided. guidance: (1 or B, time_cond_proj_dim), the embedded scale, for a denoiser with distilled guidance.
    """

    layers: tuple[LayerContext, ...]
    guided: bool
    silent_null: bool
    pooled: Tensor | None = None
    guidance: Tensor | None = None


def cross_attentions(unet: UNet) -> list[Attention]:
    """The cross-attention layers in the order of the forward pass."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    transformers = [transformer for block in blocks for transformer in getattr(block, "attentions", ())]
    return [block.attn2 for transformer in transformers for block in transformer.transformer_blocks]


def prepare(
    unet: UNet,
    context: Tensor,
    bias: Tensor | None,
    *,
    guided: bool = False,
    silent_null: bool = False,
    guidance: Tensor | None = None,
) -> Prepared:
    """Keys and values for context (R, T, D), with bias (R, T) on its tokens' logits or None.

    guided without silent_null: the first half of the rows is the null branch's. guidance: see Prepared.
    """
    weight = unet.conv_in.weight
    context = context.to(weight.device, weight.dtype)
    shaped = None if bias is None else bias.to(weight.device, weight.dtype)[:, None, None, :]
    layers = []
    for attention in cross_attentions(unet):
        key = _heads(attention.to_k(context), attention.heads).contiguous()
        value = _heads(attention.to_v(context), attention.heads).contiguous()
        layers.append(LayerContext(key, value, shaped))
    pooled = None
    if unet.class_embedding is not None:
        pooled = pool(context, bias)
        if silent_null:
            pooled = torch.cat([torch.zeros_like(pooled), pooled])
    if guidance is not None:
        guidance = guidance.to(weight.device, weight.dtype)
    return Prepared(tuple(layers), guided, silent_null, pooled, guidance)


def pool(context: Tensor, bias: Tensor | None = None) -> Tensor:
    """(R, 2 D): the first token of non-zero weight (the prompt's, if there is one) and the mean of all.

    context (R, T, D), bias (R, T) on the tokens' logits from rdm.conditioning.mask_bias, or None.
    """
    if bias is None:
        return torch.cat([context[:, 0], context.mean(dim=1)], dim=1)
    weights = bias.to(context.device, torch.float32).exp()
    first = (weights > 0).int().argmax(dim=1)
    mean = (weights[..., None] * context.float()).sum(dim=1) / weights.sum(dim=1, keepdim=True)
    return torch.cat([context[torch.arange(len(context), device=context.device), first], mean.to(context.dtype)], dim=1)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)"""
    return tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)


def forward(unet: UNet, x: Tensor, t: Tensor, prepared: Prepared) -> Tensor:
    """The output for x (B, C, h, w) at times t (1,) or (B,): (B, C, h, w), or (2B, C, h, w) null rows first.

    The model's prediction_type says what the output is; see rdm.prediction.
    """
    emb = unet.time_embedding(unet.time_proj(t).to(x.dtype), prepared.guidance)  # (1 or B, 4 * width)
    if prepared.pooled is not None and unet.class_embedding is not None:
        if prepared.guided:
            x = torch.cat([x, x])
            emb = torch.cat([emb, emb]) if emb.shape[0] > 1 else emb
        emb = emb + unet.class_embedding(prepared.pooled.to(emb.dtype))
    run = _Run(prepared, emb)
    x = unet.conv_in(x)
    skips = [x]
    for block in unet.down_blocks:
        transformers = getattr(block, "attentions", (None,) * len(block.resnets))
        for resnet, transformer in zip(block.resnets, transformers, strict=True):
            x = run.attend(transformer, resnet(x, run.emb))
            skips.append(x)
        for downsample in block.downsamplers or ():
            x = downsample(x)
            skips.append(x)
    x = unet.mid_block.resnets[0](x, run.emb)
    for transformer, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
        x = resnet(run.attend(transformer, x), run.emb)
    for block in unet.up_blocks:
        transformers = getattr(block, "attentions", (None,) * len(block.resnets))
        for resnet, transformer in zip(block.resnets, transformers, strict=True):
            skip = skips.pop()
            if skip.shape[0] != x.shape[0]:  # from before the branches were separated
                skip = torch.cat([skip, skip])
            x = run.attend(transformer, resnet(torch.cat([x, skip], dim=1), run.emb))
        for upsample in block.upsamplers or ():
            x = upsample(x, tuple(skips[-1].shape[2:]))
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))  # type: ignore[no-any-return]


class _Run:
    """The state of one forward pass: the number of cross-attention layers so far, and the time embedding of its rows."""

    def __init__(self, prepared: Prepared, emb: Tensor) -> None:
        self.prepared = prepared
        self.emb = emb
        self.met = 0

    def attend(self, transformer: Transformer | None, x: Tensor) -> Tensor:
        """A Transformer2DModel (or nothing) on x (rows, C, h, w); the first doubles the rows when guided."""
        if transformer is None:
            return x
        height, width = x.shape[2:]
        tokens = _apply_linear(transformer.proj_in, transformer.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        for block in transformer.transformer_blocks:
            tokens = tokens + _self_attention(block.attn1, block.norm1(tokens))
            if self.prepared.guided and self.met == 0 and self.prepared.pooled is None:
                tokens, x = torch.cat([tokens, tokens]), torch.cat([x, x])
                if self.emb.shape[0] > 1:
                    self.emb = torch.cat([self.emb, self.emb])
            tokens = self._cross(block, tokens)
            tokens = tokens + block.ff(block.norm3(tokens))
        tokens = _apply_linear(transformer.proj_out, tokens)
        return x + tokens.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)  # in the layout of x

    def _cross(self, block: TransformerBlock, tokens: Tensor) -> Tensor:
        attention, layer = block.attn2, self.prepared.layers[self.met]
        self.met += 1
        silent = tokens.shape[0] // 2 if self.prepared.silent_null else 0
        attending = tokens[silent:]
        query = _heads(attention.to_q(block.norm2(attending)), attention.heads)
        out = F.scaled_dot_product_attention(query, layer.key, layer.value, attn_mask=layer.bias)
        out = attention.to_out[0](out.transpose(1, 2).flatten(2))
        if not silent:
            added: Tensor = tokens + out
            return added
        attending += out  # in place: `tokens` belongs to this pass; the addition or the doubling before made it
        tokens[:silent] += attention.to_out[0].bias
        return tokens


def _self_attention(attention: Attention, tokens: Tensor) -> Tensor:
    query, key, value = (_heads(project(tokens), attention.heads)
                         for project in (attention.to_q, attention.to_k, attention.to_v))  # fmt: skip
    out = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _apply_linear(projection: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
    """A linear layer, or the 1x1 convolution that the original uses instead, on tokens (B, N, C)."""
    return F.linear(tokens, projection.weight.flatten(1), projection.bias)
