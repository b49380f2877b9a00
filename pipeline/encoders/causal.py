"""CLIP's text tower on only those positions that its vector depends on.

The tower is causal, and its vector is read at the end-of-text token. The padding after that token therefore has no influence:
a query of ten words needs about 13 of 77 positions. Reads the network's modules; writes nothing. Does not promise equal bytes:
the vectors are equal to open_clip's up to float rounding, because matrices of other shapes are summed in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Blocks(Protocol):
    def __call__(self, values: Tensor, attn_mask: Tensor) -> Tensor: ...

    def get_cast_dtype(self) -> torch.dtype: ...


class _Layer(Protocol):
    def __call__(self, values: Tensor) -> Tensor: ...


class _Tower(Protocol):
    """The part of open_clip's CLIP and TextTransformer that is used here."""

    token_embedding: _Layer
    positional_embedding: Tensor  # (context, width)
    transformer: _Blocks
    attn_mask: Tensor  # (context, context)
    ln_final: _Layer
    text_projection: Tensor | _Layer | None


def short_features(model: torch.nn.Module, tokens: Tensor, device: torch.device) -> Tensor:
    """Text vectors (B, dim), not normalised, of tokens (B, context) on the CPU.

    Computes the positions up to the last end-of-text token of the batch, if the tower is causal and reads its vector there;
    otherwise all positions, as open_clip does.
    """
    import torch

    ends = _ends(model, tokens)
    if ends is None or (length := int(ends.max()) + 1) >= tokens.shape[1]:
        return cast("Tensor", model.encode_text(tokens.to(device)))  # type: ignore[operator]
    tower = cast("_Tower", getattr(model, "text", model))
    dtype = tower.transformer.get_cast_dtype()
    values = tower.token_embedding(tokens[:, :length].to(device)).to(dtype)
    values = values + tower.positional_embedding[:length].to(dtype)
    values = tower.transformer(values, attn_mask=tower.attn_mask[:length, :length])
    pooled = tower.ln_final(values)[torch.arange(len(tokens), device=device), ends.to(device)]
    if tower.text_projection is None:
        return pooled
    return (
        pooled @ tower.text_projection
        if isinstance(tower.text_projection, torch.Tensor)
        else tower.text_projection(pooled)
    )


def _ends(model: torch.nn.Module, tokens: Tensor) -> Tensor | None:
    """Positions (B,) at which a causal tower of open_clip reads its vectors; None for every other tower."""
    tower = getattr(model, "text", model)
    # By name, because open_clip may be loaded twice (see import_open_clip).
    if type(tower).__name__ not in ("CLIP", "TextTransformer"):
        return None
    mask = getattr(tower, "attn_mask", None)  # None: every position sees every other
    extra = [getattr(tower, name, None) for name in ("cls_emb", "use_pad_mask", "output_tokens")]
    if mask is None or any(one is not None and one is not False for one in extra):
        return None
    prefix = "text_" if tower is model else ""
    pool = getattr(tower, f"{prefix}pool_type", "")
    if pool == "argmax":
        return tokens.argmax(dim=-1)
    if pool == "eos":
        eos = int(getattr(tower, f"{prefix}eos_id"))
        return tokens.eq(eos).int().argmax(dim=-1)
    return None
