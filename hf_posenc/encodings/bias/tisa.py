from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import count

LOCATION_STD, MEAN = 5.0, 0.1


@register("tisa")
class TISA(PositionalEncoding):
    """Translation-invariant self-attention (Wennberg and Henter, 2021, arXiv:2106.01950, eq. 6).

    score(i, j) = q_i k_j / sqrt(D) + sum_s a_hs exp(-|b_hs| (i - j - c_hs)^2): radial basis functions of the distance, with height a,
    sharpness b and place c learned for each head of each layer. At first a and b are about 0.1, and c is from N(0, 5).

    Args:
        kernels: how many there are.

    Needs training. Differs from the authors' code: that counts distances from -1.
    """

    relative = True
    per_layer = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, kernels: int = 5):
        super().__init__(geometry)
        shape = geometry.num_heads, count("kernels", kernels, at_most=1 << 10)
        self.height, self.sharpness = (nn.Parameter(MEAN * (1 + MEAN * torch.randn(shape))) for _ in range(2))
        self.place = nn.Parameter(LOCATION_STD * torch.randn(shape))

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = precise(q_pos - k_pos, q_pos)
        total = torch.zeros_like(distance)
        for s in range(self.height.shape[1]):
            a, b, c = (precise(x, q_pos)[h, s] for x in (self.height, self.sharpness, self.place))
            total = total + a * torch.exp(-b.abs() * (distance - c) ** 2)
        return total
