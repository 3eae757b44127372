from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, by_group, precise, products, register, trailing, widest
from ..options import count, flag, number

INIT_STD = 0.02
OPEN = 6.0
CHUNK = 64
"""Keys whose reflections are multiplied out at once."""
MOST_TAPS = 16


@register("path")
class PaTH(PositionalEncoding):
    """Position encoding by accumulated Householder transformations (Yang et al., 2025, arXiv:2505.16381, section 3; fla's `path_attn`).

    score(i, j) = q_i H_i H_(i-1) ... H_(j+1) k_j / sqrt(D) with H_t = I - b_t w_t w_t^T, b_t = 2 sigmoid(u x_t + d) in (0, 2) and vectors
    w_t = silu(the sum of c_s U V x_(t-s) over s < 3) scaled to length 1, for each key-value head of each layer, from what the layer's
    attention is given. On the way from a key to the query each token reflects or erases one direction.

    Args:
        rank: rows of V. What is cached of a token is V x and b, of itself and the two before it.
        taps: how many tokens the convolution c reaches over; 1 for none, and no silu.
        bias: d at first. The less, the less the tokens do.
        forget: PaTH-FoX: the sum of log sigmoid(w x_t + 6) over j < t <= i is added, for each query head.

    Needs training. Costs about three times the products of attention, by query block, and no kernel has it. Differs from the authors' code:
    c is (1, 0, 0) at first; the gate is not divided by sqrt(D) and starts open; where a model caps its scores, what the
    reflections change is added to the capped ones.
    """

    relative = True
    per_layer = True
    caches = "raw"
    mixes_products = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, rank: int = 32, taps: int = 3, bias: float = 0.0, forget: bool = False):
        super().__init__(geometry)
        self.rank, groups, width = count("rank", rank), geometry.num_kv_heads, geometry.hidden_size
        self.down, self.up = (nn.Parameter(torch.randn(*s) * INIT_STD) for s in ((rank, width), (groups, geometry.head_dim, rank)))
        self.u = nn.Parameter(torch.zeros(groups, width))
        self.d = nn.Parameter(torch.full((groups,), number("bias", bias, -100.0, 100.0)))
        self.lookback = count("taps", taps, at_most=MOST_TAPS) - 1
        self.conv = nn.Parameter(torch.eye(taps)[0].repeat(groups, geometry.head_dim, 1)) if taps > 1 else None
        self.gate = nn.Parameter(torch.zeros(geometry.num_heads, width)) if flag("forget", forget) else None
        self.gate_bias = nn.Parameter(torch.full((geometry.num_heads,), OPEN)) if forget else None

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """V x of all heads, b of each, and log f of each query head, of the token and those before it."""
        x = precise(x, x)
        parts = [F.linear(x, precise(self.down, x)), 2 * F.linear(x, precise(self.u, x), precise(self.d, x)).sigmoid()]
        if self.gate is not None and self.gate_bias is not None:
            parts.append(F.logsigmoid(F.linear(x, precise(self.gate, x), precise(self.gate_bias, x))))
        return trailing(torch.cat(parts, -1)[:, None], pos, self.lookback)

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        state, seen = cast(Tensor, block.k_state)[:, 0].to(scores), cast(Tensor, block.seen)
        index = torch.arange(scores.shape[-1], device=scores.device)
        last = torch.where(seen, index, -1).amax(-1, keepdim=True)  # the query's own key
        parts = state.unflatten(-1, (1 + self.lookback, -1))
        strength, gates = parts[:, :, 0, self.rank :].split([len(self.d), parts.shape[-1] - self.rank - len(self.d)], -1)
        w = F.normalize(self._directions(parts[..., : self.rank].flatten(-2)[:, None]), dim=-1)
        scores = scores + block.scaling * _reflected(block.q.to(scores), block.k.to(scores), w, strength.mT[..., None], index <= last)
        if self.gate is None:
            return scores
        summed = gates.mT.cumsum(-1, dtype=widest(scores.device))[:, :, None]  # [B,H,1,K]
        own = summed.expand(-1, -1, scores.shape[2], -1).gather(-1, last.clamp(min=0).expand(len(scores), scores.shape[1], -1, 1))
        return scores + (own - summed).to(scores)

    def _directions(self, low: Tensor) -> Tensor:
        """w [B,G,K,D], of any length, of V x of the tokens and those before them [B,1,K,(1+lookback)*rank]."""
        if self.conv is None:
            return low @ self.up.to(low).mT
        return F.silu(low @ (self.conv.to(low)[..., None] * self.up.to(low)[:, :, None]).flatten(-2).mT)


def _reflected(q: Tensor, k: Tensor, w: Tensor, strength: Tensor, until: Tensor) -> Tensor:
    """What reflections change of the products [B,H,Q,K] of queries [B,H,Q,D] and keys [B,G,K,D].

    Queries are carried back over the keys, a chunk at a time; within one, a triangular system multiplies the reflections out.

    Args:
        w: [B,G,K,D] of length 1. strength: [B,G,K,1]. until: [B or 1,H or 1,Q,K] bool, the keys up to the query's own.
    """
    carried, changes = q, []
    for end in range(k.shape[2], 0, -CHUNK):
        part = slice(max(0, end - CHUNK), end)
        keys, vectors = k[:, :, part], w[:, :, part]
        scaled = vectors * strength[:, :, part]
        before = (scaled @ vectors.mT).tril(-1)
        inner = torch.cat((scaled, (scaled @ keys.mT).tril(-1)), -1)
        inner = torch.linalg.solve_triangular(before, inner, upper=False, unitriangular=True)
        met = products(carried, vectors).masked_fill(~until[..., part], 0)
        changes.append(products(carried - q, keys) - by_group(met, inner[..., k.shape[3] :]))
        carried = carried - by_group(met, inner[..., : k.shape[3]])
    return torch.cat(changes[::-1], -1)
