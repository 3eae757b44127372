"""The plain definition of attention under an encoding, whole or by query block.

Whole, it serves eager models and attention weights, and is the oracle of the tests. By block, it serves whatever has no
faster path: memory stays linear in the length, and the backward pass computes the blocks again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..encodings import PositionalEncoding
from ..encodings.base import precise
from .masks import Mask, additive, key_positions, visible

BLOCK_BYTES = 1 << 26


def block_rows(batch: int, heads: int, num_keys: int) -> int:
    """Query rows whose float32 scores against all keys fit in `BLOCK_BYTES`."""
    return max(16, BLOCK_BYTES // (4 * batch * heads * num_keys))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    encoding: PositionalEncoding | None,
    position_ids: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Output [B,Q,H,V] and weights [B,H,Q,K]; arguments as for `posenc_attention`. No encoding means none."""
    q_pos = k_pos = None
    if encoding is not None:
        assert position_ids is not None
        q_pos = position_ids.expand(query.shape[0], -1)
        k_pos = key_positions(q_pos, mask, key.shape[2])
    output, weights = attend(query, key, value, mask, encoding, q_pos, k_pos, slice(0, query.shape[2]), module.training, **kwargs)
    return output.transpose(1, 2).contiguous(), weights


def by_block(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    encoding: PositionalEncoding,
    q_pos: Tensor,
    k_pos: Tensor,
    **kwargs,
) -> Tensor:
    """The same output [B,Q,H,V] in linear memory, forward and backward."""
    step = block_rows(query.shape[0], query.shape[1], key.shape[2])
    blocks = [slice(s, min(s + step, query.shape[2])) for s in range(0, query.shape[2], step)]

    def run(rows: slice) -> Tensor:
        return attend(query, key, value, mask, encoding, q_pos, k_pos, rows, module.training, **kwargs)[0]

    outputs = [checkpoint(run, rows, use_reentrant=False) if torch.is_grad_enabled() else run(rows) for rows in blocks]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    encoding: PositionalEncoding | None,
    q_pos: Tensor | None,
    k_pos: Tensor | None,
    rows: slice,
    training: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The query block `rows` against all keys: output [B,H,rows,V], weights [B,H,rows,K].

    Args:
        softcap: scores become softcap * tanh(scores / softcap) before the bias.
        s_aux: score [H] of one more key that has no value (attention sinks).
    """
    num_queries, num_keys, q = query.shape[2], key.shape[2], query[:, :, rows]
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if encoding is None or q_pos is None or k_pos is None:
        scores = q @ _per_query_head(key, q).transpose(-1, -2) * scaling
    else:
        scores = encoding.content_scores(q, key, q_pos[:, rows], k_pos, scaling)
    scores = precise(scores, scores)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if encoding is not None and q_pos is not None and k_pos is not None and encoding.has("bias"):
        scores = scores + encoding.bias_matrix(q_pos[:, rows], k_pos).to(scores.device)
    extra = additive(mask, rows)
    if extra is not None:
        scores = scores + extra[..., :num_keys]
    else:
        hidden = ~visible(mask, rows, num_queries, num_keys, q.device)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = F.dropout(_softmax(scores, s_aux).to(q.dtype), p=dropout, training=training)
    return weights @ _per_query_head(value, q), weights


def _per_query_head(x: Tensor, query: Tensor) -> Tensor:
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]
