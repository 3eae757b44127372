from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Geometry, PositionalEncoding, precise, register
from ..options import one_of
from .alibi import SMALLEST_SLOPE, native_slopes

KERNELS = ("log", "power")
STARTS = ("uniform", "alibi")
SMALLEST = 0.01


@register("kerple")
class KERPLE(PositionalEncoding):
    """Kernelized relative positions (Chi et al., 2022, arXiv:2205.09921, section 4).

    score(i, j) = q_i k_j / sqrt(D) - r1 log(1 + r2 (i - j)), or - r1 (i - j)^r2, with r1, r2 > 0 learned for each head and
    shared by all layers. A step that takes them below 0.01 ends there.

    Args:
        kernel: "log" or "power" (there r2 is at most 2).
        init: "uniform" below 2 and 1, or 1 and 2, as in the authors' code; or "alibi": the power kernel is ALiBi itself (r1 its
            slopes, which it may then reach again, r2 = 1), the log kernel touches it at distance 0 (r2 = 0.01).

    Needs training. Differs from the paper: the bias is added after the division by sqrt(D), as in the authors' code; the authors'
    kernels that weigh the scores, and those of three parameters, are left out.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, kernel: str = "log", init: str = "uniform"):
        super().__init__(geometry)
        self.kernel = one_of("kernel", kernel, KERNELS)
        most = (2, 1) if kernel == "log" else (1, 2)
        self.r1, self.r2 = (nn.Parameter(torch.rand(geometry.num_heads) * x) for x in most)
        self.smallest_r1 = SMALLEST
        if one_of("init", init, STARTS) == "alibi":
            slopes, r2 = native_slopes(geometry), SMALLEST if kernel == "log" else 1.0
            self.r1.data, self.r2.data = slopes / r2, torch.full_like(slopes, r2)
            self.smallest_r1 = min(SMALLEST, *(geometry.slopes or (SMALLEST_SLOPE,)))
            self.starts_as = "alibi" if kernel == "power" else ""

    @property
    def largest_r2(self) -> float:
        return 2.0 if self.kernel == "power" else math.inf

    @torch.no_grad()
    def project(self) -> None:
        self.r1.clamp_(self.smallest_r1)
        self.r2.clamp_(SMALLEST, self.largest_r2)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos - k_pos).clamp(min=0)
        r1 = _within(precise(self.r1, q_pos)[h], self.smallest_r1)
        r2 = _within(precise(self.r2, q_pos)[h], SMALLEST, self.largest_r2)
        if self.kernel == "log":
            return -r1 * torch.log1p(r2 * distance)
        # 0 ** r2 has no gradient at distance 0, where the bias is 0 whatever r2.
        return torch.where(distance > 0, -r1 * distance.clamp(min=1) ** r2, torch.zeros((), device=distance.device))


def _within(r: Tensor, low: float, high: float = math.inf) -> Tensor:
    """`r` clamped, with the gradient of `r`: what a step has taken past a bound counts as there until it is projected."""
    return r + (r.clamp(low, high) - r).detach()
