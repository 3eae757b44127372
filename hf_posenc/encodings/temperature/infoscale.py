from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count, flag
from .base import Temperature


@register("infoscale")
class InfoScale(Temperature):
    """InfoScale, a temperature that keeps the entropy of attention (Li et al., 2025, arXiv:2501.08570).

    The query at position i, which sees n = i + 1 keys, is multiplied by max(1, u(n) / u(L)), with u(n) = sqrt(1 - n^(-2/D)), D the width
    of a head and L the length of training.

    Args:
        trained_length: L in tokens; default the native context.
        clip: leave queries within L alone.

    Works without training. Differs from the authors' code: their models see both ways, so that n is the length of the text for all
    queries, and never below L; it has no clipping. `clip=False` is their formula.
    """

    def __init__(self, geometry: Geometry, *, trained_length: int | None = None, clip: bool = True):
        super().__init__(geometry)
        self.trained_length = count("trained_length", trained_length, 2) if trained_length is not None else max(2, geometry.max_positions)
        self.clip = flag("clip", clip)

    def factor(self, pos: Tensor) -> Tensor:
        power = -2 / self.geometry.head_dim
        factor = (-torch.expm1(power * torch.log1p(pos))).sqrt() / math.sqrt(-math.expm1(power * math.log(self.trained_length)))
        return factor.clamp(min=1) if self.clip else factor
