from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .rope import power_frequencies
from .scaling import UnscaledRoPE


@register("power")
class PowerRoPE(UnscaledRoPE):
    """Power scaling (Pal et al., 2023, Giraffe, arXiv:2308.10882, section 4; abacusai/Long-Context).

    f_k -> f_k (1 - k / (r/2))^p: low frequencies are slowed down more than high ones.

    Args:
        p: the power; 0.5 is among those that the authors trained.

    Needs training: fine-tuning at the native length. Differs from the authors' code: without its further division by a factor,
    which is `linear`.
    """

    needs_training = "fine-tuning at the native length"

    def __init__(self, geometry: Geometry, *, p: float = 0.5):
        super().__init__(geometry)
        self.p = positive("p", p, at_most=100.0)

    def inverse_frequencies(self) -> Tensor:
        n = self.dim // 2
        return power_frequencies(self.theta, self.dim) * (1 - torch.arange(n) / n) ** self.p
