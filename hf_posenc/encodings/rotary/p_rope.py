from __future__ import annotations

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .rope import power_frequencies
from .scaling import UnscaledRoPE


@register("p_rope")
class PRoPE(UnscaledRoPE):
    """p-RoPE (Barbero et al., 2024, arXiv:2410.06205, section 6): the lowest frequencies are switched off.

    The first p of the pairs keep their frequencies theta^(-2k/r), the rest get 0 and carry content only. Not the same as
    `rope(partial=p)`, whose frequencies span the whole range on fewer dimensions.

    Args:
        p: fraction of the rotated pairs that turn; the paper finds 0.75 best.

    Needs training from scratch, or fine-tuning.
    """

    needs_training = "pretraining or fine-tuning at the native length"

    def __init__(self, geometry: Geometry, *, p: float = 0.75):
        super().__init__(geometry)
        if positive("p", p) > 1:
            raise ValueError(f"p is a fraction of the pairs, at most 1, got {p!r}")
        self.turning = int(p * self.dim // 2)
        self.p = float(p)
        if not self.turning:
            raise ValueError(f"p = {p!r} turns none of the {self.dim // 2} pairs of this model; use 'nope' for that")

    def inverse_frequencies(self) -> Tensor:
        frequencies = power_frequencies(self.theta, self.dim)
        return torch.where(torch.arange(self.dim // 2) < self.turning, frequencies, 0.0)

    def rope_parameters(self):
        if self.dim != self.geometry.head_dim:
            return None
        return {"rope_type": "proportional", "rope_theta": self.theta, "partial_rotary_factor": self.p}
