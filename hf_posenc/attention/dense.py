"""The plain definition of attention under an encoding: for eager models and attention weights, and the oracle of the tests."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encodings import Block
from ..encodings.base import at_hand, by_group, precise, products
from .call import Call
from .masks import additive, visible


def attention(call: Call) -> tuple[Tensor, Tensor]:
    """Output [B,Q,H,V] and weights [B,H,Q,K]."""
    rows, keys = slice(0, call.query.shape[2]), slice(0, call.key.shape[2])
    hidden = None
    if additive(call.mask, rows) is None:
        hidden = ~visible(call.mask, rows, rows.stop, keys.stop, call.query.device)
    output, weights = attend(call, slice(None), rows, keys, hidden)
    return output.transpose(1, 2).contiguous(), weights


def attend(call: Call, batch: slice, rows: slice, keys: slice, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """A block of queries against a range of keys: output [B,H,rows,V], weights [B,H,rows,keys].

    Args:
        hidden: [B or 1,H or 1,rows,keys] bool, the pairs that do not meet; None where a mask of numbers says so.
    """
    q, k, v = call.query[batch, :, rows], call.key[batch, :, keys], call.value[batch, :, keys]
    block = block_of(call, batch, rows, keys, None if hidden is None else ~hidden)
    scores = scored(call, batch, rows, keys, q, k, block)
    extra = additive(call.mask, rows)
    if extra is not None:
        scores = scores + (extra[batch] if len(extra) > 1 else extra)[..., keys]
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = F.dropout(_weights(call, scores, block).to(q.dtype), p=call.dropout)
    output = by_group(weights, v)
    if block is not None and call.encoding.has("attended"):
        output = output + call.encoding.attended(weights, block).to(output.dtype)
    return output, weights


def block_of(call: Call, batch: slice, rows: slice, keys: slice, seen: Tensor | None) -> Block | None:
    """A block for the stages that ask for one, with the pairs that meet."""
    if call.whole is None:
        return None
    if seen is None:
        seen = visible(call.mask, rows, call.query.shape[2], call.key.shape[2], call.query.device)
        seen = (seen[batch] if len(seen) > 1 else seen)[..., keys]
    return call.whole.part(batch, rows, keys, seen)


def scored(call: Call, batch: slice, rows: slice, keys: slice, q: Tensor, k: Tensor, block: Block | None) -> Tensor:
    """What the softmax sees of a block, before any mask: [B,H,rows,keys], -inf for a pair in no region."""
    scores = precise(content(call, batch, rows, keys, q, k), q)
    if call.softcap is not None:
        capped = call.softcap * torch.tanh(scores / call.softcap)
        scores = torch.where(scores == -torch.inf, scores, capped)  # a pair in no region stays hidden
    bias = biases(call, batch, rows, keys, q, k)
    scores = scores if bias is None else scores + bias.to(scores.device)
    return call.encoding.mix(scores, block) if block is not None and call.encoding.has("mix") else scores


def content(call: Call, batch: slice, rows: slice, keys: slice, q: Tensor, k: Tensor) -> Tensor:
    """Scaled products [B,H,rows,keys] under the rotations of the encoding."""
    if call.encoding is None or call.met:
        return products(q, k) * call.scaling
    layout, encoding = call.layout, call.encoding
    # Asked for one block alone, an encoding might wait for its positions.
    regions = None if at_hand(layout.q_pos) else layout.regions(encoding, rows)
    return encoding.content_scores(q, k, layout.q_pos[batch, rows], layout.k_pos[batch, keys], call.scaling, regions)


def biases(call: Call, batch: slice, rows: slice, keys: slice, q: Tensor, k: Tensor) -> Tensor | None:
    """What the encoding adds to the scores of a block, broadcastable to [B,H,rows,keys] float32; None for nothing."""
    encoding, total = call.encoding, None
    if encoding is None:
        return None
    q_pos, k_pos = call.layout.distinct_positions
    if len(q_pos) > 1:
        q_pos, k_pos = q_pos[batch], k_pos[batch]
    if encoding.has("bias"):
        total = encoding.bias_matrix(*(x.double() if q.dtype == torch.float64 else x for x in (q_pos[:, rows], k_pos[:, keys])))
    if encoding.has("context_bias"):
        if call.whole is not None:  # q and k may have met
            q, k = call.whole.q[batch, :, rows], call.whole.k[batch, :, keys]
        # Where the numbers are at hand, the encoding looks at those of the block, which are smaller.
        asked = encoding.takes_reach and call.layout.num_queries > 1 and not at_hand(q_pos)
        more = {"reach": call.layout.reach_of(keys)} if asked else {}
        context = encoding.context_bias(q, k, q_pos[:, rows], k_pos[:, keys], call.scaling, **more)
        total = context if total is None else total + context
    return total


def _weights(call: Call, scores: Tensor, block: Block | None) -> Tensor:
    """What the values are weighed with, [B,H,rows,keys]."""
    sinks = call.sinks
    if block is not None and call.encoding.has("normalise"):  # of which sinks are a part
        return call.encoding.normalise(scores, block).masked_fill(~cast(Tensor, block.seen), 0)
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]
