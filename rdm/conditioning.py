"""From CLIP vectors to what the denoiser attends to: (B, T, D) contexts and their masks.

A context row is [prompt, neighbour_1 .. neighbour_k]; the model is invariant to the order of its tokens. A mask (B, T)
says how much each token counts: bool (True counts), or weights >= 0, where a token of weight r acts exactly as r copies
of it would and weight 0 as if it were absent. Padding with zeros is not neutral without a mask: a zero token has logit 0
and takes its share of the attention. Reads and writes nothing; encoding texts and images is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rdm.config import RDMConfig
from rdm.errors import RequestError


class Context(NamedTuple):
    """tokens (B, T, D), and mask (B, T) of weights or None where every token counts once."""

    tokens: Tensor
    mask: Tensor | None


def assemble(
    config: RDMConfig,
    prompt: Tensor | None,
    neighbours: Sequence[Tensor | None] | Tensor | None = None,
    *,
    norms: Sequence[Tensor | None] | Tensor | None = None,
    prompt_weight: float = 1.0,
) -> Context:
    """The context of B prompts with their neighbours, as `config`'s model wants it.

    prompt      (B, D): text or image vectors (both live in the same space), or None for neighbours alone
    neighbours  (B, k, D), or B tensors (k_i, D) of unequal k_i (None: no neighbours), or None for prompts alone
    norms       of the neighbours, (B, k) or B tensors (k_i,), where `neighbours` are unit vectors of a model that
                takes them as the encoder gave them (context_norm "raw"); None: they are as the encoder gave them
    prompt_weight   how much the prompt's token counts beside a neighbour's

    context_norm "unit" normalises every token; "raw" leaves the prompt's as given. Raises RequestError.
    """
    rows = _rows(prompt, neighbours)
    lists = [neighbours[i] if neighbours is not None else None for i in range(rows)]
    scales = [norms[i] if norms is not None else None for i in range(rows)]
    if prompt_weight < 0:
        raise RequestError(f"prompt_weight is {prompt_weight}; it must be 0 or more")
    contexts, weights = [], []
    for i, (near, norm) in enumerate(zip(lists, scales, strict=True)):
        tokens = [] if prompt is None else [prompt[i : i + 1].float()]
        weight = [] if prompt is None else [prompt_weight]
        if near is not None and len(near):
            if len(near) > config.max_neighbours:
                raise RequestError(f"{len(near)} neighbours; {config.name} takes at most {config.max_neighbours}")
            tokens.append(near.float() if norm is None or config.context_norm == "unit"
                          else near.float() * norm.float().to(near.device)[:, None])  # fmt: skip
            weight += [1.0] * len(near)
        if not sum(weight):
            raise RequestError(f"row {i} of the context has no token: give it a prompt or neighbours")
        row = torch.cat([token.to(tokens[0].device) for token in tokens])
        if row.shape[1] != config.context_dim:
            raise RequestError(
                f"tokens have {row.shape[1]} numbers; {config.name} takes {config.context_dim} (encoder {config.encoder})"
            )
        if not torch.isfinite(row).all():
            raise RequestError(f"row {i} of the context holds numbers that are not finite")
        contexts.append(F.normalize(row, dim=-1) if config.context_norm == "unit" else row)
        weights.append(torch.tensor(weight, device=row.device))
    return _pad(contexts, weights)


def _rows(prompt: Tensor | None, neighbours: Sequence[Tensor | None] | Tensor | None) -> int:
    if prompt is None and neighbours is None:
        raise RequestError("a context wants a prompt, neighbours, or both; neither was given")
    if prompt is not None and prompt.dim() != 2:
        raise RequestError(f"prompt has shape {tuple(prompt.shape)}; (B, D) was expected")
    counts = [len(part) for part in (prompt, neighbours) if part is not None]
    if counts[0] != counts[-1]:
        raise RequestError(f"{counts[0]} prompts but neighbours for {counts[-1]}; as many were expected")
    return counts[0]


def _pad(contexts: Sequence[Tensor], weights: Sequence[Tensor]) -> Context:
    longest = max(len(row) for row in contexts)
    tokens = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in contexts])
    mask = torch.stack([F.pad(weight, (0, longest - len(weight))) for weight in weights])
    return Context(tokens, None if bool((mask == 1).all()) else mask)


def join(contexts: Sequence[Context]) -> Context:
    """Contexts of any row and token counts as one batch, shorter rows masked."""
    rows = [row for context in contexts for row in context.tokens]
    weights = [
        weight for c in contexts
        for weight in (torch.ones(c.tokens.shape[:2], device=c.tokens.device) if c.mask is None else c.mask.float())
    ]  # fmt: skip
    return _pad(rows, weights)


def null_context(config: RDMConfig, rows: int, device: torch.device | str = "cpu") -> Context:
    """What guidance steers away from when nothing else is said: one token of zeros a row.

    The number of zero tokens does not matter: keys and values have no bias.
    """
    return Context(torch.zeros(rows, 1, config.context_dim, device=device), None)


def without_masked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens with zeros where the mask is: whatever padding holds, attention multiplies it by its weight of 0."""
    return tokens if mask is None else tokens.masked_fill((mask == 0)[..., None].to(tokens.device), 0)


def mask_bias(tokens: Tensor, mask: Tensor | None) -> Tensor | None:
    """What the mask adds to the attention's logits: log of the weights, (B, T); None where it changes nothing."""
    if mask is None:
        return None
    if mask.shape != tokens.shape[:2]:
        raise RequestError(f"mask has shape {tuple(mask.shape)}; {tuple(tokens.shape[:2])} was expected")
    weights = mask.float()
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise RequestError("mask holds weights that are negative or not finite")
    if not bool((weights > 0).any(dim=1).all()):
        raise RequestError("mask leaves a row without any token: use the null context for it")
    if bool((weights == 1).all()):
        return None
    return weights.log()
