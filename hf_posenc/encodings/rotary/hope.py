from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .rope import power_frequencies
from .scaling import UnscaledRoPE


@register("hope")
class HoPE(UnscaledRoPE):
    """High-frequency rotary position encoding (Chen et al., 2024, "HoPE", arXiv:2410.21216, section 5).

    Pairs that come round within the native context L keep their frequency; the slower ones, which the paper finds to make for a U-shape of
    the attention and to fail beyond L, get 0 and carry content only. Like `p_rope`, with the fraction from L. Not the hyperbolic HoPE.

    Args:
        turns: turns within L below which a pair stands still; the fastest pair never does.

    Needs training from scratch, or fine-tuning. The authors published no code. Differs from the paper: it finds the first of the slower
    pairs by what a trained model does; where it begins is an option here.
    """

    needs_training = "pretraining or fine-tuning at the native length"

    def __init__(self, geometry: Geometry, *, turns: float = 1.0):
        super().__init__(geometry)
        self.turns = positive("turns", turns)

    def inverse_frequencies(self) -> Tensor:
        plain = power_frequencies(self.theta, self.dim)
        slowest = min(2 * math.pi * self.turns / self.geometry.max_positions, 1.0)
        return torch.where(plain >= slowest, plain, 0.0)
