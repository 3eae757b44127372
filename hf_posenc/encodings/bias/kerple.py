from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register

KERNELS = ("log", "power")
SMALLEST = 0.01


@register("kerple")
class KERPLE(PositionalEncoding):
    """Kernelized relative positions (Chi et al., 2022, arXiv:2205.09921, section 4).

    score(i, j) = q_i k_j / sqrt(D) - r1 log(1 + r2 (i - j)), or - r1 (i - j)^r2, with r1, r2 > 0 learned for each head and
    shared by all layers.

    Args:
        kernel: "log" or "power" (there r2 is at most 2).

    Needs training. Differs from the paper: the bias is added after the division by sqrt(D), as in the authors' code.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, kernel: str = "log"):
        super().__init__(geometry)
        if kernel not in KERNELS:
            raise ValueError(f"kernel is one of {', '.join(KERNELS)}, got {kernel!r}")
        self.kernel = kernel
        self.r1 = nn.Parameter(torch.rand(geometry.num_heads) * 2)
        self.r2 = nn.Parameter(torch.rand(geometry.num_heads))

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos - k_pos).clamp(min=0)
        r1 = _within(precise(self.r1, q_pos)[h], SMALLEST)
        r2 = _within(precise(self.r2, q_pos)[h], SMALLEST, 2.0 if self.kernel == "power" else math.inf)
        if self.kernel == "log":
            return -r1 * torch.log1p(r2 * distance)
        # 0 ** r2 has no gradient at distance 0, where the bias is 0 whatever r2.
        return torch.where(distance > 0, -r1 * distance.clamp(min=1) ** r2, torch.zeros((), device=distance.device))


def _within(r: Tensor, low: float, high: float = math.inf) -> Tensor:
    """`r` clamped, with the gradient of `r`: as in the authors' code, a parameter that has met a bound can leave it again."""
    return r + (r.clamp(low, high) - r).detach()
