from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Geometry, register
from ..options import positive
from .rope import power_frequencies
from .scaling import ScaledRoPE


@register("ntk_mixed")
class NTKMixed(ScaledRoPE):
    """NTK-RoPE in mixed radix (Su, 2023, kexue.fm/archives/9706; bojone/rerope).

    f_k -> f_k exp(-a (k + 1)^b) with a = ln s / (r/2)^b: the lowest frequency is divided by exactly s. With b = 1 all radices are
    alike, as under `ntk`; below, the high frequencies take more of the stretch.

    Args:
        factor: s, target context over native context.
        target_length: target context in tokens, instead of `factor`.
        exponent: b; 0.75 in the author's code.

    Works without training. Differs from the author's code: without its temperature max(1, ln n / ln L) on the logits of the n-th token.
    """

    def __init__(self, geometry: Geometry, *, factor: float | None = None, target_length: int | None = None, exponent: float = 0.75):
        super().__init__(geometry, factor=factor, target_length=target_length)
        self.exponent = positive("exponent", exponent, at_most=10.0)

    def inverse_frequencies(self) -> Tensor:
        a = math.log(self.factor) / (self.dim / 2) ** self.exponent
        return power_frequencies(self.theta, self.dim) * (-a * torch.arange(1, self.dim // 2 + 1).float() ** self.exponent).exp()
