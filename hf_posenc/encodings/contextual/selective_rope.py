from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from ..options import count, flag
from ..rotary.rope import RoPE
from .summed_angles import SummedAngles

INIT_STD = 0.02


@register("selective_rope")
class SelectiveRoPE(SummedAngles):
    """Selective rotary position embedding (Movahedi et al., 2025, arXiv:2511.17388; timurcarstensen/selective-rope).

    Pair n of a token is turned by f_n times the sum of g_t (e^(b_n) + U_n V x_t) over the tokens t up to it, with the frequencies f of the
    model's own RoPE, for each key-value head of each layer. x is what the layer's attention is given, each head's share of it scaled to
    length 1; g = sigmoid(w x + c), or 1.

    Args:
        rank: rows of V.
        bias: whether there is b, 0 at first: RoPE, from which the tokens deviate. Otherwise the tokens alone say how far the pairs turn.
        gate: whether there is g.

    Needs training. Differs from the authors' code: no convolution over four tokens within the sum, since the KV cache holds what is known
    of a token by itself; U starts at zero; heads that share a key share their angles; there is b unless it is switched off, and the
    frequencies are the model's rather than those of theta = 500000.
    """

    needs_training = "pretraining or fine-tuning, where the model has no RoPE, or for angles of its own"

    def __init__(self, geometry: Geometry, *, rank: int = 32, bias: bool = True, gate: bool = False):
        super().__init__(geometry)
        self.base, self.rank = RoPE(geometry), count("rank", rank)
        self.factor = self.base.attention_factor
        groups, width, pairs = geometry.num_kv_heads, geometry.hidden_size, geometry.rotary_dim // 2
        self.down = nn.Parameter(torch.randn(self.rank, width) * INIT_STD)
        self.up = nn.Parameter(torch.zeros(groups, pairs, self.rank))
        self.b = nn.Parameter(torch.zeros(groups, pairs)) if flag("bias", bias) else None
        self.w, self.c = (nn.Parameter(torch.zeros(*s)) if flag("gate", gate) else None for s in ((groups, width), (groups,)))
        self.starts_as = "nope" if not bias and self.factor == 1 else "" if gate or not bias else "rope"

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """V x of all heads, then g of each."""
        x = F.normalize(precise(x, x).unflatten(-1, (self.geometry.num_heads, -1)), dim=-1).flatten(-2)
        state = F.linear(x, precise(self.down, x))
        if self.w is not None and self.c is not None:
            state = torch.cat((state, F.linear(x, precise(self.w, x), precise(self.c, x)).sigmoid()), -1)
        return state[:, None]

    def increments(self, state: Tensor) -> Tensor:
        steps = state[..., : self.rank] @ self.up.to(state).mT
        steps = steps if self.b is None else steps + self.b.to(state).exp()[:, None]
        return steps if self.w is None else steps * state[:, 0, :, self.rank :].mT[..., None]

    def angles(self, sums: Tensor) -> Tensor:
        return sums * self.base.inv_freq.to(sums)
