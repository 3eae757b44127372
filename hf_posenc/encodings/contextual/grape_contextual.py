from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import Geometry, precise, register
from ..options import one_of
from ..rotary.grape_multiplicative import SLOWER
from ..rotary.rope import RoPE
from .summed_angles import SummedAngles

GATES = ("softplus", "sigmoid")
UNIT = math.log(math.expm1(1.0))
AUTHORS_START = math.log(math.expm1(1e-3))


@register("grape_contextual")
class GRAPEContextual(SummedAngles):
    """Multiplicative GRAPE with a phase from the content (Zhang et al., 2025, arXiv:2512.07805, GRAPE-M-ctx).

    Pair n of a token is turned by f_n e^(a_n) times the sum of g(w x_s + b) over the tokens s before it, with learned a for each layer, the
    frequencies f of the model's own RoPE, and one step forward g for all heads of a layer, from what its attention is given.

    Args:
        gate: g(z) = softplus(z / 16 + 0.54), which is 1 at first; or the authors' "sigmoid", sigmoid((z - 6.9) / 16), 0.39 at first.

    Needs training. Differs from the authors' code: that turns the other way round, by which trained weights do not survive (Llama's
    convention is kept here); its gate is a sigmoid, under which RoPE is out of reach; queries and keys are as the model has them, without
    the norm they are given there.
    """

    sums_before = True
    needs_training = "pretraining or fine-tuning, where the model has no RoPE, or for steps of its own"

    def __init__(self, geometry: Geometry, *, gate: str = "softplus"):
        super().__init__(geometry)
        self.base, self.soft = RoPE(geometry), one_of("gate", gate, GATES) == "softplus"
        self.factor, self.starts_as = self.base.attention_factor, "rope" if self.soft else ""
        self.w, self.b = nn.Parameter(torch.zeros(1, geometry.hidden_size)), nn.Parameter(torch.zeros(1))
        self.log_scale = nn.Parameter(torch.zeros(geometry.rotary_dim // 2))

    def reset_buffers(self) -> None:
        self.base.reset_buffers()

    def state(self, x: Tensor, pos: Tensor) -> Tensor:
        z = F.linear(precise(x, x), precise(self.w, x), precise(self.b, x))[:, None]
        return F.softplus(z / SLOWER + UNIT) if self.soft else ((z + AUTHORS_START) / SLOWER).sigmoid()

    def increments(self, state: Tensor) -> Tensor:
        return state

    def angles(self, sums: Tensor) -> Tensor:
        return sums * self.base.inv_freq.to(sums) * self.log_scale.to(sums).exp()
