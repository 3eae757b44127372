from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count, one_of, positive

STARTS = ("uniform", "zero")


@register("log_cpb")
class LogCPB(PositionalEncoding):
    """Log-spaced continuous position bias (Liu et al., 2021, arXiv:2111.09883, section 3.3: Swin Transformer V2), on one axis.

    score(i, j) = q_i k_j / sqrt(D) + 16 sigmoid(f_h(z)), z = log(1 + i - j), with f a perceptron of one hidden layer of ReLU units for
    all heads of a layer. Such an f is linear between the values of z where a unit bends, and is computed so.

    Args:
        width: hidden units.
        span: z = log2(1 + 8 (i - j) / (span - 1)) / 3 as in the authors' code, where `span` is the width of the window; None leaves
            distances in tokens, as the paper's formula.
        bound: 16, the greatest bias; None adds f itself (the paper's formula, without the sigmoid of the authors' code).
        init: "uniform" as `nn.Linear` starts, or "zero": f is 0 at first.

    Needs training. Differs from the authors' code: weights do not start from N(0, 0.02) with biases 0, which would leave half of the
    units without effect and gradient where all distances have one sign.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, width: int = 512, span: int | None = None, bound: float | None = 16.0, init: str = "uniform"):
        super().__init__(geometry)
        width = count("width", width, at_most=1 << 16)
        self.span = None if span is None else count("span", span, 2)
        self.bound = None if bound is None else positive("bound", bound)
        self.w1, self.b1 = (nn.Parameter(torch.empty(width).uniform_(-1, 1)) for _ in range(2))
        self.w2 = nn.Parameter(torch.empty(geometry.num_heads, width).uniform_(-1, 1) * width**-0.5)
        if one_of("init", init, STARTS) == "zero":
            self.starts_as = "nope"
            nn.init.zeros_(self.w2)

    def coordinate(self, distance: Tensor) -> Tensor:
        """z of distances in tokens."""
        if self.span is None:
            return torch.log1p(distance)
        return torch.log1p(8 * distance / (self.span - 1)) / math.log(8)

    def pieces(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where units bend, ascending [N]; slope and offset of f before, between and after [H,N+1]."""
        w1, b1, w2 = (precise(x, like) for x in (self.w1, self.b1, self.w2))
        knots, order = torch.where(w1 == 0, 0, -b1 / w1).detach().sort()
        on_at_first = (w1 < 0) | ((w1 == 0) & (b1 > 0))
        first = [(w2 * (x * on_at_first)).sum(1, keepdim=True) for x in (w1, b1)]
        changes = [(w2 * (x * w1.sign()))[:, order] for x in (w1, b1)]
        slope, offset = (torch.cat(parts, 1).cumsum(1) for parts in zip(first, changes, strict=True))
        return knots, slope, offset

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        z = self.coordinate(precise((q_pos - k_pos).clamp(min=0), q_pos))
        knots, slope, offset = self.pieces(z)
        piece = torch.searchsorted(knots, z.contiguous())
        f = slope[h, piece] * z + offset[h, piece]
        return f if self.bound is None else self.bound * f.sigmoid()
