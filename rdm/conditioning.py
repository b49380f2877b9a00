"""From CLIP vectors to the context of the denoiser: tokens (B, T, D) and their masks.

A context row is [prompt, neighbour_1 .. neighbour_k]; the model is invariant to the order of its tokens. A mask (B, T)
gives the weight of each token: bool (True is 1), or weights >= 0. A token of weight r acts exactly like r copies of it, and
a token of weight 0 as if it were absent. Padding with zeros without a mask changes the result, because a zero token has logit 0
and receives a share of the attention. Reads and writes nothing; the caller encodes texts and images.
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
    """tokens (B, T, D), and mask (B, T) of weights, or None if every token has weight 1."""

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
    """The context of B prompts with their neighbours, for the model of `config`.

    prompt      (B, D): text or image vectors, which share one space; or None for neighbours only
    neighbours  (B, k, D), or B tensors (k_i, D) with different k_i (None: no neighbours), or None for prompts only
    norms       the neighbours' norms, (B, k) or B tensors (k_i,), if `neighbours` are unit vectors and the model takes
                vectors before normalising (context_norm "raw"); None if they already have those norms
    prompt_weight   the weight of the prompt's token; a neighbour's is 1

    context_norm "unit" normalises every token; "raw" leaves the prompt's token unchanged. Raises RequestError.
    """
    rows = _rows(prompt, neighbours)
    lists = [neighbours[i] if neighbours is not None else None for i in range(rows)]
    scales = [norms[i] if norms is not None else None for i in range(rows)]
    if prompt_weight < 0:
        raise RequestError(f"prompt_weight is {prompt_weight}; 0 or more was expected")
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
            raise RequestError(
                f"row {i} of the context has no token of positive weight: give it a prompt or neighbours"
            )
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
        raise RequestError("a context needs a prompt, neighbours, or both; neither was given")
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
    """Contexts with any numbers of rows and tokens as one batch. Shorter rows are padded and masked."""
    rows = [row for context in contexts for row in context.tokens]
    weights = [
        weight for c in contexts
        for weight in (torch.ones(c.tokens.shape[:2], device=c.tokens.device) if c.mask is None else c.mask.float())
    ]  # fmt: skip
    return _pad(rows, weights)


def null_context(config: RDMConfig, rows: int, device: torch.device | str = "cpu") -> Context:
    """The default null branch of guidance: one token of zeros in each row.

    The number of zero tokens has no effect, because keys and values have no bias.
    """
    return Context(torch.zeros(rows, 1, config.context_dim, device=device), None)


def without_masked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens, with zeros where the mask is 0. Otherwise a NaN in the padding would survive its weight of 0."""
    return tokens if mask is None else tokens.masked_fill((mask == 0)[..., None].to(tokens.device), 0)


def mask_bias(tokens: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask's addition to the logits of attention: the log of the weights, (B, T), or None if all weights are 1."""
    if mask is None:
        return None
    if mask.shape != tokens.shape[:2]:
        raise RequestError(f"mask has shape {tuple(mask.shape)}; {tuple(tokens.shape[:2])} was expected")
    weights = mask.float()
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise RequestError("mask holds weights that are negative or not finite")
    if not bool((weights > 0).any(dim=1).all()):
        raise RequestError("mask leaves a row without any token: use rdm.conditioning.null_context for such a row")
    if bool((weights == 1).all()):
        return None
    return weights.log()
