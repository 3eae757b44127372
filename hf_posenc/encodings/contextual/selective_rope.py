from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register, trailing
from ..options import count, flag
from ..rotary.rope import RoPE
from .summed_angles import SummedAngles

INIT_STD = 0.02
MOST_TAPS = 16


@register("selective_rope")
class SelectiveRoPE(SummedAngles):
    """Selective rotary position embedding (Movahedi et al., 2025, arXiv:2511.17388; timurcarstensen/selective-rope).

    Pair n of a token is turned by f_n times the sum of g_t (e^(b_n) + the sum of c_ns U_n V x_(t-s) over s < 4) over the tokens t up to it,
    with the frequencies f of the model's own RoPE, for each key-value head of each layer. x is what the layer's attention is given, each
    head's share of it scaled to length 1; g = sigmoid(w x + d), or 1.

    Args:
        rank: rows of V.
        taps: how many tokens the convolution c reaches over, at first the token itself alone; 1 for none.
        bias: whether there is b, 0 at first: RoPE, from which the tokens deviate. Otherwise the tokens alone say how far the pairs turn.
        gate: whether there is g.

    Needs training. Differs from the authors' code: U starts at zero; heads that share a key share their angles; there is b unless it is
    switched off, and the frequencies are the model's rather than those of theta = 500000.
    """

    needs_training = "pretraining or fine-tuning, where the model has no RoPE, or for angles of its own"

    def __init__(self, geometry: Geometry, *, rank: int = 16, taps: int = 4, bias: bool = True, gate: bool = False):
        super().__init__(geometry)
        self.base, self.rank = RoPE(geometry), count("rank", rank)
        self.factor = self.base.attention_factor
        groups, width, pairs = geometry.num_kv_heads, geometry.hidden_size, geometry.rotary_dim // 2
        self.down = nn.Parameter(torch.randn(self.rank, width) * INIT_STD)
        self.up = nn.Parameter(torch.zeros(groups, pairs, self.rank))
        self.lookback = count("taps", taps, at_most=MOST_TAPS) - 1
        self.conv = nn.Parameter(torch.eye(taps)[0].repeat(groups, pairs, 1)) if taps > 1 else None
        self.b = nn.Parameter(torch.zeros(groups, pairs)) if flag("bias", bias) else None
        self.w, self.d = (nn.Parameter(torch.zeros(*s)) if flag("gate", gate) else None for s in ((groups, width), (groups,)))
        self.starts_as = "nope" if not bias and self.factor == 1 else "" if gate or not bias else "rope"

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """V x of all heads and g of each, of the token and those before it."""
        x = F.normalize(precise(x, x).unflatten(-1, (self.geometry.num_heads, -1)), dim=-1).flatten(-2)
        state = F.linear(x, precise(self.down, x))
        if self.w is not None and self.d is not None:
            state = torch.cat((state, F.linear(x, precise(self.w, x), precise(self.d, x)).sigmoid()), -1)
        return trailing(state[:, None], pos, self.lookback)

    def increments(self, state: Tensor) -> Tensor:
        state, up = state.unflatten(-1, (1 + self.lookback, -1)), self.up.to(state)
        up = up if self.conv is None else (self.conv.to(state)[..., None] * up[:, :, None]).flatten(-2)
        steps = state[..., : self.rank].flatten(-2) @ up.mT
        steps = steps if self.b is None else steps + self.b.to(state).exp()[:, None]
        return steps if self.w is None else steps * state[:, 0, :, 0, self.rank :].mT[..., None]

    def angles(self, sums: Tensor) -> Tensor:
        return sums * self.base.inv_freq.to(sums)
