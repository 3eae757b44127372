from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, products, register
from ..options import number

CHUNK = 16
"""Keys that share an anchor."""


@register("wall")
class Wall(PositionalEncoding):
    """Wall attention (Averbuch and Pai, Tilde Research, 2026; fla's `wall_attn`): FoX with a gate for each dimension of a head.

    score(i, j) = sum over n of q_in k_jn f_(j+1)n ... f_in / sqrt(D), with forget gates f_t = sigmoid(W_h x_t + b_h) for each dimension of
    each head of each layer, from what the layer's attention is given.

    Args:
        bias: b at first. At 8, the default, the gates are nearly open: a thousand tokens take 0.28 off the logarithm of a product.

    Needs training. Costs D numbers a token and query head in the KV cache, in float32, beside the key. The gates do not go into the keys,
    where they would overflow: keys are taken by chunk, and decay up to its end on their side, from there on that of the query, both below
    1; those of the query's own chunk pair by pair. Differs from the authors' code: W starts at zero; neither its optional gates of the
    scores (`fox`) and of the output nor its norm of queries and keys; where a model caps its scores, what the gates change is added to the
    capped ones.
    """

    relative = True
    per_layer = True
    caches = "raw"
    mixes_products = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, bias: float = 8.0):
        super().__init__(geometry)
        self.w = nn.Parameter(torch.zeros(geometry.num_heads, geometry.head_dim, geometry.hidden_size))
        self.b = nn.Parameter(torch.full((geometry.num_heads, geometry.head_dim), number("bias", bias, -100.0, 100.0)))

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        return F.logsigmoid(precise(x, x)[:, None] @ precise(self.w, x).mT + precise(self.b, x)[:, None])

    def increments(self, state: Tensor) -> Tensor:
        return state

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        own, sums, seen = cast(Tensor, block.q_state), cast(Tensor, block.k_state), cast(Tensor, block.seen)
        q, k, keys = block.q.to(scores), block.k.to(scores), scores.shape[-1]
        last = torch.where(seen, torch.arange(keys, device=seen.device), 0).amax(-1)
        spare = -keys % CHUNK
        each = F.pad(k.repeat_interleave(q.shape[1] // k.shape[1], 1), (0, 0, 0, spare))
        sums = torch.cat((sums, sums[:, :, -1:].expand(-1, -1, spare, -1)), 2)
        far = torch.cat([_across(q, own, each[:, :, at], sums[:, :, at]) for at in _chunks(keys)], -1)
        at = (last // CHUNK * CHUNK)[..., None] + torch.arange(CHUNK, device=last.device)
        at = at.expand(*far.shape[:3], -1)
        decayed = far.scatter(-1, at, _within(q, own, each, sums, at))[..., :keys]
        return scores + block.scaling * (decayed - products(q, k))


def _chunks(keys: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, keys, CHUNK)]


def _decay(difference: Tensor, like: Tensor) -> Tensor:
    """Of keys after the query it would be none: they are not seen."""
    return difference.clamp(max=0).to(like).exp()


def _across(q: Tensor, own: Tensor, k: Tensor, sums: Tensor) -> Tensor:
    """Products [B,H,Q,C] of queries with the keys [B,H,C,D] of a chunk that lies before them."""
    anchor = sums[:, :, -1:]
    return (q * _decay(own - anchor, q)) @ (k * _decay(anchor - sums, q)).mT


def _within(q: Tensor, own: Tensor, k: Tensor, sums: Tensor, at: Tensor) -> Tensor:
    """Products [B,H,Q,C] of queries with the keys `at` [B,H,Q,C], of [B,H,K,D]."""
    index = at.flatten(2)[..., None].expand(-1, -1, -1, q.shape[-1])
    k, sums = (x.gather(2, index).unflatten(2, at.shape[2:]) for x in (k, sums))
    return (q[:, :, :, None] * k * _decay(own[:, :, :, None] - sums, q)).sum(-1)
