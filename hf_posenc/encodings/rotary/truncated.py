from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import count
from .rope import power_frequencies
from .scaling import UnscaledRoPE


@register("truncated")
class TruncatedRoPE(UnscaledRoPE):
    """The truncated basis (Pal et al., 2023, Giraffe, arXiv:2308.10882, section 4; abacusai/Long-Context).

    With t = 2 pi / n: frequencies from t on are kept, those below t / 8 become 0, and those between become t / 16, so that each pair
    comes round within n tokens, or hardly turns, or does not.

    Args:
        tokens: n; default the native context.

    Needs training: fine-tuning at the native length.
    """

    needs_training = "fine-tuning at the native length"

    def __init__(self, geometry: Geometry, *, tokens: int | None = None):
        super().__init__(geometry)
        self.tokens = geometry.max_positions if tokens is None else count("tokens", tokens)

    def inverse_frequencies(self) -> Tensor:
        plain, cutoff = power_frequencies(self.theta, self.dim), 2 * math.pi / self.tokens
        slow = torch.where(plain < cutoff / 8, 0.0, cutoff / 16)
        return torch.where(plain < cutoff, slow, plain)
