from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from .summed_angles import SummedAngles


@register("carope")
class CARoPE(SummedAngles):
    """Context-aware rotary position embedding (Veisi et al., 2025, arXiv:2507.23083, section 3).

    Pair n of a token at position m is turned by the sum of f(x_t)^n over t <= m, with f(x) = 1 / (softplus(w_g x + b_g) + 1) in (0, 1) for
    each key-value head g of each layer, from what the layer's attention is given; RoPE has theta^(-2/r) for f.

    Needs training. Differs from the paper: w starts at zero, and there is a bias b, so that f is at first what it is in RoPE; heads that
    share a key share f. (No code of the authors is public.)
    """

    starts_as = "rope"
    needs_training = "pretraining or fine-tuning, where the model has no RoPE, or for frequencies of its own"

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
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
