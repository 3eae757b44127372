from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..rotary.rope import turn_pairs


@register("carope")
class CARoPE(PositionalEncoding):
    """Context-aware rotary position embedding (Veisi et al., 2025, arXiv:2507.23083, section 3).

    Pair n of a token at position m is turned by the sum of f(x_t)^n over t <= m, with f(x) = 1 / (softplus(w_g x + b_g) + 1) in (0, 1) for
    each key-value head g of each layer, from what the layer's attention is given; RoPE has theta^(-2/r) for f.

    Needs training. Differs from the paper: w starts at zero, and there is a bias b, so that f is at first what it is in RoPE; heads that
    share a key share f. (No code of the authors is public.)
    """

    relative = True
    rotary = True
    per_layer = True
    caches = "raw"
    starts_as = "rope"
    needs_training = "pretraining or fine-tuning, where the model has no RoPE, or for frequencies of its own"

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        if geometry.rotary_dim % 2:
            raise ValueError(
                f"carope turns pairs of dimensions, but the rotated width is odd: {geometry.rotary_dim}. Use an even head_dim."
            )
        if geometry.frequencies is not None:
            self.starts_as = ""
        start = math.log(math.expm1(math.expm1(2 * math.log(geometry.theta) / geometry.rotary_dim)))
        self.w = nn.Parameter(torch.zeros(geometry.num_kv_heads, geometry.hidden_size))
        self.b = nn.Parameter(torch.full((geometry.num_kv_heads,), start))

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        """log f."""
        speed = F.linear(precise(x, x), precise(self.w, x), precise(self.b, x))
        return -F.softplus(speed).log1p().transpose(1, 2)[..., None]

    def increments(self, state: Tensor) -> Tensor:
        return (state * torch.arange(self.geometry.rotary_dim // 2, device=state.device)).exp()

    def meet(self, block: Block) -> tuple[Tensor, Tensor]:
        assert block.q_state is not None and block.k_state is not None
        start = block.k_state[:, :, -1:]  # sums may begin anywhere: small angles are exacter
        each = block.q.shape[1] // block.k.shape[1]
        return self._turn(block.q, (block.q_state - start).repeat_interleave(each, 1)), self._turn(block.k, block.k_state - start)

    def _turn(self, x: Tensor, angle: Tensor) -> Tensor:
        """x [B,A,T,D], its pairs turned by `angle` [B,A,T,r/2]."""
        return turn_pairs(x, precise(angle.cos(), x), precise(angle.sin(), x), self.geometry)
