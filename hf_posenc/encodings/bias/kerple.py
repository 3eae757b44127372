from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Block, Geometry, PositionalEncoding, precise, register
from ..options import flag, one_of
from .alibi import SMALLEST_SLOPE, native_slopes

KERNELS = ("log", "power", "log3")
STARTS = ("uniform", "alibi")
SMALLEST, LARGEST_POWER = 0.01, 2.0


@register("kerple")
class KERPLE(PositionalEncoding):
    """Kernelized relative positions (Chi et al., 2022, arXiv:2205.09921, section 4).

    score(i, j) = q_i k_j / sqrt(D) - r1 log(1 + r2 (i - j)), or - r1 (i - j)^r2, with r1, r2 > 0 learned for each head and
    shared by all layers. A step that takes them below 0.01 ends there.

    Args:
        kernel: "log", "power" (there r2 is at most 2), or "log3": - r1 log(1 + r2 (i - j)^r3), with r3 at most 2 and at first 1.
        init: "uniform" below 2 and 1, or 1 and 2, as in the authors' code; or "alibi": the power kernel is ALiBi itself (r1 its
            slopes, which it may then reach again, r2 = 1), the others touch it at distance 0 (r2 = 0.01).

    Needs training. Differs from the paper: the bias is added after the division by sqrt(D), as in the authors' code, which does not have
    the third kernel.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, kernel: str = "log", init: str = "uniform"):
        super().__init__(geometry)
        self.kernel = one_of("kernel", kernel, KERNELS)
        most = (1, 2) if kernel == "power" else (2, 1)
        self.r1, self.r2 = (nn.Parameter(torch.rand(geometry.num_heads) * x) for x in most)
        self.r3 = nn.Parameter(torch.ones(geometry.num_heads)) if kernel == "log3" else None
        self.smallest_r1 = SMALLEST
        if one_of("init", init, STARTS) == "alibi":
            slopes, r2 = native_slopes(geometry), 1.0 if kernel == "power" else SMALLEST
            self.r1.data, self.r2.data = slopes / r2, torch.full_like(slopes, r2)
            self.smallest_r1 = min(SMALLEST, *(geometry.slopes or (SMALLEST_SLOPE,)))
            self.starts_as = "alibi" if kernel == "power" else ""

    @property
    def largest_r2(self) -> float:
        return LARGEST_POWER if self.kernel == "power" else math.inf

    @torch.no_grad()
    def project(self) -> None:
        self.r1.clamp_(self.smallest_r1)
        self.r2.clamp_(SMALLEST, self.largest_r2)
        if self.r3 is not None:
            self.r3.clamp_(SMALLEST, LARGEST_POWER)

    def bias(self, h: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos - k_pos).clamp(min=0)
        r1 = _within(precise(self.r1, q_pos)[h], self.smallest_r1)
        r2 = _within(precise(self.r2, q_pos)[h], SMALLEST, self.largest_r2)
        if self.kernel == "power":
            return -r1 * _power(distance, r2)
        if self.r3 is not None:
            distance = _power(distance, _within(precise(self.r3, q_pos)[h], SMALLEST, LARGEST_POWER))
        return -r1 * torch.log1p(r2 * distance)


@register("kerple_weighted")
class WeightedKERPLE(PositionalEncoding):
    """Kernelized relative positions that weigh scores (Chi et al., 2022, arXiv:2205.09921, section 5.3 and appendix A.3).

    score(i, j) = q_i k_j / sqrt(D) exp(-r3 (i - j)^r4) - r1 (i - j)^r2: the power kernel of `kerple`, and another one as a weight, with
    the same bounds and start.

    Args:
        bias: with the second term ("bias+wht"), or without ("2-para-wht").

    Needs training. Differs from the paper: the bias is added after the division by sqrt(D), as in the authors' code.
    """

    relative = True
    needs_training = "pretraining or fine-tuning"

    def __init__(self, geometry: Geometry, *, bias: bool = True):
        super().__init__(geometry)
        self.weight = KERPLE(geometry, kernel="power")
        self.added = KERPLE(geometry, kernel="power") if flag("bias", bias) else None

    def project(self) -> None:
        self.weight.project()
        if self.added is not None:
            self.added.project()

    def mix(self, scores: Tensor, block: Block) -> Tensor:
        pos = [x.to(scores.dtype if scores.dtype == torch.float64 else x.dtype) for x in (block.q_pos, block.k_pos)]
        weighted = scores * self.weight.bias_matrix(*pos).exp()
        return (weighted if self.added is None else weighted + self.added.bias_matrix(*pos)).to(scores.dtype)


def _power(distance: Tensor, r: Tensor) -> Tensor:
    # 0 ** r has no gradient at distance 0, where it is 0 whatever r.
    return torch.where(distance > 0, distance.clamp(min=1) ** r, torch.zeros((), device=distance.device))


def _within(r: Tensor, low: float, high: float = math.inf) -> Tensor:
    """`r` clamped, with the gradient of `r`: what a step has taken past a bound counts as there until it is projected."""
    return r + (r.clamp(low, high) - r).detach()
