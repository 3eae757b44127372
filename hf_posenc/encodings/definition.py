"""The plain definition of attention under an encoding, which all paths are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Block, PositionalEncoding, by_group, products


def attention(
    encoding: PositionalEncoding,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor,
    k_pos: Tensor,
    seen: Tensor,
    *,
    state: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Output [B,Q,H,V] of queries [B,H,Q,D] on keys [B,G,K,D] and values [B,G,K,V]; a query that sees nothing gives 0.

    Args:
        q_pos: [B,Q]. k_pos: [B,K]. seen: [B or 1,H or 1,Q,K] bool.
        state: of the keys, as `scores` has it. softcap: of the products. sinks: [H], further scores of keys without values.
    """
    q_places, k_places = (pos if encoding.axes == 1 else pos.expand(encoding.axes, -1, -1) for pos in (q_pos, k_pos))
    block = encoding.block(q, k, q_places, k_places, scaling, state, seen)
    stored, scaling = block.k, block.scaling
    if encoding.has("meet"):
        scores = products(*encoding.meet(block)) * scaling
    else:
        scores = encoding.content_scores(q, stored, q_pos, k_pos, scaling)
    if softcap is not None:
        scores = torch.where(scores.isfinite(), softcap * torch.tanh(scores / softcap), scores)
    if encoding.has("context_bias"):
        scores = scores + encoding.context_bias(q, stored, q_pos, k_pos, scaling).to(scores.dtype)
    if encoding.has("bias"):
        wide = torch.float64 if q.dtype == torch.float64 else q_pos.dtype
        scores = scores + encoding.bias_matrix(q_pos.to(wide), k_pos.to(wide)).to(scores.dtype)
    scores = encoding.mix(scores, block) if encoding.has("mix") else scores
    output = by_group(weights := _weights(encoding, scores, block, seen, sinks), encoding.value(v, k_pos))
    return (output + encoding.attended(weights, block) if encoding.has("attended") else output).transpose(1, 2)


def self_attention(
    encoding: PositionalEncoding,
    x: Tensor,
    pos: Tensor,
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    seen: Tensor,
    **more: Any,
) -> Tensor:
    """Output [B,Q,H,V] of a layer that is given `x` [B,Q,M] of tokens at `pos` [B,Q].

    Args:
        project: such input -> queries [B,H,Q,D], keys [B,G,Q,D] and values [B,G,Q,V].
        seen, more: as `attention` has them.
    """
    q, k, _ = project(encoding.infuse(x, pos))
    state = encoding.state(x, pos) if encoding.has("state") else None
    return attention(encoding, q, k, project(x)[2], pos, pos, seen, state=state, **more)


def _weights(encoding: PositionalEncoding, scores: Tensor, block: Block, seen: Tensor, sinks: Tensor | None) -> Tensor:
    if encoding.has("normalise"):
        return encoding.normalise(scores, block).masked_fill(~seen, 0)
    scores, keys = scores.masked_fill(~seen, -torch.inf), scores.shape[-1]
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores)[:, None, None].expand(*scores.shape[:3], 1)), -1)
    return scores.softmax(-1).nan_to_num(0.0)[..., :keys]
